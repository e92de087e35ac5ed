//! The root of the container's file system: where it hangs, how it takes the old one's place.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, fchdir, pivot_root};
use orlop_host::file;
use orlop_host::sys;
use orlop_host::sys::mount::Attributes;
use orlop_proto::error::{Context, Error, Result};

use super::paths::{Kind, ensure};
use super::{Init, paths};

fn change_propagation(path: &Path, (flag, tree): (u64, bool)) -> Result<()> {
    let mut flags = MsFlags::from_bits_truncate(flag as libc::c_ulong);
    if tree {
        flags |= MsFlags::MS_REC;
    }
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .context("set propagation of", path.to_string_lossy())
}

/// Cuts or keeps the ties of this mount namespace with the one it was copied from.
pub fn propagation(init: &mut Init) -> Result<()> {
    if !init.plan.namespaces.is_new_or_joined(libc::CLONE_NEWNS) {
        return Ok(());
    }
    let container = init.container();
    change_propagation(Path::new("/"), container.propagation)?;
    let (flag, tree) = container.propagation;
    if flag == libc::MS_SHARED || !tree {
        // pivot_root refuses a root whose parent mount is shared.
        let parent = mount_of(&container.rootfs)?;
        let flag = if flag == libc::MS_SLAVE { flag } else { libc::MS_PRIVATE };
        change_propagation(&parent, (flag, false))?;
    }
    Ok(())
}

/// The mount point that a path lies on.
fn mount_of(path: &Path) -> Result<PathBuf> {
    let device = |path: &Path| {
        let descriptor = file::open(path, OFlag::O_PATH)?;
        sys::path::is_mount_root(descriptor.as_fd())
    };
    for ancestor in path.ancestors() {
        if device(ancestor).context("look at", ancestor.to_string_lossy())? {
            return Ok(ancestor.to_owned());
        }
    }
    Ok(PathBuf::from("/"))
}

/// Makes the root file system a mount of its own and keeps hold of it.
pub fn bind(init: &mut Init) -> Result<()> {
    let rootfs = &init.container().rootfs;
    let shown = || rootfs.to_string_lossy();
    let below = file::open(rootfs, OFlag::O_PATH | OFlag::O_DIRECTORY).context("open rootfs", shown())?;
    let root = if init.plan.namespaces.is_new_or_joined(libc::CLONE_NEWNS) {
        let tree = sys::mount::clone_tree_of(below.as_fd(), true).context("bind rootfs", shown())?;
        sys::mount::attach(tree.as_fd(), below.as_fd()).context("bind rootfs", shown())?;
        tree
    } else {
        below
    };
    init.found.root = Some(root);
    Ok(())
}

/// Makes the container's root the root.
pub fn pivot(init: &mut Init) -> Result<()> {
    let container = init.container();
    fchdir(init.root()).context("enter", "rootfs")?;
    if !init.plan.namespaces.is_new_or_joined(libc::CLONE_NEWNS) {
        chroot(".").context("chroot to", "rootfs")?;
        return chdir("/").context("enter", "/");
    }
    if container.no_pivot {
        move_root()?;
        return chdir("/").context("enter", "/");
    }
    let old =
        file::open(Path::new("/"), OFlag::O_PATH | OFlag::O_DIRECTORY).context("open", "the old root")?;
    // The old root goes on top of the new one, from where it is taken away: no directory for it is needed.
    pivot_root(".", ".").context("pivot_root to", "rootfs")?;
    fchdir(&old).context("enter", "the old root")?;
    let is_apart = matches!(container.propagation, (libc::MS_SLAVE | libc::MS_PRIVATE, true));
    if !is_apart {
        // Unmounting must not travel to the host.
        let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        mount(None::<&str>, ".", None::<&str>, flags, None::<&str>)
            .context("set propagation of", "the old root")?;
    }
    umount2(".", MntFlags::MNT_DETACH).context("unmount", "the old root")?;
    chdir("/").context("enter", "/")
}

/// Moves the root over `/` and changes into it, for a root on a ramdisk, which pivot_root cannot leave.
fn move_root() -> Result<()> {
    for proc in kernel_mounts()? {
        // What is mounted on them is not ours to keep; one that is locked in place stays where nobody sees it.
        if umount2(proc.as_path(), MntFlags::MNT_DETACH).is_err() {
            let hide = mount(Some("tmpfs"), proc.as_path(), Some("tmpfs"), MsFlags::empty(), None::<&str>);
            hide.context("cover", proc.to_string_lossy())?;
        }
    }
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("move", "rootfs over /")?;
    chroot(".").context("chroot to", "rootfs")
}

/// procfs and sysfs mounts of the host, which would give away more than the container's own (CVE-2019-14271's kin:
/// a container could mount a full view again as long as a full one is visible).
fn kernel_mounts() -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("read", "/proc/self/mountinfo")?;
    let current = std::env::current_dir().context("find", "rootfs")?;
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (point, kind) = (left.split(' ').nth(4), right.split(' ').next());
        let (Some(point), Some("proc" | "sysfs")) = (point, kind) else { continue };
        let point = PathBuf::from(point.replace("\\040", " "));
        if !point.starts_with(&current) {
            found.push(point);
        }
    }
    Ok(found)
}

/// Makes the working directory if the image has none.
pub fn make_cwd(init: &mut Init) -> Result<()> {
    let cwd = &init.plan.process.cwd;
    if !init.plan.process.make_cwd || cwd == Path::new("/") {
        return Ok(());
    }
    match paths::open_path(init.root(), cwd) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            // A read-only root, or a path that leads elsewhere, is for the change of directory to complain about.
            let _ = ensure(init.root(), cwd, Kind::Directory);
            Ok(())
        }
        Err(_) => Ok(()),
    }
}

/// Mounts that had to be filled before they become read-only.
pub fn late_readonly(init: &mut Init) -> Result<()> {
    for mount in init.found.late_readonly.drain(..) {
        let attributes = Attributes { set: sys::mount::ATTR_RDONLY, ..Default::default() };
        sys::mount::set_attributes(mount.as_fd(), false, attributes).context("make read-only", "a mount")?;
    }
    Ok(())
}

/// A read-only root, and the root's own propagation.
pub fn readonly_root(init: &mut Init) -> Result<()> {
    let container = init.container();
    if container.readonly {
        let attributes = Attributes { set: sys::mount::ATTR_RDONLY, ..Default::default() };
        sys::mount::set_attributes(init.root(), false, attributes).context("make read-only", "the root")?;
    }
    if let Some((flag, tree)) = container.final_propagation {
        let attributes = Attributes { propagation: flag, ..Default::default() };
        sys::mount::set_attributes(init.root(), tree, attributes)
            .context("set propagation of", "the root")?;
    }
    Ok(())
}

/// Whether a descriptor means a directory.
pub fn is_directory(descriptor: impl AsFd) -> Result<bool> {
    let stat = nix::sys::stat::fstatat(&descriptor, "", AtFlags::AT_EMPTY_PATH)
        .map_err(|error| Error::io("look at", "a mount's source", error.into()))?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}
