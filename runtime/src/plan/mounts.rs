//! The mounts of a container, checked and sorted into what the kernel takes.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};
use orlop_host::mounts::MountOptions;
use orlop_proto::error::Result;

use super::{clean, refuse};
use crate::spec::Spec;

/// A mount.
#[derive(Debug)]
pub struct Mount {
    /// Where in the container, cleaned and absolute.
    pub destination: PathBuf,
    /// What is mounted.
    pub source: Source,
    /// Its options.
    pub options: MountOptions,
    /// How owners are mapped, if they are.
    pub mapping: Option<Mapping>,
}

/// How the owners of an id-mapped mount are mapped.
#[derive(Debug, PartialEq, Eq)]
pub enum Mapping {
    /// By these lines, as the kernel's files take them: uid, gid.
    Lines(String, String),
    /// By the user namespace that the container joins.
    Container,
}

/// What is mounted.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A path on the host.
    Bind(PathBuf),
    /// The container's own cgroup.
    Cgroup,
    /// A new instance of a file system: type and source.
    FileSystem(String, String),
}

impl Mount {
    /// Whether this puts a host directory at the path.
    pub fn is_bind_at(&self, path: &Path) -> bool {
        matches!(self.source, Source::Bind(_)) && self.destination == path
    }

    /// Whether it is procfs or sysfs, which must lie on an ordinary directory.
    pub fn is_kernel_interface(&self) -> bool {
        matches!(&self.source, Source::FileSystem(kind, _) if kind == "proc" || kind == "sysfs")
    }
}

pub(super) fn plan(spec: &Spec, linux: &Linux, warnings: &mut Vec<String>) -> Result<Vec<Mount>> {
    let mut planned = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let shown = mount.destination().display();
        if mount.destination().as_os_str().is_empty() {
            return Err(refuse("a mount has no destination"));
        }
        if mount.destination().is_relative() {
            warnings.push(format!("mount destination {shown} is not absolute: taken as below the root"));
        }
        let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default());
        let kind = mount.typ().as_deref().unwrap_or("");
        let path = mount.source().clone().unwrap_or_default();
        let source = if options.bind || kind == "bind" {
            if path.as_os_str().is_empty() {
                return Err(refuse(format!("bind mount at {shown} has no source")));
            }
            // A relative source counts from the bundle, which is the working directory then.
            Source::Bind(path)
        } else if kind == "cgroup" || kind == "cgroup2" {
            Source::Cgroup
        } else if kind.is_empty() && !options.remount {
            return Err(refuse(format!("mount at {shown} has no type")));
        } else {
            Source::FileSystem(kind.to_owned(), path.to_string_lossy().into_owned())
        };
        let is_bind = matches!(source, Source::Bind(_));
        if is_bind && !options.remount {
            // It shows a file system that has its options already. A word that nobody knows is a mistake; a value is passed over,
            // as by runc before 1.2, by crun and in the validation suite of the specification.
            if !options.flags.is_empty() {
                let why = "bind mounts cannot have any filesystem-specific options applied";
                return Err(refuse(format!("invalid mount at {shown}: {why}")));
            }
            for (name, value) in &options.data {
                warnings.push(format!("bind mount at {shown}: {name}={value} is passed over"));
            }
        }
        let mapping = plan_mapping(mount, &source, &options, linux)?;
        let destination = clean(mount.destination());
        check_procfs(&destination, &source)?;
        planned.push(Mount { destination, source, options, mapping });
    }
    Ok(planned)
}

/// Files of procfs that may be covered, as by lxcfs; runc's list.
const COVERABLE: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Refuses what would take the place of procfs, since the kernel's files in it are what keeps a container in
/// (CVE-2019-16884). A procfs of the host may be bound; whether it is one is seen when it is.
fn check_procfs(destination: &Path, source: &Source) -> Result<()> {
    if crate::switches::is_off("proc-mounts") {
        return Ok(());
    }
    let shown = destination.display();
    if destination == Path::new("/proc") {
        return match source {
            Source::Bind(_) => Ok(()),
            Source::FileSystem(kind, _) if kind == "proc" => Ok(()),
            _ => Err(refuse(format!("{shown:?} cannot be mounted because it is not of type proc"))),
        };
    }
    let inside = destination.starts_with("/proc");
    if inside && !COVERABLE.iter().any(|known| destination.starts_with(known)) {
        return Err(refuse(format!("{shown:?} cannot be mounted because it is inside /proc")));
    }
    Ok(())
}

fn plan_mapping(
    mount: &oci_spec::runtime::Mount,
    source: &Source,
    options: &MountOptions,
    linux: &Linux,
) -> Result<Option<Mapping>> {
    let shown = mount.destination().display();
    let own = match (mount.uid_mappings(), mount.gid_mappings()) {
        (None, None) => None,
        (Some(uid), Some(gid)) => Some((uid, gid)),
        _ => return Err(refuse(format!("mount at {shown} has only one of uidMappings and gidMappings"))),
    };
    let asked = options.idmap.is_some() || own.is_some();
    if !asked {
        return Ok(None);
    }
    if !matches!(source, Source::Bind(_)) {
        return Err(refuse(format!("mount at {shown}: only a bind mount can be id-mapped")));
    }
    let user = linux.namespaces().iter().flatten().find(|one| one.typ() == LinuxNamespaceType::User);
    let is_joined =
        user.and_then(|user| user.path().as_ref()).is_some_and(|path| !path.as_os_str().is_empty());
    if own.is_none() && is_joined {
        return Ok(Some(Mapping::Container));
    }
    let mappings = match (own, linux.uid_mappings(), linux.gid_mappings()) {
        (Some(own), ..) => own,
        (None, Some(uid), Some(gid)) => (uid, gid),
        _ => return Err(refuse(format!("mount at {shown} is to be id-mapped but there are no mappings"))),
    };
    let lines = |maps: &[LinuxIdMapping]| -> String {
        let line =
            |map: &LinuxIdMapping| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size());
        maps.iter().map(line).collect()
    };
    Ok(Some(Mapping::Lines(lines(mappings.0), lines(mappings.1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_one(mount: serde_json::Value) -> Result<Mount> {
        let json = serde_json::json!({"mounts": [mount], "process": null});
        let spec: Spec = serde_json::from_value(json).unwrap();
        let linux: Linux = serde_json::from_str("{}").unwrap();
        let mut mounts = plan(&spec, &linux, &mut Vec::new())?;
        Ok(mounts.remove(0))
    }

    #[test]
    fn kinds_of_sources() {
        let bind = plan_one(serde_json::json!({"destination": "a", "source": "/s", "options": ["rbind"]}));
        let bind = bind.unwrap();
        assert_eq!((bind.destination.as_path(), &bind.source), (Path::new("/a"), &Source::Bind("/s".into())));
        let cgroup = plan_one(serde_json::json!({"destination": "/c", "type": "cgroup", "source": "cgroup"}));
        assert_eq!(cgroup.unwrap().source, Source::Cgroup);
        let odd = plan_one(serde_json::json!({"destination": "/c", "type": "odd", "source": "s"})).unwrap();
        assert_eq!(odd.source, Source::FileSystem("odd".into(), "s".into()));
    }

    #[test]
    fn refuses_what_has_no_meaning() {
        for (mount, words) in [
            (serde_json::json!({"destination": "/a"}), "has no type"),
            (serde_json::json!({"destination": ""}), "no destination"),
            (serde_json::json!({"destination": "/proc", "type": "tmpfs"}), "not of type proc"),
            (serde_json::json!({"destination": "/a/../proc/sys", "type": "tmpfs"}), "inside /proc"),
            (serde_json::json!({"destination": "/a", "options": ["bind"]}), "has no source"),
            (
                serde_json::json!({"destination": "/a", "source": "/", "options": ["bind", "idmap"]}),
                "no mappings",
            ),
            (
                serde_json::json!({"destination": "/a", "type": "tmpfs", "uidMappings": [], "gidMappings": []}),
                "only a bind mount",
            ),
        ] {
            let text = plan_one(mount).unwrap_err().to_string();
            assert!(text.contains(words), "{text}");
        }
    }
}
