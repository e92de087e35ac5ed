//! Applies one layer to a directory in one streaming pass: decompress → hash → tar → files.
//!
//! Every byte of a layer may be an attacker's. Memory is bounded whatever the layer says: a few buffers between
//! the two threads of a pass, one extended header, and a record per directory.
//!
//! Follows the OCI image layer specification ("Applying Changesets") and, where that is silent, containerd.

mod archive;
pub mod attributes;
mod decompress;
mod directories;
mod name;
mod number;
mod pax;
mod tree;

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;

use nix::sched::CloneFlags;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use rustix::fs::{Mode, Stat};
use sha2::{Digest as _, Sha256};

pub use self::archive::{Archive, Entry, EntryKind};
pub use self::decompress::{Compression, reader};
pub use self::directories::DIRECTORY;
use self::tree::Tree;

/// The size of the pieces that go from the decompressing thread to the writing one, in bytes.
const PIECE: usize = 256 << 10;
/// How many pieces may wait.
const PIECES: usize = 8;

/// What whiteouts become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// Marks for overlayfs, in the upper directory of a mount.
    Overlay {
        /// Whether the mount reads `user.overlay.*` (option `userxattr`) and not `trusted.overlay.*`.
        userxattr: bool,
    },
    /// Deletions, in a directory that has the lower layers' files itself.
    Delete,
}

impl Whiteouts {
    /// Whether the file is a mark that hides a name.
    fn is_mark(self, stat: &Stat) -> bool {
        self != Whiteouts::Delete && attributes::is_whiteout(stat)
    }

    /// Marks a directory as hiding what lower layers have in it.
    fn set_opaque(self, directory: &OwnedFd) -> rustix::io::Result<()> {
        match self {
            Whiteouts::Overlay { userxattr } => attributes::set_opaque(directory, userxattr),
            Whiteouts::Delete => Ok(()),
        }
    }
}

/// Where a layer goes.
#[derive(Debug)]
pub struct Target {
    /// The directory that becomes the layer's root.
    pub root: OwnedFd,
    /// The roots of the layers below, the nearest first, where `root` does not show their files itself.
    pub lowers: Vec<OwnedFd>,
    /// What whiteouts become.
    pub whiteouts: Whiteouts,
}

/// What a layer turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The SHA-256 digest of the decompressed stream, `sha256:…`: the layer's diff ID.
    pub diff_id: String,
    /// The length of the decompressed stream in bytes.
    pub size: u64,
    /// How the stream was compressed.
    pub compression: Compression,
}

/// Applies a layer. The stream is read to its end; what it holds is in the target afterwards, though not synced.
///
/// Blocks, and uses two threads of its own.
///
/// # Errors
/// `InvalidArgument` where the layer is wrong, `DataLoss` where it is cut or damaged, `Unimplemented` for an unknown
/// compression, and what the file system answers (`ResourceExhausted` when it is full). The target then holds a part
/// of the layer.
pub fn apply(input: impl Read + Send, target: Target) -> Result<Applied> {
    let (full, to_write) = mpsc::sync_channel::<Vec<u8>>(PIECES);
    let (used, to_fill) = mpsc::channel::<Vec<u8>>();
    thread::scope(|scope| {
        let writer = thread::Builder::new()
            .name("unpack".to_owned())
            .spawn_scoped(scope, move || write(Pieces::new(to_write, used), target))
            .context("start", "unpack thread")?;
        let read = decompress(input, &full, &to_fill);
        if read.is_ok() {
            // An empty piece is the end; without it, the stream broke off.
            let _ = full.send(Vec::new());
        }
        drop(full);
        let written = writer
            .join()
            .map_err(|_| Error::because(Kind::Internal, "unpack", "layer", "a thread panicked"))?;
        match (read, written) {
            (Ok(applied), Ok(())) => Ok(applied),
            // The writer stops early when the stream breaks, and the reader when the writer does: whoever was first
            // knows why.
            (Err(Stopped::Stream(error)), _) => Err(error),
            (Err(Stopped::Writer), Ok(())) => {
                Err(Error::because(Kind::Internal, "unpack", "layer", "the writer stopped before the end"))
            }
            (_, Err(error)) => Err(error),
        }
    })
}

/// Why the decompressing side ended early.
enum Stopped {
    /// Its input was wrong.
    Stream(Error),
    /// Nobody takes its output any more.
    Writer,
}

fn decompress(
    input: impl Read + Send,
    full: &mpsc::SyncSender<Vec<u8>>,
    to_fill: &mpsc::Receiver<Vec<u8>>,
) -> Result<Applied, Stopped> {
    let (mut reader, compression) = reader(input).map_err(Stopped::Stream)?;
    let mut hash = Sha256::new();
    let mut size: u64 = 0;
    loop {
        let mut piece = to_fill.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let length = fill(&mut reader, &mut piece).map_err(|error| Stopped::Stream(from_stream(error)))?;
        if length == 0 {
            let diff_id = format!("sha256:{}", hex(&hash.finalize()));
            return Ok(Applied { diff_id, size, compression });
        }
        piece.truncate(length);
        hash.update(&piece);
        size += length as u64;
        full.send(piece).map_err(|_| Stopped::Writer)?;
    }
}

fn fill(reader: &mut impl Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < piece.len() {
        match reader.read(&mut piece[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The writing side: a thread of its own, since it has a file mode mask of its own.
fn write(pieces: Pieces, target: Target) -> Result<()> {
    // With a mask of 0, the mode given at creation is the mode: one system call less per file. The mask belongs to
    // the process, so this thread first gets its own.
    nix::sched::unshare(CloneFlags::CLONE_FS).context("unshare", "file mode mask")?;
    rustix::process::umask(Mode::empty());
    let mut archive = Archive::new(pieces);
    let mut tree = Tree::new(target);
    while let Some(entry) = archive.next_entry()? {
        tree.write(&entry, &mut archive)?;
    }
    archive.drain()?;
    tree.finish()
}

/// The pieces that the decompressing side sends, as one stream.
struct Pieces {
    incoming: mpsc::Receiver<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    used: mpsc::Sender<Vec<u8>>,
    has_ended: bool,
}

impl Pieces {
    fn new(incoming: mpsc::Receiver<Vec<u8>>, used: mpsc::Sender<Vec<u8>>) -> Self {
        Pieces { incoming, current: Vec::new(), at: 0, used, has_ended: false }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && !self.has_ended {
            // The other side may be gone already; then nothing needs the buffer.
            let _ = self.used.send(std::mem::take(&mut self.current));
            self.at = 0;
            self.current = match self.incoming.recv() {
                Ok(piece) => piece,
                Err(_) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the stream broke off"));
                }
            };
            self.has_ended = self.current.is_empty();
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, length: usize) {
        self.at += length;
    }
}

/// An error of a layer's stream. What a source attached as an [`Error`] passes unchanged.
fn from_stream(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => own,
        Err(error) => {
            let kind = match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::InvalidData
                | io::ErrorKind::Other => Kind::DataLoss,
                _ => Kind::from_io(&error),
            };
            match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Error::because(kind, "read", "layer", "unexpected end: the layer is truncated")
                }
                _ => Error::because(kind, "read", "layer", error),
            }
        }
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
