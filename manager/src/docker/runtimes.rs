//! The programs of runtimes that a daemon.json names. One with arguments gets a script that adds them, since shims take a
//! program alone; it stays for the containers that run with it, also when the runtime is not named any more.

use std::collections::BTreeMap;
use std::fs::{Permissions, create_dir_all, read_to_string, rename, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Result};

use super::settings::Runtime;

/// Where the scripts are: not below /run, where many machines execute nothing.
fn script(root: &Path, name: &str) -> PathBuf {
    root.join("runtimes").join(name)
}

/// The program of a runtime.
pub fn program(root: &Path, name: &str, runtime: &Runtime) -> String {
    match runtime.runtime_args.is_empty() {
        true => runtime.path.clone(),
        false => script(root, name).display().to_string(),
    }
}

/// Writes the scripts. One that is executed at this moment is never half of itself.
///
/// # Errors
///
/// Those of the file system.
pub fn write_scripts(root: &Path, runtimes: &BTreeMap<String, Runtime>) -> Result<()> {
    for (name, runtime) in runtimes.iter().filter(|(_, runtime)| !runtime.runtime_args.is_empty()) {
        let quoted = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
        let words: Vec<String> =
            std::iter::once(&runtime.path).chain(&runtime.runtime_args).map(quoted).collect();
        let text = format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" "));
        let path = script(root, name);
        if read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        }
        let next = script(root, &format!(".{name}"));
        let written = path
            .parent()
            .map_or(Ok(()), create_dir_all)
            .and_then(|()| write(&next, text))
            .and_then(|()| set_permissions(&next, Permissions::from_mode(0o755)))
            .and_then(|()| rename(&next, &path));
        written.context("write", path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_added_by_a_script() {
        let root = tempfile::tempdir().unwrap();
        let plain = Runtime { path: "/bin/echo".to_owned(), ..Runtime::default() };
        let with = Runtime { runtime_args: vec!["it's".to_owned(), "a b".to_owned()], ..plain.clone() };
        let all = BTreeMap::from([("plain".to_owned(), plain.clone()), ("with".to_owned(), with.clone())]);
        write_scripts(root.path(), &all).unwrap();
        assert_eq!(program(root.path(), "plain", &plain), "/bin/echo");
        let script = program(root.path(), "with", &with);
        let said = std::process::Command::new(&script).arg("last").output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "it's a b last\n");
        // What is there already is not written again.
        use std::os::unix::fs::MetadataExt;
        let inode = || std::fs::metadata(&script).unwrap().ino();
        let before = inode();
        write_scripts(root.path(), &all).unwrap();
        assert_eq!(inode(), before);
        assert_eq!(std::fs::read_dir(root.path().join("runtimes")).unwrap().count(), 1);
    }
}
