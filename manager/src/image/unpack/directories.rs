//! The directories of a tree that is being written: found without leaving the tree, made where they are missing.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::archive::printable;
use super::{Whiteouts, name, switches};

/// How a name below the root is looked up: nothing leads out of it, not even for a moment.
const WITHIN: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
/// How directories are opened.
pub const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// The directories that stay open, each one descriptor.
const MAX_OPEN: usize = 64;
/// The symbolic links that may lie on the way to one directory, as in the kernel.
const MAX_LINKS: usize = 40;
/// The most names that are remembered to know new ones by; a few bytes each.
const MAX_CLAIMS: usize = 1 << 18;
/// The longest directory name, in bytes: what one system call takes.
const MAX_PATH: usize = 4095;

/// A directory that entries are made in.
pub struct Directory {
    /// The open directory.
    pub fd: OwnedFd,
    /// Whether it gives its group to what is made in it.
    pub is_setgid: bool,
    /// Its inode: two names that lead to one directory have the same.
    pub inode: u64,
}

/// The directories of one tree.
pub struct Directories {
    root: OwnedFd,
    whiteouts: Whiteouts,
    open: HashMap<Vec<u8>, Arc<Directory>>,
    /// Directories that were made though the layer has not named them, in the order in which they were made.
    pub(super) implied: Vec<Vec<u8>>,
    claims: Claims,
}

/// The names that a layer used, by hash: a stranger may be taken for known, and nothing known for a stranger.
#[derive(Default)]
struct Claims {
    state: RandomState,
    hashes: HashSet<u64>,
}

impl Claims {
    fn claim(&mut self, inode: u64, base: &[u8]) -> bool {
        self.hashes.len() < MAX_CLAIMS && self.hashes.insert(self.state.hash_one((inode, base)))
    }
}

impl Directories {
    pub fn new(root: OwnedFd, whiteouts: Whiteouts) -> Self {
        Directories { root, whiteouts, open: HashMap::new(), implied: Vec::new(), claims: Claims::default() }
    }

    /// The root.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// The directory of this cleaned name, made with its parents where it is missing.
    pub fn get(&mut self, path: &[u8]) -> Result<Arc<Directory>> {
        if let Some(directory) = self.open.get(path) {
            return Ok(directory.clone());
        }
        if path.len() > MAX_PATH {
            return Err(Error::because(
                Kind::InvalidArgument,
                "unpack",
                printable(path),
                "the name is too long",
            ));
        }
        let fd = match open_within(&self.root, path, DIRECTORY) {
            Ok(fd) => fd,
            // Not a directory: perhaps one that this layer hid before, which its mark stands for.
            Err(Errno::NOENT | Errno::NOTDIR) => self.make(path)?,
            Err(error) => return Err(failed(path, error)),
        };
        self.remember(path, fd)
    }

    /// The directory of this cleaned name if it is there.
    pub fn lookup(&mut self, path: &[u8]) -> Option<Arc<Directory>> {
        if let Some(directory) = self.open.get(path) {
            return Some(directory.clone());
        }
        let fd = open_within(&self.root, path, DIRECTORY).ok()?;
        self.remember(path, fd).ok()
    }

    /// Keeps an open directory under its cleaned name.
    pub fn remember(&mut self, path: &[u8], fd: OwnedFd) -> Result<Arc<Directory>> {
        let stat = rustix::fs::fstat(&fd).map_err(|error| failed(path, error))?;
        let is_setgid = stat.st_mode & 0o2000 != 0;
        let directory = Arc::new(Directory { fd, is_setgid, inode: stat.st_ino });
        if self.open.len() >= MAX_OPEN {
            self.open.clear();
        }
        self.open.insert(path.to_vec(), directory.clone());
        Ok(directory)
    }

    /// Notes a name as used by the layer; whether it surely was not before.
    pub fn claim(&mut self, parent: &Directory, base: &[u8]) -> bool {
        self.claims.claim(parent.inode, base)
    }

    /// Forgets what was looked up, since something was removed that names may have led through.
    pub fn forget(&mut self) {
        self.open.clear();
    }

    /// Opens an existing directory of the tree, or `None` when the name means something else by now.
    pub fn existing(&self, path: &[u8]) -> Option<OwnedFd> {
        open_within(&self.root, path, DIRECTORY | OFlags::NOFOLLOW).ok()
    }

    /// Walks to a directory one component at a time and makes what is missing.
    fn make(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let mut links = 0;
        let mut pending: Vec<Vec<u8>> = components(path);
        let mut reached: Vec<u8> = Vec::new();
        while let Some(component) = pending.pop() {
            if component == b".." {
                reached.truncate(reached.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            let parent = open_within(&self.root, &reached, DIRECTORY).map_err(|error| failed(path, error))?;
            let stat = match rustix::fs::statat(&parent, component.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(failed(path, error)),
            };
            match stat.map(|stat| (FileType::from_raw_mode(stat.st_mode), stat)) {
                Some((FileType::Directory, _)) => push(&mut reached, &component),
                Some((FileType::Symlink, _)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(failed(path, Errno::LOOP));
                    }
                    let target = rustix::fs::readlinkat(&parent, component.as_slice(), Vec::new())
                        .map_err(|error| failed(path, error))?;
                    if target.as_bytes().starts_with(b"/") {
                        reached.clear();
                    }
                    pending.extend(components(target.as_bytes()));
                }
                Some((_, stat)) if self.whiteouts.is_mark(&stat) => {
                    // The layer hid the lower layers' directory and now has its own in its place.
                    rustix::fs::unlinkat(&parent, component.as_slice(), AtFlags::empty())
                        .map_err(|error| failed(path, error))?;
                    push(&mut reached, &component);
                    let made = make_directory(&parent, &component).map_err(|error| failed(path, error))?;
                    self.whiteouts.set_opaque(&made).map_err(|error| failed(path, error))?;
                }
                Some(_) => return Err(failed(path, Errno::NOTDIR)),
                None => {
                    push(&mut reached, &component);
                    let inode = rustix::fs::fstat(&parent).map_err(|error| failed(path, error))?.st_ino;
                    self.claims.claim(inode, &component);
                    make_directory(&parent, &component).map_err(|error| failed(path, error))?;
                    if self.whiteouts.is_apart() {
                        self.implied.push(reached.clone());
                    }
                }
            }
        }
        open_within(&self.root, &reached, DIRECTORY).map_err(|error| failed(path, error))
    }
}

/// Opens what a cleaned name means in the layers below, nearest first, without following a last symbolic link.
pub fn find_in_lowers(lowers: &[OwnedFd], path: &[u8], flags: OFlags) -> Option<(OwnedFd, Stat)> {
    for lower in lowers {
        match open_within(lower, path, flags | OFlags::NOFOLLOW) {
            Ok(fd) => return rustix::fs::fstat(&fd).ok().map(|stat| (fd, stat)),
            Err(Errno::NOENT) => {}
            // Something else stands there in this layer and hides what is below.
            Err(_) => return None,
        }
    }
    None
}

/// Opens a name below a directory as if the directory were the root.
pub(super) fn open_within(root: impl AsFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let within = if switches::is_off("names") { ResolveFlags::empty() } else { WITHIN };
    loop {
        match rustix::fs::openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), within) {
            // The kernel cannot tell whether a rename elsewhere on the system raced with `..` and asks to try again.
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

fn make_directory(parent: &OwnedFd, base: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, base, Mode::from_raw_mode(0o755))?;
    rustix::fs::openat(parent, base, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// The components of a name, the first one last; `..` stays.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".").rev().map(<[u8]>::to_vec).collect()
}

fn push(path: &mut Vec<u8>, component: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(component);
}

/// An error of a system call on behalf of an entry.
pub fn failed(path: &[u8], error: Errno) -> Error {
    let location = if path.is_empty() { "/".to_owned() } else { printable(path) };
    let kind = match error {
        // What the layer itself asks for cannot be had: the layer is to blame.
        Errno::NAMETOOLONG
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::LOOP
        | Errno::NOENT
        | Errno::EXIST
        | Errno::XDEV => Kind::InvalidArgument,
        error => Kind::from_io(&error.into()),
    };
    let cause: std::io::Error = error.into();
    Error::because(kind, "unpack", location, cause)
}

/// The directory and last component of a link's target.
pub(super) fn target(link: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let clean = name::clean(link);
    let location = name::split(&clean);
    (location.directory.to_vec(), location.base.to_vec())
}
