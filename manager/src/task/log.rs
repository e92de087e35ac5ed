//! The shim's log: what it writes to the fifo in its bundle appears in the daemon's log.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use orlop_proto::error::{Context, Result};
use tokio::net::unix::pipe::{OpenOptions, Receiver};

use super::shim::Shim;

/// The longest line that is logged in one piece, in bytes.
const LINE: usize = 4096;

/// The reading end of a shim's log, which is held open for writing too: a shim that is started anew finds a reader.
pub struct Log(Receiver);

impl Log {
    /// Makes the fifo unless it exists, and opens it.
    pub fn open(path: &Path) -> Result<Log> {
        let name = || path.display().to_string();
        match mkfifo(path, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).context("make fifo", name()),
        }
        let receiver = OpenOptions::new().read_write(true).open_receiver(path).context("open", name())?;
        Ok(Log(receiver))
    }

    /// Copies lines until the shim's connection has ended.
    pub async fn copy(self, id: String, shim: Shim) {
        let mut pending = Vec::new();
        loop {
            tokio::select! {
                ready = self.0.readable() => {
                    if ready.is_err() || !self.drain(&mut pending, &id) {
                        return;
                    }
                }
                () = shim.ended() => {
                    self.drain(&mut pending, &id);
                    report(&pending, &id);
                    return;
                }
            }
        }
    }

    /// Logs what is there; false when nothing more can come.
    fn drain(&self, pending: &mut Vec<u8>, id: &str) -> bool {
        loop {
            let mut buffer = [0; LINE];
            match self.0.try_read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => pending.extend_from_slice(&buffer[..count]),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                report(&pending[..end], id);
                pending.drain(..=end);
            }
            if pending.len() >= LINE {
                report(pending, id);
                pending.clear();
            }
        }
    }
}

fn report(line: &[u8], id: &str) {
    let text = String::from_utf8_lossy(line);
    if !text.trim().is_empty() {
        tracing::info!(container = id, "shim: {}", text.trim_end());
    }
}
