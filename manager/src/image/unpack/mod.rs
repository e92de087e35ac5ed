//! Applies one layer to a directory in one streaming pass: decompress → hash ∥ tar → files.
//!
//! Every byte of a layer may be an attacker's. Memory is bounded whatever the layer says: a few buffers between
//! the threads of a pass, one extended header, and a record per directory. The threads are the pass's own, and each
//! can do no more than it has to ([`confinement`]).
//!
//! A pass needs nothing of the layers below, so that several layers of an image are unpacked at the same time. What
//! only they can tell (the metadata of directories that the layer uses and does not name, files that it links to) is
//! done by [`Unpacked::finish`] when they are complete.
//!
//! Follows the OCI image layer specification ("Applying Changesets") and, where that is silent, containerd.

mod archive;
pub mod attributes;
mod confinement;
mod decompress;
mod directories;
mod files;
mod gzip;
pub(super) mod name;
mod number;
mod pax;
mod switches;
mod tree;

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use rustix::fs::Stat;
use sha2::{Digest as _, Sha256};

pub use self::archive::{Archive, Entry, EntryKind};
pub(super) use self::archive::{Time, printable};
use self::confinement::{Task, confine, own_file_system_state};
pub use self::decompress::{Compression, reader};
pub use self::directories::DIRECTORY;
pub(super) use self::directories::{failed, find_in_lowers};
use self::files::Files;
use self::tree::Tree;
pub(super) use self::tree::{missing, refused};
use super::erofs::{self, Image};
use crate::owners::Owners;

/// The size of the pieces that go from the decompressing thread to the writing one, in bytes.
const PIECE: usize = 256 << 10;
/// How many pieces may wait.
const PIECES: usize = 8;
/// The most threads that make files beside the one that reads the archive.
const MAX_HELPERS: usize = 3;

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
    /// Nothing: every name is a file's own. For archives that are no layers.
    Literal,
}

impl Whiteouts {
    /// Whether the file is a mark that hides a name.
    fn is_mark(self, stat: &Stat) -> bool {
        self.is_apart() && attributes::is_whiteout(stat)
    }

    /// Whether the directory lacks what the lower layers have.
    fn is_apart(self) -> bool {
        matches!(self, Whiteouts::Overlay { .. })
    }

    /// Marks a directory as hiding what lower layers have in it.
    fn set_opaque(self, directory: &OwnedFd) -> rustix::io::Result<()> {
        match self {
            Whiteouts::Overlay { userxattr } => attributes::set_opaque(directory, userxattr),
            Whiteouts::Delete | Whiteouts::Literal => Ok(()),
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

/// A layer whose stream is read and whose files are there, but for what the layers below tell.
pub struct Unpacked {
    /// What the layer turned out to be.
    pub applied: Applied,
    made: Made,
}

/// Where a layer is unpacked.
pub enum Place {
    /// In a directory, file by file.
    Directory {
        /// The directory.
        root: OwnedFd,
        /// What whiteouts become.
        whiteouts: Whiteouts,
        /// Users and groups of the container that runs there.
        owners: Option<Owners>,
    },
    /// As one EROFS image, in this empty file.
    Image(File),
    /// As the EROFS image that the stream is, in this empty file.
    Ready(File),
}

/// What became of a layer.
enum Made {
    Tree(Box<Tree>),
    Image(Box<Image>),
    /// Complete as it came.
    Ready,
}

impl Unpacked {
    /// Completes the layer; `lowers` are the roots of the layers below, the nearest first. Blocks.
    ///
    /// # Errors
    /// `InvalidArgument` where the layer links to a file that nobody has, and what the file system answers.
    pub fn finish(self, lowers: &[OwnedFd]) -> Result<Applied> {
        let Unpacked { applied, made } = self;
        let diff_id = applied.diff_id.as_str();
        thread::scope(|scope| {
            let finish = move || match made {
                Made::Tree(tree) => {
                    own_file_system_state(tree.root())?;
                    confine(Task::Files { root: tree.root(), lowers })?;
                    tree.finish(lowers)
                }
                Made::Image(image) => {
                    confine(Task::Image { lowers })?;
                    // Named after what is in it, as the same layer gives the same image.
                    let mut identity = [0; 16];
                    identity.copy_from_slice(&Sha256::digest(diff_id)[..16]);
                    image.finish(lowers, identity).map(drop)
                }
                Made::Ready => Ok(()),
            };
            start("unpack")
                .spawn_scoped(scope, finish)
                .context("start", "unpack thread")?
                .join()
                .map_err(panicked)?
        })?;
        Ok(applied)
    }
}

/// A thread of a pass, to be.
fn start(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned())
}

fn panicked<T>(_: T) -> Error {
    Error::because(Kind::Internal, "unpack", "layer", "a thread panicked")
}

/// Applies a layer. The stream is read to its end; what it holds is in the target afterwards, though not synced.
///
/// Blocks, and uses threads of its own.
///
/// # Errors
/// `InvalidArgument` where the layer is wrong, `DataLoss` where it is cut or damaged, `Unimplemented` for an unknown
/// compression, and what the file system answers (`ResourceExhausted` when it is full). The target then holds a part
/// of the layer.
pub fn apply(input: impl Read + Send, target: Target) -> Result<Applied> {
    let Target { root, lowers, whiteouts } = target;
    unpack(input, Place::Directory { root, whiteouts, owners: None })?.finish(&lowers)
}

/// The same in the files of a container that runs in a user namespace: what is made belongs to its users and groups.
pub fn apply_for(input: impl Read + Send, target: Target, owners: &Owners) -> Result<Applied> {
    let Target { root, lowers, whiteouts } = target;
    let place = Place::Directory { root, whiteouts, owners: Some(owners.clone()) };
    owners.as_root(move || unpack(input, place)?.finish(&lowers))
}

/// Reads a layer to its end and makes what it holds, as [`apply`] does, but for what the layers below tell.
pub fn unpack(mut input: impl Read + Send, place: Place) -> Result<Unpacked> {
    let (to_write, written) = mpsc::sync_channel(PIECES);
    let (to_hash, hashed) = mpsc::sync_channel(PIECES);
    let (used, to_fill) = mpsc::channel::<Vec<u8>>();
    let used_too = used.clone();
    let input = &mut input;
    thread::scope(|scope| {
        let hasher = start("hash")
            .spawn_scoped(scope, move || confine(Task::Compute).map(|()| hash(&hashed, &used_too)))
            .context("start", "hash thread")?;
        let writer = start("unpack")
            .spawn_scoped(scope, move || write(Pieces::new(written, used), place))
            .context("start", "unpack thread")?;
        let reader = start("decompress")
            .spawn_scoped(scope, move || {
                confine(Task::Compute).map_err(Stopped::Stream)?;
                decompress(input, &[to_write, to_hash], &to_fill)
            })
            .context("start", "decompress thread")?;
        let read = reader.join().map_err(panicked)?;
        let written = writer.join().map_err(panicked)?;
        let (diff_id, size) = hasher.join().map_err(panicked)??;
        match (read, written) {
            (Ok(compression), Ok(made)) => {
                Ok(Unpacked { applied: Applied { diff_id, size, compression }, made })
            }
            // The writer stops early when the stream breaks, and the reader when the writer does: whoever was first
            // knows why.
            (Err(Stopped::Stream(error)), _) => Err(error),
            (Err(Stopped::Taker), Ok(_)) => {
                Err(Error::because(Kind::Internal, "unpack", "layer", "the writer stopped before the end"))
            }
            (_, Err(error)) => Err(error),
        }
    })
}

/// A piece of the decompressed stream, for those who hash it and those who write it; an empty one is the end.
type Piece = Arc<Vec<u8>>;

/// Why the decompressing side ended early.
enum Stopped {
    /// Its input was wrong.
    Stream(Error),
    /// Nobody takes its output any more.
    Taker,
}

/// Sends the decompressed stream to all takers. Without an empty piece at last, it broke off.
fn decompress(
    input: &mut (impl Read + Send),
    takers: &[mpsc::SyncSender<Piece>],
    to_fill: &mpsc::Receiver<Vec<u8>>,
) -> Result<Compression, Stopped> {
    let (mut reader, compression) = reader(input).map_err(Stopped::Stream)?;
    loop {
        let mut piece = to_fill.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let length = fill(&mut reader, &mut piece).map_err(|error| Stopped::Stream(from_stream(error)))?;
        piece.truncate(length);
        let piece = Arc::new(piece);
        for taker in takers {
            taker.send(piece.clone()).map_err(|_| Stopped::Taker)?;
        }
        if length == 0 {
            return Ok(compression);
        }
    }
}

/// The digest of the stream, `sha256:…`, and its length in bytes.
fn hash(pieces: &mpsc::Receiver<Piece>, used: &mpsc::Sender<Vec<u8>>) -> (String, u64) {
    let mut hash = Sha256::new();
    let mut size = 0;
    for piece in pieces {
        hash.update(piece.as_slice());
        size += piece.len() as u64;
        give_back(piece, used);
    }
    (format!("sha256:{}", hex(&hash.finalize())), size)
}

/// Lets a piece's memory be used again once nobody needs it.
fn give_back(piece: Piece, used: &mpsc::Sender<Vec<u8>>) {
    if let Some(memory) = Arc::into_inner(piece) {
        // The other side may be gone already; then nothing needs the buffer.
        let _ = used.send(memory);
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

/// The writing side.
fn write(mut pieces: Pieces, place: Place) -> Result<Made> {
    match place {
        Place::Directory { root, whiteouts, owners } => {
            write_tree(Archive::new(pieces), root, whiteouts, owners.as_ref())
        }
        Place::Image(file) => {
            confine(Task::Image { lowers: &[] })?;
            let mut archive = Archive::new(pieces);
            let mut image = Image::new(file)?;
            while let Some(entry) = archive.next_entry()? {
                image.write(&entry, &mut archive)?;
            }
            archive.drain()?;
            Ok(Made::Image(Box::new(image)))
        }
        Place::Ready(mut file) => {
            confine(Task::Image { lowers: &[] })?;
            loop {
                let length = {
                    let piece = pieces.fill_buf().map_err(from_stream)?;
                    file.write_all(piece).context("write", "image")?;
                    piece.len()
                };
                if length == 0 {
                    break;
                }
                pieces.consume(length);
            }
            erofs::check(&file)?;
            Ok(Made::Ready)
        }
    }
}

fn write_tree(
    mut archive: Archive<Pieces>,
    root: OwnedFd,
    whiteouts: Whiteouts,
    owners: Option<&Owners>,
) -> Result<Made> {
    // The threads that this one starts share what it gets here, and are started before it may start none.
    own_file_system_state(&root)?;
    let place = root.try_clone().context("open", "root of the layer")?;
    let task = Task::Files { root: &place, lowers: &[] };
    let helpers = thread::available_parallelism().map_or(1, usize::from).saturating_sub(1).min(MAX_HELPERS);
    let files = Arc::new(Files::default());
    thread::scope(|scope| {
        // However this ends, the threads do too.
        let _closing = files::Closing(&files);
        for _ in 0..helpers {
            let work = || match confine(task) {
                Ok(()) => files.work(),
                Err(error) => files.fail(error),
            };
            start("unpack").spawn_scoped(scope, work).context("start", "unpack thread")?;
        }
        confine(task)?;
        let mut tree = Tree::new(root, whiteouts, (helpers > 0).then(|| files.clone()))?;
        while let Some(mut entry) = archive.next_entry()? {
            if let Some(owners) = owners {
                (entry.uid, entry.gid) = owners.outside((entry.uid, entry.gid))?;
            }
            tree.write(entry, &mut archive)?;
        }
        archive.drain()?;
        tree.settle()?;
        Ok(Made::Tree(Box::new(tree)))
    })
}

/// The pieces that the decompressing side sends, as one stream.
struct Pieces {
    incoming: mpsc::Receiver<Piece>,
    current: Piece,
    at: usize,
    used: mpsc::Sender<Vec<u8>>,
    has_ended: bool,
}

impl Pieces {
    fn new(incoming: mpsc::Receiver<Piece>, used: mpsc::Sender<Vec<u8>>) -> Self {
        Pieces { incoming, current: Arc::default(), at: 0, used, has_ended: false }
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
            give_back(std::mem::take(&mut self.current), &self.used);
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
pub mod tests;
