//! Sockets that clients connect to: bound here, or handed over by the service manager (sd_listen_fds(3)).

use std::fs::FileType;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use tokio::net::UnixListener;

use crate::stores::directory;

/// Makes and takes away the sockets of one daemon.
#[derive(Default)]
pub struct Listeners {
    /// Handed over and not asked for yet.
    inherited: Vec<StdListener>,
    /// Bound here, so that they go with the daemon.
    own: Vec<PathBuf>,
}

impl Listeners {
    /// Takes what the service manager handed over. Called once, at the start.
    ///
    /// # Errors
    ///
    /// When the environment says that there are descriptors and there are none.
    pub fn inherit() -> Result<Listeners> {
        let mut inherited = Vec::new();
        for number in sd_notify::listen_fds().context("take", "the service manager's sockets")? {
            let socket =
                orlop_host::sys::fd::adopt(number).context("take", "the service manager's socket")?;
            inherited.push(StdListener::from(socket));
        }
        Ok(Listeners { inherited, own: Vec::new() })
    }

    /// The socket of a path: the one that was handed over, or a new one with mode 0660. A socket that nobody answers on
    /// any more is replaced.
    pub fn listen(&mut self, path: &Path, uid: u32, gid: u32) -> Result<UnixListener> {
        let name = || path.display().to_string();
        let is_there = |socket: &StdListener| {
            socket.local_addr().is_ok_and(|address| address.as_pathname() == Some(path))
        };
        let listener = match self.inherited.iter().position(is_there) {
            Some(index) => self.inherited.swap_remove(index),
            None => {
                let listener = bind(path, uid, gid)?;
                self.own.push(path.to_owned());
                listener
            }
        };
        listener.set_nonblocking(true).context("listen on", name())?;
        UnixListener::from_std(listener).context("listen on", name())
    }

    /// Says which sockets were handed over for nothing.
    pub fn warn_of_unused(&self) {
        for socket in &self.inherited {
            let address = socket.local_addr();
            let path = address.as_ref().ok().and_then(|address| address.as_pathname());
            tracing::warn!(
                ?path,
                "the service manager handed over a socket that the configuration does not name"
            );
        }
    }

    /// Removes the sockets that were bound here.
    pub fn close(self) -> Result<()> {
        self.own.iter().rev().try_for_each(|path| remove_socket(path))
    }
}

fn bind(path: &Path, uid: u32, gid: u32) -> Result<StdListener> {
    let name = || path.display().to_string();
    if let Some(parent) = path.parent() {
        directory(parent)?;
    }
    if path.symlink_metadata().is_ok() {
        if StdStream::connect(path).is_ok() {
            return Err(Error::because(
                Kind::AlreadyExists,
                "listen on",
                name(),
                "another daemon answers there",
            ));
        }
        remove_socket(path)?;
    }
    // Nobody may connect before the mode is set; no other thread makes files yet.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = StdListener::bind(path);
    umask(before);
    let listener = bound.context("listen on", name())?;
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).context("change owner of", name())?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660)).context("change mode of", name())?;
    Ok(listener)
}

/// Removes a socket, and only a socket.
fn remove_socket(path: &Path) -> Result<()> {
    let name = || path.display().to_string();
    match path.symlink_metadata().map(|found| found.file_type()) {
        Ok(kind) if FileType::is_socket(&kind) => std::fs::remove_file(path).context("remove", name()),
        Ok(_) => Err(Error::because(Kind::AlreadyExists, "listen on", name(), "exists and is no socket")),
        Err(_) => Ok(()),
    }
}
