//! Whether an image that somebody else made may be mounted: every structure that the kernel will follow is followed here
//! first, by safe code, and must be what the format says (Linux, fs/erofs/erofs_fs.h).
//!
//! What is not needed for a layer of plain files is refused: compression, chunks, further devices, long prefixes of
//! attributes, inodes elsewhere. So are names that are no names, directories in circles, data outside of the image, and marks by
//! which overlayfs would look for a file under another name.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use rustix::fs::FileType;

use super::format::{
    BLOCK, BLOCK_LEN, COMPAT_CHECKSUM, COMPAT_MTIME, DIRENT, INODE, MAGIC, MAX_NAME, SLOT, SUPERBLOCK,
    SUPERBLOCK_LEN, XATTR_ENTRY, XATTR_HEADER, crc32c, file_type,
};

/// The most names of an image; inodes and names are looked at once each.
const MAX_NAMES: usize = 1 << 20;
/// The most bytes of attributes that are looked at: those that many share count for each of them.
const MAX_ATTRIBUTES: u64 = 1 << 30;
/// The longest target of a symbolic link, in bytes (`PATH_MAX` without its end).
const MAX_TARGET: u64 = 4095;
/// The largest directory, in bytes: all names at their longest.
const MAX_DIRECTORY: u64 = (MAX_NAMES * (MAX_NAME + 12)) as u64;
/// Length of an inode without times, in bytes.
const COMPACT: usize = 32;
/// Features that a kernel may ignore and that change nothing of where it reads: a checksum, the meaning of times, a filter of
/// attributes' names. By another one it looks for attributes elsewhere (Linux 6.17).
const COMPAT: u32 = COMPAT_CHECKSUM | COMPAT_MTIME | 4;
/// Compressed data is padded at the front; writers set it whether or not anything is compressed.
const INCOMPAT_PADDING: u32 = 1;
/// Names of attributes that overlayfs reads, without the prefix that has a number.
const OVERLAY: &[u8] = b"overlay.";
/// Those of them that a layer may have: a directory that hides what is below, and one that is said to be merged.
const ALLOWED: [(&[u8], &[u8]); 2] = [(b"overlay.opaque", b"y"), (b"overlay.origin", b"")];

/// An image that is being looked at.
struct Check<'a> {
    file: &'a File,
    size: u64,
    /// Where inodes are counted from, and shared attributes, in bytes.
    inodes: u64,
    attributes: u64,
    seen: HashSet<u64>,
    directories: HashSet<u64>,
    names: usize,
    attribute_bytes: u64,
}

/// What an inode says.
struct Found {
    kind: FileType,
    size: u64,
    /// Where its data begins, in whole blocks, and how many bytes of it lie there.
    start: u64,
    whole: u64,
    /// Where the rest lies.
    tail: u64,
}

/// Follows everything in an image.
///
/// # Errors
///
/// `InvalidArgument` for what is no sound image of a layer, `Unimplemented` for what only the kernel could tell.
pub fn check(file: &File) -> Result<()> {
    let size = file.metadata().map_err(|error| Error::io("inspect", "image", error))?.len();
    let block = read(file, size, 0, BLOCK_LEN)?;
    let super_ = &block[SUPERBLOCK..SUPERBLOCK + SUPERBLOCK_LEN];
    if u32_at(super_, 0) != MAGIC {
        return Err(wrong("it has no superblock"));
    }
    let compatible = u32_at(super_, 8);
    if compatible & COMPAT_CHECKSUM != 0 {
        let mut summed = block[SUPERBLOCK..].to_vec();
        summed[4..8].fill(0);
        if crc32c(&summed) != u32_at(super_, 4) {
            return Err(wrong("the superblock is not what its checksum says"));
        }
    }
    if 1_u64 << super_[12].min(63) != BLOCK || super_[90] != 0 {
        return Err(beyond("blocks of another size than 4096 bytes"));
    }
    let features = u32_at(super_, 80) & !INCOMPAT_PADDING;
    if features != 0 || super_[13] != 0 {
        return Err(beyond(&format!("features {features:#x}")));
    }
    if compatible & !COMPAT != 0 {
        return Err(beyond(&format!("compatible features {:#x}", compatible & !COMPAT)));
    }
    if u16_at(super_, 86) != 0 || u64_at(super_, 96) != 0 || super_[91] != 0 {
        return Err(beyond("data in other places"));
    }
    if u64::from(u32_at(super_, 36)).checked_mul(BLOCK).is_none_or(|length| length > size) {
        return Err(wrong("it is shorter than it says"));
    }
    let mut check = Check {
        file,
        size,
        inodes: u64::from(u32_at(super_, 40)) * BLOCK,
        attributes: u64::from(u32_at(super_, 44)) * BLOCK,
        seen: HashSet::new(),
        directories: HashSet::new(),
        names: 0,
        attribute_bytes: 0,
    };
    let root = u64::from(u16_at(super_, 14));
    check.directories.insert(root);
    let mut open = vec![(root, root)];
    while let Some((number, parent)) = open.pop() {
        let inode = check.inode(number)?;
        if inode.kind != FileType::Directory {
            return Err(wrong("the root is no directory"));
        }
        check.directory(number, parent, &inode, &mut open)?;
    }
    Ok(())
}

impl Check<'_> {
    fn inode(&mut self, number: u64) -> Result<Found> {
        let at = number
            .checked_mul(SLOT)
            .and_then(|at| at.checked_add(self.inodes))
            .filter(|at| *at >= (SUPERBLOCK + SUPERBLOCK_LEN) as u64)
            .ok_or_else(|| wrong(&format!("inode {number} lies outside")))?;
        let is_new = self.seen.insert(number);
        let head = read(self.file, self.size, at, COMPACT)?;
        let (form, length) = (u16_at(&head, 0), if head[0] & 1 == 0 { COMPACT } else { INODE });
        let head = read(self.file, self.size, at, length)?;
        let layout = form >> 1;
        if layout != 0 && layout != 2 {
            return Err(beyond(&format!("data of layout {layout}")));
        }
        if length == INODE && u16_at(&head, 6) != 0 {
            // Upper bits of where the data is, since Linux 6.15.
            return Err(beyond("numbers of blocks with more than 32 bits"));
        }
        let mode = u32::from(u16_at(&head, 4));
        let size = if length == COMPACT { u64::from(u32_at(&head, 8)) } else { u64_at(&head, 8) };
        let kind = FileType::from_raw_mode(mode);
        let attributes = match u16_at(&head, 2) {
            0 => 0,
            count => XATTR_HEADER + 4 * (usize::from(count) - 1),
        };
        if is_new && attributes > 0 {
            self.check_attributes(at + length as u64, attributes)?;
        }
        let tail = at + (length + attributes) as u64;
        let has_data = matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink);
        if !has_data {
            if kind == FileType::Unknown {
                return Err(wrong(&format!("inode {number} is of no type")));
            }
            return Ok(Found { kind, size: 0, start: 0, whole: 0, tail });
        }
        let is_sane = match kind {
            FileType::Symlink => size > 0 && size <= MAX_TARGET,
            FileType::Directory => size > 0 && size <= MAX_DIRECTORY,
            _ => size <= i64::MAX.unsigned_abs(),
        };
        if !is_sane {
            return Err(wrong(&format!("inode {number} has {size} bytes")));
        }
        let whole = if layout == 2 { size - size % BLOCK } else { size };
        let start = u64::from(u32_at(&head, 16)) * BLOCK;
        if whole > 0 && start.checked_add(whole).is_none_or(|end| end > self.size) {
            return Err(wrong(&format!("the data of inode {number} lies outside")));
        }
        let rest = size - whole;
        // The kernel reads the rest from the one block in which the inode ends.
        if rest > 0 && (tail % BLOCK + rest > BLOCK || tail + rest > self.size) {
            return Err(wrong(&format!("the end of inode {number} lies outside")));
        }
        Ok(Found { kind, size, start, whole, tail })
    }

    /// Looks at the attributes that follow an inode and those that it shares.
    fn check_attributes(&mut self, at: u64, length: usize) -> Result<()> {
        let area = self.attribute_bytes(at, length)?;
        let shared = usize::from(area[4]);
        let inline = XATTR_HEADER + 4 * shared;
        if inline > length {
            return Err(wrong("attributes are shared beyond their list"));
        }
        for id in area[XATTR_HEADER..inline].chunks_exact(4) {
            let place = self.attributes + 4 * u64::from(u32_at(id, 0));
            let head = self.attribute_bytes(place, XATTR_ENTRY)?;
            let length = XATTR_ENTRY + usize::from(head[0]) + usize::from(u16_at(&head, 2));
            check_attribute(&self.attribute_bytes(place, length)?)?;
        }
        let mut rest = &area[inline..];
        while rest.len() >= XATTR_ENTRY {
            let length = XATTR_ENTRY + usize::from(rest[0]) + usize::from(u16_at(rest, 2));
            let padded = length.next_multiple_of(XATTR_ENTRY);
            if padded > rest.len() {
                return Err(wrong("an attribute is longer than its place"));
            }
            // The kernel passes over what is filled with zeros, and looks at what follows it.
            if rest[..XATTR_ENTRY] != [0; XATTR_ENTRY] {
                check_attribute(&rest[..length])?;
            }
            rest = &rest[padded..];
        }
        Ok(())
    }

    fn attribute_bytes(&mut self, at: u64, length: usize) -> Result<Vec<u8>> {
        self.attribute_bytes += length as u64;
        if self.attribute_bytes > MAX_ATTRIBUTES {
            return Err(beyond(&format!("more than {MAX_ATTRIBUTES} bytes of attributes")));
        }
        read(self.file, self.size, at, length)
    }

    /// Looks at the names of a directory and at what they name; directories among that are put off.
    fn directory(
        &mut self,
        number: u64,
        parent: u64,
        inode: &Found,
        open: &mut Vec<(u64, u64)>,
    ) -> Result<()> {
        let mut last: Vec<u8> = Vec::new();
        let (mut has_self, mut has_parent) = (false, false);
        let mut at = 0;
        while at < inode.size {
            let length = (inode.size - at).min(BLOCK) as usize;
            let place = if at < inode.whole { inode.start + at } else { inode.tail };
            let block = read(self.file, self.size, place, length)?;
            for (name, child, kind) in entries(&block)? {
                let shown = || String::from_utf8_lossy(name).into_owned();
                self.names += 1;
                if self.names > MAX_NAMES {
                    return Err(beyond(&format!("more than {MAX_NAMES} names")));
                }
                // The kernel looks for names by halving.
                if name <= last.as_slice() {
                    return Err(wrong(&format!("name {:?} is out of order", shown())));
                }
                last = name.to_vec();
                match name {
                    b"." | b".." => {
                        let (expected, seen) = match name.len() {
                            1 => (number, &mut has_self),
                            _ => (parent, &mut has_parent),
                        };
                        if child != expected || kind != FileType::Directory {
                            return Err(wrong(&format!("{:?} leads elsewhere", shown())));
                        }
                        *seen = true;
                    }
                    _ if name.contains(&b'/') || name.contains(&0) || name.len() > MAX_NAME => {
                        return Err(wrong(&format!("name {:?} is none", shown())));
                    }
                    _ => {
                        let found = self.inode(child)?;
                        if found.kind != kind {
                            return Err(wrong(&format!("{:?} is not what its directory says", shown())));
                        }
                        if kind == FileType::Directory {
                            if !self.directories.insert(child) {
                                return Err(wrong(&format!("directory {:?} has two names", shown())));
                            }
                            open.push((child, number));
                        }
                    }
                }
            }
            at += length as u64;
        }
        if !has_self || !has_parent {
            return Err(wrong("a directory lacks itself or its parent"));
        }
        Ok(())
    }
}

/// The entries of one block of a directory.
fn entries(block: &[u8]) -> Result<Vec<(&[u8], u64, FileType)>> {
    let bad = || wrong("a directory's block is damaged");
    if block.len() < DIRENT {
        return Err(bad());
    }
    let first = usize::from(u16_at(block, 8));
    if first < DIRENT || first % DIRENT != 0 || first >= block.len() {
        return Err(bad());
    }
    let count = first / DIRENT;
    let mut found = Vec::with_capacity(count);
    for index in 0..count {
        let entry = &block[index * DIRENT..][..DIRENT];
        let start = usize::from(u16_at(entry, 8));
        let end = match index + 1 < count {
            true => usize::from(u16_at(&block[(index + 1) * DIRENT..], 8)),
            false => block.len(),
        };
        let name = block.get(start..end).filter(|_| start >= first).ok_or_else(bad)?;
        // The last name may end before its block.
        let name = match index + 1 < count {
            true => name,
            false => name.split(|byte| *byte == 0).next().unwrap_or_default(),
        };
        if name.is_empty() {
            return Err(bad());
        }
        found.push((name, u64_at(entry, 0), file_type(entry[10])));
    }
    Ok(found)
}

/// Refuses attributes of kinds that have no number, and those by which overlayfs would look elsewhere.
fn check_attribute(entry: &[u8]) -> Result<()> {
    let name = &entry[XATTR_ENTRY..XATTR_ENTRY + usize::from(entry[0])];
    let value = &entry[XATTR_ENTRY + name.len()..];
    match (entry[1], name.is_empty()) {
        (2 | 3, true) | (1 | 4 | 6, false) => {}
        _ => return Err(wrong("an attribute has an impossible name")),
    }
    if name.starts_with(OVERLAY) && !ALLOWED.contains(&(name, value)) {
        return Err(wrong(&format!("attribute {:?} is overlayfs' own", String::from_utf8_lossy(name))));
    }
    Ok(())
}

fn read(file: &File, size: u64, at: u64, length: usize) -> Result<Vec<u8>> {
    if at.checked_add(length as u64).is_none_or(|end| end > size) {
        return Err(wrong("it is cut short, or leads outside of itself"));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).map_err(|error| Error::io("read", "image", error))?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn wrong(why: &str) -> Error {
    Error::because(Kind::InvalidArgument, "use", "EROFS image", why)
}

fn beyond(what: &str) -> Error {
    let why = format!("{what} are not supported in layers");
    Error::because(Kind::Unimplemented, "use", "EROFS image", why)
}

#[cfg(test)]
#[path = "check_fuzz.rs"]
mod fuzz;
#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
