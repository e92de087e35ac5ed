//! Mounts of a container that has no mount namespace of its own: they are made among the host's, and go with the container.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use orlop_proto::error::{Context, Result};

/// A mount: its id and where it is.
pub type MountPoint = (u64, PathBuf);

/// The mounts below a directory, in the order in which they were made.
pub fn below(directory: &Path) -> Result<Vec<MountPoint>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("read", "/proc/self/mountinfo")?;
    Ok(parse(&table).filter(|(_, point)| point.starts_with(directory)).collect())
}

fn parse(table: &str) -> impl Iterator<Item = MountPoint> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let point = fields.nth(3)?.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
        Some((id, PathBuf::from(point)))
    })
}

/// What is mounted below a directory and is not in the list of what was there before.
pub fn made_since(directory: &Path, before: &[MountPoint]) -> Result<Vec<MountPoint>> {
    let mut mounts = below(directory)?;
    mounts.retain(|mount| !before.contains(mount));
    Ok(mounts)
}

/// Unmounts these, as far as they are still there, the last one first.
pub fn unmount(directory: &Path, mounts: &[MountPoint]) -> Result<()> {
    for (_, point) in below(directory)?.iter().rev().filter(|mount| mounts.contains(mount)) {
        umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .context("unmount", point.to_string_lossy())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table() {
        let table = r"36 35 98:0 / /a\040b rw,noatime master:1 - ext3 /dev/root rw
37 36 0:1 / /a\040b/c rw - proc proc rw
";
        let expected = [(36, PathBuf::from("/a b")), (37, PathBuf::from("/a b/c"))];
        assert_eq!(parse(table).collect::<Vec<_>>(), expected);
    }
}
