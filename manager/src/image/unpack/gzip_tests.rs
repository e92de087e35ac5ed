//! Both inflates read the same streams, whole and damaged, in pieces of every size.

use std::io::{BufReader, Read, Write};

use flate2::{Compression, GzBuilder};

use super::*;
use crate::chance::Chance;

/// Gives so many bytes at a time.
struct Drip<'a>(&'a [u8], usize);

impl Read for Drip<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.0.len().min(buffer.len()).min(self.1);
        buffer[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

/// Reads to the end, some bytes at a time.
fn all(mut reader: impl Read, piece: usize) -> io::Result<Vec<u8>> {
    let (mut found, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(found),
            length => found.extend(&buffer[..length]),
        }
    }
}

/// What an inflate makes of a stream that comes, and is asked for, in pieces.
fn read<I: Inflate>(stream: &[u8], comes: usize, asked: usize) -> io::Result<Vec<u8>> {
    all(Gzip::<_, I>::new(BufReader::with_capacity(4096, Drip(stream, comes))), asked)
}

/// Something that compresses here and there, with what repeats from far away.
fn text(chance: &mut Chance, length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length);
    while text.len() < length {
        match chance.below(3) {
            0 => text.extend((0..chance.below(300)).map(|_| chance.below(256) as u8)),
            1 => text.extend(std::iter::repeat_n(chance.below(256) as u8, chance.below(600))),
            _ => {
                let from = text.len().saturating_sub(chance.below(40_000));
                let length = chance.below(400).min(text.len() - from);
                text.extend_from_within(from..from + length);
            }
        }
    }
    text.truncate(length);
    text
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn streams_are_read_in_pieces_of_every_size() {
    let mut chance = Chance::of(7, 0);
    for level in [0, 1, 6, 9] {
        let (one, two) = (text(&mut chance, 300_000), text(&mut chance, 1000));
        let stream = [gzip(&one, level), gzip(b"", level), gzip(&two, level)].concat();
        let expected = [one, two].concat();
        for (comes, asked) in [(1, 4096), (7, 13), (4096, 1), (1 << 20, 1 << 20), (63, 65_536)] {
            assert!(read::<Fastest>(&stream, comes, asked).unwrap() == expected, "{level} {comes} {asked}");
            assert!(
                read::<zlib::Inflate>(&stream, comes, asked).unwrap() == expected,
                "{level} {comes} {asked}"
            );
        }
    }
}

#[test]
fn headers_are_read_with_all_that_they_may_have() {
    let builder = || GzBuilder::new().extra(vec![7; 300]).filename("name").comment("a comment").mtime(9);
    let mut encoder = builder().write(Vec::new(), Compression::fast());
    encoder.write_all(b"content").unwrap();
    let stream = encoder.finish().unwrap();
    // The same with a sum of the header, which no writer here makes.
    let length = 10 + 2 + 300 + 5 + 10;
    let mut summed = stream[..length].to_vec();
    summed[3] |= HEADER_SUM;
    let mut sum = Crc::new();
    sum.update(&summed);
    summed.extend((sum.sum() as u16).to_le_bytes());
    summed.extend(&stream[length..]);
    for stream in [&stream, &summed] {
        for comes in [1, 4096] {
            assert_eq!(read::<Fastest>(stream, comes, 100).unwrap(), b"content");
            assert_eq!(read::<zlib::Inflate>(stream, comes, 100).unwrap(), b"content");
        }
    }
    let damage: [(usize, u8, &[u8]); 5] =
        [(0, 1, &stream), (2, 1, &stream), (3, 0x80, &stream), (20, 1, &summed), (length, 1, &summed)];
    for (at, bit, stream) in damage {
        let mut stream = stream.to_vec();
        stream[at] ^= bit;
        assert_eq!(
            read::<Fastest>(&stream, 100, 100).unwrap_err().kind(),
            io::ErrorKind::InvalidData,
            "{at}"
        );
    }
}

#[test]
fn what_is_cut_or_damaged_is_refused() {
    let mut chance = Chance::of(3, 0);
    let whole = gzip(&text(&mut chance, 3000), 6);
    for length in 0..whole.len() {
        let error = read::<Fastest>(&whole[..length], 100, 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {length}");
    }
    for behind in [1, 4, 5, 8] {
        let mut damaged = whole.clone();
        let at = damaged.len() - behind;
        damaged[at] ^= 0x10;
        assert_eq!(read::<Fastest>(&damaged, 100, 4096).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    let behind = [whole.as_slice(), b"something behind the end"].concat();
    assert_eq!(read::<Fastest>(&behind, 100, 4096).unwrap_err().kind(), io::ErrorKind::InvalidData);
}
