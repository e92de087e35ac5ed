//! Processes by descriptor: `pidfd_open(2)`, `pidfd_send_signal(2)`, `setns(2)`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{check, check_fd};

/// A descriptor that means this very process, even after its pid is used again.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends a signal to the process that the descriptor means; signal 0 only asks whether it is there.
pub fn pidfd_send_signal(process: BorrowedFd, signal: i32) -> io::Result<()> {
    // SAFETY: the siginfo pointer is null, which asks for the same information as kill(2) gives.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// Joins the namespace that a descriptor means, or several of a process that a pidfd means (Linux 5.8).
pub fn setns(namespace: BorrowedFd, flags: i32) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), flags) })?;
    Ok(())
}

/// Leaves namespaces for new ones (`CLONE_NEW…` flags).
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) })?;
    Ok(())
}

/// The kind of a namespace as its `CLONE_NEW…` flag (`NS_GET_NSTYPE`, ioctl_ns(2)).
pub fn namespace_kind(namespace: BorrowedFd) -> io::Result<i32> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument.
    let kind = check(i64::from(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE as _) }))?;
    Ok(kind as i32)
}

/// A copy of a descriptor of another process, by its number there (`pidfd_getfd(2)`).
pub fn take_descriptor(process: BorrowedFd, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

/// Sends a signal by number to a process by id, for ids that were read a moment ago and have no descriptor.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(i64::from(unsafe { libc::kill(pid, signal) }))?;
    Ok(())
}
