//! The snapshotter `overlayfs`: one directory of changes per layer, put on top of each other by the kernel.
//!
//! `ID/fs` holds a layer's files, `ID/work` is the kernel's scratch space while the layer is active. Mounts are
//! those of containerd's snapshotter of the same name (Documentation/filesystems/overlayfs.rst).

use std::fs::{DirBuilder, File, metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use orlop_proto::error::{Context, Result};

use super::snapshotter::{
    Layer, LayerDirectory, LayerMounts, Mount, SnapshotKind, Snapshotter, UnpackPlace, Usage,
};
use super::usage::usage;
use crate::labels::{Labels, invalid};

/// Label with the mapping of users, `CONTAINER:HOST:LENGTH` with commas between several, by which owners are shifted.
const UID_LABEL: &str = "containerd.io/snapshot/uidmapping";
/// The same of groups.
const GID_LABEL: &str = "containerd.io/snapshot/gidmapping";
/// The first kernel whose overlayfs takes id-mapped layers.
const SHIFTS_SINCE: (u32, u32) = (5, 19);
/// File systems that can be id-mapped since then (statfs(2)): ext4, XFS, Btrfs, F2FS. The mount itself has the last word.
const SHIFTED: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];
/// The same for tmpfs, which needs Linux 6.3.
const TMPFS: (u64, (u32, u32)) = (0x0102_1994, (6, 3));

/// The snapshotter `overlayfs`.
pub struct Overlay {
    directory: LayerDirectory,
    /// Options that depend on the kernel and on whose user namespace this is.
    options: Vec<&'static str>,
    /// Whether owners can be shifted where layers are.
    shifts: OnceLock<bool>,
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
        Ok(Overlay { directory: LayerDirectory::open(root)?, options, shifts: OnceLock::new() })
    }

    /// What must be mounted for a layer over these directories, the nearest first.
    pub(super) fn mounts_over(&self, layer: &Layer, lower: &[PathBuf]) -> Vec<Mount> {
        let bind = |path: &Path, access: &str| {
            vec![Mount {
                kind: "bind".to_owned(),
                source: path.display().to_string(),
                options: vec![access.to_owned(), "rbind".to_owned()],
                ..Mount::default()
            }]
        };
        let mut options: Vec<String> = self.options.iter().map(|&option| option.to_owned()).collect();
        match (layer.kind, lower) {
            (SnapshotKind::Active, []) => return bind(&self.upper(layer.id), "rw"),
            (_, []) => return bind(&self.upper(layer.id), "ro"),
            (SnapshotKind::Active, _) => {
                options.push(format!("workdir={}", self.work(layer.id).display()));
                options.push(format!("upperdir={}", self.upper(layer.id).display()));
            }
            // A lower directory alone is no overlay.
            (_, [only]) => return bind(only, "ro"),
            _ => {}
        }
        let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        vec![Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options, ..Mount::default() }]
    }

    fn shifts(&self) -> bool {
        *self.shifts.get_or_init(|| !is_user_namespace() && can_shift(self.directory.root()))
    }

    /// Makes the directories of a layer that belongs to this user and group.
    pub(super) fn make(&self, layer: &Layer, owner: Option<(u32, u32)>) -> Result<()> {
        let directory = self.directory.path(layer.id);
        make_directory(&directory, 0o700)?;
        // What is made in it counts from now on.
        self.directory.quotas().begin(&directory, layer)?;
        let mut modes = vec![(self.upper(layer.id), 0o755)];
        if layer.kind == SnapshotKind::Active {
            modes.push((self.work(layer.id), 0o711));
        }
        for (path, mode) in modes {
            make_directory(&path, mode)?;
        }
        if let Some((uid, gid)) = owner {
            let upper = self.upper(layer.id);
            lchown(&upper, Some(uid), Some(gid)).context("change owner of", upper.display().to_string())?;
        }
        Ok(())
    }

    pub(super) fn directory(&self) -> &LayerDirectory {
        &self.directory
    }

    /// Where the files of a layer are.
    pub(super) fn upper(&self, id: u64) -> PathBuf {
        self.directory.path(id).join("fs")
    }

    pub(super) fn work(&self, id: u64) -> PathBuf {
        self.directory.path(id).join("work")
    }
}

impl Snapshotter for Overlay {
    fn name(&self) -> &str {
        "overlayfs"
    }

    fn root(&self) -> &Path {
        self.directory.root()
    }

    fn keeps_limits(&self) -> bool {
        self.directory.quotas().are_enforced()
    }

    fn create(&self, layer: &Layer) -> Result<()> {
        let owner = |parent: &u64| -> Result<(u32, u32)> {
            let parent = self.upper(*parent);
            let found = metadata(&parent).context("inspect", parent.display().to_string())?;
            Ok((found.uid(), found.gid()))
        };
        let owner = match shifted_root(&layer.labels)? {
            Some(root) => Some(root),
            None => layer.parents.first().map(owner).transpose()?,
        };
        self.make(layer, owner)
    }

    fn capabilities(&self) -> Vec<String> {
        // Without them clients shift owners by themselves, file by file.
        if self.shifts() { vec!["remap-ids".to_owned()] } else { Vec::new() }
    }

    fn mounts(&self, layer: &Layer) -> Result<LayerMounts> {
        let lower: Vec<PathBuf> = layer.parents.iter().map(|id| self.upper(*id)).collect();
        let mut mounts = self.mounts_over(layer, &lower);
        // A directory without layers below is written by its new owner alone.
        if !lower.is_empty() && self.shifts() {
            let words = [("uidmap", UID_LABEL), ("gidmap", GID_LABEL)];
            let words = words.iter().filter_map(|(word, label)| {
                layer.labels.get(*label).map(|mapping| format!("{word}={mapping}"))
            });
            for mount in &mut mounts {
                mount.options.splice(0..0, words.clone());
            }
        }
        Ok(LayerMounts::from(mounts))
    }

    fn unpack_place(&self, id: u64) -> Option<UnpackPlace> {
        Some(UnpackPlace::Directory { root: self.upper(id), userxattr: self.options.contains(&"userxattr") })
    }

    fn roots(&self, ids: &[u64]) -> Result<Vec<OwnedFd>> {
        let open = |id: &u64| {
            let path = self.upper(*id);
            let file = File::open(&path).context("open", path.display().to_string())?;
            Ok(OwnedFd::from(file))
        };
        ids.iter().map(open).collect()
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

/// Makes a directory with exactly this mode.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    let name = || path.display().to_string();
    DirBuilder::new().mode(mode).create(path).context("create", name())?;
    // The mask of the process must not show.
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).context("protect", name())
}

/// Whether this process lives in a user namespace of its own (user_namespaces(7): the initial one maps
/// everything to itself).
pub fn is_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().ne(["0", "0", "4294967295"]))
}

/// The users and groups that a container's root is on the host, if the labels shift owners.
fn shifted_root(labels: &Labels) -> Result<Option<(u32, u32)>> {
    let mappings = (labels.get(UID_LABEL), labels.get(GID_LABEL));
    if mappings == (None, None) {
        return Ok(None);
    }
    let root = |mapping: Option<&String>| {
        let entries = mapping.map(String::as_str).unwrap_or_default();
        let number = |entry: &str| -> Option<u32> {
            let numbers: Vec<u32> = entry.split(':').map(|word| word.parse().ok()).collect::<Option<_>>()?;
            match numbers[..] {
                [0, outside, length] if length > 0 => Some(outside),
                _ => None,
            }
        };
        entries.split(',').find_map(number)
    };
    match (root(mappings.0), root(mappings.1)) {
        (Some(uid), Some(gid)) => Ok(Some((uid, gid))),
        _ => Err(invalid("failed to find root pair: the labels uidmapping and gidmapping must both map 0")),
    }
}

/// Whether this kernel can shift owners of what is in a directory.
fn can_shift(directory: &Path) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut parts = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else { return false };
    let Ok(found) = rustix::fs::statfs(directory) else { return false };
    let kind = found.f_type as u64;
    (major, minor) >= SHIFTS_SINCE
        && (SHIFTED.contains(&kind) || (kind == TMPFS.0 && (major, minor) >= TMPFS.1))
}
