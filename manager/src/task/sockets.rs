//! Where shims listen: a directory of this daemon's own, which those that take it at their start are given.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Result};
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;

/// Bytes of a unix socket's path (`sun_path` of unix(7)), the last of which ends it.
const SOCKET_PATH: usize = 108;
/// Bytes of a socket's name: a SHA-256 digest in hexadecimal, as every shim of the protocol names it.
const NAME: usize = 64;
/// Where the directory lies when the state directory's path leaves no room for a socket's name.
const SHORT: &str = "/run/orlopd";

/// The directory of one daemon.
#[derive(Clone, Debug)]
pub struct Sockets {
    directory: PathBuf,
}

impl Sockets {
    /// The directory of the daemon with this state directory, made if it is missing; only its owner may enter.
    ///
    /// # Errors
    ///
    /// Those of making it.
    pub fn open(state: &Path) -> Result<Sockets> {
        let directory = place(state);
        let shown = || directory.display().to_string();
        if let Some(parent) = directory.parent() {
            DirBuilder::new().recursive(true).mode(0o711).create(parent).context("create", shown())?;
        }
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made.context("create", shown())?,
        }
        Ok(Sockets { directory })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Removes the sockets on which nobody listens any more. To be called while no shim is being started.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read, or a socket not removed.
    pub async fn sweep(&self) -> Result<()> {
        let shown = || self.directory.display().to_string();
        for entry in fs::read_dir(&self.directory).context("read", shown())? {
            let path = entry.context("read", shown())?.path();
            // Connecting never waits here: a socket whose queue is full has somebody behind it.
            let refused = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
            if UnixStream::connect(&path).await.is_err_and(refused) {
                fs::remove_file(&path).context("remove", path.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Takes the directory away when no shim is left in it; the next daemon makes it again.
    pub fn close(&self) {
        // Shims outlive the daemon: not being empty is usual.
        if fs::remove_dir(&self.directory).is_ok() && self.directory.parent() == Some(Path::new(SHORT)) {
            let _ = fs::remove_dir(SHORT);
        }
    }
}

/// `s` in the state directory, or a name made from that directory's below [`SHORT`] where the path would be too long.
fn place(state: &Path) -> PathBuf {
    let near = state.join("s");
    if near.as_os_str().len() + 1 + NAME < SOCKET_PATH {
        return near;
    }
    let hash = Sha256::digest(state.as_os_str().as_encoded_bytes());
    Path::new(SHORT).join(hash[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn leaves_room_for_the_name() {
        assert_eq!(place(Path::new("/run/orlopd")), Path::new("/run/orlopd/s"));
        let fits = |length: usize| PathBuf::from(format!("/{}", "x".repeat(length - 1)));
        // "/s/" and the name take 67 of the 107 bytes.
        assert_eq!(place(&fits(40)), fits(40).join("s"));
        let moved = place(&fits(41));
        assert_eq!((moved.parent(), moved.as_os_str().len()), (Some(Path::new(SHORT)), SHORT.len() + 17));
        assert_ne!(moved, place(&fits(42)));
    }

    #[tokio::test]
    async fn dead_sockets_go_and_live_ones_stay() {
        let state = tempfile::tempdir().unwrap();
        let sockets = Sockets { directory: state.path().join("s") };
        fs::create_dir(sockets.path()).unwrap();
        let live = UnixListener::bind(sockets.path().join("live")).unwrap();
        drop(UnixListener::bind(sockets.path().join("dead")).unwrap());
        sockets.sweep().await.unwrap();
        sockets.close();
        assert!(sockets.path().join("live").exists() && !sockets.path().join("dead").exists());
        drop(live);
        sockets.sweep().await.unwrap();
        sockets.close();
        assert!(!sockets.path().exists());
    }
}
