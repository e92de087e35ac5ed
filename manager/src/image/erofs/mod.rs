//! A layer as one EROFS image, written while the layer's stream is read: data front to back, each file's inode right
//! after it with the end of its data, directories last.
//!
//! Nothing is unpacked file by file: a layer of 40,000 files costs a write per megabyte. The same entries give the same
//! bytes. What overlayfs reads in directories (whiteouts, opaque marks) it reads in the image too.

mod check;
mod format;
mod names;
mod output;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use rustix::fs::{FileType, OFlags, Stat};

pub use self::check::check;
use self::format::{BLOCK, BLOCK_LEN, Dirent, INODE, Inode, Layout, ROOT, ROOT_LEN, SLOT, Superblock};
use self::names::{Names, Node};
use self::output::Output;
use super::unpack::attributes::{self, is_overlay_state};
use super::unpack::name::{self, Purpose};
use super::unpack::{
    Archive, DIRECTORY, Entry, EntryKind, Time, failed, find_in_lowers, missing, printable, refused,
};

/// Mark of a directory that hides what lower layers have in it.
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");
/// The most hard links of one layer to files of the layers below.
const MAX_LATE_LINKS: usize = 1 << 16;
/// The longest end of a file that is kept beside its inode, in bytes: more would leave blocks of inodes half empty.
const MAX_INLINE: u64 = 3 << 10;
/// How much of a lower layer's file is copied at a time, in bytes.
const COPY: usize = 256 << 10;

/// What a file says of itself, but for its content.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    fn of(entry: &Entry) -> Metadata {
        Metadata {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.clone(),
        }
    }

    fn of_file(stat: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Metadata {
        let (mode, mtime) = (stat.st_mode & 0o7777, attributes::mtime(stat));
        Metadata { mode, uid: stat.st_uid, gid: stat.st_gid, mtime, xattrs }
    }

    fn inode(&self, kind: FileType) -> Inode {
        let time = attributes::timestamps(self.mtime).last_modification;
        Inode {
            mode: kind.as_raw_mode() | self.mode,
            uid: self.uid,
            gid: self.gid,
            seconds: time.tv_sec.unsigned_abs(),
            nanoseconds: u32::try_from(time.tv_nsec).unwrap_or(0),
            size: 0,
            links: 1,
            place: 0,
            layout: Layout::Plain,
            number: 0,
        }
    }

    /// The attributes as they are stored, those of overlayfs left out.
    fn xattrs(&self, path: &[u8], is_opaque: bool) -> Result<Vec<u8>> {
        let mut kept: Vec<(&[u8], std::borrow::Cow<[u8]>)> = Vec::new();
        for (name, value) in &self.xattrs {
            if is_overlay_state(name) {
                continue;
            }
            let value = match name.as_slice() {
                b"system.posix_acl_access" | attributes::DEFAULT_ACL => {
                    let mode = (name != attributes::DEFAULT_ACL).then_some(self.mode);
                    let acl = attributes::acl(value, mode)
                        .ok_or_else(|| refused(path, "an access control list is none"))?;
                    let Some(acl) = acl else { continue };
                    acl.into()
                }
                _ => value.as_slice().into(),
            };
            kept.retain(|(other, _)| other != name);
            kept.push((name, value));
        }
        if is_opaque {
            kept.push((OPAQUE.0, OPAQUE.1.into()));
        }
        let kept = kept.iter().map(|(name, value)| (*name, &**value));
        format::xattrs(kept).ok_or_else(|| refused(path, "an attribute has an impossible name or size"))
    }
}

/// A file with several names.
struct Linked {
    kind: FileType,
    names: u32,
    metadata: Metadata,
}

/// An image of a layer that is being read.
pub struct Image {
    output: Output,
    names: Names,
    /// Files with several names, by number of the inode.
    linked: HashMap<u64, Linked>,
    /// Hard links whose target is not in this layer: the directory, the name in it, and the entry.
    late_links: Vec<(usize, Vec<u8>, Entry)>,
    inodes: u32,
}

impl Image {
    /// An image in an empty file.
    pub fn new(file: File) -> Result<Image> {
        let mut output = Output::new(file);
        output.append(&[0; BLOCK_LEN]).map_err(|error| full(b"", error))?;
        Ok(Image { output, names: Names::new(), linked: HashMap::new(), late_links: Vec::new(), inodes: 0 })
    }

    /// Adds one entry; its data comes from the archive.
    pub fn write<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<()> {
        let path = name::clean(&entry.name);
        let location = name::split(&path);
        match name::purpose(&path) {
            Purpose::Ignored => Ok(()),
            Purpose::Invalid => Err(refused(&path, "the whiteout names no file")),
            Purpose::Opaque => {
                let directory = self.names.get(location.directory)?;
                self.names.directories[directory].is_opaque = true;
                Ok(())
            }
            Purpose::Whiteout(hidden) => {
                let directory = self.names.get(location.directory)?;
                match self.names.find(directory, hidden) {
                    None => self.names.insert(directory, hidden, Node::Whiteout),
                    // Whiteouts are about the layers below: of this layer's own directory, what they have in it is hidden.
                    Some(Node::Directory(own)) => {
                        self.names.directories[own].is_opaque = true;
                        Ok(())
                    }
                    Some(_) => Ok(()),
                }
            }
            Purpose::Entry if path.is_empty() => match entry.kind {
                EntryKind::Directory => {
                    self.names.directories[0].metadata = Some(Metadata::of(entry));
                    Ok(())
                }
                _ => Err(refused(&path, "only a directory can be the root")),
            },
            Purpose::Entry => {
                let parent = self.names.get(location.directory)?;
                self.add(&path, parent, location.base, entry, archive)
            }
        }
    }

    fn add<R: BufRead>(
        &mut self,
        path: &[u8],
        parent: usize,
        base: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<()> {
        let device = format::device(entry.device.0, entry.device.1);
        let (kind, place) = match entry.kind {
            EntryKind::Directory => {
                let directory = match self.names.find(parent, base) {
                    Some(Node::Directory(own)) => own,
                    _ => self.names.make_directory(parent, base)?,
                };
                self.names.directories[directory].metadata = Some(Metadata::of(entry));
                return Ok(());
            }
            EntryKind::HardLink => return self.link(path, parent, base, entry),
            EntryKind::File => {
                let nid = self.file(path, entry, archive)?;
                let kind = format::entry_kind(FileType::RegularFile);
                return self.names.insert(parent, base, Node::Other { nid, kind });
            }
            EntryKind::Symlink => {
                if entry.link.is_empty() {
                    return Err(refused(path, "the symbolic link has no target"));
                }
                if entry.link.len() >= BLOCK_LEN {
                    return Err(refused(path, "the symbolic link's target is too long"));
                }
                let mut metadata = Metadata::of(entry);
                metadata.mode = 0o777;
                // User attributes exist on files and directories only.
                metadata.xattrs.retain(|(name, _)| !name.starts_with(b"user."));
                let inode = Inode { size: entry.link.len() as u64, ..metadata.inode(FileType::Symlink) };
                let nid = self.put(path, inode, &metadata, &entry.link)?;
                self.names.targets.insert(nid, entry.link.as_slice().into());
                let kind = format::entry_kind(FileType::Symlink);
                return self.names.insert(parent, base, Node::Other { nid, kind });
            }
            EntryKind::CharDevice => (FileType::CharacterDevice, device),
            EntryKind::BlockDevice => (FileType::BlockDevice, device),
            EntryKind::Fifo => (FileType::Fifo, 0),
        };
        let mut metadata = Metadata::of(entry);
        metadata.xattrs.retain(|(name, _)| !name.starts_with(b"user."));
        let inode = Inode { place, ..metadata.inode(kind) };
        let nid = self.put(path, inode, &metadata, &[])?;
        self.names.insert(parent, base, Node::Other { nid, kind: format::entry_kind(kind) })
    }

    /// Writes a file's data and then its inode.
    fn file<R: BufRead>(&mut self, path: &[u8], entry: &Entry, archive: &mut Archive<R>) -> Result<u64> {
        let metadata = Metadata::of(entry);
        let mut inode = metadata.inode(FileType::RegularFile);
        inode.size = entry.size;
        let fail = |error| full(path, error);
        if let Some(extents) = &entry.extents {
            inode.place = self.start()?;
            let start = self.output.position();
            let length = entry.size.checked_next_multiple_of(BLOCK).ok_or_else(|| too_large(path))?;
            self.output.skip(length).map_err(fail)?;
            self.block(path)?;
            for extent in extents {
                let mut offset = extent.offset;
                let end = extent.offset + extent.length;
                while offset < end {
                    let chunk = archive.data()?;
                    let length = chunk.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
                    if length == 0 {
                        return Err(refused(path, "the sparse file's data is shorter than its map"));
                    }
                    self.output.patch(start + offset, &chunk[..length]).map_err(fail)?;
                    archive.consume(length);
                    offset += length as u64;
                }
            }
            return self.put(path, inode, &metadata, &[]);
        }
        let mut tail = Vec::new();
        let whole = self.whole(&mut inode)?;
        let mut written = 0;
        loop {
            let chunk = archive.data()?;
            if chunk.is_empty() {
                break;
            }
            let length = chunk.len().min(usize::try_from(whole - written).unwrap_or(usize::MAX));
            let length = if length == 0 { chunk.len() } else { length };
            if written < whole {
                self.output.append(&chunk[..length]).map_err(fail)?;
                written += length as u64;
            } else {
                tail.extend_from_slice(&chunk[..length]);
            }
            archive.consume(length);
        }
        self.output.align().map_err(fail)?;
        self.block(path)?;
        self.put(path, inode, &metadata, &tail)
    }

    /// Where the next whole blocks start, and how many bytes go there rather than beside the inode.
    fn whole(&mut self, inode: &mut Inode) -> Result<u64> {
        let rest = inode.size % BLOCK;
        let whole = if rest > MAX_INLINE { inode.size } else { inode.size - rest };
        if whole > 0 {
            inode.place = self.start()?;
        }
        Ok(whole)
    }

    /// The number of the block that is written next.
    fn start(&self) -> Result<u32> {
        self.block(b"")
    }

    fn block(&self, path: &[u8]) -> Result<u32> {
        u32::try_from(self.output.position() / BLOCK).map_err(|_| too_large(path))
    }

    /// Writes an inode, its attributes, and the data that is kept beside it; returns its number.
    fn put(&mut self, path: &[u8], mut inode: Inode, metadata: &Metadata, tail: &[u8]) -> Result<u64> {
        let xattrs = metadata.xattrs(path, false)?;
        let fail = |error| full(path, error);
        self.inodes += 1;
        inode.number = self.inodes;
        let mut bytes = Vec::with_capacity(INODE + xattrs.len() + tail.len());
        if !tail.is_empty() && INODE + xattrs.len() + tail.len() <= BLOCK_LEN {
            inode.layout = Layout::Inline;
            bytes.extend_from_slice(&inode.encode(xattrs.len()));
            bytes.extend_from_slice(&xattrs);
            bytes.extend_from_slice(tail);
            return self.output.add_inode(&bytes).map_err(fail);
        }
        if !tail.is_empty() {
            // Right behind the whole blocks, which nothing was written after.
            if inode.size <= tail.len() as u64 {
                inode.place = self.start()?;
            }
            self.output.append(tail).and_then(|()| self.output.align()).map_err(fail)?;
            self.block(path)?;
        }
        bytes.extend_from_slice(&inode.encode(xattrs.len()));
        bytes.extend_from_slice(&xattrs);
        if bytes.len() <= BLOCK_LEN {
            return self.output.add_inode(&bytes).map_err(fail);
        }
        let nid = self.output.position() / SLOT;
        self.output.append(&bytes).and_then(|()| self.output.align()).map_err(fail)?;
        Ok(nid)
    }

    fn link(&mut self, path: &[u8], parent: usize, base: &[u8], entry: &Entry) -> Result<()> {
        let link = name::clean(&entry.link);
        let target = name::split(&link);
        if target.base.is_empty() {
            return Err(refused(path, "the hard link has no target"));
        }
        let source = self.names.lookup(target.directory);
        match source.and_then(|source| self.names.find(source, target.base)) {
            Some(Node::Whiteout) => Err(refused(path, "the hard link's target is hidden by the same layer")),
            Some(Node::Directory(_)) => Err(refused(path, "a directory cannot have a second name")),
            Some(Node::Other { nid, kind }) => {
                if source == Some(parent) && target.base == base {
                    return Ok(());
                }
                let node = Node::Other { nid, kind };
                if self.names.find(parent, base) == Some(node) {
                    return Ok(());
                }
                self.names.insert(parent, base, node)?;
                let metadata = Metadata { xattrs: Vec::new(), ..Metadata::of(entry) };
                let linked = self.linked.entry(nid).or_insert_with(|| Linked {
                    kind: format::file_type(kind),
                    names: 1,
                    metadata: Metadata::default(),
                });
                linked.names += 1;
                // The entry's metadata is that of the file under all its names.
                linked.metadata = metadata;
                Ok(())
            }
            None => {
                if self.late_links.len() >= MAX_LATE_LINKS {
                    let why = "the layer has more hard links to lower layers than one layer may have";
                    return Err(Error::because(Kind::ResourceExhausted, "unpack", printable(path), why));
                }
                self.names.remove(parent, base);
                self.late_links.push((parent, base.to_vec(), entry.clone()));
                Ok(())
            }
        }
    }

    /// Completes the image by what only the layers below tell, nearest first, and returns its file. `identity` is what
    /// tells this image from others.
    pub fn finish(mut self, lowers: &[OwnedFd], identity: [u8; 16]) -> Result<File> {
        for (parent, base, entry) in std::mem::take(&mut self.late_links) {
            self.late_link(parent, &base, &entry, lowers)?;
        }
        let reachable = self.names.reachable();
        self.imply(&reachable, lowers)?;
        let whiteout = Metadata::default().inode(FileType::CharacterDevice);
        let hides = |directory: &usize| {
            let entries = &self.names.directories[*directory].entries;
            entries.values().filter(|node| **node == Node::Whiteout).count()
        };
        // One inode for all of them: overlayfs looks at nothing but the device's number.
        let whiteouts = reachable.iter().map(hides).sum::<usize>();
        let whiteout = match whiteouts {
            0 => 0,
            count => {
                let links = u32::try_from(count).unwrap_or(u32::MAX);
                self.put(b"", Inode { links, ..whiteout }, &Metadata::default(), &[])?
            }
        };
        for (nid, linked) in std::mem::take(&mut self.linked) {
            self.patch_linked(nid, &linked).map_err(|error| full(b"", error))?;
        }
        let root = self.directories(&reachable, whiteout)?;
        self.output.close_inodes().and_then(|()| self.output.align()).map_err(|error| full(b"", error))?;
        let superblock = Superblock { blocks: self.block(b"")?, inodes: self.inodes.into(), uuid: identity };
        self.output.patch(0, &superblock.encode(&root)).map_err(|error| full(b"", error))?;
        self.output.finish().map_err(|error| full(b"", error))
    }

    fn patch_linked(&mut self, nid: u64, linked: &Linked) -> io::Result<()> {
        let mut inode = linked.metadata.inode(linked.kind);
        if linked.kind == FileType::Symlink {
            inode.mode = linked.kind.as_raw_mode() | 0o777;
        }
        let bytes = Inode { links: linked.names, ..inode }.encode(0);
        // Type and permissions, then owner to number of names; what lies between is about the content.
        self.output.patch_inode(nid, 4, &bytes[4..6])?;
        self.output.patch_inode(nid, 24, &bytes[24..48])
    }

    /// Makes a hard link whose target this layer did not have when its entry came.
    fn late_link(&mut self, parent: usize, base: &[u8], entry: &Entry, lowers: &[OwnedFd]) -> Result<()> {
        let path = name::clean(&entry.name);
        if self.names.find(parent, base).is_some_and(|node| node != Node::Whiteout) {
            // A later entry has the name.
            return Ok(());
        }
        let link = name::clean(&entry.link);
        let target = name::split(&link);
        let own = self.names.lookup(target.directory).and_then(|own| self.names.find(own, target.base));
        if own.is_some_and(|node| node != Node::Whiteout) {
            // An earlier late link made it meanwhile.
            return self.link(&path, parent, base, entry);
        }
        let (_, stat) = find_in_lowers(lowers, &link, OFlags::PATH).ok_or_else(|| missing(&path, &link))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused(&path, "the hard link's target in a lower layer is not a regular file"));
        }
        let (lower, stat) =
            find_in_lowers(lowers, &link, OFlags::RDONLY).ok_or_else(|| missing(&path, &link))?;
        let xattrs = attributes::all(&lower).map_err(|error| failed(&path, error))?;
        let metadata = Metadata::of_file(&stat, xattrs);
        let mut inode = metadata.inode(FileType::RegularFile);
        inode.size = stat.st_size.unsigned_abs();
        let mut left = self.whole(&mut inode)?;
        let mut from = File::from(lower);
        let mut buffer = vec![0; COPY];
        let fail = |error| full(&path, error);
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(COPY).min(COPY);
            from.read_exact(&mut buffer[..length]).map_err(fail)?;
            self.output.append(&buffer[..length]).map_err(fail)?;
            left -= length as u64;
        }
        self.output.align().map_err(fail)?;
        let mut tail = Vec::new();
        from.take(inode.size % BLOCK).read_to_end(&mut tail).map_err(fail)?;
        self.block(&path)?;
        let nid = self.put(&path, inode, &metadata, &tail)?;
        let kind = format::entry_kind(FileType::RegularFile);
        self.names.insert(parent, base, Node::Other { nid, kind })
    }

    /// Gives directories that the layer did not name the metadata that the layers below have for them.
    fn imply(&mut self, reachable: &[usize], lowers: &[OwnedFd]) -> Result<()> {
        for directory in reachable {
            if self.names.directories[*directory].metadata.is_some() {
                continue;
            }
            let mut metadata = Metadata { mode: 0o755, ..Metadata::default() };
            if !lowers.is_empty() {
                let path = self.names.path(*directory);
                if let Some((lower, stat)) = find_in_lowers(lowers, &path, DIRECTORY) {
                    let xattrs = attributes::all(&lower).map_err(|error| failed(&path, error))?;
                    metadata = Metadata::of_file(&stat, xattrs);
                }
            }
            self.names.directories[*directory].metadata = Some(metadata);
        }
        Ok(())
    }

    /// Writes the directories; returns the root's inode with what follows it.
    fn directories(&mut self, reachable: &[usize], whiteout: u64) -> Result<Vec<u8>> {
        let fail = |error| full(b"", error);
        let mut slots = vec![0; self.names.directories.len()];
        let mut shapes = Vec::with_capacity(reachable.len());
        for directory in reachable {
            let own = &self.names.directories[*directory];
            let path = self.names.path(*directory);
            let metadata = own.metadata.clone().unwrap_or_default();
            let xattrs = metadata.xattrs(&path, own.is_opaque)?;
            let size = format::directory_size(listing(own.entries.keys()).into_iter());
            let rest = (size % BLOCK) as usize;
            let is_root = *directory == 0;
            let room = if is_root { ROOT_LEN } else { BLOCK_LEN };
            let is_inline = rest > 0 && INODE + xattrs.len() + rest <= room;
            let length = INODE + xattrs.len() + if is_inline { rest } else { 0 };
            slots[*directory] = if is_root {
                if length > ROOT_LEN {
                    return Err(refused(b"", "the root has more attributes than an EROFS layer may have"));
                }
                ROOT / SLOT
            } else if length <= BLOCK_LEN {
                self.output.add_inode(&vec![0; length]).map_err(fail)?
            } else {
                let nid = self.output.position() / SLOT;
                self.output.append(&vec![0; length]).and_then(|()| self.output.align()).map_err(fail)?;
                nid
            };
            shapes.push((metadata, xattrs, size, is_inline));
        }
        self.output.close_inodes().map_err(fail)?;
        let mut root = Vec::new();
        for (directory, (metadata, xattrs, size, is_inline)) in reachable.iter().zip(shapes) {
            let own = &self.names.directories[*directory];
            let kind = format::entry_kind(FileType::Directory);
            let mut subdirectories = 0;
            let mut entries: Vec<Dirent> = own
                .entries
                .iter()
                .map(|(name, node)| match node {
                    Node::Directory(inner) => {
                        subdirectories += 1;
                        Dirent { name, nid: slots[*inner], kind }
                    }
                    Node::Other { nid, kind } => Dirent { name, nid: *nid, kind: *kind },
                    Node::Whiteout => {
                        Dirent { name, nid: whiteout, kind: format::entry_kind(FileType::CharacterDevice) }
                    }
                })
                .collect();
            entries.push(Dirent { name: b".", nid: slots[*directory], kind });
            entries.push(Dirent { name: b"..", nid: slots[own.parent], kind });
            entries.sort_unstable_by_key(|entry| entry.name);
            let content = format::directory(&entries);
            self.inodes += 1;
            let mut inode = Inode {
                size,
                links: 2 + subdirectories,
                number: self.inodes,
                ..metadata.inode(FileType::Directory)
            };
            let (whole, rest) = content.split_at(if is_inline {
                content.len() - content.len() % BLOCK_LEN
            } else {
                content.len()
            });
            if !whole.is_empty() {
                inode.place = self.block(b"")?;
                self.output.append(whole).and_then(|()| self.output.align()).map_err(fail)?;
            }
            if is_inline {
                inode.layout = Layout::Inline;
            }
            let bytes = [&inode.encode(xattrs.len()), xattrs.as_slice(), rest].concat();
            if *directory == 0 {
                root = bytes;
            } else {
                self.output.patch(slots[*directory] * SLOT, &bytes).map_err(fail)?;
            }
        }
        Ok(root)
    }
}

/// Owner and group of an image's root.
pub fn root_owner(image: &File) -> io::Result<(u32, u32)> {
    const UID: u64 = ROOT + 24;
    let mut bytes = [0; 8];
    image.read_exact_at(&mut bytes, UID)?;
    let (uid, gid) = bytes.split_at(4);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
    Ok((number(uid), number(gid)))
}

/// The names of a directory as the image has them, in order.
fn listing<'a>(names: impl Iterator<Item = &'a Box<[u8]>>) -> Vec<&'a [u8]> {
    let mut all: Vec<&[u8]> = names.map(|name| &**name).chain([&b"."[..], b".."]).collect();
    all.sort_unstable();
    all
}

/// An error of writing the image on behalf of an entry.
fn full(path: &[u8], error: io::Error) -> Error {
    Error::io("unpack", if path.is_empty() { "image".to_owned() } else { printable(path) }, error)
}

fn too_large(path: &[u8]) -> Error {
    let why = "the layer is larger than an EROFS image may be";
    Error::because(Kind::ResourceExhausted, "unpack", printable(path), why)
}
