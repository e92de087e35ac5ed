//! Copies a tree of files with everything that belongs to them: owners, modes, times, extended attributes,
//! hard links and device nodes.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Metadata};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::owners::Owners;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

/// Largest value of an extended attribute (xattr(7): VFS limit), and of a list of their names.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// Fills an existing directory with a copy of another one, whose own attributes it takes over. With `owners`, the copy belongs to
/// whom a container has for the original's.
pub fn copy_tree(from: &Path, to: &Path, owners: Option<&Owners>) -> Result<()> {
    let mut copy = Copy { links: HashMap::new(), owners };
    copy.directory(from, to)
}

struct Copy<'a> {
    /// Where the first name of a file with several names went.
    links: HashMap<(u64, u64), PathBuf>,
    owners: Option<&'a Owners>,
}

impl Copy<'_> {
    fn directory(&mut self, from: &Path, to: &Path) -> Result<()> {
        let name = || from.display().to_string();
        for entry in fs::read_dir(from).context("read", name())? {
            let entry = entry.context("read", name())?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let found = fs::symlink_metadata(&from).context("inspect", from.display().to_string())?;
            self.entry(&from, &to, &found)?;
        }
        let found = fs::symlink_metadata(from).context("inspect", name())?;
        attributes(from, to, &found, self.owners)
    }

    fn entry(&mut self, from: &Path, to: &Path, found: &Metadata) -> Result<()> {
        let name = || from.display().to_string();
        let kind = found.file_type();
        if kind.is_dir() {
            DirBuilder::new().mode(0o700).create(to).context("create", to.display().to_string())?;
            return self.directory(from, to);
        }
        if found.nlink() > 1 {
            if let Some(first) = self.links.get(&(found.dev(), found.ino())) {
                return fs::hard_link(first, to).context("link", to.display().to_string());
            }
            self.links.insert((found.dev(), found.ino()), to.to_owned());
        }
        if kind.is_file() {
            fs::copy(from, to).context("copy", name())?;
        } else if kind.is_symlink() {
            let target = fs::read_link(from).context("read", name())?;
            symlink(target, to).context("create", to.display().to_string())?;
        } else {
            let node = if kind.is_char_device() {
                FileType::CharacterDevice
            } else if kind.is_block_device() {
                FileType::BlockDevice
            } else if kind.is_fifo() {
                FileType::Fifo
            } else {
                // Sockets belong to processes that are gone.
                FileType::Socket
            };
            mknodat(CWD, to, node, Mode::from_raw_mode(0o600), found.rdev())
                .context("create", to.display().to_string())?;
        }
        attributes(from, to, found, self.owners)
    }
}

/// Gives a file the owner, extended attributes, mode and times of another, in the order in which each stays.
fn attributes(from: &Path, to: &Path, found: &Metadata, owners: Option<&Owners>) -> Result<()> {
    let name = || to.display().to_string();
    let own = (found.uid(), found.gid());
    let (uid, gid) = owners.map_or(Ok(own), |owners| owners.outside(own))?;
    lchown(to, Some(uid), Some(gid)).context("change owner of", name())?;
    extended_attributes(from, to)?;
    if !found.is_symlink() {
        fs::set_permissions(to, PermissionsExt::from_mode(found.mode() & 0o7777))
            .context("change mode of", name())?;
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(found.atime(), found.atime_nsec()),
        last_modification: time(found.mtime(), found.mtime_nsec()),
    };
    utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).context("change times of", name())
}

fn extended_attributes(from: &Path, to: &Path) -> Result<()> {
    let name = || from.display().to_string();
    let mut list = vec![0; MAX_ATTRIBUTE];
    let length = match rustix::fs::llistxattr(from, list.as_mut_slice()) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error).context("read attributes of", name()),
    };
    let mut value = vec![0; if length == 0 { 0 } else { MAX_ATTRIBUTE }];
    for attribute in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let attribute = std::ffi::CString::new(attribute)
            .map_err(|error| Error::because(Kind::Internal, "read attributes of", name(), error))?;
        let length = rustix::fs::lgetxattr(from, attribute.as_c_str(), value.as_mut_slice())
            .context("read attribute of", name())?;
        rustix::fs::lsetxattr(to, attribute.as_c_str(), &value[..length], rustix::fs::XattrFlags::empty())
            .context("write attribute of", to.display().to_string())?;
    }
    Ok(())
}
