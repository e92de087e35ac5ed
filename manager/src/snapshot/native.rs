//! The snapshotter `native`: each layer is a whole copy, for file systems that overlay cannot use.

use std::path::{Path, PathBuf};

use orlop_proto::error::Result;

use super::copy::copy_tree;
use super::overlay::make_directory;
use super::snapshotter::{Layer, LayerDirectory, LayerMounts, Mount, SnapshotKind, Snapshotter, Usage};
use super::usage::usage;

/// The snapshotter `native`.
pub struct Native {
    directory: LayerDirectory,
}

impl Native {
    /// Opens the directory of layers, which is made if need be.
    pub fn open(root: &Path) -> Result<Native> {
        Ok(Native { directory: LayerDirectory::open(root)? })
    }

    /// Where a layer's files are: a view on a parent has none of its own.
    fn files(&self, layer: &Layer) -> PathBuf {
        match (layer.kind, layer.parents.first()) {
            (SnapshotKind::View, Some(parent)) => self.directory.path(*parent),
            _ => self.directory.path(layer.id),
        }
    }
}

impl Snapshotter for Native {
    fn name(&self) -> &str {
        "native"
    }

    fn root(&self) -> &Path {
        self.directory.root()
    }

    fn keeps_limits(&self) -> bool {
        self.directory.quotas().are_enforced()
    }

    fn create(&self, layer: &Layer) -> Result<()> {
        let path = self.files(layer);
        if path != self.directory.path(layer.id) {
            return Ok(());
        }
        make_directory(&path, 0o755)?;
        // The parent's files are copies here, and count too.
        self.directory.quotas().begin(&path, layer)?;
        match layer.parents.first() {
            Some(parent) => copy_tree(&self.directory.path(*parent), &path, None),
            None => Ok(()),
        }
    }

    fn mounts(&self, layer: &Layer) -> Result<LayerMounts> {
        let access = if layer.kind == SnapshotKind::Active { "rw" } else { "ro" };
        Ok(LayerMounts::from(vec![Mount {
            kind: "bind".to_owned(),
            source: self.files(layer).display().to_string(),
            options: vec!["rbind".to_owned(), access.to_owned()],
            ..Mount::default()
        }]))
    }

    fn usage(&self, id: u64) -> Result<Usage> {
        usage(&self.directory.path(id))
    }

    fn files(&self, id: u64) -> Option<PathBuf> {
        Some(self.directory.path(id))
    }

    fn exchange(&self, one: u64, other: u64) -> Result<()> {
        self.directory.exchange(one, other)
    }

    fn discard(&self, id: u64) -> Result<()> {
        self.directory.discard(id)
    }

    fn clean(&self) -> Result<()> {
        self.directory.clean()
    }

    fn layers(&self) -> Result<Vec<u64>> {
        self.directory.layers()
    }
}
