//! `tmpcopyup`: what the image has at a destination goes into the tmpfs that covers it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use orlop_host::sys::path::{Resolve, open_below};
use orlop_proto::error::{Error, Result};

/// Copies the content of a directory of the container into a detached mount.
pub fn copy_up(root: BorrowedFd, path: &Path, mount: BorrowedFd) -> Result<()> {
    let copy = || -> io::Result<()> {
        let from = open_below(root, path, libc::O_RDONLY | libc::O_DIRECTORY, 0, Resolve::InRoot)?;
        let into =
            openat(mount, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        copy_directory(from, into.as_fd())
    };
    copy().map_err(|error| Error::io("copy up", path.to_string_lossy(), error))
}

fn copy_directory(from: OwnedFd, into: BorrowedFd) -> io::Result<()> {
    let mut entries = Dir::from_fd(from.try_clone()?)?;
    let names: Vec<_> =
        entries.iter().filter_map(|entry| entry.ok()).map(|e| e.file_name().to_owned()).collect();
    for name in names {
        if name.as_c_str() == c"." || name.as_c_str() == c".." {
            continue;
        }
        let stat = fstatat(&from, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        let kind = SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT);
        match kind {
            SFlag::S_IFDIR => {
                mkdirat(into, name.as_c_str(), mode)?;
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let below = openat(&from, name.as_c_str(), flags, Mode::empty())?;
                let made = openat(into, name.as_c_str(), flags, Mode::empty())?;
                copy_directory(below, made.as_fd())?;
            }
            SFlag::S_IFREG => {
                let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut source = File::from(openat(&from, name.as_c_str(), flags, Mode::empty())?);
                let flags = flags | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
                let mut made = File::from(openat(into, name.as_c_str(), flags, mode)?);
                io::copy(&mut source, &mut made)?;
            }
            SFlag::S_IFLNK => {
                symlinkat(readlinkat(&from, name.as_c_str())?.as_os_str(), into, name.as_c_str())?;
            }
            _ => mknodat(into, name.as_c_str(), kind, mode, stat.st_rdev)?,
        }
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        fchownat(into, name.as_c_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind != SFlag::S_IFLNK {
            // The change of owner takes set-user-id bits away.
            fchmodat(into, name.as_c_str(), mode, FchmodatFlags::FollowSymlink)?;
        }
    }
    Ok(())
}
