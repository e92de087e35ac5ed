//! Metadata of files: ownership, times, extended attributes, and the marks that overlayfs reads.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::archive::Time;

/// Attributes that overlayfs keeps its own state in. A layer that brings them would steer the mount that it becomes
/// part of, so they are left out, and copies never take them along.
const OVERLAY_ATTRIBUTES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// The default ACL of a directory, which changes the mode of what is made in it.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// The largest list of names and the largest value that Linux has, in bytes.
const MAX_XATTR: usize = 64 << 10;

/// An access control list as the kernel keeps it for a file of this mode, or of a directory's default one without:
/// `Some(None)` where the mode says it all, and `None` where the bytes are no list (acl(5), Linux'
/// `posix_acl_xattr.h`).
pub fn acl(value: &[u8], mode: Option<u32>) -> Option<Option<Vec<u8>>> {
    const HEADER: usize = 4;
    const ENTRY: usize = 8;
    const OWNER: u16 = 0x01;
    const GROUP: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    let (header, entries) = value.split_at_checked(HEADER)?;
    if header != 2_u32.to_le_bytes() || entries.len() % ENTRY != 0 {
        return None;
    }
    let tag = |entry: &[u8]| u16::from_le_bytes([entry[0], entry[1]]);
    let has = |wanted: u16| entries.chunks(ENTRY).any(|entry| tag(entry) == wanted);
    let is_extended = entries.chunks(ENTRY).any(|entry| ![OWNER, GROUP, OTHER].contains(&tag(entry)));
    let is_list = entries.chunks(ENTRY).all(|entry| {
        [OWNER, 0x02, GROUP, 0x08, MASK, OTHER].contains(&tag(entry)) && entry[2] <= 7 && entry[3] == 0
    });
    if entries.is_empty() {
        return Some(None);
    }
    if !is_list || ![OWNER, GROUP, OTHER].into_iter().all(has) {
        return None;
    }
    let mut list = value.to_vec();
    if let Some(mode) = mode {
        if !is_extended {
            return Some(None);
        }
        let group = if has(MASK) { MASK } else { GROUP };
        for entry in list[HEADER..].chunks_mut(ENTRY) {
            let shift = match tag(entry) {
                OWNER => 6,
                OTHER => 0,
                other if other == group => 3,
                _ => continue,
            };
            entry[2] = u8::try_from(mode >> shift & 7).unwrap_or(0);
        }
    }
    Some(Some(list))
}

/// Whether an attribute belongs to overlayfs.
pub fn is_overlay_state(name: &[u8]) -> bool {
    OVERLAY_ATTRIBUTES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether the file is overlayfs's mark for a hidden name.
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Makes a whiteout: a character device with number 0/0, which needs no privilege.
pub fn make_whiteout(parent: &OwnedFd, base: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::mknodat(parent, base, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Hides what lower layers have in a directory: privileged mounts read `trusted.overlay.opaque`, those with the
/// option `userxattr` read `user.overlay.opaque`.
pub fn set_opaque(directory: &OwnedFd, userxattr: bool) -> rustix::io::Result<()> {
    let name = if userxattr { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
    rustix::fs::fsetxattr(directory, name, b"y", XattrFlags::empty())
}

/// The time a file was last changed.
pub fn mtime(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

/// Access and modification time for a file, within what every program can read.
///
/// As containerd does, times before 1970 and after 2262 (nanoseconds in 64 bits) become 1970.
pub fn timestamps(time: Time) -> Timestamps {
    const LAST: i64 = i64::MAX / 1_000_000_000;
    let time = if (0..LAST).contains(&time.seconds) { time } else { Time::default() };
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Gives a file the owner and group of another.
pub fn copy_ownership(file: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

/// Sets an extended attribute on an open file.
pub fn set_on_file(file: &OwnedFd, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    tolerate(rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()))
}

/// Sets an extended attribute on what cannot be opened: a symbolic link, a device, a pipe. Changes the working directory:
/// only for threads that have one of their own.
pub fn set_on_name(parent: &OwnedFd, base: &[u8], name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    rustix::process::fchdir(parent)?;
    match rustix::fs::lsetxattr(base, name, value, XattrFlags::empty()) {
        // User attributes exist on files and directories only.
        Err(Errno::PERM) if name.starts_with(b"user.") => Ok(()),
        result => tolerate(result),
    }
}

/// A path to a name in an open directory, for the calls that take no descriptor.
fn within(parent: &OwnedFd, base: &[u8]) -> rustix::io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(base);
    CString::new(path).map_err(|_| Errno::INVAL)
}

/// A file system that lacks a kind of attribute keeps the file without it, as containerd has it.
fn tolerate(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

/// Gives an open file the extended attributes of another.
pub fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    for (name, value) in all(from)? {
        if !is_overlay_state(&name) {
            set_on_file(to, &name, &value)?;
        }
    }
    Ok(())
}

/// The extended attributes of an open file, by name.
pub fn all(file: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = Vec::new();
    read_all(
        &mut names,
        |buffer| rustix::fs::flistxattr(file, buffer),
        || rustix::fs::flistxattr_query(file),
    )?;
    collect(&names, |name, value| {
        read_all(
            value,
            |buffer| rustix::fs::fgetxattr(file, name, buffer),
            || rustix::fs::fgetxattr_query(file, name),
        )
    })
}

/// The extended attributes of what cannot be opened, by name.
pub fn all_of_name(parent: &OwnedFd, base: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = within(parent, base)?;
    let path = path.as_c_str();
    let mut names = Vec::new();
    read_all(
        &mut names,
        |buffer| rustix::fs::llistxattr(path, buffer),
        || rustix::fs::llistxattr_query(path),
    )?;
    collect(&names, |name, value| {
        read_all(
            value,
            |buffer| rustix::fs::lgetxattr(path, name, buffer),
            || rustix::fs::lgetxattr_query(path, name),
        )
    })
}

fn collect(
    names: &[u8],
    mut read: impl FnMut(&[u8], &mut Vec<u8>) -> rustix::io::Result<()>,
) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let mut attributes = Vec::with_capacity(names.len());
    for name in names {
        let mut value = Vec::new();
        match read(name, &mut value) {
            Ok(()) => attributes.push((name.to_vec(), value)),
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(attributes)
}

/// Asks for the size first, so that the usual file without attributes costs one call and no memory.
fn read_all(
    buffer: &mut Vec<u8>,
    read: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>,
    size: impl FnOnce() -> rustix::io::Result<usize>,
) -> rustix::io::Result<()> {
    let size = match size() {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(size) => size.min(MAX_XATTR),
        Err(error) => return Err(error),
    };
    buffer.resize(size, 0);
    let length = read(buffer)?;
    buffer.truncate(length);
    Ok(())
}

/// Removes a name whatever it is; directories with all that is in them.
///
/// Directories are emptied by lifting their subdirectories up into the one that goes away, so that depth costs
/// neither stack nor descriptors.
pub fn remove(parent: impl AsFd, base: &[u8]) -> rustix::io::Result<()> {
    let parent = parent.as_fd();
    match rustix::fs::unlinkat(parent, base, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        result => return result,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let doomed = rustix::fs::openat(parent, base, flags, Mode::empty())?;
    empty(&doomed, flags)?;
    rustix::fs::unlinkat(parent, base, AtFlags::REMOVEDIR)
}

/// Removes everything in a directory.
pub fn empty(doomed: &OwnedFd, flags: OFlags) -> rustix::io::Result<()> {
    let mut lifted: u64 = 0;
    loop {
        let names = entries(doomed)?;
        if names.is_empty() {
            return Ok(());
        }
        for base in names {
            match rustix::fs::unlinkat(doomed, base.as_c_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(error) => return Err(error),
            }
            let directory = rustix::fs::openat(doomed, base.as_c_str(), flags, Mode::empty())?;
            for inner in entries(&directory)? {
                match rustix::fs::unlinkat(&directory, inner.as_c_str(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    Err(error) => return Err(error),
                }
                loop {
                    let free = format!(".orlop-{lifted}");
                    lifted += 1;
                    let keep = rustix::fs::RenameFlags::NOREPLACE;
                    match rustix::fs::renameat_with(&directory, inner.as_c_str(), doomed, free.as_str(), keep)
                    {
                        Err(Errno::EXIST) => {}
                        result => break result?,
                    }
                }
            }
            rustix::fs::unlinkat(doomed, base.as_c_str(), AtFlags::REMOVEDIR)?;
        }
    }
}

/// The names in a directory, in the order of the file system.
pub fn entries(directory: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}
