//! Reads a tar archive from a stream, one entry after the other, in bounded memory.
//!
//! The block layout comes from the `tar` crate; what a hostile archive can abuse (sizes, extended headers, sparse
//! maps, numbers) is read here, with a limit on each. Follows POSIX pax interchange format, GNU tar's extensions
//! (long names, base-256 numbers, all sparse formats) and Go's archive/tar where these are silent, since that is
//! what every other image tool reads with.

use std::io::{self, BufRead};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::name;
use super::number;
use super::pax::{self, Records};

/// The size of a tar block, in bytes.
const BLOCK: u64 = 512;
/// The longest extended header, in bytes: that of Go's archive/tar.
const MAX_EXTENSION: u64 = 1 << 20;
/// The most extents of a sparse file.
const MAX_EXTENTS: usize = 1 << 20;

/// The most characters of a name in a message.
const MAX_PRINTED: usize = 256;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name of a file in the same archive or a layer below.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A point in time: seconds and nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Whole seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 10⁹.
    pub nanoseconds: u32,
}

/// A run of data within a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where the run starts in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// One entry, complete: extended headers are merged in.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name as written.
    pub name: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    /// What to make.
    pub kind: EntryKind,
    /// Permission bits, set-id and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When the content last changed.
    pub mtime: Time,
    /// Length of the file in bytes; greater than what the archive holds where the file is sparse.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes, in the order of the archive.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data of a sparse file goes; `None` for a file that is stored whole.
    pub extents: Option<Vec<Extent>>,
}

impl Entry {
    /// The name for messages.
    pub fn display_name(&self) -> String {
        printable(&self.name)
    }

    /// The name without what leads nowhere or out of the archive.
    pub fn clean_name(&self) -> String {
        String::from_utf8_lossy(&name::clean(&self.name)).into_owned()
    }

    /// The cleaned name that a link of this name means: a hard link's is relative to the archive, a symbolic
    /// link's to its own directory.
    pub fn link_from(&self, own: &str) -> String {
        let base = match (self.kind, own.rsplit_once('/')) {
            (EntryKind::Symlink, Some((directory, _))) => directory,
            _ => "",
        };
        let link = [base.as_bytes(), b"/", &self.link].concat();
        String::from_utf8_lossy(&name::clean(&link)).into_owned()
    }
}

/// A tar archive being read.
pub struct Archive<R> {
    input: R,
    /// Bytes of the current entry's data that are still in the stream.
    left: u64,
    /// Bytes of padding after them.
    padding: u64,
    /// Whether the end mark or the end of the stream was seen.
    done: bool,
}

impl<R: BufRead> Archive<R> {
    /// An archive that starts at the stream's position.
    pub fn new(input: R) -> Self {
        Archive { input, left: 0, padding: 0, done: false }
    }

    /// The next entry, or `None` at the end of the archive; data of the one before is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            let Some(block) = self.next_header()? else {
                return match extensions.is_empty() {
                    true => Ok(None),
                    false => Err(broken("an extended header that nothing follows")),
                };
            };
            let header = Header::from_byte_slice(&block);
            let size = number::unsigned(&header.as_old().size)
                .ok_or_else(|| broken("a size that is not a number"))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.extension(size)?;
                    pax::parse(&records, &mut extensions.pax)?;
                    extensions.seen = true;
                }
                // Global headers describe the archive (git writes its commit there), not a file.
                EntryType::XGlobalHeader => self.start_data(size)?,
                EntryType::GNULongName => {
                    extensions.long_name = Some(until_nul(&self.extension(size)?).to_vec());
                    extensions.seen = true;
                }
                EntryType::GNULongLink => {
                    extensions.long_link = Some(until_nul(&self.extension(size)?).to_vec());
                    extensions.seen = true;
                }
                _ => return self.entry(header, size, extensions).map(Some),
            }
        }
    }

    /// The next piece of the current entry's data, empty at its end; [`Archive::consume`] moves on.
    pub fn data(&mut self) -> Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let chunk = self.input.fill_buf().map_err(stream_error)?;
        if chunk.is_empty() {
            return Err(truncated());
        }
        let length = chunk.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(&chunk[..length])
    }

    /// The whole data of a small entry.
    pub fn read_entry(&mut self, entry: &Entry, limit: u64) -> Result<Vec<u8>> {
        if self.left > limit {
            let why = format!("{} bytes are more than {limit}", self.left);
            return Err(Error::because(Kind::ResourceExhausted, "read", entry.display_name(), why));
        }
        self.read_data(self.left)
    }

    /// Appends the whole data of an entry whose size is known to be small.
    pub fn read_into(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        while self.left > 0 {
            let chunk = self.data()?;
            let length = chunk.len();
            bytes.extend_from_slice(chunk);
            self.consume(length);
        }
        Ok(())
    }

    /// Marks bytes that [`Archive::data`] gave as used.
    pub fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.left -= length as u64;
    }

    /// Reads what follows the archive's end, so that its bytes count in the stream's digest.
    pub fn drain(&mut self) -> Result<()> {
        loop {
            let length = self.input.fill_buf().map_err(stream_error)?.len();
            if length == 0 {
                return Ok(());
            }
            self.input.consume(length);
        }
    }

    /// The next header block, or `None` at the end: two blocks of zeros, or the stream's end between entries.
    fn next_header(&mut self) -> Result<Option<[u8; BLOCK as usize]>> {
        if self.done {
            return Ok(None);
        }
        for zeros in 0..2 {
            let Some(block) = self.block_or_end()? else {
                self.done = true;
                return Ok(None);
            };
            if block.iter().any(|byte| *byte != 0) {
                if zeros == 1 {
                    return Err(broken("a single block of zeros between entries"));
                }
                check_sum(&block)?;
                return Ok(Some(block));
            }
        }
        self.done = true;
        Ok(None)
    }

    fn block_or_end(&mut self) -> Result<Option<[u8; BLOCK as usize]>> {
        if self.input.fill_buf().map_err(stream_error)?.is_empty() {
            return Ok(None);
        }
        self.block().map(Some)
    }

    fn block(&mut self) -> Result<[u8; BLOCK as usize]> {
        let mut block = [0; BLOCK as usize];
        self.input.read_exact(&mut block).map_err(stream_error)?;
        Ok(block)
    }

    fn start_data(&mut self, size: u64) -> Result<()> {
        let end = size
            .checked_next_multiple_of(BLOCK)
            .ok_or_else(|| broken("a size beyond what a file can have"))?;
        (self.left, self.padding) = (size, end - size);
        Ok(())
    }

    /// Passes over what is left of the current entry. A stream that ends within the padding ends between entries, as
    /// containerd has it: `umoci insert` leaves the last padding out.
    fn skip_data(&mut self) -> Result<()> {
        let left = std::mem::take(&mut self.left);
        if self.skip(left)? > 0 {
            return Err(truncated());
        }
        let padding = std::mem::take(&mut self.padding);
        self.done |= self.skip(padding)? > 0;
        Ok(())
    }

    /// Passes over so many bytes; returns how many of them the stream does not have.
    fn skip(&mut self, mut rest: u64) -> Result<u64> {
        while rest > 0 {
            let available = self.input.fill_buf().map_err(stream_error)?.len();
            if available == 0 {
                break;
            }
            let length = available.min(usize::try_from(rest).unwrap_or(usize::MAX));
            self.input.consume(length);
            rest -= length as u64;
        }
        Ok(rest)
    }

    /// Reads the data of an extended header whole.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(broken("an extended header of more than 1 MiB"));
        }
        self.start_data(size)?;
        self.read_data(size)
    }

    fn read_data(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        while (bytes.len() as u64) < size {
            let wanted = usize::try_from(size - bytes.len() as u64).unwrap_or(usize::MAX);
            let chunk = self.data()?;
            let length = chunk.len().min(wanted);
            if length == 0 {
                return Err(truncated());
            }
            bytes.extend_from_slice(&chunk[..length]);
            self.consume(length);
        }
        Ok(bytes)
    }

    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions) -> Result<Entry> {
        let Extensions { mut pax, long_name, long_link, .. } = extensions;
        let old = header.as_old();
        // Metadata of the ustar and GNU formats lies behind the magic; an old header has none.
        let has_devices = header.as_ustar().is_some() || header.as_gnu().is_some();
        let name = pax.path.take().or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            pax.link.take().or(long_link).unwrap_or_else(|| {
                header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default()
            });
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse if name.ends_with(b"/") => {
                EntryKind::Directory
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryKind::File,
            EntryType::Link => EntryKind::HardLink,
            EntryType::Symlink => EntryKind::Symlink,
            EntryType::Char => EntryKind::CharDevice,
            EntryType::Block => EntryKind::BlockDevice,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Fifo => EntryKind::Fifo,
            other => {
                let why = format!("entry type {:?} is not known", char::from(other.as_byte()));
                return Err(Error::because(Kind::InvalidArgument, "unpack", printable(&name), why));
            }
        };
        let field = |bytes: &[u8], what| {
            number::unsigned(bytes).ok_or_else(|| {
                Error::because(
                    Kind::InvalidArgument,
                    "unpack",
                    printable(&name),
                    format!("{what} is not a number"),
                )
            })
        };
        let identity = |value: u64, what| {
            // The highest value means "unchanged" to chown(2).
            u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
                Error::because(
                    Kind::InvalidArgument,
                    "unpack",
                    printable(&name),
                    format!("{what} {value} is out of range"),
                )
            })
        };
        let device_number = |bytes: Option<&[u8]>| match (bytes, kind) {
            (Some(bytes), EntryKind::CharDevice | EntryKind::BlockDevice) if has_devices => {
                identity(field(bytes, "device number")?, "device number")
            }
            _ => Ok(0),
        };
        let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
            (Some(ustar), _) => (Some(&ustar.dev_major[..]), Some(&ustar.dev_minor[..])),
            (_, Some(gnu)) => (Some(&gnu.dev_major[..]), Some(&gnu.dev_minor[..])),
            _ => (None, None),
        };
        let mtime = match pax.mtime {
            Some(time) => time,
            None => Time {
                seconds: number::signed(&old.mtime).ok_or_else(|| {
                    Error::because(Kind::InvalidArgument, "unpack", printable(&name), "mtime is not a number")
                })?,
                nanoseconds: 0,
            },
        };
        let mut entry = Entry {
            mode: u32::try_from(field(&old.mode, "mode")? & 0o7777).unwrap_or(0),
            uid: identity(pax.uid.map_or_else(|| field(&old.uid, "uid"), Ok)?, "uid")?,
            gid: identity(pax.gid.map_or_else(|| field(&old.gid, "gid"), Ok)?, "gid")?,
            device: (device_number(major)?, device_number(minor)?),
            mtime,
            size: 0,
            xattrs: std::mem::take(&mut pax.xattrs),
            extents: None,
            kind,
            link,
            name,
        };
        self.locate_data(header, pax.size.unwrap_or(size), pax, &mut entry)?;
        Ok(entry)
    }

    /// Finds how long the entry's data is, and for sparse files where it goes.
    fn locate_data(&mut self, header: &Header, stored: u64, pax: Records, entry: &mut Entry) -> Result<()> {
        // The other kinds have no data, whatever their headers say: the size field of a link is that of its target.
        if entry.kind != EntryKind::File {
            return self.start_data(0);
        }
        self.start_data(stored)?;
        entry.size = stored;
        if header.entry_type().is_gnu_sparse() {
            let gnu = header.as_gnu().ok_or_else(|| broken("a sparse file whose header is not GNU's"))?;
            let mut extents = Vec::new();
            let mut size = number::unsigned(&gnu.realsize);
            if pax.sparse.real_size.is_some() {
                size = pax.sparse.real_size;
            }
            let mut more = add_extents(&gnu.sparse, &mut extents)? && gnu.is_extended();
            while more {
                let mut extension = GnuExtSparseHeader::new();
                // Continuation blocks precede the data and are not part of its size.
                extension.as_mut_bytes().copy_from_slice(&self.block()?);
                more = add_extents(&extension.sparse, &mut extents)? && extension.is_extended();
            }
            entry.size = size.ok_or_else(|| broken("a sparse file whose size is not a number"))?;
            entry.extents = Some(extents);
        } else if pax.sparse.is_version_1() {
            entry.extents = Some(self.sparse_map_in_data()?);
            entry.size = pax.sparse.real_size.ok_or_else(|| broken("a sparse file without its size"))?;
        } else if let Some(extents) = pax.sparse.extents()? {
            entry.size = pax.sparse.real_size.ok_or_else(|| broken("a sparse file without its size"))?;
            entry.extents = Some(extents);
        }
        if let Some(name) = pax.sparse.name.filter(|_| entry.extents.is_some()) {
            entry.name = name;
        }
        match &entry.extents {
            Some(extents) => check_extents(extents, entry.size, self.left),
            None => Ok(()),
        }
    }

    /// The map of pax sparse format 1.0: decimal lines at the start of the data, padded to a block.
    fn sparse_map_in_data(&mut self) -> Result<Vec<Extent>> {
        let mut read = 0;
        let count = self.decimal_line(&mut read)?;
        if count > MAX_EXTENTS as u64 {
            return Err(too_many_extents());
        }
        let mut extents = Vec::new();
        for _ in 0..count {
            let offset = self.decimal_line(&mut read)?;
            extents.push(Extent { offset, length: self.decimal_line(&mut read)? });
        }
        let padding = read.next_multiple_of(BLOCK) - read;
        self.read_data(padding)?;
        Ok(extents)
    }

    fn decimal_line(&mut self, read: &mut u64) -> Result<u64> {
        let mut value: u64 = 0;
        let mut digits = 0;
        loop {
            let byte = *self.data()?.first().ok_or_else(truncated)?;
            self.consume(1);
            *read += 1;
            match byte {
                b'\n' if digits > 0 => return Ok(value),
                b'0'..=b'9' if digits < 19 => value = value * 10 + u64::from(byte - b'0'),
                _ => return Err(broken("a sparse map that is not made of numbers")),
            }
            digits += 1;
        }
    }
}

/// What precedes an entry and belongs to it.
#[derive(Default)]
struct Extensions {
    pax: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    seen: bool,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        !self.seen
    }
}

/// Adds a header's extents; `false` when its last place was unused, which ends the map.
fn add_extents(places: &[GnuSparseHeader], extents: &mut Vec<Extent>) -> Result<bool> {
    for place in places {
        if place.is_empty() {
            return Ok(false);
        }
        let number =
            |bytes| number::unsigned(bytes).ok_or_else(|| broken("a sparse map that is not made of numbers"));
        extents.push(Extent { offset: number(&place.offset)?, length: number(&place.numbytes)? });
        if extents.len() > MAX_EXTENTS {
            return Err(too_many_extents());
        }
    }
    Ok(true)
}

/// Extents must be in order, within the file, and hold exactly what is stored.
fn check_extents(extents: &[Extent], size: u64, stored: u64) -> Result<()> {
    let mut end = 0;
    let mut total: u64 = 0;
    for extent in extents {
        let next = extent.offset.checked_add(extent.length).filter(|next| *next <= size);
        match next {
            Some(next) if extent.offset >= end => end = next,
            _ => return Err(broken("a sparse map that is out of order or beyond the file's end")),
        }
        total = total.saturating_add(extent.length);
    }
    match total == stored {
        true => Ok(()),
        false => Err(broken("a sparse map that does not match the stored data")),
    }
}

/// The header's checksum; both signed and unsigned sums exist in the wild.
fn check_sum(block: &[u8; BLOCK as usize]) -> Result<()> {
    let field = 148..156;
    let stored = number::unsigned(&block[field.clone()]);
    let bytes = || block.iter().enumerate().map(|(at, byte)| if field.contains(&at) { b' ' } else { *byte });
    let unsigned: u64 = bytes().map(u64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
    match stored {
        Some(sum) if sum == unsigned || i64::try_from(sum) == Ok(signed) => Ok(()),
        _ => Err(broken("a header whose checksum is wrong")),
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A name for messages: readable, and of bounded length.
pub fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    match text.char_indices().nth(MAX_PRINTED) {
        Some((end, _)) => format!("{}…", text[..end].escape_debug()),
        None => text.escape_debug().to_string(),
    }
}

/// An archive that breaks the format's rules.
pub(super) fn broken(what: &'static str) -> Error {
    Error::because(Kind::InvalidArgument, "read", "layer archive", what)
}

fn too_many_extents() -> Error {
    Error::because(
        Kind::ResourceExhausted,
        "read",
        "layer archive",
        "a sparse file of more than 1048576 extents",
    )
}

fn truncated() -> Error {
    Error::because(Kind::DataLoss, "read", "layer archive", "unexpected end: the layer is truncated")
}

/// An error of the stream below: the end within an entry, or the decompressor's own.
fn stream_error(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(),
        _ => super::from_stream(error),
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
