//! Where the programs under test are.
//!
//! Each of ours can be set by an environment variable (`ORLOP`, `ORLOP_SHIM`, `ORLOPD`, `ORLOPCTL`), which the Makefile
//! does; without it, the most recently built of the usual target directories is taken, which is what a developer who has
//! just built one wants. Peers come from `PATH`, with `/usr/sbin` and `/sbin` added.

use std::env;
use std::path::{Path, PathBuf};

/// The low-level runtime, `orlop`.
pub fn orlop() -> PathBuf {
    built("ORLOP", "orlop")
}

/// The shim, `containerd-shim-orlop-v1`.
pub fn shim() -> PathBuf {
    built("ORLOP_SHIM", "containerd-shim-orlop-v1")
}

/// The manager, `orlopd`.
pub fn orlopd() -> PathBuf {
    built("ORLOPD", "orlopd")
}

/// The debug client, `orlopctl`.
pub fn orlopctl() -> PathBuf {
    built("ORLOPCTL", "orlopctl")
}

/// Whether a program of ours is a release build, whose figures count.
pub fn is_release(program: &Path) -> bool {
    program.components().any(|part| part.as_os_str() == "release")
}

/// The top of the source tree.
pub fn source_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the source tree").to_owned()
}

/// The directory that Cargo builds into: `CARGO_TARGET_DIR`, or `target` in the source tree.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| source_root().join("target"), PathBuf::from)
}

/// A program of the system, such as `runc` or `ctr`, or `None` where it is not installed.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A program of the system that the suite needs.
///
/// # Panics
/// Where it is not installed: the message names it and the script that installs it.
pub fn system(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|| panic!("{name} is not installed; .ci/setup installs what the suites need"))
}

fn built(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "{variable}={} is no file", path.display());
        return path;
    }
    let target = target_dir();
    ["x86_64-unknown-linux-musl/release", "release", "x86_64-unknown-linux-musl/debug", "debug"]
        .into_iter()
        .map(|dir| target.join(dir).join(name))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .unwrap_or_else(|| panic!("{name} is not built: run `make build`, or set {variable}"))
}
