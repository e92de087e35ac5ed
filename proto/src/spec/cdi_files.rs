//! Files of the Container Device Interface on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use super::cdi::{Edits, Registry, resolve};
use crate::error::{Context, Error, Result};
use crate::kind::Kind;

/// What the named devices (`VENDOR/CLASS=NAME`) bring into a container; without names no file is read. Files that cannot be
/// read are left out, and `warn` learns why: their devices may not be those that are asked for.
///
/// # Errors
///
/// `NotFound` for names that nothing defines.
pub fn edits(directories: &[PathBuf], names: &[String], warn: impl FnMut(Error)) -> Result<Vec<Edits>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let registries = registries(directories, warn)?;
    Ok(resolve(&registries, names)?.into_iter().cloned().collect())
}

/// Everything that the files of some directories define.
///
/// # Errors
///
/// Those of a directory that cannot be read.
pub fn registries(directories: &[PathBuf], mut warn: impl FnMut(Error)) -> Result<Vec<Registry>> {
    let mut registries = Vec::new();
    for directory in directories {
        for path in files(directory)? {
            match read(&path) {
                Ok(registry) => registries.push(registry),
                Err(error) => warn(error),
            }
        }
    }
    Ok(registries)
}

/// The files of a directory, by name; none where it is missing.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let shown = || directory.display().to_string();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("read", shown())?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.context("read", shown())?.path();
        if path.extension().is_some_and(|kind| kind == "json" || kind == "yaml" || kind == "yml") {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn read(path: &Path) -> Result<Registry> {
    let shown = || path.display().to_string();
    let text = fs::read_to_string(path).context("read", shown())?;
    // JSON is YAML.
    let registry: Registry = serde_yaml_ng::from_str(&text)
        .map_err(|error| Error::because(Kind::InvalidArgument, "read", shown(), error))?;
    let is_known =
        ["0.", "1."].iter().any(|major| registry.cdi_version.trim_start_matches('v').starts_with(major));
    if !is_known {
        let why = format!("version {:?} of CDI is not known", registry.cdi_version);
        return Err(Error::because(Kind::InvalidArgument, "read", shown(), why));
    }
    Ok(registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_takes_none_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("a.yaml", "cdiVersion: 0.6.0\nkind: v.test/toy\ndevices: [{name: one}]\n");
        write("b.json", "{");
        write("c.json", r#"{"cdiVersion": "9.0.0", "kind": "v.test/other"}"#);
        write("d.txt", "nothing");
        let mut warnings = 0;
        let places = [directory.path().to_owned(), directory.path().join("nowhere")];
        let found = edits(&places, &["v.test/toy=one".to_owned()], |_| warnings += 1).unwrap();
        assert_eq!((found.len(), warnings), (2, 2));
        assert_eq!(edits(&places, &["v.test/toy=two".to_owned()], drop).unwrap_err().kind(), Kind::NotFound);
    }
}
