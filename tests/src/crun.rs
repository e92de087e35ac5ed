//! A crun that is newer than the distribution's.

use std::path::PathBuf;

use crate::binaries;
use crate::command::Cmd;

/// Its version, which `.ci/crun` builds.
pub const NEWER_CRUN: &str = "1.21";

/// Builds it once; where it is.
///
/// # Errors
/// Why it cannot be fetched or built.
pub fn newer_crun() -> Result<PathBuf, String> {
    let program = binaries::target_dir().join("peers").join(format!("crun-{NEWER_CRUN}"));
    if !program.exists() {
        let script = binaries::source_root().join(".ci/crun");
        // Its configuration alone takes a minute on a busy machine.
        let built = Cmd::new(script).arg(&program).deadline(std::time::Duration::from_secs(600)).run();
        if !built.status.success() {
            return Err(built.stderr.trim().to_owned());
        }
    }
    Ok(program)
}
