//! What every way of keeping layers can do.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use orlop_host::mounting::Mount;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::quota::Quotas;
use crate::content::blobs::{make_directory, names};
use crate::labels::Labels;

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SnapshotKind {
    /// Readable, short-lived.
    View = 1,
    /// Writable; becomes committed or is removed.
    Active = 2,
    /// Fixed; others can be made on top of it.
    Committed = 3,
}

impl SnapshotKind {
    /// The word by which filters choose it.
    pub fn filter_name(self) -> &'static str {
        match self {
            SnapshotKind::View => "view",
            SnapshotKind::Active => "active",
            SnapshotKind::Committed => "committed",
        }
    }
}

/// A layer of files and those below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Number, never used twice.
    pub id: u64,
    /// What the snapshot is.
    pub kind: SnapshotKind,
    /// Numbers of the committed layers below, nearest first.
    pub parents: Vec<u64>,
    /// The snapshot's labels, of which some say how its files are to be kept.
    pub labels: Labels,
}

/// Something that the mounts of a layer need for as long as they are used, such as a mount of an image file
/// below the state directory. Dropped when the layer is committed or removed; made again by
/// [`Snapshotter::mounts`] after a restart.
pub type Hold = Box<dyn Any + Send>;

/// What must be mounted to use a layer.
pub struct LayerMounts {
    /// Mounts that anybody can make, in order.
    pub mounts: Vec<Mount>,
    /// What they need meanwhile.
    pub hold: Option<Hold>,
}

impl From<Vec<Mount>> for LayerMounts {
    fn from(mounts: Vec<Mount>) -> LayerMounts {
        LayerMounts { mounts, hold: None }
    }
}

/// Where a layer is unpacked that nobody reads before it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnpackPlace {
    /// An empty directory that overlayfs will put on top of the layers below.
    Directory {
        /// Its path.
        root: PathBuf,
        /// Whether overlayfs reads `user.overlay.*` there and not `trusted.overlay.*`.
        userxattr: bool,
    },
    /// One EROFS image, in this file.
    Image(PathBuf),
}

/// What files take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on the disk; a file with several names counts once.
    pub size: u64,
    /// Number of inodes.
    pub inodes: u64,
}

/// Keeps the files of layers. Names, parents and labels are the caller's affair.
///
/// All calls may block; those that take long say so.
pub trait Snapshotter: Send + Sync {
    /// The name that clients ask for.
    fn name(&self) -> &str;

    /// The directory that holds everything.
    fn root(&self) -> &Path;

    /// Facts that clients look for.
    fn exports(&self) -> Vec<(String, String)> {
        vec![("root".to_owned(), self.root().display().to_string())]
    }

    /// What it can do beyond the usual, in containerd's words.
    fn capabilities(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether an active layer takes no more than its label [`MAX_SIZE`](super::quota::MAX_SIZE) says.
    fn keeps_limits(&self) -> bool {
        false
    }

    /// Makes the files of an active layer or a view. What a failure leaves is discarded by the caller.
    fn create(&self, layer: &Layer) -> Result<()>;

    /// What must be mounted to use a layer; can be asked any number of times.
    fn mounts(&self, layer: &Layer) -> Result<LayerMounts>;

    /// Where an active layer made without a parent is unpacked on its own, to be put on top of its parent when both are
    /// complete; `None` where a layer's files depend on its parent's.
    fn unpack_place(&self, _id: u64) -> Option<UnpackPlace> {
        None
    }

    /// The roots of committed layers, each without those below it. Only where there is an [`UnpackPlace`].
    fn roots(&self, _ids: &[u64]) -> Result<Vec<OwnedFd>> {
        Ok(Vec::new())
    }

    /// What an active layer itself takes. Reads all its directories.
    fn usage(&self, id: u64) -> Result<Usage>;

    /// Closes an active layer; returns what it takes. Reads all its directories.
    fn commit(&self, id: u64) -> Result<Usage> {
        self.usage(id)
    }

    /// Where a layer's own files are, if it is kept file by file: then commit does not wait until they are on the disk.
    fn files(&self, _id: u64) -> Option<PathBuf> {
        None
    }

    /// Whether it may have layers before they are unpacked here, as remote snapshotters do.
    fn is_remote(&self) -> bool {
        false
    }

    /// The committed layer over there that is, as its label says, the snapshot of that name on top of these layers.
    fn find(&self, _target: &str, _parents: &[u64]) -> Result<Option<String>> {
        Ok(None)
    }

    /// From now on a number means the layer of that name over there.
    fn adopt(&self, _id: u64, _name: &str) {}

    /// The file that a layer is kept in, if it is one: the same layer gives the same bytes.
    fn image(&self, _id: u64) -> Option<PathBuf> {
        None
    }

    /// Where mounts on top of a layer look for it.
    fn shown(&self, id: u64) -> Option<PathBuf> {
        self.files(id)
    }

    /// Lets two layers have each other's files, in one step.
    fn exchange(&self, one: u64, _other: u64) -> Result<()> {
        Err(Error::because(Kind::Unimplemented, "replace layer", one.to_string(), self.name()))
    }

    /// Takes a layer's name away, if it has one. Its files go with the next [`Snapshotter::clean`].
    fn discard(&self, id: u64) -> Result<()>;

    /// Deletes the files of all discarded layers, which may take long.
    fn clean(&self) -> Result<()>;

    /// Lets go of what an earlier process held for mounts that nobody has asked for since.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// Every layer that has files.
    fn layers(&self) -> Result<Vec<u64>>;
}

/// A directory with one directory per layer, and one for discarded layers.
pub struct LayerDirectory {
    root: PathBuf,
    quotas: Quotas,
}

impl LayerDirectory {
    /// Opens the directory, which is made if need be.
    pub fn open(root: &Path) -> Result<LayerDirectory> {
        make_directory(&root.join("trash"))?;
        Ok(LayerDirectory { root: root.to_owned(), quotas: Quotas::new(root) })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of a layer.
    pub fn path(&self, id: u64) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// The limits of layers.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Lets two layers have each other's directory; if one has none, it gets the other's.
    pub fn exchange(&self, one: u64, other: u64) -> Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let (one, other) = (self.path(one), self.path(other));
        let rename = |flags| renameat_with(CWD, &one, CWD, &other, flags);
        match rename(RenameFlags::EXCHANGE) {
            Err(rustix::io::Errno::NOENT) => rename(RenameFlags::NOREPLACE),
            result => result,
        }
        .context("replace", other.display().to_string())?;
        crate::content::blobs::sync_directory(&self.root)
    }

    /// Takes a layer's name away.
    pub fn discard(&self, id: u64) -> Result<()> {
        let path = self.path(id);
        match std::fs::rename(&path, self.root.join("trash").join(id.to_string())) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove", path.display().to_string())
            }
            _ => Ok(()),
        }
    }

    /// Deletes discarded layers.
    pub fn clean(&self) -> Result<()> {
        let trash = self.root.join("trash");
        for name in names(&trash)? {
            let path = trash.join(name);
            self.quotas.end(&path)?;
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context("remove", path.display().to_string());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Numbers of the layers that have a directory.
    pub fn layers(&self) -> Result<Vec<u64>> {
        Ok(names(&self.root)?.iter().filter_map(|name| name.parse().ok()).collect())
    }
}
