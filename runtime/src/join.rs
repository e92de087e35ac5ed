//! Namespaces to join, as descriptors, opened before anything is changed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, stat};
use orlop_host::sys;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::plan::namespaces::NAMES;
use crate::rootless;

/// Opens namespaces by path and checks that each is of the kind that it is to be. Our own user namespace is left out,
/// since the kernel refuses to enter it again.
pub fn open_all(paths: &[(u64, PathBuf)]) -> Result<Vec<(OwnedFd, u64)>> {
    let mut opened = Vec::new();
    for (flag, path) in paths {
        let shown = path.to_string_lossy();
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let namespace =
            open(path.as_path(), flags, Mode::empty()).context("open namespace", shown.clone())?;
        let kind = sys::pid::namespace_kind(namespace.as_fd()).map_err(|_| {
            Error::because(Kind::InvalidArgument, "open namespace", shown.clone(), "it is no namespace")
        })?;
        if kind as u64 != *flag {
            let why = "it is a namespace of another kind";
            return Err(Error::because(Kind::InvalidArgument, "open namespace", shown, why));
        }
        if *flag == libc::CLONE_NEWUSER as u64 && is_own(&namespace, "user") {
            continue;
        }
        opened.push((namespace, *flag));
    }
    Ok(opened)
}

fn is_own(namespace: &OwnedFd, name: &str) -> bool {
    let own = stat(format!("/proc/self/ns/{name}").as_str());
    let other = fstat(namespace);
    matches!((own, other), (Ok(own), Ok(other)) if (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
}

/// Those namespaces of `wanted` flags in which a process differs from us, and which are therefore worth joining.
pub fn different(pid: i32, wanted: u64) -> u64 {
    let identity = |path: String| stat(path.as_str()).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let mut flags = 0;
    for (flag, _, name) in NAMES {
        let theirs = identity(format!("/proc/{pid}/ns/{name}"));
        if wanted & flag != 0 && theirs.is_some() && theirs != identity(format!("/proc/self/ns/{name}")) {
            flags |= flag;
        }
    }
    flags
}

/// A user namespace with these mappings and nobody in it, for id-mapped mounts.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    orlop_host::userns::user_namespace(|pid| rootless::write_mappings(pid, uid_map, gid_map))
}
