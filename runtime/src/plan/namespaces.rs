//! Which namespaces are new, which are joined, and how user ids are mapped.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};
use orlop_proto::error::Result;

use super::{Host, refuse};

/// What happens to a process's namespaces.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// `CLONE_NEW…` flags for the clone that makes init.
    pub at_clone: u64,
    /// `CLONE_NEW…` flags that init leaves for new ones later: the cgroup namespace after the move into the cgroup on
    /// v1, since its root would otherwise be the parent's, and the time namespace.
    pub later: u64,
    /// Namespaces to join by path, each with its flag.
    pub join: Vec<(u64, PathBuf)>,
    /// Id mappings of a new user namespace, as the kernel's files take them: uid, gid.
    pub mappings: Option<(String, String)>,
    /// The mappings are written by somebody who is not root and may only do so while the process can be looked into.
    pub mapped_by_user: bool,
    /// What goes into `timens_offsets`.
    pub time_offsets: Option<String>,
}

fn flag(kind: LinuxNamespaceType) -> u64 {
    kind as u64
}

/// The names that `state.json` has for namespaces, with the file below `/proc/PID/ns`.
pub const NAMES: [(u64, &str, &str); 8] = [
    (libc::CLONE_NEWUSER as u64, "NEWUSER", "user"),
    (libc::CLONE_NEWIPC as u64, "NEWIPC", "ipc"),
    (libc::CLONE_NEWUTS as u64, "NEWUTS", "uts"),
    (libc::CLONE_NEWNET as u64, "NEWNET", "net"),
    (libc::CLONE_NEWPID as u64, "NEWPID", "pid"),
    (libc::CLONE_NEWNS as u64, "NEWNS", "mnt"),
    (libc::CLONE_NEWCGROUP as u64, "NEWCGROUP", "cgroup"),
    (CLONE_NEWTIME, "NEWTIME", "time"),
];

/// libc has no constant of this name for every target.
pub const CLONE_NEWTIME: u64 = 0x80;

impl Namespaces {
    pub(super) fn for_container(
        linux: &Linux,
        host: &Host,
        warnings: &mut Vec<String>,
    ) -> Result<Namespaces> {
        let mut namespaces = Namespaces::default();
        let mut seen = 0;
        for namespace in linux.namespaces().iter().flatten() {
            let bit = flag(namespace.typ());
            if seen & bit != 0 {
                return Err(refuse(format!("malformed spec file: duplicate ns {:?}", namespace.typ())));
            }
            seen |= bit;
            match namespace.path() {
                Some(path) if !path.as_os_str().is_empty() => namespaces.join.push((bit, path.clone())),
                _ if bit == CLONE_NEWTIME => namespaces.later |= bit,
                _ if bit == flag(LinuxNamespaceType::Cgroup) && !host.unified => namespaces.later |= bit,
                _ => namespaces.at_clone |= bit,
            }
        }
        namespaces.mappings = plan_mappings(linux, &namespaces, warnings)?;
        namespaces.mapped_by_user = host.user && namespaces.mappings.is_some();
        if host.user && !namespaces.has_user_namespace() {
            return Err(refuse("rootless container requires user namespaces"));
        }
        namespaces.time_offsets = plan_time_offsets(linux, &namespaces)?;
        Ok(namespaces)
    }

    /// Whether the process has this namespace apart from its parent's.
    pub fn is_new_or_joined(&self, flag: i32) -> bool {
        self.all() & flag as u64 != 0
    }

    /// Every namespace that is new or joined.
    pub fn all(&self) -> u64 {
        self.at_clone | self.later | self.joined()
    }

    /// Those that are joined.
    pub fn joined(&self) -> u64 {
        self.join.iter().fold(0, |all, (flag, _)| all | flag)
    }

    /// Whether there is a new or joined user namespace.
    pub fn has_user_namespace(&self) -> bool {
        self.is_new_or_joined(libc::CLONE_NEWUSER)
    }

    /// Whether the user namespace is a new one.
    pub fn makes_user_namespace(&self) -> bool {
        self.at_clone & libc::CLONE_NEWUSER as u64 != 0
    }
}

fn plan_mappings(
    linux: &Linux,
    namespaces: &Namespaces,
    warnings: &mut Vec<String>,
) -> Result<Option<(String, String)>> {
    let lines = |maps: &Option<Vec<LinuxIdMapping>>| -> String {
        let maps = maps.iter().flatten();
        maps.map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())).collect()
    };
    let (uid, gid) = (lines(linux.uid_mappings()), lines(linux.gid_mappings()));
    if namespaces.makes_user_namespace() {
        if uid.is_empty() || gid.is_empty() {
            return Err(refuse("user namespaces enabled, but no uid or gid mappings found"));
        }
        let maps_root = |maps: &Option<Vec<LinuxIdMapping>>| {
            maps.iter().flatten().any(|map| map.container_id() == 0 && map.size() > 0)
        };
        if !maps_root(linux.uid_mappings()) || !maps_root(linux.gid_mappings()) {
            return Err(refuse("user namespaces enabled, but id 0 of the container is not mapped"));
        }
        return Ok(Some((uid, gid)));
    }
    if !(uid.is_empty() && gid.is_empty()) {
        if !namespaces.has_user_namespace() {
            return Err(refuse(
                "user namespace mappings specified, but user namespace isn't enabled in the config",
            ));
        }
        warnings.push("id mappings are ignored: the joined user namespace has its own".into());
    }
    Ok(None)
}

fn plan_time_offsets(linux: &Linux, namespaces: &Namespaces) -> Result<Option<String>> {
    let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) else {
        return Ok(None);
    };
    if namespaces.later & CLONE_NEWTIME == 0 {
        return Err(refuse("time namespace offsets specified, but no new time namespace is in the config"));
    }
    let mut text = String::new();
    for (clock, offset) in offsets {
        if clock != "monotonic" && clock != "boottime" {
            return Err(refuse(format!("unknown clock {clock:?} in timeOffsets")));
        }
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            return Err(refuse(format!("nanoseconds of {clock:?} in timeOffsets are a second or more")));
        }
        text.push_str(&format!("{clock} {} {nanoseconds}\n", offset.secs().unwrap_or(0)));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: serde_json::Value, unified: bool) -> Result<Namespaces> {
        let linux: Linux = serde_json::from_value(json).unwrap();
        Namespaces::for_container(&linux, &Host { unified, ..Default::default() }, &mut Vec::new())
    }

    #[test]
    fn the_cgroup_namespace_waits_for_the_move_on_v1() {
        let json = serde_json::json!({"namespaces": [{"type": "cgroup"}, {"type": "pid"}]});
        let v1 = plan(json.clone(), false).unwrap();
        assert_eq!((v1.at_clone, v1.later), (libc::CLONE_NEWPID as u64, libc::CLONE_NEWCGROUP as u64));
        let v2 = plan(json, true).unwrap();
        assert_eq!((v2.at_clone, v2.later), ((libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP) as u64, 0));
    }

    #[test]
    fn mappings_and_offsets_need_their_namespaces() {
        let map = serde_json::json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        let user =
            serde_json::json!({"namespaces": [{"type": "user"}], "uidMappings": map, "gidMappings": map});
        assert_eq!(plan(user, false).unwrap().mappings, Some(("0 1000 10\n".into(), "0 1000 10\n".into())));
        plan(serde_json::json!({"namespaces": [{"type": "user"}]}), false).unwrap_err();
        plan(serde_json::json!({"uidMappings": map}), false).unwrap_err();
        plan(serde_json::json!({"timeOffsets": {"monotonic": {"secs": 1}}}), false).unwrap_err();
        let time = serde_json::json!({
            "namespaces": [{"type": "time"}], "timeOffsets": {"boottime": {"secs": -5, "nanosecs": 7}}
        });
        assert_eq!(plan(time, false).unwrap().time_offsets.as_deref(), Some("boottime -5 7\n"));
    }
}
