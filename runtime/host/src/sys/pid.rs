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
