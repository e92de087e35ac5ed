//! User namespaces that nobody lives in: what id-mapped mounts take their owners by (mount_setattr(2)).

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sys::signal::{Signal, raise};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use orlop_proto::error::{Context, Result};

use crate::sys::clone::{CloneRequest, Cloned, clone3};
use crate::sys::pid::pidfd_send_signal;

/// A user namespace, whose mappings are written for the process of that number.
///
/// # Errors
///
/// When it cannot be made, and what writing says.
pub fn user_namespace(map: impl FnOnce(i32) -> Result<()>) -> Result<OwnedFd> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("create", "a pipe")?;
    let request = CloneRequest { flags: libc::CLONE_NEWUSER as u64, cgroup: None };
    let (pid, pidfd) = match clone3(request).context("create", "a user namespace")? {
        Cloned::Child => {
            drop(theirs);
            // Lives until it is killed, or nobody is there to do so. Nothing but system calls: the caller may have had threads
            // whose locks would stay locked here.
            let _ = nix::unistd::read(&ours, &mut [0u8]);
            loop {
                let _ = raise(Signal::SIGKILL);
            }
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(ours);
    let prepared = map(pid).and_then(|()| {
        let path = format!("/proc/{pid}/ns/user");
        open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).context("open", path)
    });
    // It is there until it has been waited for.
    let _ = pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL as i32);
    drop(theirs);
    waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).context("wait for", "a helper")?;
    prepared
}
