//! `checkpoint` and `restore`: a container's processes saved to files and brought back by CRIU, as runc has it done.
//!
//! CRIU saves and restores processes, memory, namespaces and the mounts that it knows. What it must be told is what lies outside
//! of the container: bind mounts, masked files, joined namespaces, standard streams. A restored container is made like a
//! new one, but for its init, which CRIU makes as a child of ours.

mod dump;
mod options;
mod outside;
mod restore;
mod rpc;

use std::path::Path;

use crate::log::Log;

pub use dump::dump;
pub use options::Options;
pub use restore::restore;

/// The standard streams of a container's init, as a checkpoint keeps them.
const DESCRIPTORS: &str = "descriptors.json";
/// How many lines before an error are shown with it.
const BEFORE: usize = 5;

/// Shows the errors in CRIU's log with the lines that lead to them: its answer alone only says that it failed.
fn quote(log: &Log, path: &Path) {
    let Ok(text) = std::fs::read(path) else { return };
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let mut shown = 0;
    for (at, _) in lines.iter().enumerate().filter(|(_, line)| line.contains("Error")) {
        for (number, line) in lines.iter().enumerate().take(at + 1).skip(shown.max(at.saturating_sub(BEFORE)))
        {
            log.warning(format!("{}:{}: {line}", path.display(), number + 1));
        }
        shown = at + 1;
    }
}
