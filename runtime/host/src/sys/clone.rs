//! `clone3(2)`: the one way in which a container's process comes to be.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// libc's constant of this name is an `int`, which is too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What the new process shares with us and where it goes.
#[derive(Clone, Copy, Default)]
pub struct CloneRequest<'a> {
    /// `CLONE_NEW…` flags, and `CLONE_PARENT` for a sibling.
    pub flags: u64,
    /// A cgroup v2 directory to be born in (`CLONE_INTO_CGROUP`).
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Which side of a [`clone3`] this is.
pub enum Cloned {
    /// The new process.
    Child,
    /// The caller, with the child's pid in the caller's pid namespace and a pidfd.
    Parent {
        /// The child's process id.
        pid: i32,
        /// A descriptor that means this very process.
        pidfd: OwnedFd,
    },
}

/// Makes a child with a copy of our memory, as fork does.
///
/// The caller must have one thread: a lock that another thread holds would stay locked in the child for ever.
pub fn clone3(request: CloneRequest) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let mut flags = request.flags | libc::CLONE_PIDFD as u64;
    let mut cgroup = 0;
    if let Some(directory) = request.cgroup {
        flags |= CLONE_INTO_CGROUP;
        cgroup = directory.as_raw_fd() as u64;
    }
    // A sibling's exit signal is the one that its maker's parent chose for the maker.
    let exit_signal = if flags & libc::CLONE_PARENT as u64 != 0 { 0 } else { libc::SIGCHLD as u64 };
    let args = libc::clone_args {
        flags,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup,
    };
    // SAFETY: no CLONE_VM, so the child works on its own copy of the memory and stack; `args` outlives the call and
    // its only pointer leads to `pidfd`, which the kernel writes in the parent.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw const args, std::mem::size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the call succeeded in the parent, so the kernel stored a descriptor made for us in `pidfd`.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: pid as i32, pidfd })
}
