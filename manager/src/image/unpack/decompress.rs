//! Compression of layers, known by the first bytes.

use std::io::{self, BufRead, BufReader, Read};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::gzip::Gzip;

/// The largest window of a zstd frame, as a power of two: the largest that the zstd program makes on its own.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
}

impl Compression {
    /// The compression that a stream starts with; what is neither gzip nor zstd is taken as plain, unless it is
    /// known to be something else.
    pub fn detect(start: &[u8]) -> Result<Compression> {
        match start {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Err(unknown("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(unknown("xz")),
            _ => Ok(Compression::None),
        }
    }
}

fn unknown(name: &str) -> Error {
    let why = format!("compression {name} is not one that layers may have");
    Error::because(Kind::Unimplemented, "read", "layer", why)
}

/// A reader of the decompressed stream, and how it was compressed.
pub fn reader<'a>(input: impl Read + Send + 'a) -> Result<(Box<dyn Read + Send + 'a>, Compression)> {
    let mut input = BufReader::with_capacity(128 << 10, Start::new(input));
    let start = input.fill_buf().map_err(super::from_stream)?;
    let compression = Compression::detect(start)?;
    let reader: Box<dyn Read + Send> = match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(Gzip::<_>::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(super::from_stream)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(super::from_stream)?;
            Box::new(decoder)
        }
    };
    Ok((reader, compression))
}

/// Gives at least the bytes that tell the compression in the first read, however small the pieces are that come in.
struct Start<R> {
    input: R,
    is_started: bool,
}

impl<R: Read> Start<R> {
    /// The longest mark at the start of a stream, in bytes.
    const LENGTH: usize = 6;

    fn new(input: R) -> Self {
        Start { input, is_started: false }
    }
}

impl<R: Read> Read for Start<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut length = self.input.read(buffer)?;
        while !self.is_started && length < Self::LENGTH.min(buffer.len()) {
            match self.input.read(&mut buffer[length..])? {
                0 => break,
                more => length += more,
            }
        }
        self.is_started = true;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Gives one byte at a time.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.0.len().min(buffer.len()).min(1);
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    pub fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decompressed(bytes: &[u8]) -> Result<(Vec<u8>, Compression), String> {
        let (mut reader, compression) = reader(Drip(bytes)).map_err(|error| error.to_string())?;
        let mut all = Vec::new();
        reader.read_to_end(&mut all).map_err(|error| error.to_string())?;
        Ok((all, compression))
    }

    #[test]
    fn reads_every_compression() {
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2];
        for (bytes, compression) in [
            (b"onetwo".to_vec(), Compression::None),
            ([gzip(b"one"), gzip(b"two")].concat(), Compression::Gzip),
            ([zstd(b"one"), zstd(b"two")].concat(), Compression::Zstd),
            ([&skippable[..], &zstd(b"onetwo")].concat(), Compression::Zstd),
        ] {
            assert_eq!(decompressed(&bytes).unwrap(), (b"onetwo".to_vec(), compression));
        }
        assert_eq!(decompressed(b"").unwrap(), (Vec::new(), Compression::None));
    }

    #[test]
    fn refuses_damage() {
        let whole = gzip(b"some text that is long enough to be cut somewhere");
        for length in 7..whole.len() {
            assert!(decompressed(&whole[..length]).is_err(), "cut at {length}");
        }
        assert!(decompressed(&[whole.as_slice(), b"garbage after the end"].concat()).is_err());
        let mut wrong_sum = whole.clone();
        let at = whole.len() - 8;
        wrong_sum[at] ^= 1;
        assert!(decompressed(&wrong_sum).is_err());
        assert!(decompressed(b"BZh91AY&SY").is_err());
        assert!(decompressed(b"\xfd7zXZ\0").is_err());
    }
}
