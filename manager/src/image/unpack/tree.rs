//! Writes entries below a root directory, which nothing they say can lead out of.
//!
//! Every name is cleaned, its directory is opened within the root (openat2 with RESOLVE_IN_ROOT and
//! RESOLVE_NO_MAGICLINKS), and the last component is made by a call that neither follows nor opens what exists.
//! What an entry replaces is removed first, as GNU tar and containerd do.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::archive::{Archive, Entry, EntryKind, Time, printable};
use super::directories::{DIRECTORY, Directories, Directory, failed, find_in_lowers, open_within, target};
use super::files::{self, Files, Job, create};
use super::name::{self, Purpose};
use super::{Whiteouts, attributes};

/// The most directories of one layer, since their times are kept until the end.
const MAX_DIRECTORIES: usize = 1 << 20;
/// The most names of one layer that are remembered to tell them from what lower layers have.
const MAX_NAMES: usize = 1 << 22;

/// The most hard links of one layer to files of the layers below.
const MAX_LATE_LINKS: usize = 1 << 16;

/// A tree that entries are written to.
pub struct Tree {
    directories: Directories,
    whiteouts: Whiteouts,
    /// Times of directories, given at the end, since every entry made in a directory changes its time.
    times: Vec<(Vec<u8>, Time)>,
    /// Directories that the layer named, of those that it had used before.
    named: HashSet<Vec<u8>>,
    /// Hard links whose target is not in this layer, with their entries' names.
    late_links: Vec<(Vec<u8>, Entry)>,
    /// What this layer made, where whiteouts delete: they are about the lower layers only.
    made: HashSet<Vec<u8>>,
    /// Whether a default ACL was set somewhere: it changes the mode of what is made below.
    has_default_acl: bool,
    /// Where small files are made by several threads, while that is safe.
    files: Option<Arc<Files>>,
}

impl Tree {
    /// A tree in a root directory. The calling thread's umask must be 0, and that of the threads that work for `files`,
    /// which takes what can be made in any order.
    pub fn new(root: OwnedFd, whiteouts: Whiteouts, files: Option<Arc<Files>>) -> Result<Self> {
        // Where there is something already, new files may have to take its place.
        let is_fresh = whiteouts.is_apart()
            && attributes::entries(&root).map_err(|error| failed(b"", error))?.is_empty();
        Ok(Tree {
            directories: Directories::new(root, whiteouts),
            whiteouts,
            times: Vec::new(),
            named: HashSet::new(),
            late_links: Vec::new(),
            made: HashSet::new(),
            has_default_acl: false,
            files: files.filter(|_| is_fresh),
        })
    }

    /// Writes one entry; its data comes from the archive.
    pub fn write<R: BufRead>(&mut self, entry: Entry, archive: &mut Archive<R>) -> Result<()> {
        let path = name::clean(&entry.name);
        let location = name::split(&path);
        let purpose = match self.whiteouts {
            Whiteouts::Literal => Purpose::Entry,
            _ => name::purpose(&path),
        };
        match purpose {
            Purpose::Ignored => Ok(()),
            Purpose::Invalid => Err(refused(&path, "the whiteout names no file")),
            Purpose::Opaque => {
                self.settle()?;
                self.hide_all(location.directory)
            }
            Purpose::Whiteout(hidden) => {
                self.settle()?;
                self.hide(location.directory, hidden)
            }
            Purpose::Entry if path.is_empty() => match entry.kind {
                EntryKind::Directory => self.directory_metadata(&path, &entry, true),
                _ => Err(refused(&path, "only a directory can be the root")),
            },
            Purpose::Entry => {
                let parent = self.directory(location.directory)?;
                self.make(&path, &parent, location.base, entry, archive)?;
                self.remember(&path)
            }
        }
    }

    /// The root.
    pub fn root(&self) -> &OwnedFd {
        self.directories.root()
    }

    /// Waits for all files that are made elsewhere.
    pub fn settle(&self) -> Result<()> {
        self.files.as_ref().map_or(Ok(()), |files| files.settle())
    }

    /// The directory of a cleaned name, made where it is missing.
    fn directory(&mut self, path: &[u8]) -> Result<Arc<Directory>> {
        if let Some(directory) = self.directories.lookup(path) {
            return Ok(directory);
        }
        // Something that is being made may stand in its way.
        self.settle()?;
        self.directories.get(path)
    }

    /// Completes the tree by what only the layers below tell, nearest first, and gives directories their times.
    pub fn finish(mut self, lowers: &[OwnedFd]) -> Result<()> {
        self.settle()?;
        let fail = |path: &[u8], error| failed(path, error);
        if let (false, Some(lower)) = (self.named.contains(&b""[..]), lowers.first()) {
            let root = self.directories.get(b"")?;
            rustix::fs::fstat(lower)
                .and_then(|stat| attributes::copy_ownership(&root.fd, &stat))
                .map_err(|error| fail(b"", error))?;
        }
        let mut implied = std::mem::take(&mut self.directories.implied);
        implied.retain(|path| !self.named.contains(path));
        for path in &implied {
            let Some((lower, stat)) = find_in_lowers(lowers, path, DIRECTORY) else { continue };
            // A later entry may have put something else in its place.
            let Some(made) = self.directories.existing(path) else { continue };
            attributes::copy_ownership(&made, &stat)
                .and_then(|()| attributes::copy_xattrs(&lower, &made))
                .and_then(|()| rustix::fs::fchmod(&made, Mode::from_raw_mode(stat.st_mode & 0o7777)))
                .map_err(|error| fail(path, error))?;
            self.times.push((path.clone(), attributes::mtime(&stat)));
        }
        for (path, entry) in std::mem::take(&mut self.late_links) {
            self.make_late_link(&path, &entry, lowers)?;
        }
        for (path, time) in &self.times {
            // A later entry may have put something else in its place, which has its own time.
            let Some(directory) = self.directories.existing(path) else { continue };
            rustix::fs::futimens(&directory, &attributes::timestamps(*time))
                .map_err(|error| fail(path, error))?;
        }
        Ok(())
    }

    /// Notes a name as this layer's, and with it the directories that lead to it.
    fn remember(&mut self, path: &[u8]) -> Result<()> {
        let mut own = path;
        while self.whiteouts == Whiteouts::Delete && !own.is_empty() && !self.made.contains(own) {
            if self.made.len() >= MAX_NAMES {
                return Err(too_many(path, "names"));
            }
            self.made.insert(own.to_vec());
            own = name::split(own).directory;
        }
        Ok(())
    }

    fn make<R: BufRead>(
        &mut self,
        path: &[u8],
        parent: &Arc<Directory>,
        base: &[u8],
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<()> {
        let is_new = self.directories.claim(parent, base);
        if !is_new || entry.kind == EntryKind::HardLink {
            self.settle()?;
        }
        match entry.kind {
            EntryKind::Directory => self.make_directory(path, parent, base, &entry),
            EntryKind::File => match &self.files {
                Some(files) if is_new && entry.size <= files::MAX_SIZE && entry.extents.is_none() => {
                    let mut data = files.buffer();
                    archive.read_into(&mut data)?;
                    files.offer(Job {
                        parent: parent.clone(),
                        path: path.to_vec(),
                        base: base.to_vec(),
                        is_plain: self.is_plain(parent),
                        entry,
                        data,
                    })
                }
                _ => self.make_file(path, parent, base, &entry, archive),
            },
            EntryKind::HardLink => self.make_link(path, parent, base, &entry),
            EntryKind::Symlink => {
                if entry.link.is_empty() {
                    return Err(refused(path, "the symbolic link has no target"));
                }
                let link = entry.link.as_slice();
                self.replacing(path, parent, base, || rustix::fs::symlinkat(link, &parent.fd, base))?;
                self.name_metadata(path, parent, base, &entry)
            }
            EntryKind::CharDevice => self.make_node(path, parent, base, &entry, FileType::CharacterDevice),
            EntryKind::BlockDevice => self.make_node(path, parent, base, &entry, FileType::BlockDevice),
            EntryKind::Fifo => self.make_node(path, parent, base, &entry, FileType::Fifo),
        }
    }

    /// Whether a directory leaves owner and mode of what is made in it as they are asked for.
    fn is_plain(&self, parent: &Directory) -> bool {
        !parent.is_setgid && !self.has_default_acl
    }

    /// Makes something; what stands in its way is removed first.
    fn replacing<T>(
        &mut self,
        path: &[u8],
        parent: &Directory,
        base: &[u8],
        mut make: impl FnMut() -> rustix::io::Result<T>,
    ) -> Result<T> {
        let result = match make() {
            Err(Errno::EXIST) => {
                self.directories.forget();
                attributes::remove(&parent.fd, base).and_then(|()| make())
            }
            result => result,
        };
        result.map_err(|error| failed(path, error))
    }

    fn make_directory(&mut self, path: &[u8], parent: &Directory, base: &[u8], entry: &Entry) -> Result<()> {
        let mode = Mode::from_raw_mode(entry.mode);
        let mut replaces_whiteout = false;
        let mut is_new = true;
        match rustix::fs::mkdirat(&parent.fd, base, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = stat(&parent.fd, base).map_err(|error| failed(path, error))?;
                is_new = FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
                if is_new {
                    replaces_whiteout = self.whiteouts.is_mark(&stat);
                    self.replacing(path, parent, base, || rustix::fs::mkdirat(&parent.fd, base, mode))?;
                }
            }
            Err(error) => return Err(failed(path, error)),
        }
        if replaces_whiteout {
            // Hidden and made anew: the lower layers' directory must not show through.
            let made = open_directory(parent, base).map_err(|error| failed(path, error))?;
            self.whiteouts.set_opaque(&made).map_err(|error| failed(path, error))?;
        }
        // mkdir(2) leaves the set-id bits out.
        let is_complete = is_new && self.is_plain(parent) && entry.mode & 0o6000 == 0;
        self.directory_metadata(path, entry, !is_complete)
    }

    fn directory_metadata(&mut self, path: &[u8], entry: &Entry, complete: bool) -> Result<()> {
        if self.times.len() >= MAX_DIRECTORIES {
            return Err(too_many(path, "directories"));
        }
        let directory = match path {
            b"" => self.directories.get(path)?,
            _ => {
                let location = name::split(path);
                let parent = self.directories.get(location.directory)?;
                let fd = open_directory(&parent, location.base).map_err(|error| failed(path, error))?;
                self.directories.remember(path, fd)?
            }
        };
        self.note_default_acl(entry);
        files::metadata(&directory.fd, entry, complete).map_err(|error| failed(path, error))?;
        if directory.is_setgid != (entry.mode & 0o2000 != 0) {
            self.directories.forget();
        }
        if path.is_empty() || !self.directories.implied.is_empty() {
            self.named.insert(path.to_vec());
        }
        self.times.push((path.to_vec(), entry.mtime));
        Ok(())
    }

    fn note_default_acl(&mut self, entry: &Entry) {
        self.has_default_acl |= entry.xattrs.iter().any(|(name, _)| name == attributes::DEFAULT_ACL);
    }

    fn make_file<R: BufRead>(
        &mut self,
        path: &[u8],
        parent: &Directory,
        base: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<()> {
        let mode = Mode::from_raw_mode(entry.mode);
        let fd = self.replacing(path, parent, base, || create(&parent.fd, base, mode))?;
        let mut file = File::from(fd);
        let io_failed = |error| Error::io("unpack", printable(path), error);
        match &entry.extents {
            None => loop {
                let chunk = archive.data()?;
                let length = chunk.len();
                if length == 0 {
                    break;
                }
                file.write_all(chunk).map_err(io_failed)?;
                archive.consume(length);
            },
            Some(extents) => {
                file.set_len(entry.size).map_err(io_failed)?;
                for extent in extents {
                    let mut offset = extent.offset;
                    let end = extent.offset + extent.length;
                    while offset < end {
                        let chunk = archive.data()?;
                        let length = chunk.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
                        if length == 0 {
                            return Err(refused(path, "the sparse file's data is shorter than its map"));
                        }
                        file.write_all_at(&chunk[..length], offset).map_err(io_failed)?;
                        archive.consume(length);
                        offset += length as u64;
                    }
                }
            }
        }
        self.note_default_acl(entry);
        files::finish(&OwnedFd::from(file), entry, !self.is_plain(parent))
            .map_err(|error| failed(path, error))
    }

    /// Owner, attributes, mode and time of what was just made and cannot be opened.
    fn name_metadata(&self, path: &[u8], parent: &Directory, base: &[u8], entry: &Entry) -> Result<()> {
        let changes_owner = entry.uid != 0 || entry.gid != 0 || parent.is_setgid;
        let is_symlink = entry.kind == EntryKind::Symlink;
        self.metadata_of_name(path, &parent.fd, base, entry, changes_owner, is_symlink)
    }

    fn metadata_of_name(
        &self,
        path: &[u8],
        parent: &OwnedFd,
        base: &[u8],
        entry: &Entry,
        changes_owner: bool,
        is_symlink: bool,
    ) -> Result<()> {
        let apply = || {
            if changes_owner {
                let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
                rustix::fs::chownat(parent, base, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            for (name, value) in &entry.xattrs {
                if !attributes::is_overlay_state(name) {
                    attributes::set_on_name(parent, base, name, value)?;
                }
            }
            if !is_symlink {
                // Not a link, so there is nothing to follow.
                rustix::fs::chmodat(parent, base, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
            }
            let times = attributes::timestamps(entry.mtime);
            rustix::fs::utimensat(parent, base, &times, AtFlags::SYMLINK_NOFOLLOW)
        };
        apply().map_err(|error| failed(path, error))
    }

    fn make_node(
        &mut self,
        path: &[u8],
        parent: &Directory,
        base: &[u8],
        entry: &Entry,
        kind: FileType,
    ) -> Result<()> {
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        let mode = Mode::from_raw_mode(entry.mode);
        self.replacing(path, parent, base, || rustix::fs::mknodat(&parent.fd, base, kind, mode, device))?;
        self.name_metadata(path, parent, base, entry)
    }

    fn make_link(&mut self, path: &[u8], parent: &Directory, base: &[u8], entry: &Entry) -> Result<()> {
        let (directory, target_base) = target(&entry.link);
        if target_base.is_empty() {
            return Err(refused(path, "the hard link has no target"));
        }
        let link_path = name::clean(&entry.link);
        // The directory is not made for a link's sake: the target may lie in a lower layer.
        let source = self.directories.lookup(&directory);
        let found = match &source {
            Some(source) => match stat(&source.fd, &target_base) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(failed(path, error)),
            },
            None => None,
        };
        match (source, found) {
            (Some(source), Some(found)) => {
                if self.whiteouts.is_mark(&found) {
                    return Err(refused(path, "the hard link's target is hidden by the same layer"));
                }
                if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                    return Err(refused(path, "a directory cannot have a second name"));
                }
                if stat(&parent.fd, base)
                    .is_ok_and(|own| (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino))
                {
                    return Ok(());
                }
                self.replacing(path, parent, base, || {
                    rustix::fs::linkat(&source.fd, target_base.as_slice(), &parent.fd, base, AtFlags::empty())
                })?;
                // The entry's metadata is that of the file under all its names, as containerd has it.
                let is_symlink = FileType::from_raw_mode(found.st_mode) == FileType::Symlink;
                self.metadata_of_name(path, &parent.fd, base, entry, true, is_symlink)
            }
            _ if !self.whiteouts.is_apart() => Err(missing(path, &link_path)),
            // Only the layers below can have it, and they may be on their way.
            _ => {
                if self.late_links.len() >= MAX_LATE_LINKS {
                    return Err(too_many(path, "hard links to lower layers"));
                }
                attributes::remove(&parent.fd, base).map_err(|error| failed(path, error))?;
                self.late_links.push((path.to_vec(), entry.clone()));
                Ok(())
            }
        }
    }

    /// Makes a hard link whose target this layer did not have when its entry came.
    fn make_late_link(&mut self, path: &[u8], entry: &Entry, lowers: &[OwnedFd]) -> Result<()> {
        let location = name::split(path);
        let parent = self.directories.get(location.directory)?;
        match stat(&parent.fd, location.base) {
            // A later entry has the name.
            Ok(stat) if !self.whiteouts.is_mark(&stat) => return Ok(()),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(path, error)),
        }
        let link = name::clean(&entry.link);
        let target = name::split(&link);
        // An earlier late link may have made it meanwhile.
        let own = self.directories.lookup(target.directory);
        if own.is_some_and(|own| stat(&own.fd, target.base).is_ok_and(|stat| !self.whiteouts.is_mark(&stat)))
        {
            return self.make_link(path, &parent, location.base, entry);
        }
        self.copy_from_lower(path, &parent, location.base, &link, lowers)
    }

    /// A hard link to a file of a lower layer: its content and metadata under the new name.
    fn copy_from_lower(
        &mut self,
        path: &[u8],
        parent: &Directory,
        base: &[u8],
        link: &[u8],
        lowers: &[OwnedFd],
    ) -> Result<()> {
        let (handle, stat) = find_in_lowers(lowers, link, OFlags::PATH).ok_or_else(|| missing(path, link))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused(path, "the hard link's target in a lower layer is not a regular file"));
        }
        drop(handle);
        let (lower, stat) =
            find_in_lowers(lowers, link, OFlags::RDONLY).ok_or_else(|| missing(path, link))?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        let fd = self.replacing(path, parent, base, || create(&parent.fd, base, mode))?;
        let (mut from, mut to) = (File::from(lower), File::from(fd));
        std::io::copy(&mut from, &mut to).map_err(|error| Error::io("unpack", printable(path), error))?;
        let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
        attributes::copy_ownership(&to, &stat)
            .and_then(|()| attributes::copy_xattrs(&from, &to))
            .and_then(|()| rustix::fs::fchmod(&to, mode))
            .and_then(|()| rustix::fs::futimens(&to, &attributes::timestamps(attributes::mtime(&stat))))
            .map_err(|error| failed(path, error))
    }

    /// Hides one name of the lower layers.
    fn hide(&mut self, directory: &[u8], hidden: &[u8]) -> Result<()> {
        let path = if directory.is_empty() { hidden.to_vec() } else { [directory, b"/", hidden].concat() };
        if self.whiteouts == Whiteouts::Delete {
            let Some(parent) = self.directories.lookup(directory) else { return Ok(()) };
            self.directories.forget();
            let result = match self.made.contains(&path) {
                // What this layer made stays: of a directory, only what lower layers have in it goes.
                true => match open_directory(&parent, hidden) {
                    Ok(own) => self.delete_unmade(own, path.clone()),
                    Err(_) => Ok(()),
                },
                false => attributes::remove(&parent.fd, hidden),
            };
            return result.map_err(|error| failed(&path, error));
        }
        let parent = self.directories.get(directory)?;
        self.directories.claim(&parent, hidden);
        match attributes::make_whiteout(&parent.fd, hidden) {
            // This layer has the name itself, and whiteouts are about the layers below: of a directory, what they have
            // in it is hidden.
            Err(Errno::EXIST) => match open_directory(&parent, hidden) {
                Ok(own) => self.whiteouts.set_opaque(&own),
                Err(_) => Ok(()),
            },
            result => result,
        }
        .map_err(|error| failed(&path, error))
    }

    /// Hides everything that lower layers have in a directory.
    fn hide_all(&mut self, directory: &[u8]) -> Result<()> {
        if self.whiteouts != Whiteouts::Delete {
            let own = self.directories.get(directory)?;
            return self.whiteouts.set_opaque(&own.fd).map_err(|error| failed(directory, error));
        }
        let Some(parent) = self.directories.lookup(directory) else { return Ok(()) };
        self.directories.forget();
        let own = open_within(&parent.fd, b"", DIRECTORY).map_err(|error| failed(directory, error))?;
        self.delete_unmade(own, directory.to_vec()).map_err(|error| failed(directory, error))
    }

    /// Deletes from a directory what this layer did not make.
    fn delete_unmade(&self, fd: OwnedFd, path: Vec<u8>) -> rustix::io::Result<()> {
        let mut pending = vec![path];
        let mut next = Some(fd);
        while let Some(path) = pending.pop() {
            let Some(directory) = next.take().or_else(|| self.directories.existing(&path)) else { continue };
            for base in attributes::entries(&directory)? {
                let base = base.to_bytes();
                let inner = if path.is_empty() { base.to_vec() } else { [&path, &b"/"[..], base].concat() };
                if !self.made.contains(&inner) {
                    attributes::remove(&directory, base)?;
                } else if stat(&directory, base)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
                {
                    pending.push(inner);
                }
            }
        }
        Ok(())
    }
}

fn stat(directory: impl AsFd, base: &[u8]) -> rustix::io::Result<Stat> {
    rustix::fs::statat(directory, base, AtFlags::SYMLINK_NOFOLLOW)
}

fn open_directory(parent: &Directory, base: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(&parent.fd, base, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// The error of a hard link to nothing.
pub fn missing(path: &[u8], link: &[u8]) -> Error {
    let why = format!("the hard link's target {} does not exist", printable(link));
    Error::because(Kind::InvalidArgument, "unpack", printable(path), why)
}

/// An error of an entry that asks for what cannot be.
pub fn refused(path: &[u8], why: &'static str) -> Error {
    let location = if path.is_empty() { "/".to_owned() } else { printable(path) };
    Error::because(Kind::InvalidArgument, "unpack", location, why)
}

fn too_many(path: &[u8], what: &str) -> Error {
    let why = format!("the layer has more {what} than one layer may have");
    Error::because(Kind::ResourceExhausted, "unpack", printable(path), why)
}
