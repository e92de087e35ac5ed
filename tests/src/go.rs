//! Programs from Go's module proxy, built here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::binaries;
use crate::command::Cmd;

fn find() -> Option<PathBuf> {
    binaries::find("go")
        .or_else(|| Some("/usr/local/go/bin/go".into()).filter(|path: &PathBuf| path.exists()))
}

/// Whether there is a Go to build with.
pub fn has_go() -> bool {
    find().is_some()
}

/// `go` in a directory, for static programs, with a deadline that a build on a slow machine keeps.
///
/// # Panics
/// Where Go is not installed.
pub fn go(cwd: &Path) -> Cmd {
    let go = find().expect("Go is not installed; foreign programs are built with it (https://go.dev/dl)");
    Cmd::new(go)
        .env("GOFLAGS", "-mod=mod -buildvcs=false")
        .env("CGO_ENABLED", "0")
        .cwd(cwd)
        .deadline(Duration::from_secs(1800))
}
