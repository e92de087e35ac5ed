//! The container's view of its cgroups.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::symlinkat;
use orlop_host::cgroup::{Hierarchies, Hierarchy};
use orlop_host::sys;
use orlop_host::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Attributes, FsContext};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind as ErrorKind;

use super::Init;
use super::mounts::{apply_with, attach, set_propagation};
use super::paths::{Kind, ensure};
use crate::plan::mounts::Mount;

/// Mounts the container's cgroups: version 2 as one file system, version 1 as a directory with one for each hierarchy.
pub fn mount_cgroup(init: &Init, mount: &Mount) -> Result<()> {
    let Some(hierarchies) = init.hierarchies else {
        return Err(Error::new(ErrorKind::FailedPrecondition, "find", "the cgroup hierarchies"));
    };
    let target = ensure(init.root(), &mount.destination, Kind::Directory)?;
    if hierarchies.legacy.is_empty() {
        let tree = unified(init, hierarchies, mount)?;
        return attach(tree, target.as_fd(), &mount.options);
    }
    let base = directory().context("mount", "a tmpfs for the hierarchies")?;
    sys::mount::attach(base.as_fd(), target.as_fd()).context("attach", "the tmpfs for the hierarchies")?;
    for hierarchy in &hierarchies.legacy {
        legacy(init, hierarchy, mount, &base)?;
    }
    let attributes = Attributes { set: mount.options.set & ATTR_RDONLY, ..Default::default() };
    if attributes.set != 0 {
        sys::mount::set_attributes(base.as_fd(), false, attributes)
            .context("make read-only", "the tmpfs for the hierarchies")?;
    }
    Ok(())
}

fn directory() -> io::Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    context.string("source", "tmpfs")?;
    context.string("mode", "755")?;
    context.mount(ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)
}

/// One hierarchy of version 1: the container's own directory in it, which in a cgroup namespace is its root.
fn legacy(init: &Init, hierarchy: &Hierarchy, mount: &Mount, base: &OwnedFd) -> Result<()> {
    let Some(name) = hierarchy.mountpoint.file_name() else { return Ok(()) };
    let shown = || hierarchy.mountpoint.to_string_lossy();
    let own = hierarchy.controllers.iter().find_map(|one| init.cgroup_paths.get(one));
    let own = own.unwrap_or(&hierarchy.own);
    let tree = sys::mount::clone_tree(cwd(), own, false).context("bind", own.to_string_lossy())?;
    // In a namespace of its own it stands for the file system itself, which is in no group with the host's mount: CRIU saves no
    // mount whose group has other members outside.
    let own_namespace = init.plan.namespaces.is_new_or_joined(libc::CLONE_NEWCGROUP);
    show(&tree, mount, false, if own_namespace { libc::MS_PRIVATE } else { 0 })?;
    mkdirat(base, name, Mode::from_bits_truncate(0o755)).context("create a directory for", shown())?;
    // In a directory that is ours and new.
    sys::mount::attach_at(tree.as_fd(), base.as_fd(), Path::new(name))
        .context("attach to the directory for", shown())?;
    set_propagation(tree.as_fd(), &mount.options)?;
    for controller in &hierarchy.controllers {
        let controller = controller.strip_prefix("name=").unwrap_or(controller);
        if std::ffi::OsStr::new(controller) != name {
            symlinkat(name, base, controller).context("link the directory of", shown())?;
        }
    }
    Ok(())
}

/// Gives what is shown of the host's hierarchies the mount's options, `ro` above all: their owner may be the container's root
/// (CVE-2023-25809).
fn show(tree: &OwnedFd, mount: &Mount, is_recursive: bool, propagation: u64) -> Result<()> {
    let mut options = mount.options.clone();
    if crate::switches::is_off("cgroup-readonly") {
        options.set &= !ATTR_RDONLY;
    } else if is_recursive && options.set & ATTR_RDONLY != 0 {
        options.recursive_set |= ATTR_RDONLY;
    }
    apply_with(tree.as_fd(), &options, propagation)
}

fn unified(init: &Init, hierarchies: &Hierarchies, mount: &Mount) -> Result<OwnedFd> {
    let made = FsContext::open("cgroup2").and_then(|context| context.mount(mount.options.set));
    let own_namespace = init.plan.namespaces.is_new_or_joined(libc::CLONE_NEWCGROUP);
    match (made, &hierarchies.unified) {
        (Ok(tree), _) => Ok(tree),
        // A user namespace without a cgroup namespace may not mount it anew, but may show what is there.
        (Err(error), Some(unified)) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EBUSY)) => {
            let own = init.cgroup_paths.get("").filter(|_| own_namespace).unwrap_or(&unified.mountpoint);
            let tree = sys::mount::clone_tree(cwd(), own, true).context("bind", own.to_string_lossy())?;
            show(&tree, mount, true, 0)?;
            Ok(tree)
        }
        (Err(error), _) => Err(Error::io("mount file system", "cgroup2", error)),
    }
}

fn cwd() -> std::os::fd::BorrowedFd<'static> {
    AT_FDCWD
}
