//! orlop's binary on a read-only mount of its own. A runtime that is executed from there need not seal itself, which is another
//! mount, another execution, and a wait for the kernel to take that mount away, each time that a process enters a container.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use orlop_host::sys::mount::{self, ATTR_RDONLY, Attributes};

/// A binary that nobody can write through `/proc/PID/exe` of who runs it.
pub struct Sealed {
    mount: OwnedFd,
    path: PathBuf,
    file: (u64, u64),
}

impl Sealed {
    /// The binary at a path; the one that was made before, as long as the path leads to the same file. None where it cannot be
    /// mounted: then the runtime seals itself.
    pub fn of<'a>(kept: &'a mut Option<Sealed>, path: &Path) -> Option<BorrowedFd<'a>> {
        let file = fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok()?;
        if kept.as_ref().is_none_or(|sealed| sealed.path != path || sealed.file != file) {
            let mount = mount::clone_tree(AT_FDCWD, path, false).ok()?;
            let read_only = Attributes { set: ATTR_RDONLY, ..Attributes::default() };
            mount::set_attributes(mount.as_fd(), false, read_only).ok()?;
            *kept = Some(Sealed { mount, path: path.to_owned(), file });
        }
        kept.as_ref().map(|sealed| sealed.mount.as_fd())
    }
}
