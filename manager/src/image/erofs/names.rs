//! The names of an image being made: directories in memory, everything else as the number of an inode that is written.

use std::collections::{BTreeMap, HashMap};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use rustix::io::Errno;

use super::Metadata;
use super::format::MAX_NAME;
use crate::image::unpack::{failed, printable};

/// The symbolic links that may lie on the way to one directory, as in the kernel.
const MAX_LINKS: usize = 40;
/// The most names of one layer, since all of them are kept until the end.
const MAX_NAMES: usize = 1 << 20;

/// What a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory, by its place in [`Names::directories`].
    Directory(usize),
    /// Anything else.
    Other {
        /// The number of the inode.
        nid: u64,
        /// The kind as directories have it.
        kind: u8,
    },
    /// Hides what lower layers have.
    Whiteout,
}

/// A directory.
#[derive(Debug, Default)]
pub struct Directory {
    /// The one it lies in; the root lies in itself.
    pub parent: usize,
    /// What it holds, in the order of the image.
    pub entries: BTreeMap<Box<[u8]>, Node>,
    /// What its entry says, or nothing for one that the layer only implies.
    pub metadata: Option<Metadata>,
    /// Whether it hides what lower layers have in it.
    pub is_opaque: bool,
}

/// All names.
#[derive(Debug)]
pub struct Names {
    /// Every directory ever made, the root first; those that were replaced are reached from nowhere.
    pub directories: Vec<Directory>,
    /// Targets of symbolic links, by number of the inode.
    pub targets: HashMap<u64, Box<[u8]>>,
    count: usize,
}

impl Names {
    pub fn new() -> Names {
        Names { directories: vec![Directory::default()], targets: HashMap::new(), count: 0 }
    }

    /// What a name means in a directory.
    pub fn find(&self, directory: usize, base: &[u8]) -> Option<Node> {
        self.directories[directory].entries.get(base).copied()
    }

    /// Gives a name, in the place of what had it.
    pub fn insert(&mut self, directory: usize, base: &[u8], node: Node) -> Result<()> {
        if base.len() > MAX_NAME {
            return Err(failed(base, Errno::NAMETOOLONG));
        }
        if self.directories[directory].entries.insert(base.into(), node).is_none() {
            self.count += 1;
            if self.count > MAX_NAMES {
                let why = "the layer has more names than an EROFS layer may have";
                return Err(Error::because(Kind::ResourceExhausted, "unpack", printable(base), why));
            }
        }
        Ok(())
    }

    /// Takes a name away.
    pub fn remove(&mut self, directory: usize, base: &[u8]) {
        if self.directories[directory].entries.remove(base).is_some() {
            self.count -= 1;
        }
    }

    /// Makes a directory, in the place of what had the name.
    pub fn make_directory(&mut self, parent: usize, base: &[u8]) -> Result<usize> {
        let is_opaque = self.find(parent, base) == Some(Node::Whiteout);
        let made = self.directories.len();
        self.insert(parent, base, Node::Directory(made))?;
        self.directories.push(Directory { parent, is_opaque, ..Directory::default() });
        Ok(made)
    }

    /// The directory that a cleaned name leads to, through symbolic links of this layer, with what is missing made.
    pub fn get(&mut self, path: &[u8]) -> Result<usize> {
        self.walk(path, |names, directory, component| names.make_directory(directory, component).map(Some))
            .and_then(|found| found.ok_or_else(|| failed(path, Errno::NOTDIR)))
    }

    /// The same if it is there.
    pub fn lookup(&mut self, path: &[u8]) -> Option<usize> {
        self.walk(path, |_, _, _| Ok(None)).ok().flatten()
    }

    fn walk(
        &mut self,
        path: &[u8],
        missing: impl Fn(&mut Names, usize, &[u8]) -> Result<Option<usize>>,
    ) -> Result<Option<usize>> {
        let mut at = 0;
        let mut links = 0;
        let mut pending = components(path);
        while let Some(component) = pending.pop() {
            if component == b".." {
                at = self.directories[at].parent;
                continue;
            }
            match self.find(at, &component) {
                Some(Node::Directory(next)) => at = next,
                None | Some(Node::Whiteout) => match missing(self, at, &component)? {
                    Some(made) => at = made,
                    None => return Ok(None),
                },
                Some(Node::Other { nid, .. }) => {
                    let Some(target) = self.targets.get(&nid) else {
                        return Err(failed(path, Errno::NOTDIR));
                    };
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(failed(path, Errno::LOOP));
                    }
                    if target.starts_with(b"/") {
                        at = 0;
                    }
                    pending.extend(components(target));
                }
            }
        }
        Ok(Some(at))
    }

    /// The cleaned name of a directory that is reached from the root.
    pub fn path(&self, directory: usize) -> Vec<u8> {
        let mut components: Vec<&[u8]> = Vec::new();
        let mut at = directory;
        while at != 0 {
            let parent = &self.directories[self.directories[at].parent];
            let own = parent.entries.iter().find(|(_, node)| **node == Node::Directory(at));
            components.extend(own.map(|(name, _)| &**name));
            at = self.directories[at].parent;
        }
        components.reverse();
        components.join(&b'/')
    }

    /// The directories that are reached from the root, each after the one it lies in.
    pub fn reachable(&self) -> Vec<usize> {
        let mut found = vec![0];
        let mut next = 0;
        while let Some(directory) = found.get(next).copied() {
            next += 1;
            for node in self.directories[directory].entries.values() {
                if let Node::Directory(inner) = node {
                    found.push(*inner);
                }
            }
        }
        found
    }
}

/// The components of a name, the first one last; `..` stays.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".").rev().map(<[u8]>::to_vec).collect()
}
