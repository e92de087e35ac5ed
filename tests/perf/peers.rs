//! The runtimes that are measured: ours, the distribution's, and newer ones, which may be missing.

use std::path::{Path, PathBuf};

use orlop_tests::{Cmd, NEWER_CRUN, binaries, go, has_go, newer_crun};

/// runc's newest release, built here from Go's module proxy, and youki's, from crates.io. crun's are in no such place; a later Debian's is
/// newer than ours.
const RUNC: &str = "1.5.2";
const YOUKI: &str = "0.7.0";

/// Names and programs, ours first. What cannot be had is said.
pub fn all() -> Vec<(String, PathBuf)> {
    let mut all = vec![("orlop".to_owned(), binaries::orlop())];
    let mut add = |name: String, found: Result<PathBuf, String>| match found {
        Ok(program) => all.push((name, program)),
        Err(why) => println!("not run: {name}: {why}"),
    };
    for name in ["runc", "crun"] {
        add(name.to_owned(), binaries::find(name).ok_or_else(|| "it is not installed".to_owned()));
    }
    let directory = binaries::target_dir().join("peers");
    add(format!("runc-{RUNC}"), runc(&directory));
    add(format!("crun-{NEWER_CRUN}"), newer_crun());
    add(format!("youki-{YOUKI}"), youki(&directory));
    all
}

fn runc(directory: &Path) -> Result<PathBuf, String> {
    let program = directory.join(format!("runc-{RUNC}"));
    if program.exists() {
        return Ok(program);
    }
    if !has_go() {
        return Err("Go is not installed, which builds it".into());
    }
    let source = directory.join("runc");
    let _ = std::fs::remove_dir_all(&source);
    std::fs::create_dir_all(directory).map_err(|error| error.to_string())?;
    let module = format!("github.com/opencontainers/runc@v{RUNC}");
    let answer = go(directory).args(["mod", "download", "-json", &module]).run();
    let answer: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
    let Some(module) = answer["Dir"].as_str() else { return Err(format!("it cannot be fetched: {answer}")) };
    // The module cache is read-only.
    let copy = format!("cp -r '{module}' '{0}' && chmod -R u+w '{0}'", source.display());
    let copied = Cmd::new("/bin/sh").args(["-c", &copy]).run();
    // Its first half is C; its seccomp would be libseccomp's.
    let build = go(&source).env("CGO_ENABLED", "1").args(["build", "-trimpath", "-tags", "netgo osusergo"]);
    let built = build.args(["-ldflags", "-s -w", "-o"]).arg(&program).arg(".").run();
    match program.exists() {
        true => Ok(program),
        false => Err(format!("it cannot be built: {}{}", copied.stderr, built.stderr)),
    }
}

/// youki takes some 250 crates and minutes to build, so that whoever wants it beside the others builds it.
fn youki(directory: &Path) -> Result<PathBuf, String> {
    let program = directory.join("bin/youki");
    let found = if program.exists() { Some(program) } else { binaries::find("youki") };
    found.ok_or_else(|| {
        format!(
            "it is not there; `cargo install --locked youki --version {YOUKI} --no-default-features --features v1,v2 --root {}` builds it",
            directory.display()
        )
    })
}
