//! gzip (RFC 1952) on all processors: pieces are compressed side by side, each with the end of the one before as its dictionary,
//! and joined to one stream. What comes out depends on nothing but what goes in.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Compress, Compression, Crc, FlushCompress};

/// Bytes of a piece: few enough to be bounded, enough for its end to cost nothing.
const PIECE: usize = 1 << 20;
/// How far back deflate looks (RFC 1951).
const WINDOW: usize = 32 << 10;
/// The most threads of one stream.
const MOST: usize = 8;
/// Threads that the streams of the whole process have: together not more than processors, but one for each.
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Deflate, no name and no time, an unknown system: what flate2 and Go write.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// A last block of nothing, by fixed codes.
const LAST: [u8; 2] = [3, 0];

/// A piece on its way through a thread.
struct Piece {
    bytes: Vec<u8>,
    dictionary: Vec<u8>,
    done: SyncSender<io::Result<Vec<u8>>>,
}

/// Threads of one stream.
struct Share(usize);

impl Share {
    /// What no other stream has, one at least.
    fn take() -> Share {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let free = processors.saturating_sub(TAKEN.load(Ordering::Relaxed));
        Share::of(free.clamp(1, MOST))
    }

    fn of(threads: usize) -> Share {
        TAKEN.fetch_add(threads, Ordering::Relaxed);
        Share(threads)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Compresses what is written to it, at the usual level.
pub struct GzipWriter<W: Write> {
    output: W,
    /// What is less than a piece yet.
    bytes: Vec<u8>,
    /// The end of the piece before.
    dictionary: Vec<u8>,
    crc: Crc,
    /// Pieces in their order.
    pending: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    share: Share,
    /// To the threads, which come with the first piece that is full.
    pieces: Option<Sender<Piece>>,
}

impl<W: Write> GzipWriter<W> {
    /// One that has as many threads as processors are left, eight at most, as soon as there is work for more than one.
    ///
    /// # Errors
    /// Those of the output, which the header goes to.
    pub fn new(output: W) -> io::Result<GzipWriter<W>> {
        GzipWriter::with(output, Share::take())
    }

    fn with(mut output: W, share: Share) -> io::Result<GzipWriter<W>> {
        output.write_all(&HEADER)?;
        Ok(GzipWriter {
            output,
            bytes: Vec::new(),
            dictionary: Vec::new(),
            crc: Crc::new(),
            pending: VecDeque::new(),
            share,
            pieces: None,
        })
    }

    /// Ends the stream, and gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        let (bytes, dictionary) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.dictionary));
        match self.pieces.is_some() {
            true => self.hand_out(bytes, dictionary)?,
            false if bytes.is_empty() => {}
            false => self.output.write_all(&compressed(&mut compress(), &bytes, &dictionary)?)?,
        }
        while !self.pending.is_empty() {
            self.write_oldest()?;
        }
        self.output.write_all(&LAST)?;
        self.output.write_all(&self.crc.sum().to_le_bytes())?;
        self.output.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.output)
    }

    /// Has a piece compressed, as soon as there is room for it.
    fn hand_out(&mut self, bytes: Vec<u8>, dictionary: Vec<u8>) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        while self.pending.len() > self.share.0 {
            self.write_oldest()?;
        }
        let (done, compressed) = mpsc::sync_channel(1);
        let pieces = match &self.pieces {
            Some(pieces) => pieces,
            None => self.pieces.insert(threads(self.share.0)?),
        };
        pieces.send(Piece { bytes, dictionary, done }).map_err(|_| gone())?;
        self.pending.push_back(compressed);
        Ok(())
    }

    fn write_oldest(&mut self) -> io::Result<()> {
        let Some(oldest) = self.pending.pop_front() else { return Ok(()) };
        self.output.write_all(&oldest.recv().map_err(|_| gone())??)
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() == PIECE {
            let full = std::mem::take(&mut self.bytes);
            let dictionary = std::mem::replace(&mut self.dictionary, full[PIECE - WINDOW..].to_vec());
            self.hand_out(full, dictionary)?;
        }
        let taken = bytes.len().min(PIECE - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        self.crc.update(&bytes[..taken]);
        Ok(taken)
    }

    /// Nothing: what is not a piece yet stays until it is one.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Threads that compress until the sender has gone.
fn threads(count: usize) -> io::Result<Sender<Piece>> {
    let (sender, pieces) = mpsc::channel::<Piece>();
    let pieces = Arc::new(Mutex::new(pieces));
    for _ in 0..count {
        let pieces = pieces.clone();
        std::thread::Builder::new().name("gzip".to_owned()).spawn(move || {
            let mut deflate = compress();
            loop {
                let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(Piece { bytes, dictionary, done }) = next else { break };
                // Ignoring: who has given up wants nothing.
                let _ = done.send(compressed(&mut deflate, &bytes, &dictionary));
            }
        })?;
    }
    Ok(sender)
}

fn compress() -> Compress {
    Compress::new(Compression::default(), false)
}

/// Blocks of deflate that end with a byte, none of which is the last.
fn compressed(deflate: &mut Compress, bytes: &[u8], dictionary: &[u8]) -> io::Result<Vec<u8>> {
    deflate.reset();
    if !dictionary.is_empty() {
        deflate.set_dictionary(dictionary).map_err(io::Error::other)?;
    }
    let mut output = Vec::with_capacity(bytes.len() / 2 + 64);
    loop {
        let taken = deflate.total_in() as usize;
        deflate.compress_vec(&bytes[taken..], &mut output, FlushCompress::Sync).map_err(io::Error::other)?;
        // Room that is left says that nothing waits any more (deflate of zlib.h).
        if deflate.total_in() as usize == bytes.len() && output.len() < output.capacity() {
            return Ok(output);
        }
        output.reserve(bytes.len() / 4 + 64);
    }
}

fn gone() -> io::Error {
    io::Error::other("a thread that compresses has ended")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    /// Bytes that can be compressed to about a half.
    fn bytes(length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as u8 & 0x0f
        };
        (0..length).map(|_| next()).collect()
    }

    fn written(bytes: &[u8], threads: usize, by: usize) -> Vec<u8> {
        let mut writer = GzipWriter::with(Vec::new(), Share::of(threads)).unwrap();
        bytes.chunks(by).for_each(|part| writer.write_all(part).unwrap());
        writer.finish().unwrap()
    }

    #[test]
    fn gzip_and_zlib_read_it_whatever_its_length() {
        for length in [0, 1, WINDOW, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 12_345] {
            let plain = bytes(length);
            let packed = written(&plain, 3, 100_000);
            let mut read = Vec::new();
            flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut read).unwrap();
            assert!(read == plain, "{length}");
            let mut gzip = Command::new("gzip").arg("-t").stdin(Stdio::piped()).spawn().unwrap();
            gzip.stdin.take().unwrap().write_all(&packed).unwrap();
            assert!(gzip.wait().unwrap().success(), "{length}");
        }
    }

    #[test]
    fn the_same_goes_out_however_it_comes_in() {
        let plain = bytes(3 * PIECE + 7);
        let one = written(&plain, 1, 1 << 16);
        assert!(one == written(&plain, 8, 12_345));
        // Little more than in one piece: repetitions are seen across the borders.
        let mut whole = flate2::write::GzEncoder::new(Vec::new(), Compression::default());
        whole.write_all(&plain).unwrap();
        let whole = whole.finish().unwrap().len();
        assert!(one.len() < whole + whole / 500, "{} and {whole}", one.len());
    }

    #[test]
    fn streams_at_once_share_the_processors() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let all = Share::of(processors);
        assert_eq!(Share::take().0, 1);
        drop(all);
    }

    #[test]
    fn a_full_disk_ends_it() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut writer = GzipWriter::with(Full(PIECE), Share::of(2)).unwrap();
        let plain = bytes(8 * PIECE);
        let result = writer.write_all(&plain).and_then(|()| writer.finish().map(drop));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(GzipWriter::new(Full(3)).is_err());
    }
}
