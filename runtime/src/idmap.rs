//! Id-mapped mounts, as far as they have to be prepared by the caller (mount_setattr(2), "ID-mapped mounts").

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use orlop_host::sys;
use orlop_host::sys::clone::{CloneRequest, Cloned, clone3};
use orlop_host::sys::path::{Resolve, open_below};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::join;
use crate::plan::Plan;
use crate::plan::mounts::{Mapping, Mount, Source};
use crate::sync::{Channel, Message};

/// What init gets for an id-mapped mount.
#[derive(Debug)]
pub enum Idmap {
    /// A user namespace with its mappings.
    Namespace(OwnedFd),
    /// The mount itself, detached: the root of a user namespace may not map what belongs to the host's.
    Tree(OwnedFd),
    /// Init asks for the mount when it gets there: an earlier one may put its source there.
    Later,
}

/// A mount that init asks for.
#[derive(Debug)]
pub struct Later {
    /// Which of the container's mounts it is.
    number: usize,
    namespace: OwnedFd,
}

/// What is prepared for the container's mounts.
#[derive(Debug, Default)]
pub struct Prepared {
    /// For each mount, if it is id-mapped.
    pub mounts: Vec<Option<Idmap>>,
    /// Those that init asks for.
    pub later: Vec<Later>,
}

/// Prepares each of the container's mounts that is id-mapped. Nothing that lasts is made.
pub fn prepare(plan: &Plan, joins: &[(OwnedFd, u64)]) -> Result<Prepared> {
    let mut prepared = Prepared::default();
    let Some(container) = &plan.container else { return Ok(prepared) };
    let is_inside = plan.namespaces.has_user_namespace();
    for (number, mount) in container.mounts.iter().enumerate() {
        let namespace = match &mount.mapping {
            None => None,
            Some(Mapping::Lines(uid, gid)) => Some(join::user_namespace(uid, gid)?),
            Some(Mapping::Container) => Some(joined(joins)?),
        };
        prepared.mounts.push(match (namespace, &mount.source) {
            (None, _) => None,
            (Some(namespace), _) if !is_inside => Some(Idmap::Namespace(namespace)),
            (Some(namespace), Source::Bind(path)) if is_in(path, &container.rootfs) => {
                prepared.later.push(Later { number, namespace });
                Some(Idmap::Later)
            }
            (Some(namespace), Source::Bind(path)) => {
                let source = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
                    .context("stat", path.to_string_lossy());
                let tree = source.and_then(|source| tree(&source, mount, &namespace));
                Some(Idmap::Tree(tree.map_err(|error| failed(mount, error))?))
            }
            _ => None,
        });
    }
    Ok(prepared)
}

/// Whether a mount's source lies in the container's own root.
pub fn is_in(source: &Path, rootfs: &Path) -> bool {
    std::path::absolute(source).is_ok_and(|source| source.starts_with(rootfs))
}

/// Makes a mount that init asks for by its number, as init's mounts are by now. A helper goes there, since we could not come back to
/// a root and a directory of our own.
pub fn make(later: &[Later], number: i32, plan: &Plan, init: BorrowedFd) -> Result<OwnedFd> {
    let asked = later.iter().find(|one| i32::try_from(one.number) == Ok(number));
    let (Some(asked), Some(container)) = (asked, &plan.container) else {
        return Err(Error::new(Kind::Internal, "find", "the mount that is asked for"));
    };
    let mount = &container.mounts[asked.number];
    let (ours, theirs) = Channel::pair()?;
    let pidfd = match clone3(CloneRequest::default()).context("start", "a helper")? {
        Cloned::Child => {
            let told = match in_mounts_of(init, &container.rootfs, mount, &asked.namespace) {
                Ok(tree) => theirs.send_with(&Message::Tree(number), tree.as_fd()),
                Err(error) => {
                    theirs.send(&Message::Failed { stage: 0, kind: error.kind(), what: error.to_string() })
                }
            };
            std::process::exit(if told.is_ok() { 0 } else { 1 });
        }
        Cloned::Parent { pidfd, .. } => pidfd,
    };
    drop(theirs);
    let answer = ours.receive();
    waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).context("wait for", "a helper")?;
    match answer? {
        Some((Message::Tree(_), Some(tree))) => Ok(tree),
        Some((Message::Failed { kind, what, .. }, _)) => Err(failed(mount, Error::exactly(kind, what))),
        _ => Err(Error::new(Kind::Aborted, "hear", "the helper that maps owners")),
    }
}

/// In the helper: no link of the image leads out of its root.
fn in_mounts_of(init: BorrowedFd, rootfs: &Path, mount: &Mount, namespace: &OwnedFd) -> Result<OwnedFd> {
    let Source::Bind(path) = &mount.source else {
        return Err(Error::new(Kind::Internal, "map owners of", "what is no bind mount"));
    };
    let shown = || path.to_string_lossy();
    let absolute = std::path::absolute(path).context("find", shown())?;
    sys::pid::setns(init, libc::CLONE_NEWNS).context("join", "mount namespace")?;
    let root = open(rootfs, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .context("open rootfs", rootfs.to_string_lossy())?;
    let inside = Path::new("/").join(absolute.strip_prefix(rootfs).unwrap_or(Path::new("")));
    let source =
        open_below(root.as_fd(), &inside, libc::O_PATH, 0, Resolve::InRoot).context("stat", shown())?;
    tree(&source, mount, namespace)
}

/// Names the mount that failed, in runc's words.
fn failed(mount: &Mount, error: Error) -> Error {
    let Source::Bind(path) = &mount.source else { return error };
    let shown = mount.destination.display();
    Error::exactly(error.kind(), format!("error mounting {path:?} to rootfs at \"{shown}\": {error}"))
}

fn joined(joins: &[(OwnedFd, u64)]) -> Result<OwnedFd> {
    let user = libc::CLONE_NEWUSER as u64;
    let Some((namespace, _)) = joins.iter().find(|(_, flags)| flags & user != 0) else {
        let why = "it is the caller's own";
        return Err(Error::because(Kind::InvalidArgument, "map owners by", "the user namespace", why));
    };
    namespace.try_clone().context("keep", "the user namespace")
}

fn tree(source: &OwnedFd, mount: &Mount, namespace: &OwnedFd) -> Result<OwnedFd> {
    let options = &mount.options;
    let tree = sys::mount::clone_tree_of(source.as_fd(), options.recursive_bind).context("bind", "it")?;
    sys::mount::set_idmap(tree.as_fd(), options.idmap == Some(true), namespace.as_fd())
        .context("map owners of", "it")?;
    Ok(tree)
}
