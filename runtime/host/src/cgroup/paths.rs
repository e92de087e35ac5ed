//! Which directories are a container's cgroup: the rules for `linux.cgroupsPath`, without effects.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use serde::{Deserialize, Serialize};

use super::hierarchies::Hierarchies;

/// The directory of a container's cgroup in each hierarchy, by controller; version 2 has the empty name.
///
/// Serializes as the JSON object that runc keeps as `cgroup_paths`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CgroupPaths(BTreeMap<String, PathBuf>);

impl CgroupPaths {
    /// The directory for a controller.
    pub fn get(&self, controller: &str) -> Option<&Path> {
        self.0.get(controller).map(PathBuf::as_path)
    }

    /// Every controller with its directory, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.0.iter().map(|(controller, path)| (controller.as_str(), path.as_path()))
    }

    /// Whether there is no directory at all, as for a rootless container without a cgroup of its own.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, PathBuf)> for CgroupPaths {
    fn from_iter<T: IntoIterator<Item = (String, PathBuf)>>(pairs: T) -> Self {
        CgroupPaths(pairs.into_iter().collect())
    }
}

/// Decides the directories of container `id`.
///
/// An absolute path counts from each hierarchy's mount point, a relative one from the caller's own cgroup (version 1) or
/// that cgroup's parent (version 2, where a group with processes cannot hand controllers down); without a path
/// the container's name is a relative one. This is what runc does.
///
/// # Errors
/// `InvalidArgument` for a path that is not of the systemd form `slice:prefix:name` when `systemd` is asked for;
/// `FailedPrecondition` where systemd does not run; `Unimplemented` for the systemd driver itself.
pub(super) fn plan(
    hierarchies: &Hierarchies,
    cgroups_path: Option<&str>,
    id: &str,
    systemd: bool,
    systemd_runs: bool,
) -> Result<CgroupPaths> {
    if systemd {
        return Err(refuse_systemd(cgroups_path.unwrap_or_default(), systemd_runs));
    }
    let inner = match cgroups_path {
        Some(path) if !path.is_empty() => clean(path),
        _ => clean(id),
    };
    let mut paths = BTreeMap::new();
    for hierarchy in &hierarchies.legacy {
        let directory = match inner.strip_prefix("/") {
            Ok(absolute) => hierarchy.mountpoint.join(absolute),
            Err(_) => hierarchy.own.join(&inner),
        };
        for controller in &hierarchy.controllers {
            paths.insert(controller.clone(), directory.clone());
        }
    }
    if let Some(unified) = &hierarchies.unified {
        let directory = match inner.strip_prefix("/") {
            Ok(absolute) => unified.mountpoint.join(absolute),
            Err(_) if hierarchies.legacy.is_empty() => parent_within(unified).join(&inner),
            Err(_) => unified.own.join(&inner),
        };
        paths.insert(String::new(), directory);
    }
    Ok(CgroupPaths(paths))
}

/// The parent of the caller's own cgroup, or the mount point when it is there already.
fn parent_within(unified: &super::hierarchies::Hierarchy) -> &Path {
    match unified.own.parent() {
        Some(parent) if unified.own != unified.mountpoint => parent,
        _ => &unified.mountpoint,
    }
}

fn refuse_systemd(path: &str, systemd_runs: bool) -> Error {
    if !path.is_empty() && path.split(':').count() != 3 {
        return Error::because(
            Kind::InvalidArgument,
            "read",
            "linux.cgroupsPath",
            format!(
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
            ),
        );
    }
    if !systemd_runs {
        return Error::because(
            Kind::FailedPrecondition,
            "choose",
            "the cgroup driver",
            "systemd not running on this host, cannot use systemd cgroups manager",
        );
    }
    Error::because(
        Kind::Unimplemented,
        "choose",
        "the cgroup driver",
        "the systemd driver is not supported, leave out --systemd-cgroup",
    )
}

/// Resolves `.` and `..` in the text alone, never above the top, and keeps a relative path relative.
fn clean(path: &str) -> PathBuf {
    let path = Path::new(path);
    let mut result = if path.is_absolute() { PathBuf::from("/") } else { PathBuf::new() };
    for part in path.components() {
        match part {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::super::hierarchies::Hierarchy;
    use super::*;

    fn hierarchy(controllers: &[&str], mountpoint: &str, own: &str) -> Hierarchy {
        Hierarchy {
            controllers: controllers.iter().map(|one| (*one).to_owned()).collect(),
            mountpoint: mountpoint.into(),
            own: own.into(),
        }
    }

    fn hybrid() -> Hierarchies {
        Hierarchies {
            legacy: vec![
                hierarchy(&["cpu", "cpuacct"], "/cg/cpu,cpuacct", "/cg/cpu,cpuacct"),
                hierarchy(&["memory"], "/cg/memory", "/cg/memory/box"),
            ],
            unified: Some(hierarchy(&[], "/cg/unified", "/cg/unified/user")),
        }
    }

    fn unified(own: &str) -> Hierarchies {
        Hierarchies { legacy: Vec::new(), unified: Some(hierarchy(&[], "/cg", own)) }
    }

    #[test]
    fn an_absolute_path_counts_from_the_mount_points() {
        let paths = plan(&hybrid(), Some("/pod/./x/../a"), "id", false, false).unwrap();
        assert_eq!(paths.get("cpuacct"), Some(Path::new("/cg/cpu,cpuacct/pod/a")));
        assert_eq!(paths.get("memory"), Some(Path::new("/cg/memory/pod/a")));
        assert_eq!(paths.get(""), Some(Path::new("/cg/unified/pod/a")));
        assert_eq!(paths.get("pids"), None);
    }

    #[test]
    fn a_relative_path_and_the_default_count_from_the_own_cgroup() {
        for (path, name) in [(Some("a/b"), "a/b"), (None, "id"), (Some(""), "id"), (Some("../../id"), "id")] {
            let paths = plan(&hybrid(), path, "id", false, false).unwrap();
            assert_eq!(paths.get("memory"), Some(Path::new("/cg/memory/box").join(name).as_path()));
            assert_eq!(paths.get(""), Some(Path::new("/cg/unified/user").join(name).as_path()));
        }
    }

    #[test]
    fn on_version_2_a_relative_path_counts_from_the_parent() {
        let paths = plan(&unified("/cg/user/shell"), None, "id", false, false).unwrap();
        assert_eq!(paths.get(""), Some(Path::new("/cg/user/id")));
        let paths = plan(&unified("/cg"), None, "id", false, false).unwrap();
        assert_eq!(paths.get(""), Some(Path::new("/cg/id")));
    }

    #[test]
    fn no_path_leads_out_of_the_hierarchy() {
        let paths = plan(&hybrid(), Some("/../../../etc"), "id", false, false).unwrap();
        assert_eq!(paths.get("memory"), Some(Path::new("/cg/memory/etc")));
        let paths = plan(&hybrid(), Some("../../../etc"), "id", false, false).unwrap();
        assert_eq!(paths.get("memory"), Some(Path::new("/cg/memory/box/etc")));
    }

    #[test]
    fn systemd_is_refused_in_plain_words() {
        let refusal = |path, runs| plan(&hybrid(), path, "id", true, runs).unwrap_err();
        assert!(refusal(Some("/a/b"), true).to_string().contains("slice:prefix:name"));
        assert_eq!(refusal(Some("/a/b"), false).kind(), Kind::InvalidArgument);
        assert_eq!(refusal(Some("a:b:c"), false).kind(), Kind::FailedPrecondition);
        assert!(refusal(None, false).to_string().contains("systemd not running on this host"));
        assert_eq!(refusal(Some("a:b:c"), true).kind(), Kind::Unimplemented);
    }

    #[test]
    fn state_is_an_object_of_paths() {
        let paths = plan(&unified("/cg"), Some("/a"), "id", false, false).unwrap();
        let text = serde_json::to_string(&paths).unwrap();
        assert_eq!(text, r#"{"":"/cg/a"}"#);
        assert_eq!(serde_json::from_str::<CgroupPaths>(&text).unwrap(), paths);
    }
}
