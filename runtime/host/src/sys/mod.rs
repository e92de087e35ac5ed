//! System calls that neither the standard library nor nix wraps, each behind a safe function.
//!
//! This is the only place of the product with `unsafe`. Functions return [`io::Result`]; the caller attaches what
//! it was doing and to what. Everything follows the manual page of the call that a function is named after.
#![allow(unsafe_code, reason = "raw system calls are confined to this module")]

pub mod allocator;
pub mod bpf;
pub mod clone;
pub mod creds;
pub mod disk;
pub mod exec;
pub mod fd;
#[cfg(all(feature = "inflate", target_arch = "x86_64"))]
pub mod inflate;
pub mod loop_device;
pub mod memory;
pub mod mount;
pub mod net;
pub mod pass;
pub mod path;
pub mod pid;
pub mod process;
pub mod profile;
pub mod quota;
#[cfg(feature = "seccomp")]
pub mod seccomp;
pub mod spawn;
pub mod tty;
pub mod verity;

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A system call's result as an `io::Result`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A system call's result that is a new descriptor.
fn check_fd(result: libc::c_long) -> io::Result<OwnedFd> {
    let number = check(result)? as RawFd;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A path as a C string; refuses an inner NUL.
fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Text as a C string; refuses an inner NUL.
fn c_text(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}
