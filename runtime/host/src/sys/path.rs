//! `openat2(2)`: paths that cannot leave the directory they start in.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::{c_path, c_text, check, check_fd};

/// How a path is resolved below its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// The directory is the root for `..` and for absolute symbolic links; magic links are refused.
    InRoot,
    /// As [`Resolve::InRoot`], without following any symbolic link.
    InRootNoLinks,
    /// No symbolic link, no other mount, nothing above: only what lies in this file system below the directory.
    Strict,
}

/// Opens a path below `directory`, with `O_CLOEXEC` added.
pub fn open_below(
    directory: BorrowedFd,
    path: &Path,
    flags: libc::c_int,
    mode: u32,
    resolve: Resolve,
) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: open_how is a plain structure of integers for which all zeroes is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = match resolve {
        Resolve::InRoot => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
        Resolve::InRootNoLinks => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS,
        Resolve::Strict => libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV,
    };
    loop {
        // SAFETY: `path` is NUL-terminated, `how` has its true size, and both outlive the call.
        let result = check_fd(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                directory.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                std::mem::size_of::<libc::open_how>(),
            )
        });
        match result {
            // A rename or mount elsewhere in the system raced with the lookup of "..": the manual says try again.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => continue,
            other => return other,
        }
    }
}

/// Sets an extended attribute of what a descriptor means (`setxattr(2)`), also if that was opened as a path only.
pub fn set_attribute(target: BorrowedFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    // fsetxattr refuses such descriptors.
    let path = c_text(&format!("/proc/self/fd/{}", target.as_raw_fd()))?;
    // SAFETY: both names are NUL-terminated, the value has the length that is given, and all outlive the call.
    check(i64::from(unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    }))?;
    Ok(())
}

/// Whether a descriptor means the root of a mount (`STATX_ATTR_MOUNT_ROOT`, Linux 5.8).
pub fn is_mount_root(descriptor: BorrowedFd) -> io::Result<bool> {
    const MOUNT_ROOT: u64 = 0x2000;
    // SAFETY: statx is plain data for which all zeroes is a valid value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is the static empty string and the kernel writes one statx, which outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_statx,
            descriptor.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_TYPE,
            &raw mut found,
        )
    })?;
    Ok(found.stx_attributes & MOUNT_ROOT != 0)
}
