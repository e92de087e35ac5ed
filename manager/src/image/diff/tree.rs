//! Archives of files as they are, and lists of what differs: for `docker cp`, `export` and `diff`.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use orlop_proto::error::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use super::archive::{Item, LayerArchive, Looks};
use super::walk::{self, Roots};
use crate::image::mounts;
use crate::image::unpack::attributes;
use crate::owners::Owners;
use crate::snapshot::Mount;

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was there.
    Modified,
    /// It was not.
    Added,
    /// It is gone.
    Deleted,
}

/// Writes an archive of what is at a name in a directory, under another name; an empty one leaves the top itself out. With `owners`,
/// the files are those of a container that runs in a user namespace, and belong to whom it sees. Blocks.
pub fn write_tree(
    output: impl Write,
    parent: &OwnedFd,
    base: &[u8],
    shown: &[u8],
    owners: Option<Owners>,
) -> Result<()> {
    let looks = Looks { above: shown.to_vec(), owners, ..Looks::default() };
    write_tree_as(output, parent, base, looks, &|_| false)
}

/// The same with entries that look like this, without what is left out: it is asked for paths below the top.
pub fn write_tree_as(
    output: impl Write,
    parent: &OwnedFd,
    base: &[u8],
    looks: Looks,
    is_left_out: &dyn Fn(&[u8]) -> bool,
) -> Result<()> {
    let shown = looks.above.clone();
    let name = || String::from_utf8_lossy(base).into_owned();
    let stat = rustix::fs::statat(parent, base, AtFlags::SYMLINK_NOFOLLOW).context("inspect", name())?;
    let mut archive = LayerArchive::looking(output, looks);
    let kind = FileType::from_raw_mode(stat.st_mode);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let open = |flags: OFlags| rustix::fs::openat(parent, base, flags, Mode::empty()).context("open", name());
    match kind {
        FileType::Directory => {
            let directory = open(flags | OFlags::DIRECTORY)?;
            if !shown.is_empty() {
                let xattrs = attributes::all(&directory).context("read attributes of", name())?;
                archive.item(Item {
                    path: b"",
                    stat: &stat,
                    link: Vec::new(),
                    same_as: None,
                    xattrs,
                    data: None,
                })?;
            }
            let roots = Roots { left: None, right: directory, upper: None };
            walk::walk(roots, &mut archive, &|path, _, _| is_left_out(path))?;
        }
        FileType::RegularFile => {
            let file = File::from(open(flags)?);
            let stat = rustix::fs::fstat(&file).context("inspect", name())?;
            let data = Some(file);
            archive.item(Item {
                path: b"",
                stat: &stat,
                link: Vec::new(),
                same_as: None,
                xattrs: Vec::new(),
                data,
            })?;
        }
        _ => {
            let link = match kind {
                FileType::Symlink => {
                    rustix::fs::readlinkat(parent, base, Vec::new()).context("read", name())?.into_bytes()
                }
                _ => Vec::new(),
            };
            archive.item(Item {
                path: b"",
                stat: &stat,
                link,
                same_as: None,
                xattrs: Vec::new(),
                data: None,
            })?;
        }
    }
    archive.finish()?.flush().context("write", "archive")
}

/// What differs between two sets of mounts, parents before what is in them. Blocks.
pub fn changes(left: &[Mount], right: &[Mount]) -> Result<Vec<(Change, String)>> {
    let before = mounts::readable(left)?;
    let upper = mounts::upper_over(left, right)?;
    let again = before.try_clone().context("copy", "a descriptor")?;
    let roots = Roots { left: Some(before), right: mounts::readable(right)?, upper };
    let found = walk::changed(roots)?;
    Ok(found
        .into_iter()
        .map(|(path, is_gone)| {
            let change = match is_gone {
                true => Change::Deleted,
                false if is_there(&again, &path) => Change::Modified,
                false => Change::Added,
            };
            (change, format!("/{}", String::from_utf8_lossy(&path)))
        })
        .collect())
}

fn is_there(root: impl AsFd, path: &[u8]) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_written_under_another_name() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("d")).unwrap();
        std::fs::write(directory.path().join("d/f"), "x").unwrap();
        std::os::unix::fs::symlink("f", directory.path().join("d/l")).unwrap();
        let parent = OwnedFd::from(File::open(directory.path()).unwrap());
        let names = |parent: &OwnedFd, base: &str, shown: &str| {
            let mut bytes = Vec::new();
            write_tree(&mut bytes, parent, base.as_bytes(), shown.as_bytes(), None).unwrap();
            let mut archive = tar::Archive::new(bytes.as_slice());
            let entries =
                archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
            entries.map(|name| name.trim_end_matches('/').to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&parent, "d", "e"), ["e", "e/f", "e/l"]);
        assert_eq!(names(&parent, "d", ""), ["f", "l"]);
        let parent = OwnedFd::from(File::open(directory.path().join("d")).unwrap());
        assert_eq!(names(&parent, "f", "g"), ["g"]);
    }
}
