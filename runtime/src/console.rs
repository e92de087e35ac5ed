//! Where the master end of a terminal goes.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::launch::Launched;
use crate::sync::send_descriptor;

/// Whether terminal, socket and detaching go together; runc's words.
pub fn check(terminal: bool, socket: Option<&Path>, detached: bool) -> Result<()> {
    let refuse = |why: &str| Err(Error::exactly(Kind::InvalidArgument, why));
    match (terminal, socket) {
        (true, None) if detached => {
            refuse("cannot allocate tty if orlop will detach without setting console socket")
        }
        (false, Some(_)) => refuse("cannot use console socket if orlop will not detach or allocate tty"),
        (true, Some(_)) if !detached => {
            refuse("cannot use console socket if orlop will not detach or allocate tty")
        }
        _ => Ok(()),
    }
}

/// Sends the terminal and the process to those who asked for them.
pub fn deliver(process: &mut Launched, console: Option<&Path>, pidfd: Option<&Path>) -> Result<()> {
    if let (Some(path), Some(master)) = (console, process.console.as_ref()) {
        // The name that runc sends along; receivers only show it.
        send_to(path, b"/dev/ptmx", master.as_fd())?;
    }
    if let Some(path) = pidfd {
        send_to(path, b"pidfd", process.pidfd.as_fd())?;
    }
    Ok(())
}

/// Sends a descriptor to whoever listens on a unix socket.
pub fn send_to(path: &Path, bytes: &[u8], descriptor: BorrowedFd) -> Result<()> {
    let socket = UnixStream::connect(path).context("connect to", path.to_string_lossy())?;
    send_descriptor(socket.as_fd(), bytes, descriptor)
}
