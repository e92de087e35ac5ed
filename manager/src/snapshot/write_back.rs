//! Committed layers that are kept file by file get to the disk in the background.
//!
//! Their record is durable before their files are: it says in which boot of the machine they were unpacked until all
//! of them are known to be on the disk. Whoever finds such a record after the machine went down unpacks the layer
//! again. Nobody waits for a disk meanwhile, and nothing but the layer's own files is written back.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use orlop_host::sys::verity;
use orlop_proto::error::{Context, Result};
use orlop_proto::kind::Kind;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::records::{SNAPSHOTS, sort_lowest_first};
use super::{Shared, Snapshots};
use crate::db::Query;

/// Where the kernel says which boot this is (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How deep directories may be nested, each level of which holds a descriptor.
const MAX_DEPTH: usize = 1024;

/// Which boot of the machine this is.
pub fn boot_id() -> Result<String> {
    std::fs::read_to_string(BOOT_ID).map(|text| text.trim().to_owned()).context("read", BOOT_ID)
}

/// A layer whose files are not known to be on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsynced {
    /// Namespace of the snapshot.
    pub namespace: String,
    /// Its snapshotter.
    pub snapshotter: String,
    /// Its name.
    pub name: String,
    /// Number of the layer.
    pub layer: u64,
    /// Whether the machine went down since, so that files may be missing.
    pub is_doubtful: bool,
}

/// What waits to be written back, and whether somebody is at it.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<Unsynced>>,
    is_running: AtomicBool,
    /// How long a layer waits at most for others to come, in milliseconds.
    delay: AtomicU64,
    /// Whether images are sealed once they are on the disk.
    seals: AtomicBool,
}

impl Snapshots {
    /// How long after a commit files are written back: a pull comes first.
    pub fn set_write_back_delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.shared.write_back.delay.store(delay, Ordering::Relaxed);
    }

    /// Whether the kernel checks images at each read from when they are on the disk, where kernel and file system can.
    pub fn set_seals(&self, are_wanted: bool) {
        self.shared.write_back.seals.store(are_wanted, Ordering::Relaxed);
    }

    /// The layers that are not known to be on the disk, each after those below it. Blocks.
    pub fn unsynced(&self) -> Result<Vec<Unsynced>> {
        let boot = &self.shared.boot;
        let mut found = Vec::new();
        let mut records = self.shared.db.read_now(|tx| tx.scan(&SNAPSHOTS, ""))?;
        sort_lowest_first(&mut records);
        for (key, record) in records {
            let mut parts = key.splitn(3, '\0').map(str::to_owned);
            let (Some(namespace), Some(snapshotter), Some(name)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            if !record.unsynced.is_empty() {
                let is_doubtful = record.unsynced != *boot;
                found.push(Unsynced { namespace, snapshotter, name, layer: record.layer, is_doubtful });
            }
        }
        Ok(found)
    }

    /// Has a layer's files written back when there is time.
    pub fn write_back(&self, layer: Unsynced) {
        let queue = &self.shared.write_back;
        let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(layer);
        if !queue.is_running.swap(true, Ordering::AcqRel) {
            let (shared, delay) = (Arc::downgrade(&self.shared), queue.delay.load(Ordering::Relaxed));
            // A thread of its own, for as long as there is work: its priority must not stay with a shared one.
            let started = std::thread::Builder::new()
                .name("write-back".to_owned())
                .spawn(move || work(&shared, Duration::from_millis(delay)));
            if let Err(error) = started {
                queue.is_running.store(false, Ordering::Release);
                tracing::warn!(%error, "layers are written back by the kernel alone");
            }
        }
    }
}

/// What is written back next.
struct Waiting {
    layer: Unsynced,
    /// Where its files are.
    files: Option<PathBuf>,
    /// The image among them that is to be sealed.
    image: Option<PathBuf>,
}

/// Writes back until nothing waits, or nobody has the snapshots any more.
fn work(shared: &Weak<Shared>, delay: Duration) {
    // Ignoring: without it the disk is shared as usual.
    let _ = orlop_host::sys::disk::use_idle_io_priority();
    std::thread::sleep(delay);
    while let Some(Waiting { layer, files, image }) = shared.upgrade().and_then(|shared| shared.next()) {
        let started = std::time::Instant::now();
        let synced = files.map_or(Ok(()), |files| sync_tree(&files));
        if let (Ok(()), Some(image)) = (&synced, image)
            && let Err(error) = seal(&image)
            && error.kind() != Kind::NotFound
        {
            tracing::warn!(layer = layer.layer, %error, "layer is not sealed");
        }
        let Some(shared) = shared.upgrade() else { return };
        let settled = match synced {
            // It was removed meanwhile.
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => shared.settle(&layer),
        };
        let elapsed = started.elapsed();
        match settled {
            Ok(()) => tracing::debug!(layer = layer.layer, ?elapsed, "layer is on the disk"),
            Err(error) => {
                tracing::warn!(layer = layer.layer, %error, "layer is written back by the kernel alone");
            }
        }
    }
}

impl Shared {
    /// The next layer; with none left, the worker is gone.
    fn next(&self) -> Option<Waiting> {
        let mut waiting = self.write_back.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(layer) = waiting.pop_front() else {
            self.write_back.is_running.store(false, Ordering::Release);
            return None;
        };
        let snapshotter = self.snapshotters.get(layer.snapshotter.as_str());
        let files = snapshotter.and_then(|snapshotter| snapshotter.files(layer.layer));
        let image = snapshotter.and_then(|snapshotter| snapshotter.image(layer.layer));
        let image = image.filter(|_| self.write_back.seals.load(Ordering::Relaxed));
        Some(Waiting { layer, files, image })
    }

    /// Records that a layer's files are on the disk.
    fn settle(&self, layer: &Unsynced) -> Result<()> {
        let key = crate::db::key(&[&layer.namespace, &layer.snapshotter, &layer.name]);
        self.db.write_now(|tx| {
            tx.do_not_count();
            match tx.get(&SNAPSHOTS, &key)? {
                Some(mut record) if record.layer == layer.layer && record.unsynced == self.boot => {
                    record.unsynced.clear();
                    tx.put(&SNAPSHOTS, &key, &record)
                }
                _ => Ok(()),
            }
        })
    }
}

/// Brings a tree of files to the disk: all data on its way first, then every file and directory waited for, of which the
/// first makes the file system write its journal and the others find it written.
fn sync_tree(root: &Path) -> Result<()> {
    let name = root.display().to_string();
    let open = || File::open(root).map(OwnedFd::from).context("open", name.clone());
    each(&open()?, 0, &mut |file, is_directory| match is_directory {
        true => Ok(()),
        // Some file systems have no such call; what follows does all the work then.
        false => orlop_host::sys::disk::start_write_back(file.as_fd()).or(Ok(())),
    })
    .context("write back", name.clone())?;
    each(&open()?, 0, &mut |file, _| rustix::fs::fsync(file).map_err(Into::into))
        .context("sync", name.clone())?;
    // The names on the way to it: of the layer, and of its files within.
    root.ancestors().skip(1).take(2).try_for_each(crate::content::blobs::sync_directory)
}

/// Has the kernel check an image at each read from now on, if kernel and file system can.
fn seal(image: &Path) -> Result<()> {
    let name = || image.display().to_string();
    let file = File::open(image).context("open", name())?;
    match verity::seal(file.as_fd()) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
            tracing::debug!(image = name(), "no fs-verity here");
            Ok(())
        }
        Err(error) => Err(error).context("seal", name()),
        Ok(()) => file.sync_all().context("sync", name()),
    }
}

/// Shows each regular file, and each directory after what is in it.
fn each(
    directory: &OwnedFd,
    depth: usize,
    show: &mut impl FnMut(&OwnedFd, bool) -> std::io::Result<()>,
) -> std::io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(rustix::io::Errno::LOOP.into());
    }
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = rustix::fs::openat(directory, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                each(&inner, depth + 1, show)?;
            }
            FileType::RegularFile => {
                show(&rustix::fs::openat(directory, name, flags, Mode::empty())?, false)?;
            }
            // Links, devices and the like are entries of their directory.
            _ => {}
        }
    }
    show(directory, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_and_directory_is_synced_and_nothing_is_followed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        std::fs::write(root.path().join("a/b/file"), b"x").unwrap();
        std::os::unix::fs::symlink("/", root.path().join("a/link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.path().join("fifo"), Mode::RUSR).unwrap();
        let (mut files, mut directories) = (0, 0);
        let open = OwnedFd::from(File::open(root.path()).unwrap());
        each(&open, 0, &mut |_, is_directory| {
            *(if is_directory { &mut directories } else { &mut files }) += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!((files, directories), (1, 3));
        sync_tree(root.path()).unwrap();
        assert_eq!(sync_tree(&root.path().join("gone")).unwrap_err().kind(), Kind::NotFound);
        // Whether or not there is such a thing here.
        seal(&root.path().join("a/b/file")).unwrap();
        assert_eq!(std::fs::read(root.path().join("a/b/file")).unwrap(), b"x");
        assert_eq!(seal(&root.path().join("gone")).unwrap_err().kind(), Kind::NotFound);
    }
}
