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

/// Refuses a path to the top of a hierarchy or to the caller's own cgroup.
///
/// # Errors
/// `InvalidArgument`, with the reason.
pub(super) fn check(path: &str) -> Result<()> {
    let inner = clean(path);
    if inner.components().any(|part| matches!(part, Component::Normal(_))) {
        return Ok(());
    }
    let why = "it names no group of the container's own, and the end of the container would be that of all others in it";
    Err(Error::because(Kind::InvalidArgument, "use", format!("cgroupsPath {path:?}"), why))
}

/// Decides the directories of container `id`.
///
/// An absolute path counts from each hierarchy's mount point, a relative one from the caller's own cgroup (version 1) or
/// that cgroup's parent (version 2, where a group with processes cannot hand controllers down); without a path
/// the container's name is a relative one. This is what runc does.
pub(super) fn plan(hierarchies: &Hierarchies, cgroups_path: Option<&str>, id: &str) -> CgroupPaths {
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
    CgroupPaths(paths)
}

/// The directories of a unit: `directory` below `above`, which counts from each hierarchy's mount point.
pub(super) fn below_mount_points(hierarchies: &Hierarchies, above: &Path, directory: &Path) -> CgroupPaths {
    let path = Path::new("/").join(above).join(directory);
    plan(hierarchies, Some(&path.to_string_lossy()), "")
}

/// The parent of the caller's own cgroup, or the mount point when it is there already.
fn parent_within(unified: &super::hierarchies::Hierarchy) -> &Path {
    match unified.own.parent() {
        Some(parent) if unified.own != unified.mountpoint => parent,
        _ => &unified.mountpoint,
    }
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
        let paths = plan(&hybrid(), Some("/pod/./x/../a"), "id");
        assert_eq!(paths.get("cpuacct"), Some(Path::new("/cg/cpu,cpuacct/pod/a")));
        assert_eq!(paths.get("memory"), Some(Path::new("/cg/memory/pod/a")));
        assert_eq!(paths.get(""), Some(Path::new("/cg/unified/pod/a")));
        assert_eq!(paths.get("pids"), None);
    }

    #[test]
    fn a_relative_path_and_the_default_count_from_the_own_cgroup() {
        for (path, name) in [(Some("a/b"), "a/b"), (None, "id"), (Some(""), "id"), (Some("../../id"), "id")] {
            let paths = plan(&hybrid(), path, "id");
            assert_eq!(paths.get("memory"), Some(Path::new("/cg/memory/box").join(name).as_path()));
            assert_eq!(paths.get(""), Some(Path::new("/cg/unified/user").join(name).as_path()));
        }
    }

    #[test]
    fn on_version_2_a_relative_path_counts_from_the_parent() {
        let paths = plan(&unified("/cg/user/shell"), None, "id");
        assert_eq!(paths.get(""), Some(Path::new("/cg/user/id")));
        let paths = plan(&unified("/cg"), None, "id");
        assert_eq!(paths.get(""), Some(Path::new("/cg/id")));
    }

    #[test]
    fn no_path_leads_out_of_the_hierarchy() {
        let paths = plan(&hybrid(), Some("/../../../etc"), "id");
        assert_eq!(paths.get("memory"), Some(Path::new("/cg/memory/etc")));
        let paths = plan(&hybrid(), Some("../../../etc"), "id");
        assert_eq!(paths.get("memory"), Some(Path::new("/cg/memory/box/etc")));
    }

    #[test]
    fn a_group_that_is_not_the_containers_own_is_refused() {
        for path in ["/", ".", "..", "/../..", "a/..", "/a/../.."] {
            assert_eq!(check(path).unwrap_err().kind(), Kind::InvalidArgument, "{path}");
        }
        for path in ["/a", "a", "../a", "id"] {
            check(path).unwrap();
        }
    }

    #[test]
    fn a_unit_lies_below_its_manager_in_every_hierarchy() {
        let manager = Path::new("/user.slice/user@1.service");
        let paths = below_mount_points(&hybrid(), manager, Path::new("user.slice/p-n.scope"));
        assert_eq!(
            paths.get(""),
            Some(Path::new("/cg/unified/user.slice/user@1.service/user.slice/p-n.scope"))
        );
        let paths = below_mount_points(&unified("/cg/x"), Path::new(""), Path::new("a.slice/p-n.scope"));
        assert_eq!(paths.get(""), Some(Path::new("/cg/a.slice/p-n.scope")));
    }

    #[test]
    fn state_is_an_object_of_paths() {
        let paths = plan(&unified("/cg"), Some("/a"), "id");
        let text = serde_json::to_string(&paths).unwrap();
        assert_eq!(text, r#"{"":"/cg/a"}"#);
        assert_eq!(serde_json::from_str::<CgroupPaths>(&text).unwrap(), paths);
    }
}
