//! An image being written front to back: big writes, blocks of inodes in between, few corrections.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{BLOCK, BLOCK_LEN, SLOT};

/// What is collected before it is written, in bytes.
const BUFFER: usize = 1 << 20;
/// The blocks of inodes that are filled at the same time: the more, the less room stays empty.
const OPEN_BLOCKS: usize = 8;
/// A block with less room than this, in bytes, is not worth keeping open.
const SMALL: usize = 96;

/// A block of inodes that has room.
struct Inodes {
    /// Where it lies, in bytes.
    at: u64,
    bytes: Vec<u8>,
}

/// The image.
pub struct Output {
    file: File,
    /// Where the buffer starts, in bytes.
    start: u64,
    buffer: Vec<u8>,
    open: Vec<Inodes>,
}

impl Output {
    /// An image in an empty file.
    pub fn new(file: File) -> Output {
        Output { file, start: 0, buffer: Vec::with_capacity(BUFFER), open: Vec::new() }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Adds bytes at the end.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let length = bytes.len().min(BUFFER - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Fills the last block with zeros.
    pub fn align(&mut self) -> io::Result<()> {
        const ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];
        let used = (self.position() % BLOCK) as usize;
        if used > 0 { self.append(&ZEROS[used..]) } else { Ok(()) }
    }

    /// Leaves a hole of so many bytes, which reads as zeros.
    pub fn skip(&mut self, length: u64) -> io::Result<()> {
        self.flush()?;
        self.start = self.start.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(())
    }

    /// Writes over what is there.
    pub fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match at.checked_sub(self.start).and_then(|at| usize::try_from(at).ok()) {
            Some(at) if at + bytes.len() <= self.buffer.len() => {
                self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            _ => self.file.write_all_at(bytes, at),
        }
    }

    /// Adds an inode with all that follows it, at most a block, and returns its number.
    pub fn add_inode(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let place = match self.open.iter().position(|block| block.bytes.len() + bytes.len() <= BLOCK_LEN) {
            Some(place) => place,
            None => {
                if self.open.len() == OPEN_BLOCKS {
                    let fullest = (0..OPEN_BLOCKS).max_by_key(|n| self.open[*n].bytes.len()).unwrap_or(0);
                    self.close(fullest)?;
                }
                self.open.push(Inodes { at: self.position(), bytes: Vec::with_capacity(BLOCK_LEN) });
                self.append(&[0; BLOCK_LEN])?;
                self.open.len() - 1
            }
        };
        let block = &mut self.open[place];
        let at = block.at + block.bytes.len() as u64;
        block.bytes.extend_from_slice(bytes);
        let next = block.bytes.len().next_multiple_of(SLOT as usize);
        block.bytes.resize(next, 0);
        if next + SMALL > BLOCK_LEN {
            self.close(place)?;
        }
        Ok(at / SLOT)
    }

    /// Corrects bytes of an inode wherever it is.
    pub fn patch_inode(&mut self, nid: u64, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let at = nid * SLOT + offset as u64;
        match self.open.iter_mut().find(|block| (block.at..block.at + BLOCK).contains(&at)) {
            Some(block) => {
                let at = (at - block.at) as usize;
                block.bytes[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            None => self.patch(at, bytes),
        }
    }

    /// Writes the blocks of inodes that still have room.
    pub fn close_inodes(&mut self) -> io::Result<()> {
        while !self.open.is_empty() {
            self.close(0)?;
        }
        Ok(())
    }

    /// Writes what is left and returns the file, which is as long as was said.
    pub fn finish(mut self) -> io::Result<File> {
        self.close_inodes()?;
        self.flush()?;
        self.file.set_len(self.start)?;
        Ok(self.file)
    }

    fn close(&mut self, place: usize) -> io::Result<()> {
        let block = self.open.swap_remove(place);
        self.patch(block.at, &block.bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.start)?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
