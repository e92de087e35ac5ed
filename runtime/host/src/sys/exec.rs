//! `execve(2)` and `execveat(2)` by descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

pub(super) fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Replaces this program by the one that a descriptor means, or by the one at a path if that cannot be executed (a script cannot,
/// once the descriptor is closed); returns only an error. Allocates nothing.
pub(super) fn execve_pointers(
    executable: Option<RawFd>,
    path: &CString,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> io::Error {
    let (arguments, environment) = (arguments.as_ptr(), environment.as_ptr());
    // SAFETY: the callers' arrays come from `pointers`, whose strings outlive the call; all paths are NUL-terminated.
    unsafe {
        if let Some(number) = executable {
            let flags = libc::AT_EMPTY_PATH;
            libc::syscall(libc::SYS_execveat, number, c"".as_ptr(), arguments, environment, flags);
        }
        libc::execve(path.as_ptr(), arguments, environment);
    }
    io::Error::last_os_error()
}

/// Replaces this program by the one at a path; returns only an error.
pub fn execve(path: &CString, arguments: &[CString], environment: &[CString]) -> io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: the path and every string are NUL-terminated, both arrays end in null, and all outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces this program by the one that a descriptor means; returns only an error.
pub fn execve_fd(program: BorrowedFd, arguments: &[CString], environment: &[CString]) -> io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: every string is NUL-terminated, both arrays end in null, and all outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}
