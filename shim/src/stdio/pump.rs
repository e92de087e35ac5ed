//! A copy from one descriptor to another that never waits: spliced where much flows, copied where little does.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How much is copied at once. A FIFO takes this much whole or not at all.
const CHUNK: usize = 4096;
/// How much is spliced at once: what a pipe holds.
const SPLICE: usize = 64 << 10;
/// After how many bytes others get their turn.
const TURN: usize = 1 << 20;

/// How far a turn got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All that was there is through.
    Waiting,
    /// The far end takes no more for now.
    Stalled,
    /// There may be more, but others have their turn.
    More,
    /// The source ended, or the far end is gone for good.
    Finished,
}

/// A copy under way. Dropping it closes both ends.
pub struct Pump {
    source: File,
    sink: File,
    /// The reading end of a FIFO that we write: while we hold it, a reader may go and another come.
    hold: Option<File>,
    /// Read but not yet written; less than a chunk.
    pending: Vec<u8>,
    ended: bool,
    bulk: bool,
    can_splice: bool,
    /// The FIFO is full and nobody reads it.
    unread: bool,
}

impl Pump {
    /// A copy between two descriptors that do not wait.
    pub fn new(source: File, sink: File, hold: Option<File>) -> Pump {
        Pump {
            source,
            sink,
            hold,
            pending: Vec::new(),
            ended: false,
            bulk: false,
            can_splice: true,
            unread: false,
        }
    }

    /// Both ends, to be watched.
    pub fn ends(&self) -> [&File; 2] {
        [&self.source, &self.sink]
    }

    /// Copies what can be copied now.
    pub fn run(&mut self) -> Progress {
        let mut left = TURN;
        loop {
            if !self.pending.is_empty() {
                let pending = std::mem::take(&mut self.pending);
                match self.offer(&pending) {
                    Offer::Taken => {}
                    Offer::Full(rest) => {
                        self.pending = pending[pending.len() - rest..].to_vec();
                        return Progress::Stalled;
                    }
                    Offer::Gone => return Progress::Finished,
                }
            }
            if self.ended {
                return Progress::Finished;
            }
            if left == 0 {
                return Progress::More;
            }
            let moved = if self.bulk { self.splice() } else { self.copy() };
            match moved {
                Moved::Bytes(count) => left = left.saturating_sub(count),
                Moved::End => self.ended = true,
                Moved::Again => {}
                Moved::Nothing => return Progress::Waiting,
                Moved::Gone => return Progress::Finished,
            }
        }
    }

    /// Looks whether a FIFO that takes no more has a reader; without one its output is dropped from now on, until one
    /// comes and makes room. What the FIFO holds stays for that reader.
    pub fn look_for_reader(&mut self) {
        if let Some(has_reader) = self.has_reader() {
            self.unread = !has_reader;
        }
    }

    /// Whether somebody but us reads the FIFO; nothing if that cannot be known.
    fn has_reader(&mut self) -> Option<bool> {
        self.hold.take()?;
        let mut look = [PollFd::new(self.sink.as_fd(), PollFlags::POLLOUT)];
        let looked = poll(&mut look, PollTimeout::ZERO);
        let nobody = look[0].revents().is_some_and(|flags| flags.contains(PollFlags::POLLERR));
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.sink));
        self.hold = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok();
        looked.ok().map(|_| !nobody)
    }

    fn offer(&mut self, bytes: &[u8]) -> Offer {
        let mut written = 0;
        while written < bytes.len() {
            match self.sink.write(&bytes[written..]) {
                Ok(count) => {
                    written += count;
                    self.unread = false;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.unread {
                        // A reader may have come since.
                        self.look_for_reader();
                    }
                    return if self.unread { Offer::Taken } else { Offer::Full(bytes.len() - written) };
                }
                // Our own end of the FIFO could not be opened again: then nobody reads.
                Err(error) if error.kind() == ErrorKind::BrokenPipe && self.unread => return Offer::Taken,
                Err(_) => return Offer::Gone,
            }
        }
        Offer::Taken
    }

    fn copy(&mut self) -> Moved {
        let mut chunk = [0; CHUNK];
        let count = match self.source.read(&mut chunk) {
            Ok(0) => return Moved::End,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Moved::Nothing,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Moved::Again,
            // A terminal whose other end is closed.
            Err(_) => return Moved::End,
        };
        self.bulk = count == CHUNK && self.can_splice && !self.unread;
        match self.offer(&chunk[..count]) {
            Offer::Taken => Moved::Bytes(count),
            Offer::Full(rest) => {
                self.pending = chunk[count - rest..count].to_vec();
                Moved::Bytes(count)
            }
            Offer::Gone => Moved::Gone,
        }
    }

    fn splice(&mut self) -> Moved {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        match splice(&self.source, None, &self.sink, None, SPLICE, flags) {
            Ok(0) => Moved::End,
            Ok(count) => {
                self.bulk = count >= CHUNK;
                Moved::Bytes(count)
            }
            Err(Errno::EINTR) => Moved::Again,
            Err(Errno::EPIPE) => Moved::Gone,
            Err(error) => {
                // EAGAIN leaves open which end is not ready, EINVAL says that one cannot splice: copying finds out.
                self.bulk = false;
                self.can_splice = error != Errno::EINVAL;
                Moved::Again
            }
        }
    }
}

enum Offer {
    Taken,
    /// So many bytes are left.
    Full(usize),
    Gone,
}

enum Moved {
    Bytes(usize),
    Again,
    Nothing,
    End,
    Gone,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::fcntl::OFlag;
    use nix::sys::stat::Mode;
    use nix::unistd::{mkfifo, pipe2};

    use super::*;

    fn pipe() -> (File, File) {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        (read.into(), write.into())
    }

    fn open(path: &Path, write: bool) -> File {
        let mut options = File::options();
        options.read(!write).write(write).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
    }

    fn fifo(directory: &Path) -> (std::path::PathBuf, File, File) {
        let path = directory.join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let hold = open(&path, false);
        let sink = open(&path, true);
        (path, sink, hold)
    }

    fn read_all(file: &mut File) -> Vec<u8> {
        let mut all = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(count) = file.read(&mut chunk) {
            if count == 0 {
                break;
            }
            all.extend_from_slice(&chunk[..count]);
        }
        all
    }

    #[test]
    fn much_and_little_come_through_in_order() {
        let (source, mut input) = pipe();
        let (mut output, sink) = pipe();
        let mut pump = Pump::new(source, sink, None);
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for round in 0..200u32 {
            let piece: Vec<u8> = (0..round * 97 % 20_000).map(|at| (at ^ round) as u8).collect();
            let taken = input.write(&piece).unwrap_or(0);
            sent.extend_from_slice(&piece[..taken]);
            pump.run();
            if round % 3 == 0 {
                received.extend(read_all(&mut output));
            }
        }
        drop(input);
        while pump.run() != Progress::Finished {
            received.extend(read_all(&mut output));
        }
        drop(pump);
        received.extend(read_all(&mut output));
        assert!(sent == received, "{} sent, {} received", sent.len(), received.len());
    }

    #[test]
    fn a_reader_that_goes_stalls_nothing_and_the_next_one_gets_what_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (path, sink, hold) = fifo(directory.path());
        let (source, mut input) = pipe();
        let mut pump = Pump::new(source, sink, Some(hold));
        let reader = open(&path, false);
        let chunk = [b'x'; 4096];
        while pump.run() != Progress::Stalled {
            input.write_all(&chunk).unwrap();
        }
        pump.look_for_reader();
        assert_eq!(pump.run(), Progress::Stalled, "the reader is slow, not gone");
        drop(reader);
        pump.look_for_reader();
        for _ in 0..1000 {
            assert_eq!(pump.run(), Progress::Waiting);
            input.write_all(&chunk).unwrap();
        }
        let mut reader = open(&path, false);
        let kept = read_all(&mut reader);
        assert!(kept.len() >= 32 << 10, "{} bytes kept", kept.len());
        pump.run();
        input.write_all(b"after").unwrap();
        pump.run();
        assert!(read_all(&mut reader).ends_with(b"after"));
    }

    #[test]
    fn a_sink_that_is_closed_ends_the_copy() {
        let (source, mut input) = pipe();
        let (output, sink) = pipe();
        let mut pump = Pump::new(source, sink, None);
        drop(output);
        assert_eq!(pump.run(), Progress::Waiting);
        input.write_all(b"lost").unwrap();
        assert_eq!(pump.run(), Progress::Finished);
    }
}
