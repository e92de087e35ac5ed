//! Writes the tar stream of a layer: pax where ustar is too small, the same bytes for the same files.

use std::fs::File;
use std::io::{self, Read, Write};

use orlop_proto::error::{Error, Result};
use rustix::fs::{FileType, Stat};
use tar::{Builder, EntryType, Header};

use crate::owners::Owners;

/// The largest number that a ustar field of eight bytes holds.
const MAX_SMALL: u64 = 0o777_7777;
/// The largest size that a ustar header holds.
const MAX_SIZE: u64 = 0o777_7777_7777;
/// The longest name that a header holds, in bytes.
const MAX_NAME: usize = 100;

/// One entry to write.
pub struct Item<'a> {
    /// Its name, relative to the root.
    pub path: &'a [u8],
    /// What it is.
    pub stat: &'a Stat,
    /// The target of a symbolic link.
    pub link: Vec<u8>,
    /// The name in this archive that the entry is another name of.
    pub same_as: Option<&'a [u8]>,
    /// Extended attributes, in the order of their names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The data of a regular file.
    pub data: Option<File>,
}

/// What entries are made to look like, whatever their files are like.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    /// What all names begin with, without a slash at the end; empty for names as they are.
    pub above: Vec<u8>,
    /// Time, in seconds since 1970, that none is later than.
    pub epoch: Option<i64>,
    /// User and group of all.
    pub owner: Option<(u32, u32)>,
    /// Users and groups of the container whose files are read as the host sees them.
    pub owners: Option<Owners>,
    /// Permission bits of all but symbolic links.
    pub mode: Option<u32>,
}

/// A layer being written.
pub struct LayerArchive<W: Write> {
    tar: Builder<W>,
    looks: Looks,
}

impl<W: Write> LayerArchive<W> {
    /// A layer that goes to this stream; with an epoch, no time in it is later.
    pub fn new(output: W, epoch: Option<i64>) -> Self {
        LayerArchive::looking(output, Looks { epoch, ..Looks::default() })
    }

    /// An archive in which everything looks like this.
    pub fn looking(output: W, looks: Looks) -> Self {
        LayerArchive { tar: Builder::new(output), looks }
    }

    fn placed(&self, path: &[u8]) -> Vec<u8> {
        let above = &self.looks.above;
        let slash: &[u8] = if above.is_empty() || path.is_empty() { b"" } else { b"/" };
        [above, slash, path].concat()
    }

    /// Writes that a name of the layers below is gone.
    pub fn whiteout(&mut self, directory: &[u8], base: &[u8]) -> Result<()> {
        let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        let path = [directory, slash, b".wh.", base].concat();
        let mut header = Header::new_ustar();
        // As containerd writes it; strict readers refuse fields that are left empty.
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.looks.epoch.and_then(|epoch| u64::try_from(epoch).ok()).unwrap_or(0));
        self.append(&mut header, EntryType::Regular, &path, b"", 0, Vec::new(), io::empty())
    }

    /// Writes an entry; sockets, which no layer can hold, are left out.
    pub fn item(&mut self, item: Item<'_>) -> Result<()> {
        let Item { path, stat, link, same_as, xattrs, data } = item;
        let (path, same_as) = (self.placed(path), same_as.map(|path| self.placed(path)));
        let (path, same_as) = (path.as_slice(), same_as.as_deref());
        let mut header = Header::new_ustar();
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let mode = self.looks.mode.filter(|_| !is_link).unwrap_or(stat.st_mode);
        let (uid, gid) = self.looks.owner.unwrap_or_else(|| {
            let found = (stat.st_uid, stat.st_gid);
            self.looks.owners.as_ref().map_or(found, |owners| owners.inside(found))
        });
        header.set_mode(mode & 0o7777);
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        for (key, value) in [("uid", u64::from(uid)), ("gid", u64::from(gid))] {
            if value > MAX_SMALL {
                records.push((key.to_owned(), value.to_string().into_bytes()));
            }
        }
        header.set_uid(u64::from(uid).min(MAX_SMALL));
        header.set_gid(u64::from(gid).min(MAX_SMALL));
        let (seconds, nanoseconds) = match self.looks.epoch {
            Some(epoch) if stat.st_mtime >= epoch => (epoch, 0),
            _ => (stat.st_mtime, stat.st_mtime_nsec),
        };
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        if nanoseconds != 0 {
            // Time runs forward: half a second before -1 is -1.5.
            let text = match seconds {
                0.. => format!("{seconds}.{nanoseconds:09}"),
                _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
            };
            records.push(("mtime".to_owned(), text.trim_end_matches('0').as_bytes().to_vec()));
        } else if seconds < 0 {
            records.push(("mtime".to_owned(), seconds.to_string().into_bytes()));
        }
        if same_as.is_none() {
            for (name, value) in xattrs {
                // A name that is no text has no place in a pax record.
                if let Ok(name) = String::from_utf8(name) {
                    records.push((format!("SCHILY.xattr.{name}"), value));
                }
            }
        }
        if let Some(first) = same_as {
            return self.append(&mut header, EntryType::Link, path, first, 0, records, io::empty());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let device = |header: &mut Header| {
            let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            header.set_device_major(major).and_then(|()| header.set_device_minor(minor))
        };
        let failed = |error| Error::io("write", String::from_utf8_lossy(path), error);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let Some(data) = data else { return Ok(()) };
                if size > MAX_SIZE {
                    records.push(("size".to_owned(), size.to_string().into_bytes()));
                }
                self.append(
                    &mut header,
                    EntryType::Regular,
                    path,
                    b"",
                    size,
                    records,
                    Exactly { data, left: size },
                )
            }
            FileType::Directory => {
                let path = [path, b"/"].concat();
                self.append(&mut header, EntryType::Directory, &path, b"", 0, records, io::empty())
            }
            FileType::Symlink => {
                self.append(&mut header, EntryType::Symlink, path, &link, 0, records, io::empty())
            }
            FileType::Fifo => self.append(&mut header, EntryType::Fifo, path, b"", 0, records, io::empty()),
            FileType::CharacterDevice => {
                device(&mut header).map_err(failed)?;
                self.append(&mut header, EntryType::Char, path, b"", 0, records, io::empty())
            }
            FileType::BlockDevice => {
                device(&mut header).map_err(failed)?;
                self.append(&mut header, EntryType::Block, path, b"", 0, records, io::empty())
            }
            _ => Ok(()),
        }
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<W> {
        self.tar.into_inner().map_err(super::write_failed)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one header, of which each call sets a few")]
    fn append(
        &mut self,
        header: &mut Header,
        kind: EntryType,
        path: &[u8],
        link: &[u8],
        size: u64,
        mut records: Vec<(String, Vec<u8>)>,
        data: impl Read,
    ) -> Result<()> {
        for (key, text) in [("path", path), ("linkpath", link)] {
            if text.len() > MAX_NAME || !text.is_ascii() {
                records.push((key.to_owned(), text.to_vec()));
            }
        }
        if !records.is_empty() {
            records.sort();
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.tar.append_pax_extensions(records).map_err(super::write_failed)?;
        }
        let old = header.as_old_mut();
        let length = path.len().min(MAX_NAME);
        old.name[..length].copy_from_slice(&path[..length]);
        let length = link.len().min(MAX_NAME);
        old.linkname[..length].copy_from_slice(&link[..length]);
        header.set_entry_type(kind);
        header.set_size(size.min(MAX_SIZE));
        header.set_cksum();
        self.tar.append(header, data).map_err(super::write_failed)
    }
}

/// Reads as many bytes as the header promised, whatever a running container does to the file meanwhile.
struct Exactly {
    data: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut read = self.data.read(&mut buffer[..length])?;
        if read == 0 {
            buffer[..length].fill(0);
            read = length;
        }
        self.left -= read as u64;
        Ok(read)
    }
}
