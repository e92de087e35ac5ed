//! JSON of a container's state: what `state` prints, what hooks read, what `state.json` holds.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a container is in its life (runtime-spec, "State"), with runc's `paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its namespaces are being set up.
    Creating,
    /// Everything is ready and init waits for `start`.
    Created,
    /// The user's program was started and has not ended.
    Running,
    /// All its processes are frozen.
    Paused,
    /// Its init has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// What `state` and `list --format json` print, with runc's extra members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Version of the runtime specification.
    #[serde(rename = "ociVersion")]
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// The init process as the host sees it; 0 when stopped.
    pub pid: i32,
    /// Where it is in its life.
    pub status: Status,
    /// The bundle directory, absolute.
    pub bundle: String,
    /// The root file system, absolute.
    #[serde(default)]
    pub rootfs: String,
    /// When it was created, as RFC 3339.
    #[serde(default)]
    pub created: String,
    /// The annotations of its configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The user who owns its state directory.
    #[serde(default)]
    pub owner: String,
}

/// What hooks get on their standard input (runtime-spec, "State").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookState {
    /// Version of the runtime specification.
    #[serde(rename = "ociVersion")]
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Where it is in its life.
    pub status: Status,
    /// The init process as the host sees it; left out when there is none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pid: i32,
    /// The bundle directory, absolute.
    pub bundle: String,
    /// The annotations of its configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a seccomp supervisor gets with its descriptor (runtime-spec, "The Container Process State").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerProcessState {
    /// Version of the runtime specification.
    #[serde(rename = "ociVersion")]
    pub oci_version: String,
    /// What the descriptors sent along are.
    pub fds: Vec<String>,
    /// The process as the runtime sees it.
    pub pid: i32,
    /// `listenerMetadata` of the configuration.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// The container.
    pub state: HookState,
}

fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// `state.json`: runc's names for what others read from it, and what orlop's later commands need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredState {
    /// The container's id.
    pub id: String,
    /// The init process as the host sees it.
    pub init_process_pid: i32,
    /// Its start time in clock ticks after boot, so that another process with its pid is not taken for it.
    pub init_process_start: u64,
    /// When it was created, as RFC 3339.
    pub created: String,
    /// The parts of the configuration that later commands need.
    pub config: StoredConfig,
    /// Whether it was made without root's rights.
    pub rootless: bool,
    /// Controller → absolute cgroup directory; the empty name is the unified hierarchy.
    pub cgroup_paths: BTreeMap<String, String>,
    /// Namespace (`NEWPID`, …) → path of init's.
    pub namespace_paths: BTreeMap<String, String>,
    /// What the standard streams of init were.
    pub external_descriptors: Vec<String>,
    /// The Intel RDT group.
    pub intel_rdt_path: String,
}

/// The configuration in `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredConfig {
    /// The root file system, absolute.
    pub rootfs: String,
    /// `name=value` pairs: the annotations and `bundle=…`.
    pub labels: Vec<String>,
    /// Version of the runtime specification in the bundle's configuration.
    pub version: String,
    /// Whether processes may not gain privileges.
    pub no_new_privileges: bool,
    /// Whether the container made no session keyring.
    pub no_new_keyring: bool,
    /// Whether its cgroups are managed by systemd.
    #[serde(default)]
    pub systemd_cgroup: bool,
    /// Which namespaces it has of its own or by path, as `CLONE_NEW…` bits.
    #[serde(default)]
    pub namespaces: u64,
    /// Which of these are others', entered by path.
    #[serde(default)]
    pub joined_namespaces: u64,
    /// The bundle's configuration, verbatim in what later commands use: process, seccomp, hooks, resources.
    #[serde(default)]
    pub spec: serde_json::Value,
}

impl StoredState {
    /// The bundle directory.
    pub fn bundle(&self) -> &str {
        // The last: an annotation of this name comes before it.
        self.config.labels.iter().rev().find_map(|label| label.strip_prefix("bundle=")).unwrap_or_default()
    }

    /// The annotations of the configuration.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let own = self.config.labels.iter().rposition(|label| label.starts_with("bundle="));
        let labels = self.config.labels.iter().enumerate().filter(|(index, _)| Some(*index) != own);
        let pairs = labels.filter_map(|(_, label)| label.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_has_the_members_that_callers_read() {
        let state = ContainerState {
            oci_version: "1.3.0".into(),
            id: "x".into(),
            pid: 7,
            status: Status::Created,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-11-21T01:17:11Z".into(),
            annotations: BTreeMap::new(),
            owner: String::new(),
        };
        assert_eq!(
            serde_json::to_string(&state).unwrap(),
            r#"{"ociVersion":"1.3.0","id":"x","pid":7,"status":"created","bundle":"/b","rootfs":"/b/rootfs","created":"2026-11-21T01:17:11Z","owner":""}"#
        );
    }

    #[test]
    fn labels_carry_bundle_and_annotations() {
        let labels = vec!["a=b=c".into(), "bundle=/elsewhere".into(), "bundle=/x".into()];
        let config = StoredConfig { labels, ..Default::default() };
        let state = StoredState {
            id: "x".into(),
            init_process_pid: 1,
            init_process_start: 2,
            created: String::new(),
            config,
            rootless: false,
            cgroup_paths: BTreeMap::new(),
            namespace_paths: BTreeMap::new(),
            external_descriptors: Vec::new(),
            intel_rdt_path: String::new(),
        };
        assert_eq!(state.bundle(), "/x");
        let annotations = [("a", "b=c"), ("bundle", "/elsewhere")];
        let annotations = annotations.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(state.annotations(), BTreeMap::from(annotations));
    }
}
