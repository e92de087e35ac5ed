//! Whom files belong to where containers live in a user namespace: users and groups as the container has them, and as the host does.

use std::thread;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use orlop_host::mapped;
use orlop_host::sys::creds::{NO_SETUID_FIXUP, secure_bits, set_secure_bits};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec::types::IdMapping;
use serde::{Deserialize, Serialize};

use crate::snapshot::Mount;

/// Whom a file seems to belong to in a user namespace that does not have its owner (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65_534;

/// The users and groups of containers on the host. Both map root.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Owners {
    /// Ranges of users.
    pub uids: Vec<IdMapping>,
    /// Ranges of groups.
    pub gids: Vec<IdMapping>,
}

/// An ID in one range that has it, from there to the other side.
fn moved(id: u32, from: u32, to: u32, size: u32) -> Option<u32> {
    id.checked_sub(from).filter(|offset| *offset < size).and_then(|offset| to.checked_add(offset))
}

fn outside(ranges: &[IdMapping], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| moved(id, range.container_id, range.host_id, range.size))
}

fn inside(ranges: &[IdMapping], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| moved(id, range.host_id, range.container_id, range.size))
}

impl Owners {
    /// The container's root on the host.
    pub fn root(&self) -> (u32, u32) {
        (outside(&self.uids, 0).unwrap_or(0), outside(&self.gids, 0).unwrap_or(0))
    }

    /// An owner of the container's on the host.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` in dockerd's words for one that the host does not have.
    pub fn outside(&self, (uid, gid): (u32, u32)) -> Result<(u32, u32)> {
        let find = |ranges: &[IdMapping], id: u32| {
            let text = || format!("Container ID {id} cannot be mapped to a host ID");
            outside(ranges, id).ok_or_else(|| Error::exactly(Kind::InvalidArgument, text()))
        };
        Ok((find(&self.uids, uid)?, find(&self.gids, gid)?))
    }

    /// An owner on the host as the container sees it: nobody, where it does not have him.
    pub fn inside(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (inside(&self.uids, uid).unwrap_or(NOBODY), inside(&self.gids, gid).unwrap_or(NOBODY))
    }

    /// Mounts of a container's files, shown to it as its own: what is kept has the container's users and groups.
    pub fn shift(&self, mounts: &mut [Mount]) {
        let text = |ranges: &[IdMapping]| {
            let one = |range: &IdMapping| format!("{}:{}:{}", range.container_id, range.host_id, range.size);
            ranges.iter().map(one).collect::<Vec<_>>().join(",")
        };
        let words = [
            format!("uidmap={}", text(&self.uids)),
            format!("gidmap={}", text(&self.gids)),
            mapped::UPPER.to_owned(),
        ];
        for mount in mounts {
            mount.options.splice(0..0, words.clone());
        }
    }

    /// Does something as the container's root with regard to files, with all that the host's may do: in mounts that are
    /// [shifted](Owners::shift) the host's root is nobody, and can make nothing. Blocks.
    ///
    /// # Errors
    ///
    /// The kernel's, and those of the work.
    pub fn as_root<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let (uid, gid) = self.root();
        // A thread of its own, whose credentials go with it.
        thread::scope(|scope| {
            let run = move || {
                let bits = secure_bits().context("read", "secure bits")?;
                set_secure_bits(bits | NO_SETUID_FIXUP).context("set", "secure bits")?;
                setfsgid(Gid::from_raw(gid));
                setfsuid(Uid::from_raw(uid));
                work()
            };
            let thread = thread::Builder::new().name("owner".to_owned()).spawn_scoped(scope, run);
            let result = thread.context("start", "thread")?.join();
            result.map_err(|_| Error::because(Kind::Internal, "write", "files", "a thread panicked"))?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners() -> Owners {
        let range = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        Owners { uids: vec![range(0, 1000, 1), range(1, 100_000, 10)], gids: vec![range(0, 200_000, 10)] }
    }

    #[test]
    fn owners_go_both_ways() {
        let owners = owners();
        assert_eq!(owners.root(), (1000, 200_000));
        assert_eq!(owners.outside((3, 4)).unwrap(), (100_002, 200_004));
        assert_eq!(owners.inside((100_002, 200_004)), (3, 4));
        assert_eq!(owners.inside((0, 200_010)), (NOBODY, NOBODY));
        let error = owners.outside((11, 0)).unwrap_err();
        assert_eq!(error.to_string(), "Container ID 11 cannot be mapped to a host ID");
    }

    #[test]
    fn mounts_say_it_as_options() {
        let mut mounts = [Mount { options: vec!["rw".to_owned()], ..Mount::default() }];
        owners().shift(&mut mounts);
        let words = ["uidmap=0:1000:1,1:100000:10", "gidmap=0:200000:10", "upperidmap", "rw"];
        assert_eq!(mounts[0].options, words);
    }
}
