//! The suite itself: a pinned version of the module, built once.

use std::fs;
use std::path::{Path, PathBuf};

use orlop_tests::{Cmd, binaries, go};

const MODULE: &str = "github.com/opencontainers/runtime-tools";
const VERSION: &str = "v0.9.1-0.20251205004911-5e639034dcdc";
/// What Go's checksum database says of the module.
const SUM: &str = "h1:82NlZLiQEB6Wp+nmASMlkHsEXz3Q0pXJbK7QO6ck5lo=";
/// The suite's own helper, which runs inside containers.
const HELPER: &str = "runtimetest";

/// The names of the programs, sorted.
pub fn programs(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory.join("bin")).expect("the suite's programs");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("a program of the suite").file_name().to_string_lossy().into_owned())
        .filter(|name| name != HELPER)
        .collect();
    names.sort();
    assert_eq!(names.len(), 58, "{names:?}");
    names
}

/// Fetches and builds the suite once; returns the directory that it runs in.
pub fn build() -> PathBuf {
    let directory = binaries::target_dir().join("conformance");
    let (source, programs) = (directory.join("source"), directory.join("bin"));
    if directory.join(HELPER).exists() {
        return directory;
    }
    fs::create_dir_all(&programs).unwrap();
    let module = format!("{MODULE}@{VERSION}");
    let answer = go(&directory).args(["mod", "download", "-json", &module]).run().success();
    let answer: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON from go");
    assert_eq!(answer["Sum"], SUM, "the module is another one");
    let _ = fs::remove_dir_all(&source);
    // The module cache is read-only, and its vendor directory holds a list alone.
    let copy = format!(
        "cp -r '{}' '{}' && chmod -R u+w '{1}' && rm -r '{1}/vendor'",
        answer["Dir"].as_str().unwrap(),
        source.display()
    );
    Cmd::new("/bin/sh").args(["-c", &copy]).run().success();
    go(&source).args(["build", "-o"]).arg(&programs).arg("./validation/...").run().success();
    go(&source).args(["build", "-o"]).arg(programs.join(HELPER)).arg("./cmd/runtimetest").run().success();
    let archive = format!("rootfs-{}.tar.gz", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
    // The helper comes last: it says that all is there.
    for (from, to) in [(source.join(&archive), &*archive), (programs.join(HELPER), HELPER)] {
        fs::copy(from, directory.join(to)).unwrap();
    }
    directory
}
