//! Standard streams: pipes to and from a shim, and the clients that listen to what comes out of them.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use nix::sys::stat::Mode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::logs::Log;
use crate::docker::failure::{Failure, Result};
use crate::docker::message::{Channel, frame};

/// How much is read at a time.
const PIECE: usize = 16 << 10;
/// How many pieces may wait for one client; then the container waits too, as under dockerd.
const QUEUE: usize = 64;
/// Keys that leave a container running: ctrl-p ctrl-q.
const DETACH: [u8; 2] = [16, 17];

/// Where a piece of output came from, and what it is.
pub type Piece = (Channel, Bytes);

/// Output on its way to those who listen, and the input that they share.
#[derive(Default)]
pub struct Output {
    listeners: Mutex<Vec<mpsc::Sender<Piece>>>,
    /// The pipe that leads to standard input, while there is one.
    stdin: watch::Sender<Option<PathBuf>>,
    /// A reading end that nobody reads: a shim may open its own only later, and a pipe that nobody has open forgets what
    /// was written to it.
    hold: Mutex<Option<pipe::Receiver>>,
    /// How often a process's streams ended.
    ends: watch::Sender<u64>,
}

impl Output {
    /// Hears everything from now on to the end of the process.
    pub fn listen(&self) -> mpsc::Receiver<Piece> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    async fn tell(&self, channel: Channel, data: &Bytes) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut gone = false;
        for listener in &listeners {
            gone |= listener.send((channel, data.clone())).await.is_err();
        }
        if gone {
            self.listeners
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|listener| !listener.is_closed());
        }
    }

    /// Standard input leads here from now on.
    pub fn open_stdin(&self, pipe: PathBuf) {
        let hold = pipe::OpenOptions::new().open_receiver(&pipe).ok();
        *self.hold.lock().unwrap_or_else(PoisonError::into_inner) = hold;
        self.stdin.send_replace(Some(pipe));
    }

    /// Tells all listeners that nothing comes any more.
    pub fn end(&self) {
        self.stdin.send_replace(None);
        *self.hold.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.ends.send_modify(|ends| *ends += 1);
    }

    /// Waits until there is standard input, and opens it; nothing when the process ends before.
    async fn stdin(&self) -> Option<pipe::Sender> {
        let mut stdin = self.stdin.subscribe();
        let mut ends = self.ends.subscribe();
        tokio::select! {
            found = stdin.wait_for(Option::is_some) => {
                let path = found.ok()?.clone()?;
                // Read too: the shim may not have its end open yet, and a shim that ends must not end us.
                pipe::OpenOptions::new().read_write(true).open_sender(path).ok()
            }
            _ = ends.changed() => None,
        }
    }
}

/// The pipes of a process.
pub struct Pipes {
    /// Standard input, unless it is closed from the start.
    pub stdin: Option<PathBuf>,
    /// Standard output, or the terminal.
    pub stdout: PathBuf,
    /// Standard error, unless there is a terminal.
    pub stderr: Option<PathBuf>,
}

impl Pipes {
    /// Names pipes in a directory, for a process (the container's own has no name).
    pub fn named(directory: &Path, process: &str, has_stdin: bool, is_terminal: bool) -> Pipes {
        let path = |number: u32| directory.join(format!("{process}{number}"));
        Pipes { stdin: has_stdin.then(|| path(0)), stdout: path(1), stderr: (!is_terminal).then(|| path(2)) }
    }

    /// Makes them; those that are left from before are replaced. Blocks shortly.
    pub fn make(&self) -> Result<()> {
        if let Some(directory) = self.stdout.parent() {
            std::fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
        }
        for path in self.all() {
            // Ignoring: as a rule there is none.
            let _ = std::fs::remove_file(path);
            nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)
                .map_err(|errno| failed(path, &std::io::Error::from(errno)))?;
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.stdin.iter().chain([&self.stdout]).chain(&self.stderr)
    }

    /// Takes them away.
    pub fn remove(&self) {
        for path in self.all() {
            // Ignoring: the directory goes with the container.
            let _ = std::fs::remove_file(path);
        }
    }

    /// What the shim is told.
    pub fn stdio(&self, is_terminal: bool) -> crate::task::Stdio {
        let text = |path: &Path| path.display().to_string();
        crate::task::Stdio {
            stdin: self.stdin.as_deref().map(text).unwrap_or_default(),
            stdout: text(&self.stdout),
            stderr: self.stderr.as_deref().map(text).unwrap_or_default(),
            terminal: is_terminal,
        }
    }

    /// Opens the ends from which output is read: before the shim opens the others, or while it has them open.
    pub fn open(&self) -> Result<Vec<(Channel, pipe::Receiver)>> {
        let stdout = (Channel::Stdout, &self.stdout);
        let all = [stdout].into_iter().chain(self.stderr.iter().map(|path| (Channel::Stderr, path)));
        all.map(|(channel, path)| {
            let opened = pipe::OpenOptions::new().open_receiver(path);
            opened.map(|receiver| (channel, receiver)).map_err(|error| failed(path, &error))
        })
        .collect()
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::internal(format!("open pipe {}: {error}", path.display()))
}

/// Copies output to the log and to those who listen, until the shim closes its ends.
pub async fn copy(
    ends: Vec<(Channel, pipe::Receiver)>,
    output: std::sync::Arc<Output>,
    log: Option<std::sync::Arc<Log>>,
) {
    let mut copies = tokio::task::JoinSet::new();
    for (channel, mut end) in ends {
        let (output, log) = (output.clone(), log.clone());
        copies.spawn(async move {
            let mut rest = Vec::new();
            loop {
                let mut buffer = bytes::BytesMut::with_capacity(PIECE);
                match end.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
                let data = buffer.freeze();
                if let Some(log) = &log {
                    log.write(channel, &data, &mut rest).await;
                }
                output.tell(channel, &data).await;
            }
            if let Some(log) = &log {
                log.finish(channel, &mut rest).await;
            }
        });
    }
    while copies.join_next().await.is_some() {}
}

/// What a client wants of a process's streams.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Whether output comes bare rather than in frames.
    pub raw: bool,
    /// Whether the end of the client's input ends the process's.
    pub closes_stdin: bool,
    /// Keys by which the client leaves; nothing for never.
    pub detach: Vec<u8>,
}

/// How an attached client left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The process ended.
    Ended,
    /// By its keys.
    Detached,
    /// The connection broke.
    Gone,
}

/// Connects a client with a process, until either ends. `close` closes the process's standard input.
pub async fn connect<C: AsyncRead + AsyncWrite + Send + 'static>(
    client: C,
    output: &Output,
    mut heard: mpsc::Receiver<Piece>,
    wishes: Wishes,
    close: impl AsyncFnOnce(),
) -> Left {
    let (mut from, mut to) = tokio::io::split(client);
    let write = async {
        while let Some((channel, data)) = heard.recv().await {
            let is_wanted = if channel == Channel::Stdout { wishes.stdout } else { wishes.stderr };
            if !is_wanted {
                continue;
            }
            let data = if wishes.raw { data } else { frame(channel, &data) };
            if to.write_all(&data).await.is_err() || to.flush().await.is_err() {
                return Left::Gone;
            }
        }
        // Ignoring: the client may be gone.
        let _ = to.shutdown().await;
        Left::Ended
    };
    let read = async {
        if !wishes.stdin {
            return std::future::pending().await;
        }
        let Some(mut stdin) = output.stdin().await else { return std::future::pending().await };
        let mut keys = Keys::new(&wishes.detach);
        let mut buffer = vec![0; PIECE];
        loop {
            match from.read(&mut buffer).await {
                Ok(0) => break,
                // A connection that breaks takes nothing with it but itself.
                Err(_) => break,
                Ok(length) => match keys.pass(&buffer[..length]) {
                    Some(data) => {
                        if stdin.write_all(&data).await.is_err() {
                            break;
                        }
                    }
                    None => return Left::Detached,
                },
            }
        }
        drop(stdin);
        if wishes.closes_stdin {
            close().await;
        }
        std::future::pending().await
    };
    tokio::select! {
        left = write => left,
        left = read => left,
    }
}

/// Watches input for a sequence of keys; the start of one is held back until it is clear whether it goes on.
struct Keys<'a> {
    wanted: &'a [u8],
    held: usize,
}

impl Keys<'_> {
    fn new(wanted: &[u8]) -> Keys<'_> {
        Keys { wanted, held: 0 }
    }

    /// What goes on to the process, or nothing when the sequence is complete.
    fn pass(&mut self, data: &[u8]) -> Option<Vec<u8>> {
        let mut passed = Vec::with_capacity(data.len());
        for &byte in data {
            if !self.wanted.is_empty() && byte == self.wanted[self.held] {
                self.held += 1;
                if self.held == self.wanted.len() {
                    return None;
                }
                continue;
            }
            passed.extend_from_slice(&self.wanted[..self.held]);
            self.held = 0;
            if self.wanted.first() == Some(&byte) {
                self.held = 1;
            } else {
                passed.push(byte);
            }
        }
        Some(passed)
    }
}

/// Keys as clients name them: `ctrl-p,ctrl-q`, `a`, …; nothing given means Docker's own.
///
/// # Errors
///
/// 400 for what is no key.
pub fn detach_keys(text: Option<&str>) -> Result<Vec<u8>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(DETACH.to_vec()) };
    text.split(',')
        .map(|key| {
            let key = key.to_lowercase();
            let code = match (key.strip_prefix("ctrl-").map(str::as_bytes), key.as_bytes()) {
                (Some([letter @ b'a'..=b'z']), _) => Some(letter - b'a' + 1),
                (Some([b'@']), _) => Some(0),
                (Some([b'[']), _) => Some(27),
                (Some([b'\\']), _) => Some(28),
                (Some([b']']), _) => Some(29),
                (Some([b'^']), _) => Some(30),
                (Some([b'_']), _) => Some(31),
                (None, [byte]) => Some(*byte),
                _ => None,
            };
            code.ok_or_else(|| Failure::invalid(format!("Invalid detach keys ({text}) provided")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_held_back_until_they_are_clear() {
        let wanted = detach_keys(None).unwrap();
        let mut keys = Keys::new(&wanted);
        assert_eq!(keys.pass(b"ab\x10").unwrap(), b"ab");
        assert_eq!(keys.pass(b"c").unwrap(), b"\x10c");
        assert_eq!(keys.pass(b"\x10\x10").unwrap(), b"\x10");
        assert_eq!(keys.pass(b"\x11"), None);
        assert_eq!(Keys::new(&[]).pass(b"\x10\x11").unwrap(), b"\x10\x11");
    }

    #[test]
    fn keys_have_names() {
        assert_eq!(detach_keys(Some("ctrl-a,b,ctrl-\\")).unwrap(), [1, b'b', 28]);
        assert_eq!(detach_keys(Some("nope")).unwrap_err().status, 400);
    }
}
