//! Finds what two directory trees differ in.
//!
//! Where the second is an overlay over the first, only what is in the upper directory can differ, and only that is
//! looked at; otherwise both are read side by side.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::archive::{Item, LayerArchive};
use crate::image::unpack::{DIRECTORY, attributes};

/// How deep directories may be nested, each level of which holds descriptors.
const MAX_DEPTH: usize = 1024;

/// The trees to compare.
pub struct Roots {
    /// What is there before; nothing for everything.
    pub left: Option<OwnedFd>,
    /// What is there after.
    pub right: OwnedFd,
    /// The upper directory, where `right` is an overlay of it over `left`.
    pub upper: Option<OwnedFd>,
}

/// Says whether a path is left out: its name, whether it was there before, what it is now. A directory that is left out
/// is written all the same where something in it is.
pub type LeftOut<'a> = &'a dyn Fn(&[u8], bool, &Stat) -> bool;

/// Writes the difference, without what is left out.
pub fn walk<W: Write>(roots: Roots, archive: &mut LayerArchive<W>, left_out: LeftOut<'_>) -> Result<()> {
    Walker::new(archive, left_out).directory(b"", roots)
}

fn nothing(_: &[u8], _: bool, _: &Stat) -> bool {
    false
}

/// The paths in which two trees differ, that of the roots being `/`. Reads every file, whatever its times say.
pub fn differences(left: OwnedFd, right: OwnedFd) -> Result<Vec<String>> {
    let mut names = Names::default();
    let stats = [&left, &right].map(|root| rustix::fs::fstat(root).context("inspect", "/"));
    let [before, after] = stats;
    let owner = |stat: Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
    if owner(before?) != owner(after?) {
        names.0.push("/".to_owned());
    }
    let roots = Roots { left: Some(left), right, upper: None };
    let mut walker = Walker::new(&mut names, &nothing);
    walker.trusts_times = false;
    walker.directory(b"", roots)?;
    Ok(names.0)
}

/// The paths in which two trees differ, in the order in which they are found, each with whether it is gone.
pub fn changed(roots: Roots) -> Result<Vec<(Vec<u8>, bool)>> {
    let mut paths = Paths::default();
    Walker::new(&mut paths, &nothing).directory(b"", roots)?;
    Ok(paths.0)
}

/// Keeps every path, with whether it is gone.
#[derive(Default)]
struct Paths(Vec<(Vec<u8>, bool)>);

impl Found for Paths {
    fn whiteout(&mut self, directory: &[u8], base: &[u8]) -> Result<()> {
        let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        self.0.push(([directory, slash, base].concat(), true));
        Ok(())
    }

    fn item(&mut self, item: Item<'_>) -> Result<()> {
        self.0.push((item.path.to_vec(), false));
        Ok(())
    }
}

/// What is done with what differs.
trait Found {
    /// A name that is gone.
    fn whiteout(&mut self, directory: &[u8], base: &[u8]) -> Result<()>;
    /// Something that is new or different, after the directories on the way to it.
    fn item(&mut self, item: Item<'_>) -> Result<()>;
}

impl<W: Write> Found for LayerArchive<W> {
    fn whiteout(&mut self, directory: &[u8], base: &[u8]) -> Result<()> {
        LayerArchive::whiteout(self, directory, base)
    }

    fn item(&mut self, item: Item<'_>) -> Result<()> {
        LayerArchive::item(self, item)
    }
}

/// Keeps the paths alone; a directory that is named because of what is in it is left out.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    fn push(&mut self, path: &[u8]) {
        let path = String::from_utf8_lossy(path).escape_debug().to_string();
        while self.0.last().is_some_and(|last| path.starts_with(&format!("{last}/"))) {
            self.0.pop();
        }
        self.0.push(path);
    }
}

impl Found for Names {
    fn whiteout(&mut self, directory: &[u8], base: &[u8]) -> Result<()> {
        let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        self.push(&[directory, slash, base].concat());
        Ok(())
    }

    fn item(&mut self, item: Item<'_>) -> Result<()> {
        self.push(item.path);
        Ok(())
    }
}

/// A directory on the way to what is being compared.
struct Parent {
    path: Vec<u8>,
    stat: Stat,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    is_written: bool,
}

struct Walker<'a, F: Found> {
    found: &'a mut F,
    /// Whether a file with the same size and the same time to the nanosecond has the same content.
    trusts_times: bool,
    parents: Vec<Parent>,
    /// The first name of every file with several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    left_out: LeftOut<'a>,
}

impl<'a, F: Found> Walker<'a, F> {
    fn new(found: &'a mut F, left_out: LeftOut<'a>) -> Self {
        Walker { found, trusts_times: true, parents: Vec::new(), links: HashMap::new(), left_out }
    }

    fn directory(&mut self, path: &[u8], roots: Roots) -> Result<()> {
        if self.parents.len() > MAX_DEPTH {
            return Err(Error::because(Kind::ResourceExhausted, "read", printable(path), "nested too deep"));
        }
        let Roots { left, right, upper } = roots;
        let failed = |error: Errno| Error::io("read", printable(path), error.into());
        let mut names = BTreeSet::new();
        for directory in match &upper {
            Some(upper) => vec![upper],
            None => left.iter().chain([&right]).collect(),
        } {
            names.extend(attributes::entries(directory).map_err(failed)?);
        }
        for base in names {
            let base = base.to_bytes();
            let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
            let inner = [path, slash, base].concat();
            let before = match &left {
                Some(left) => stat(left, base, &inner)?,
                None => None,
            };
            match (before, stat(&right, base, &inner)?) {
                (_, None) if before.is_some() => {
                    self.write_parents()?;
                    self.found.whiteout(path, base)?;
                }
                (_, None) => {}
                (before, Some(after)) => {
                    self.compare(&inner, base, [&left, &upper], &right, before, after)?
                }
            }
        }
        Ok(())
    }

    fn compare(
        &mut self,
        path: &[u8],
        base: &[u8],
        [left, upper]: [&Option<OwnedFd>; 2],
        right: &OwnedFd,
        before: Option<Stat>,
        after: Stat,
    ) -> Result<()> {
        let failed = |error: Errno| Error::io("read", printable(path), error.into());
        let xattrs = xattrs(right, base).map_err(failed)?;
        let same_kind = before.filter(|before| before.st_mode & 0o170_000 == after.st_mode & 0o170_000);
        let is_same = match (left, same_kind) {
            (Some(left), Some(before)) => {
                is_same(left, right, base, (&before, &after), &xattrs, self.trusts_times).map_err(failed)?
            }
            _ => false,
        };
        let is_left_out = (self.left_out)(path, before.is_some(), &after);
        if FileType::from_raw_mode(after.st_mode) != FileType::Directory {
            if is_same || is_left_out {
                return Ok(());
            }
            self.write_parents()?;
            return self.write(path, base, right, &after, xattrs);
        }
        self.parents.push(Parent { path: path.to_vec(), stat: after, xattrs, is_written: false });
        if !is_same && !is_left_out {
            self.write_parents()?;
        }
        let open =
            |parent: &OwnedFd| rustix::fs::openat(parent, base, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        let roots = Roots {
            left: match (left, same_kind) {
                (Some(left), Some(_)) => Some(open(left).map_err(failed)?),
                _ => None,
            },
            right: open(right).map_err(failed)?,
            // A directory that the overlay does not simply merge is compared whole.
            upper: match (upper, same_kind) {
                (Some(upper), Some(_)) => Some(open(upper).map_err(failed)?).filter(is_merged),
                _ => None,
            },
        };
        self.directory(path, roots)?;
        self.parents.pop();
        Ok(())
    }

    /// Writes the directories on the way that are not written yet, so that the layer says what they are like.
    fn write_parents(&mut self) -> Result<()> {
        for parent in &mut self.parents {
            if !parent.is_written {
                parent.is_written = true;
                let xattrs = std::mem::take(&mut parent.xattrs);
                let (path, stat) = (parent.path.as_slice(), &parent.stat);
                self.found.item(Item { path, stat, link: Vec::new(), same_as: None, xattrs, data: None })?;
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        path: &[u8],
        base: &[u8],
        right: &OwnedFd,
        stat: &Stat,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<()> {
        let failed = |error: Errno| Error::io("read", printable(path), error.into());
        let mut item = Item { path, stat, link: Vec::new(), same_as: None, xattrs, data: None };
        let first = if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            match self.links.get(&inode) {
                Some(first) => Some(first.clone()),
                None => {
                    self.links.insert(inode, path.to_vec());
                    None
                }
            }
        } else {
            None
        };
        item.same_as = first.as_deref();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(right, base, Vec::new()).map_err(failed)?;
                item.link = target.into_bytes();
            }
            FileType::RegularFile if item.same_as.is_none() => {
                item.data = Some(open_file(right, base).map_err(failed)?);
            }
            _ => {}
        }
        self.found.item(item)
    }
}

/// Whether two files of the same type are the same as far as a layer can tell.
fn is_same(
    left: &OwnedFd,
    right: &OwnedFd,
    base: &[u8],
    (before, after): (&Stat, &Stat),
    attributes_after: &[(Vec<u8>, Vec<u8>)],
    trusts_times: bool,
) -> rustix::io::Result<bool> {
    if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino) {
        return Ok(true);
    }
    if (before.st_mode, before.st_uid, before.st_gid, before.st_rdev)
        != (after.st_mode, after.st_uid, after.st_gid, after.st_rdev)
        || xattrs(left, base)? != attributes_after
    {
        return Ok(false);
    }
    match FileType::from_raw_mode(after.st_mode) {
        FileType::Directory => Ok(true),
        FileType::Symlink => {
            let target = |root: &OwnedFd| rustix::fs::readlinkat(root, base, Vec::new());
            Ok(target(left)? == target(right)?)
        }
        FileType::RegularFile => {
            let times = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
            if before.st_size != after.st_size || times(before) != times(after) {
                return Ok(false);
            }
            // Times of whole seconds come from archives, or were cut: only the content tells.
            if trusts_times && after.st_mtime_nsec != 0 {
                return Ok(true);
            }
            same_content(open_file(left, base)?, open_file(right, base)?)
        }
        _ => Ok(true),
    }
}

fn same_content(mut left: File, mut right: File) -> rustix::io::Result<bool> {
    let (mut one, mut other) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let fill = |file: &mut File, buffer: &mut [u8]| -> rustix::io::Result<usize> {
        let mut length = 0;
        while length < buffer.len() {
            match file.read(&mut buffer[length..]) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        }
        Ok(length)
    };
    loop {
        let (left_length, right_length) = (fill(&mut left, &mut one)?, fill(&mut right, &mut other)?);
        if one[..left_length] != other[..right_length] {
            return Ok(false);
        }
        if left_length == 0 {
            return Ok(true);
        }
    }
}

fn open_file(parent: &OwnedFd, base: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(parent, base, flags, Mode::empty()).map(File::from)
}

/// Attributes that belong into a layer.
fn xattrs(parent: &OwnedFd, base: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut all = attributes::all_of_name(parent, base)?;
    // The host's labels of its own files, and the storage's state, say nothing about the image.
    all.retain(|(name, _)| name != b"security.selinux" && !attributes::is_overlay_state(name));
    Ok(all)
}

/// Whether the overlay shows a directory merged with those below it, under its own name.
fn is_merged(upper: &OwnedFd) -> bool {
    let marks = [
        c"trusted.overlay.opaque",
        c"user.overlay.opaque",
        c"trusted.overlay.redirect",
        c"user.overlay.redirect",
    ];
    marks.iter().all(|mark| rustix::fs::fgetxattr_query(upper, *mark).is_err())
}

fn stat(directory: impl AsFd, base: &[u8], path: &[u8]) -> Result<Option<Stat>> {
    match rustix::fs::statat(directory, base, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(Error::io("read", printable(path), error.into())),
    }
}

fn printable(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { String::from_utf8_lossy(path).escape_debug().to_string() }
}
