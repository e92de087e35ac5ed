//! gzip streams (RFC 1952): headers and sums here, what is between them by the fastest inflate that the processor has.

use std::io::{self, BufRead, Read};

use flate2::Crc;

#[cfg(target_arch = "x86_64")]
pub use orlop_host::sys::inflate::Inflate as Fastest;
#[cfg(not(target_arch = "x86_64"))]
pub use zlib::Inflate as Fastest;

/// The bits of a header's flags.
const HEADER_SUM: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;
/// The length of the sum and the size behind a stream, in bytes.
const TRAILER: usize = 8;

/// What one step of an inflate did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    read: usize,
    written: usize,
    is_end: bool,
}

/// Inflates the streams of RFC 1951.
pub trait Inflate: Default {
    /// Goes back to the start of a stream.
    fn reset(&mut self);
    /// Goes on until input or room is used up, or the stream ends; without input, with what there was no room for.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Step>;
    /// What was read already of that which is behind a stream that has ended.
    fn behind(&self) -> ([u8; TRAILER], usize);
}

#[cfg(target_arch = "x86_64")]
impl Inflate for Fastest {
    fn reset(&mut self) {
        Fastest::reset(self);
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Step> {
        let step = Fastest::step(self, input, output)?;
        Ok(Step { read: step.read, written: step.written, is_end: step.is_end })
    }

    fn behind(&self) -> ([u8; TRAILER], usize) {
        Fastest::behind(self)
    }
}

/// Where in a stream the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the first header, without which there is no stream.
    Start,
    /// Behind a member, where another one may follow.
    Between,
    Body,
    End,
}

/// A reader of all members of a gzip stream, each checked against its sum and size. What follows them must be another.
pub struct Gzip<R, I = Fastest> {
    input: R,
    inflate: I,
    at: At,
    sum: Crc,
}

impl<R: BufRead, I: Inflate> Gzip<R, I> {
    /// Of a compressed stream.
    pub fn new(input: R) -> Self {
        Gzip { input, inflate: I::default(), at: At::Start, sum: Crc::new() }
    }

    /// Reads the header of a member.
    fn header(&mut self) -> io::Result<()> {
        let mut header = Header { input: &mut self.input, sum: Crc::new() };
        let [magic1, magic2, method, flags, ..] = header.take::<10>()?;
        if [magic1, magic2] != [0x1f, 0x8b] {
            return Err(damaged("invalid gzip header"));
        }
        if method != 8 || flags & RESERVED != 0 {
            return Err(damaged("unknown gzip method or flags"));
        }
        if flags & EXTRA != 0 {
            let length = u16::from_le_bytes(header.take()?);
            for _ in 0..length {
                header.take::<1>()?;
            }
        }
        for flag in [NAME, COMMENT] {
            while flags & flag != 0 && header.take()? != [0] {}
        }
        if flags & HEADER_SUM != 0 {
            let sum = header.sum.sum() as u16;
            if u16::from_le_bytes(header.take()?) != sum {
                return Err(damaged("gzip header with a wrong checksum"));
            }
        }
        self.inflate.reset();
        self.sum.reset();
        Ok(())
    }

    /// Reads what stands behind a member, and compares.
    fn trailer(&mut self) -> io::Result<()> {
        let (mut trailer, length) = self.inflate.behind();
        self.input.read_exact(&mut trailer[length..])?;
        let [sum, size] = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|i| trailer[at + i])));
        if (sum, size) != (self.sum.sum(), self.sum.amount()) {
            return Err(damaged("gzip stream with a wrong checksum or length"));
        }
        Ok(())
    }
}

impl<R: BufRead, I: Inflate> Read for Gzip<R, I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            match self.at {
                At::Between if self.input.fill_buf()?.is_empty() => self.at = At::End,
                At::Start | At::Between => {
                    self.header()?;
                    self.at = At::Body;
                }
                At::Body => {
                    let input = self.input.fill_buf()?;
                    let is_over = input.is_empty();
                    let step = self.inflate.step(input, buffer)?;
                    self.input.consume(step.read);
                    self.sum.update(&buffer[..step.written]);
                    if step.is_end {
                        self.trailer()?;
                        self.at = At::Between;
                    } else if step.written == 0 && (is_over || step.read == 0) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    if step.written > 0 {
                        return Ok(step.written);
                    }
                }
                At::End => break,
            }
        }
        Ok(0)
    }
}

/// The bytes of a header, with their sum.
struct Header<'a, R> {
    input: &'a mut R,
    sum: Crc,
}

impl<R: BufRead> Header<'_, R> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// zlib's way, for processors that there is nothing faster for.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod zlib {
    use std::io;

    use flate2::{Decompress, FlushDecompress, Status};

    use super::{Step, TRAILER, damaged};

    /// An inflate that reads nothing ahead.
    pub struct Inflate(Decompress);

    impl Default for Inflate {
        fn default() -> Self {
            Inflate(Decompress::new(false))
        }
    }

    impl super::Inflate for Inflate {
        fn reset(&mut self) {
            self.0.reset(false);
        }

        fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Step> {
            let before = (self.0.total_in(), self.0.total_out());
            let status = self.0.decompress(input, output, FlushDecompress::None);
            let status = status.map_err(|_| damaged("corrupt deflate stream"))?;
            Ok(Step {
                read: (self.0.total_in() - before.0) as usize,
                written: (self.0.total_out() - before.1) as usize,
                is_end: status == Status::StreamEnd,
            })
        }

        fn behind(&self) -> ([u8; TRAILER], usize) {
            ([0; TRAILER], 0)
        }
    }
}

#[cfg(test)]
#[path = "gzip_tests.rs"]
mod tests;
