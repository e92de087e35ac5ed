//! Where the master end of a terminal goes.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
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
    match (console, &process.console) {
        // The name that runc sends along; receivers only show it.
        (Some(path), Some(master)) => send_to(path, b"/dev/ptmx", master.as_fd())?,
        (None, Some(master)) => keep_line_ends(master.as_fd())?,
        (_, None) => {}
    }
    if let Some(path) = pidfd {
        send_to(path, b"pidfd", process.pidfd.as_fd())?;
    }
    Ok(())
}

/// What the program writes is shown on our own terminal, which turns line ends round; twice would be once too often.
fn keep_line_ends(master: BorrowedFd) -> Result<()> {
    let mut modes = tcgetattr(master).context("look at", "the terminal")?;
    modes.output_flags.remove(OutputFlags::ONLCR);
    tcsetattr(master, SetArg::TCSANOW, &modes).context("set modes of", "the terminal")
}

/// Sends a descriptor to whoever listens on a unix socket.
pub fn send_to(path: &Path, bytes: &[u8], descriptor: BorrowedFd) -> Result<()> {
    let socket = UnixStream::connect(path).context("connect to", path.to_string_lossy())?;
    send_descriptor(socket.as_fd(), bytes, descriptor)
}
