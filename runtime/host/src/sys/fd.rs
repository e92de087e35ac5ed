//! Descriptors: ranges, inherited numbers, sealed memory files.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{check, check_fd};

/// The highest descriptor number that the slow way of [`close_on_exec_from`] looks at: the kernel's `fs.nr_open`.
const HIGHEST: u32 = 1 << 20;

/// Marks every descriptor from `first` on as close-on-exec (`close_range(2)`, one by one where a caller's filter does not
/// know that call).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call takes no pointers; marking closes nothing, so no owner loses its descriptor.
    let marked = check(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_uint)
    });
    match marked {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL)) => {
            for number in first..HIGHEST {
                // SAFETY: F_SETFD takes no pointer and closes nothing; a number that is not open gives EBADF.
                unsafe { libc::fcntl(number as i32, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Lets descriptor numbers `first..end` survive the next exec; a number that is not open is an error.
pub fn keep_over_exec(first: i32, end: i32) -> io::Result<()> {
    for number in first..end {
        // SAFETY: F_SETFD takes no pointer and closes nothing; a number that is not open gives EBADF.
        check(i64::from(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }))?;
    }
    Ok(())
}

/// A descriptor's copy of a number that our caller promised to have open (`LISTEN_FDS`, `--preserve-fds`).
pub fn duplicate_inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes no pointer; a number that is not open gives EBADF.
    check_fd(i64::from(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }))
}

/// Makes `number` refer to what `source` refers to, without close-on-exec; what it was before is closed.
///
/// For the standard streams 0 to 2, which no owner in our program holds.
pub fn put_at_standard(source: BorrowedFd, number: i32) -> io::Result<()> {
    assert!((0..=2).contains(&number), "only standard streams have no owner");
    // SAFETY: no OwnedFd in this program holds 0, 1 or 2, so replacing them takes nothing from an owner.
    check(i64::from(unsafe { libc::dup2(source.as_raw_fd(), number) }))?;
    Ok(())
}

/// A memory file that can be sealed (`memfd_create(2)`), close-on-exec.
pub fn memory_file(name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: `name` is NUL-terminated and outlives the call.
    check_fd(unsafe {
        libc::syscall(libc::SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    })
}

/// Forbids every later change of a memory file, also by those who open it anew.
pub fn seal(file: BorrowedFd) -> io::Result<()> {
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: F_ADD_SEALS takes no pointer.
    check(i64::from(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }))?;
    Ok(())
}

/// The descriptors that this process holds open as numbers, for tests and for closing checks.
pub fn is_open(number: i32) -> bool {
    // SAFETY: F_GETFD takes no pointer; a number that is not open gives EBADF.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Whether a number is open and came from our caller: what this program opens itself is close-on-exec.
pub fn is_inherited(number: i32) -> bool {
    // SAFETY: F_GETFD takes no pointer; a number that is not open gives EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// Takes ownership of a descriptor that `recvmsg(2)` has just stored in a control message (`SCM_RIGHTS`).
pub fn received(number: i32) -> OwnedFd {
    // SAFETY: the kernel has just made the descriptor for us, and whoever reads the control message takes each number once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Takes ownership of a descriptor that the service manager or our own earlier exec handed to us by number.
pub fn adopt(number: i32) -> io::Result<OwnedFd> {
    if !is_open(number) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is open, and it came to us over exec, so no value of this program owns it yet; each number
    // is adopted once, at start-up.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
