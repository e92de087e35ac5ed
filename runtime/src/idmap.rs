//! Id-mapped mounts, as far as they have to be prepared by the caller (mount_setattr(2), "ID-mapped mounts").

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use orlop_host::sys;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::join;
use crate::plan::Plan;
use crate::plan::mounts::{Mapping, Mount, Source};

/// What init gets for an id-mapped mount.
#[derive(Debug)]
pub enum Idmap {
    /// A user namespace with its mappings.
    Namespace(OwnedFd),
    /// The mount itself, detached: the root of a user namespace may not map what belongs to the host's.
    Tree(OwnedFd),
}

/// Prepares each of the container's mounts that is id-mapped; one entry for each mount. Nothing that lasts is made.
pub fn prepare(plan: &Plan, joins: &[(OwnedFd, u64)]) -> Result<Vec<Option<Idmap>>> {
    let mounts = plan.container.iter().flat_map(|container| &container.mounts);
    let is_inside = plan.namespaces.has_user_namespace();
    let prepare = |mount: &Mount| -> Result<Option<Idmap>> {
        let namespace = match &mount.mapping {
            None => return Ok(None),
            Some(Mapping::Lines(uid, gid)) => join::user_namespace(uid, gid)?,
            Some(Mapping::Container) => joined(joins)?,
        };
        if !is_inside {
            return Ok(Some(Idmap::Namespace(namespace)));
        }
        let Source::Bind(path) = &mount.source else { return Ok(None) };
        let shown = mount.destination.display();
        tree(path, mount, namespace).map(|tree| Some(Idmap::Tree(tree))).map_err(|error| {
            Error::exactly(error.kind(), format!("error mounting {path:?} to rootfs at \"{shown}\": {error}"))
        })
    };
    mounts.map(prepare).collect()
}

fn joined(joins: &[(OwnedFd, u64)]) -> Result<OwnedFd> {
    let user = libc::CLONE_NEWUSER as u64;
    let Some((namespace, _)) = joins.iter().find(|(_, flags)| flags & user != 0) else {
        let why = "it is the caller's own";
        return Err(Error::because(Kind::InvalidArgument, "map owners by", "the user namespace", why));
    };
    namespace.try_clone().context("keep", "the user namespace")
}

fn tree(path: &Path, mount: &Mount, namespace: OwnedFd) -> Result<OwnedFd> {
    let source = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .context("stat", path.to_string_lossy())?;
    let options = &mount.options;
    let tree = sys::mount::clone_tree_of(source.as_fd(), options.recursive_bind).context("bind", "it")?;
    sys::mount::set_idmap(tree.as_fd(), options.idmap == Some(true), namespace.as_fd())
        .context("map owners of", "it")?;
    Ok(tree)
}
