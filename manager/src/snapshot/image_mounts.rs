//! Mounts of image files, below the state directory, for as long as somebody needs them.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::mount::{MntFlags, umount2};
use orlop_host::sys::loop_device;
use orlop_host::sys::mount::{ATTR_RDONLY, FsContext, attach};
use orlop_host::sys::path::is_mount_root;
use orlop_proto::error::{Context, Error, Result};
use rustix::fs::{Mode, OFlags};

use crate::content::blobs::names;

/// Whether this kernel knows EROFS at all; its module is loaded by asking.
pub fn is_supported() -> bool {
    FsContext::open("erofs").is_ok()
}

/// Mounts an image where nobody sees it: from the file itself where the kernel can (Linux 6.12), else by a loop device.
pub fn mount(image: &Path) -> Result<OwnedFd> {
    let name = image.display().to_string();
    match mount_source(&name) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOTBLK) => mount_by_loop_device(image),
        result => result.map_err(|error| Error::io("mount", name, error)),
    }
}

/// Mounts an image where nobody sees it, by a read-only loop device that goes with the mount.
pub fn mount_by_loop_device(image: &Path) -> Result<OwnedFd> {
    let name = image.display().to_string();
    let file = File::open(image).context("open", &name)?;
    // Open until it is mounted: an unused device goes by itself.
    let (path, _device) = loop_device::attach(file.as_fd(), true)
        .map_err(|error| Error::io("attach loop device to", &name, error))?;
    mount_source(&path.display().to_string()).map_err(|error| Error::io("mount", name, error))
}

fn mount_source(source: &str) -> std::io::Result<OwnedFd> {
    let context = FsContext::open("erofs")?;
    context.string("source", source)?;
    context.flag("ro")?;
    context.mount(ATTR_RDONLY)
}

/// The root of an image, opened for reading; the mount goes with the descriptor.
pub fn root(image: &Path) -> Result<OwnedFd> {
    root_of(&mount(image)?, image)
}

/// The root of a mounted image, opened for reading.
pub fn root_of(mounted: &OwnedFd, image: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(mounted, ".", flags, Mode::empty()).context("open", image.display().to_string())
}

/// The mounts, each at the number of its layer.
pub struct ImageMounts {
    directory: PathBuf,
    users: Mutex<HashMap<u64, usize>>,
}

impl ImageMounts {
    /// Mounts below this directory, which is made when it is needed.
    pub fn new(directory: &Path) -> Arc<ImageMounts> {
        Arc::new(ImageMounts { directory: directory.to_owned(), users: Mutex::default() })
    }

    /// Where a layer is mounted while it is held.
    pub fn path(&self, id: u64) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// Mounts images, each once however many hold it.
    pub fn hold(self: &Arc<Self>, images: &[(u64, PathBuf)]) -> Result<ImageHold> {
        let mut hold = ImageHold { mounts: self.clone(), ids: Vec::new() };
        for (id, image) in images {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            let count = users.entry(*id).or_default();
            if *count == 0 {
                self.attach(*id, image)?;
            }
            *count += 1;
            drop(users);
            hold.ids.push(*id);
        }
        Ok(hold)
    }

    fn attach(&self, id: u64, image: &Path) -> Result<()> {
        let path = self.path(id);
        let name = || path.display().to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(&path).context("create", name())?;
        let place = File::open(&path).context("open", name())?;
        // A process before this one may have mounted it.
        if is_mount_root(place.as_fd()).context("inspect", name())? {
            return Ok(());
        }
        let mounted = mount(image)?;
        attach(mounted.as_fd(), place.as_fd()).context("mount on", name())
    }

    /// Mounts anew the image of a layer that somebody holds.
    pub fn renew(&self, id: u64, image: &Path) -> Result<()> {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.get(&id).is_none_or(|count| *count == 0) {
            return Ok(());
        }
        self.detach(id);
        self.attach(id, image)
    }

    /// Unmounts what an earlier process mounted and nobody holds.
    pub fn settle(&self) -> Result<()> {
        if !self.directory.exists() {
            return Ok(());
        }
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        for id in names(&self.directory)?.iter().filter_map(|name| name.parse().ok()) {
            if users.get(&id).is_none_or(|count| *count == 0) {
                self.detach(id);
            }
        }
        Ok(())
    }

    /// Whoever has it mounted through an overlay keeps it; the name goes at once.
    fn detach(&self, id: u64) {
        let path = self.path(id);
        // Ignoring: what is not mounted needs no unmounting, and what stays behind goes at the next start.
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&path);
    }
}

/// Keeps images mounted until it is dropped.
pub struct ImageHold {
    mounts: Arc<ImageMounts>,
    ids: Vec<u64>,
}

impl Drop for ImageHold {
    fn drop(&mut self) {
        let mut users = self.mounts.users.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &self.ids {
            let Some(count) = users.get_mut(id) else { continue };
            *count -= 1;
            if *count == 0 {
                users.remove(id);
                self.mounts.detach(*id);
            }
        }
    }
}
