//! What a tree of files takes on the disk.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use orlop_proto::error::{Context, Result};

use super::snapshotter::Usage;

/// Bytes per block in stat(2).
const BLOCK: u64 = 512;

/// What a tree takes, its root included; a file with several names counts once.
pub fn usage(root: &Path) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut directories = vec![root.to_owned()];
    let own = fs::symlink_metadata(root).context("inspect", root.display().to_string())?;
    usage.size += own.blocks() * BLOCK;
    usage.inodes += 1;
    while let Some(directory) = directories.pop() {
        let name = || directory.display().to_string();
        for entry in fs::read_dir(&directory).context("read", name())? {
            let entry = entry.context("read", name())?;
            let found = entry.metadata().context("inspect", entry.path().display().to_string())?;
            if found.nlink() > 1 && !found.is_dir() && !seen.insert((found.dev(), found.ino())) {
                continue;
            }
            usage.size += found.blocks() * BLOCK;
            usage.inodes += 1;
            if found.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_links_count_once_and_holes_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let empty = usage(root).unwrap();
        assert_eq!(empty.inodes, 1);
        fs::write(root.join("a"), vec![1; 8192]).unwrap();
        fs::File::open(root.join("a")).unwrap().sync_all().unwrap();
        let one = usage(root).unwrap();
        assert_eq!((one.inodes, one.size - empty.size), (2, 8192));
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
        assert_eq!(usage(root).unwrap(), one);
        fs::File::create(root.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let sparse = usage(root).unwrap();
        assert_eq!((sparse.inodes, sparse.size), (3, one.size));
    }
}
