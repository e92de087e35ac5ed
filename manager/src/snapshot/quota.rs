//! Limits of what an active layer may take, kept by the file system's quotas of projects (ext4 and XFS, mounted with `prjquota`).
//!
//! A layer that has one belongs to a project of its own, from its directory down; the number is noted there and nowhere else.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use orlop_host::sys::quota;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::overlay::is_user_namespace;
use super::snapshotter::{Layer, SnapshotKind};

/// Label with the most bytes that a snapshot may take (containerd 2.4, `snapshots.LabelSnapshotMaxSize`).
pub const MAX_SIZE: &str = "containerd.io/snapshot/max-size";
/// The numbers of our projects have this bit, which leaves those of people and of dockerd alone, who count from 1.
const OURS: u32 = 1 << 30;
/// How many numbers are looked at for one that nobody uses.
const TRIES: u32 = 1024;

/// The limits of a directory of layers.
pub struct Quotas {
    root: PathBuf,
    are_enforced: OnceLock<bool>,
    /// Held from the choice of a number until it is taken.
    choosing: Mutex<()>,
}

impl Quotas {
    /// Limits of the layers in a directory.
    pub fn new(root: &Path) -> Quotas {
        Quotas { root: root.to_owned(), are_enforced: OnceLock::new(), choosing: Mutex::default() }
    }

    /// Whether the file system enforces limits.
    pub fn are_enforced(&self) -> bool {
        *self.are_enforced.get_or_init(|| {
            let Ok(root) = File::open(&self.root) else { return false };
            // Nothing can be moved out of a project that is inherited, as layers are that go.
            let is_free = quota::project(root.as_fd()).is_ok_and(|project| project == 0);
            is_free && quota::is_enforced(root.as_fd()) && !is_user_namespace()
        })
    }

    /// Gives a new, empty directory the limit that its layer's label asks for; without such a label, or where none would be
    /// enforced, nothing happens, as under containerd.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn begin(&self, directory: &Path, layer: &Layer) -> Result<()> {
        let Some(bytes) = wanted(layer).filter(|_| self.are_enforced()) else { return Ok(()) };
        let name = || directory.display().to_string();
        let file = File::open(directory).context("open", name())?;
        let inode = file.metadata().context("inspect", name())?.ino();
        let _choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        let project = free_project(&file, inode).context("find project for", name())?.ok_or_else(|| {
            Error::because(Kind::ResourceExhausted, "find project for", name(), "too many are in use")
        })?;
        quota::set_project(file.as_fd(), project).context("set project of", name())?;
        quota::set_limit(file.as_fd(), project, bytes).context("limit", name())
    }

    /// Lifts the limit of a directory that goes.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn end(&self, directory: &Path) -> Result<()> {
        if !self.are_enforced() {
            return Ok(());
        }
        let name = || directory.display().to_string();
        let file = match File::open(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            file => file.context("open", name())?,
        };
        let project = quota::project(file.as_fd()).context("read project of", name())?;
        if project & OURS == 0 {
            return Ok(());
        }
        quota::set_limit(file.as_fd(), project, 0).context("lift limit of", name())
    }
}

/// The limit that a layer's label asks for; one that is no number of bytes counts for nothing, as under containerd.
fn wanted(layer: &Layer) -> Option<u64> {
    let bytes = layer.labels.get(MAX_SIZE).filter(|_| layer.kind == SnapshotKind::Active)?;
    bytes.parse::<i64>().ok().and_then(|bytes| u64::try_from(bytes).ok()).filter(|&bytes| bytes > 0)
}

/// A number that no file has and no limit, from one on that depends on the directory: others on this file system start elsewhere.
fn free_project(file: &File, inode: u64) -> std::io::Result<Option<u32>> {
    for step in 0..TRIES {
        let project = OURS | ((inode as u32).wrapping_add(step) & (OURS - 1));
        if quota::quota(file.as_fd(), project)? == quota::Quota::default() {
            return Ok(Some(project));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_of_bytes_of_an_active_layer() {
        let layer = |kind, text: &str| Layer {
            id: 1,
            kind,
            parents: Vec::new(),
            labels: [(MAX_SIZE.to_owned(), text.to_owned())].into(),
        };
        assert_eq!(wanted(&layer(SnapshotKind::Active, "1048576")), Some(1 << 20));
        assert_eq!(wanted(&layer(SnapshotKind::View, "1048576")), None);
        for text in ["", "0", "-1", "1M", "9223372036854775808"] {
            assert_eq!(wanted(&layer(SnapshotKind::Active, text)), None, "{text}");
        }
    }
}
