//! Device nodes and links in `/dev`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat, unlinkat};
use orlop_host::sys;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::Init;
use super::paths::{Kind as Entry, ensure, open_path, parent};
use crate::plan::devices::{Device, LINKS};

/// Makes the nodes and links, unless `/dev` is the host's.
pub fn make(init: &mut Init) -> Result<()> {
    let container = init.container();
    if !container.owns_dev {
        return Ok(());
    }
    // Nearly all nodes go into one directory.
    let mut last: Option<(&Path, OwnedFd)> = None;
    for device in &container.devices {
        let made = if container.bind_devices {
            bind(init.root(), device)
        } else {
            create(init.root(), device, &mut last)
        };
        let made = match made {
            // We are in somebody else's user namespace, which may not make nodes.
            Err(error) if error.kind() == Kind::PermissionDenied => bind(init.root(), device),
            other => other,
        };
        made.map_err(|error| {
            let shown = device.path.display();
            Error::exactly(error.kind(), format!("error creating device nodes: {shown}: {error}"))
        })?;
    }
    links(init.root())
}

fn create<'a>(root: BorrowedFd, device: &'a Device, last: &mut Option<(&'a Path, OwnedFd)>) -> Result<()> {
    // In what `/dev` means inside the root, even if the image made it a link to somewhere else (CVE-2026-41579).
    let above = device.path.parent().unwrap_or(Path::new("/"));
    let (directory, name) = match (last.take_if(|(path, _)| *path == above), device.path.file_name()) {
        (Some((_, directory)), Some(name)) => (directory, name),
        _ => parent(root, &device.path)?,
    };
    let made = create_in(&directory, name, device);
    *last = Some((above, directory));
    made
}

fn create_in(directory: &OwnedFd, name: &std::ffi::OsStr, device: &Device) -> Result<()> {
    let mode = Mode::from_bits_truncate(device.mode);
    let number = libc::makedev(device.major, device.minor);
    let kind = SFlag::from_bits_truncate(device.kind);
    match mknodat(directory, name, kind, mode, number) {
        Err(nix::Error::EEXIST) => return existing(directory, name, device),
        other => other.context("create", "node")?,
    }
    give(directory, name, device)
}

/// A node that the image or a mount has put there already stays if it is the same device. Another is replaced if it has the name of
/// a device that every container has, and is an error if the configuration names it.
fn existing(directory: impl AsFd, name: &std::ffi::OsStr, device: &Device) -> Result<()> {
    let stat = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).context("look at", "node")?;
    let same_kind = stat.st_mode & libc::S_IFMT == device.kind;
    if same_kind
        && (device.kind == libc::S_IFIFO || stat.st_rdev == libc::makedev(device.major, device.minor))
    {
        return Ok(());
    }
    if device.is_configured {
        return Err(Error::because(Kind::AlreadyExists, "create", "node", "something else is there"));
    }
    unlinkat(&directory, name, nix::unistd::UnlinkatFlags::NoRemoveDir).context("replace", "node")?;
    let mode = Mode::from_bits_truncate(device.mode);
    let number = libc::makedev(device.major, device.minor);
    mknodat(&directory, name, SFlag::from_bits_truncate(device.kind), mode, number)
        .context("create", "node")?;
    give(&directory, name, device)
}

fn give(directory: impl AsFd, name: &std::ffi::OsStr, device: &Device) -> Result<()> {
    if (device.uid, device.gid) == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    fchownat(&directory, name, Some(uid), Some(gid), flags).context("change owner of", "node")?;
    // The change of owner takes set-user-id bits away.
    fchmodat(&directory, name, Mode::from_bits_truncate(device.mode), FchmodatFlags::FollowSymlink)
        .context("change mode of", "node")
}

/// In a user namespace, which may not make nodes, the host's are mounted.
fn bind(root: BorrowedFd, device: &Device) -> Result<()> {
    let target = ensure(root, &device.path, Entry::File)?;
    let tree = sys::mount::clone_tree(AT_FDCWD, &device.path, false).context("bind", "the host's node")?;
    sys::mount::attach(tree.as_fd(), target.as_fd()).context("attach", "the host's node")
}

fn links(root: BorrowedFd) -> Result<()> {
    let dev = ensure(root, Path::new("/dev"), Entry::Directory)?;
    let link = |name: &str, target: &str| match symlinkat(target, &dev, name) {
        Err(nix::Error::EEXIST) => Ok(()),
        other => other.context("create link", format!("/dev/{name}")),
    };
    for (name, target) in LINKS {
        if name != "core" || open_path(root, Path::new(target)).is_ok() {
            link(name, target)?;
        }
    }
    // An image's own file of this name would not reach the container's terminals.
    match unlinkat(&dev, "ptmx", nix::unistd::UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => {}
        Err(error) => return Err(Error::io("replace", "/dev/ptmx", error.into())),
    }
    link("ptmx", "pts/ptmx")
}
