//! The snapshotter `overlayfs`: one directory of changes per layer, put on top of each other by the kernel.
//!
//! `ID/fs` holds a layer's files, `ID/work` is the kernel's scratch space while the layer is active. Mounts are
//! those of containerd's snapshotter of the same name (Documentation/filesystems/overlayfs.rst).

use std::fs::{DirBuilder, metadata};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Result};

use super::snapshotter::{Layer, LayerDirectory, LayerMounts, Mount, SnapshotKind, Snapshotter, Usage};
use super::usage::usage;

/// The snapshotter `overlayfs`.
pub struct Overlay {
    directory: LayerDirectory,
    /// Options that depend on the kernel and on whose user namespace this is.
    options: Vec<&'static str>,
}

impl Overlay {
    /// Opens the directory of layers, which is made if need be.
    pub fn open(root: &Path) -> Result<Overlay> {
        let mut options = Vec::new();
        // Layers are shared between mounts, which the inode index forbids.
        if Path::new("/sys/module/overlay/parameters/index").exists() {
            options.push("index=off");
        }
        // Only the host's root may set trusted.* attributes.
        if is_user_namespace() {
            options.push("userxattr");
        }
        Ok(Overlay { directory: LayerDirectory::open(root)?, options })
    }

    fn upper(&self, id: u64) -> PathBuf {
        self.directory.path(id).join("fs")
    }

    fn work(&self, id: u64) -> PathBuf {
        self.directory.path(id).join("work")
    }
}

impl Snapshotter for Overlay {
    fn name(&self) -> &'static str {
        "overlayfs"
    }

    fn root(&self) -> &Path {
        self.directory.root()
    }

    fn create(&self, layer: &Layer) -> Result<()> {
        let mut modes = vec![(self.directory.path(layer.id), 0o700), (self.upper(layer.id), 0o755)];
        if layer.kind == SnapshotKind::Active {
            modes.push((self.work(layer.id), 0o711));
        }
        for (path, mode) in modes {
            let name = || path.display().to_string();
            DirBuilder::new().mode(mode).create(&path).context("create", name())?;
            // The mask of the process must not show.
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).context("protect", name())?;
        }
        if let Some(parent) = layer.parents.first() {
            let parent = self.upper(*parent);
            let owner = metadata(&parent).context("inspect", parent.display().to_string())?;
            let upper = self.upper(layer.id);
            lchown(&upper, Some(owner.uid()), Some(owner.gid()))
                .context("change owner of", upper.display().to_string())?;
        }
        Ok(())
    }

    fn mounts(&self, layer: &Layer) -> Result<LayerMounts> {
        let bind = |path: PathBuf, access: &str| {
            LayerMounts::from(vec![Mount {
                kind: "bind".to_owned(),
                source: path.display().to_string(),
                options: vec![access.to_owned(), "rbind".to_owned()],
                ..Mount::default()
            }])
        };
        let mut options: Vec<String> = self.options.iter().map(|&option| option.to_owned()).collect();
        match (layer.kind, layer.parents.as_slice()) {
            (SnapshotKind::Active, []) => return Ok(bind(self.upper(layer.id), "rw")),
            (_, []) => return Ok(bind(self.upper(layer.id), "ro")),
            (SnapshotKind::Active, _) => {
                options.push(format!("workdir={}", self.work(layer.id).display()));
                options.push(format!("upperdir={}", self.upper(layer.id).display()));
            }
            // A lower directory alone is no overlay.
            (_, [only]) => return Ok(bind(self.upper(*only), "ro")),
            _ => {}
        }
        let lower: Vec<String> =
            layer.parents.iter().map(|id| self.upper(*id).display().to_string()).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        let overlay =
            Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options, ..Mount::default() };
        Ok(LayerMounts::from(vec![overlay]))
    }

    fn usage(&self, id: u64) -> Result<Usage> {
        usage(&self.upper(id))
    }

    fn files(&self, id: u64) -> Option<PathBuf> {
        Some(self.upper(id))
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

/// Whether this process lives in a user namespace of its own (user_namespaces(7): the initial one maps
/// everything to itself).
fn is_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().ne(["0", "0", "4294967295"]))
}
