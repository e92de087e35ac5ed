//! What a container is to be: the documents `Config` and `HostConfig` of the API, with what is absent at its default.
//!
//! Members that nothing here reads are kept as they came (`rest`), so that `inspect` shows them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Keys of a set that clients send as an object of empty objects.
pub type Set = BTreeMap<String, Value>;

/// A string, or a list of strings; clients send either for commands.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

fn words<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    Ok(match Option::<Words>::deserialize(deserializer)? {
        None => None,
        Some(Words::One(word)) => Some(vec![word]),
        Some(Words::Many(words)) => Some(words),
    })
}

/// How a container is checked for health.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `NONE`, `CMD` and words, or `CMD-SHELL` and a line; empty for the image's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Time between checks, in nanoseconds; 0 for the image's or 30 s.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Time for one check, in nanoseconds; 0 for 30 s.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Time in which failures do not count, in nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Time between checks in the start period, in nanoseconds; 0 for 5 s.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row until the container is unhealthy; 0 for 3.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Set, D::Error> {
    Option::<Set>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A set as Go writes one that was never made.
fn null_if_empty<S: serde::Serializer>(set: &Set, serializer: S) -> Result<S::Ok, S::Error> {
    Some(set).filter(|set| !set.is_empty()).serialize(serializer)
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// `Config`: what does not depend on the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// Name of the machine that the container sees.
    pub hostname: String,
    /// Its domain.
    pub domainname: String,
    /// User, with optional group.
    pub user: String,
    /// Whether the starting client wants standard input.
    pub attach_stdin: bool,
    /// Whether the starting client wants standard output.
    pub attach_stdout: bool,
    /// Whether the starting client wants standard error.
    pub attach_stderr: bool,
    /// Ports that the container serves.
    #[serde(skip_serializing_if = "Set::is_empty")]
    pub exposed_ports: Set,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether standard input stays open.
    pub open_stdin: bool,
    /// Whether it closes with the first client.
    pub stdin_once: bool,
    /// Environment, `NAME=value` each.
    pub env: Vec<String>,
    /// Arguments, or the program where there is no entry point.
    #[serde(deserialize_with = "words")]
    pub cmd: Option<Vec<String>>,
    /// Health check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Image, as it was named.
    pub image: String,
    /// Places of anonymous volumes.
    #[serde(serialize_with = "null_if_empty", deserialize_with = "null_is_empty")]
    pub volumes: Set,
    /// Working directory.
    pub working_dir: String,
    /// Program with its first arguments.
    #[serde(deserialize_with = "words")]
    pub entrypoint: Option<Vec<String>>,
    /// Whether there is no network.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub network_disabled: bool,
    /// Address of the network device.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
    /// Instructions for images built on this one.
    pub on_build: Option<Vec<String>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Signal that asks it to stop.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Seconds that it may take to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// Shell of lines.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "words")]
    pub shell: Option<Vec<String>>,
}

/// A driver of logs and its options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// `json-file`, `local` or `none`; empty for the daemon's default.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Options of the driver.
    #[serde(rename = "Config")]
    pub options: BTreeMap<String, String>,
}

/// When an ended container is started again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// `no` or empty, `always`, `unless-stopped`, `on-failure`.
    pub name: String,
    /// Most restarts after failures; 0 for any number.
    pub maximum_retry_count: i64,
}

/// One address that a port is published on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortBinding {
    /// Address; empty for all.
    pub host_ip: String,
    /// Port or range; empty for any.
    pub host_port: String,
}

/// A device of the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceMapping {
    /// Path on the host.
    pub path_on_host: String,
    /// Path in the container.
    pub path_in_container: String,
    /// Of `r`, `w`, `m`.
    pub cgroup_permissions: String,
}

/// A limit of setrlimit(2).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    /// Name without prefix: `nofile`.
    pub name: String,
    /// Hard limit; -1 for none.
    pub hard: i64,
    /// Soft limit; -1 for none.
    pub soft: i64,
}

/// Options of a bind mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindOptions {
    /// Propagation of mounts; empty for `rprivate`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub propagation: String,
    /// Whether mounts below are left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub non_recursive: bool,
    /// Whether a missing source is made.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub create_mountpoint: bool,
}

/// Options of a volume's mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeOptions {
    /// Whether files of the image are not copied into an empty volume.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_copy: bool,
    /// Labels of a volume that is made.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Directory within the volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subpath: String,
    /// Driver of a volume that is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_config: Option<DriverConfig>,
}

/// A driver of volumes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DriverConfig {
    /// Its name.
    pub name: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
}

/// Options of a tmpfs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TmpfsOptions {
    /// Size in bytes; 0 for half of the memory.
    #[serde(skip_serializing_if = "is_zero")]
    pub size_bytes: i64,
    /// Mode of the directory; 0 for 1777.
    #[serde(skip_serializing_if = "is_zero")]
    pub mode: i64,
}

/// A mount as `--mount` describes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountRequest {
    /// `bind`, `volume`, `tmpfs`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Path on the host, or name of a volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Whether it is read-only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Options of a bind mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindOptions>,
    /// Options of a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeOptions>,
    /// Options of a tmpfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
}

/// A weight or a rate of one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceNumber {
    /// Path on the host.
    pub path: String,
    /// Weight.
    #[serde(skip_serializing_if = "is_zero")]
    pub weight: i64,
    /// Bytes or operations per second.
    #[serde(skip_serializing_if = "is_zero")]
    pub rate: i64,
}

/// Limits of what a container uses; those of `HostConfig` that `docker update` changes come first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resources {
    /// Relative weight.
    pub cpu_shares: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Billionths of a processor.
    pub nano_cpus: i64,
    /// Parent of the cgroup.
    pub cgroup_parent: String,
    /// Weight of block I/O, 10 to 1000.
    pub blkio_weight: u16,
    /// Weights of devices.
    pub blkio_weight_device: Vec<DeviceNumber>,
    /// Bytes read per second.
    pub blkio_device_read_bps: Vec<DeviceNumber>,
    /// Bytes written per second.
    pub blkio_device_write_bps: Vec<DeviceNumber>,
    /// Reads per second.
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: Vec<DeviceNumber>,
    /// Writes per second.
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: Vec<DeviceNumber>,
    /// Microseconds of a period.
    pub cpu_period: i64,
    /// Microseconds of processor time in a period.
    pub cpu_quota: i64,
    /// Microseconds of a real-time period.
    pub cpu_realtime_period: i64,
    /// Microseconds of real-time processor time in a period.
    pub cpu_realtime_runtime: i64,
    /// Processors (cpuset(7)).
    pub cpuset_cpus: String,
    /// Memory nodes (cpuset(7)).
    pub cpuset_mems: String,
    /// Devices.
    pub devices: Vec<DeviceMapping>,
    /// Rules of the device cgroup: `c 1:3 rwm`.
    pub device_cgroup_rules: Vec<String>,
    /// Devices by driver (`--gpus`).
    pub device_requests: Vec<Value>,
    /// Soft limit of memory.
    pub memory_reservation: i64,
    /// Limit of memory and swap together; -1 for none.
    pub memory_swap: i64,
    /// Swappiness.
    pub memory_swappiness: Option<i64>,
    /// Whether the OOM killer is off.
    pub oom_kill_disable: Option<bool>,
    /// Most processes; 0 and -1 for any number.
    pub pids_limit: Option<i64>,
    /// Limits of setrlimit(2).
    pub ulimits: Vec<Ulimit>,
}

impl Resources {
    /// Takes away the limits of devices, which only the host can tell the numbers of.
    pub fn forget_devices(&mut self) {
        for list in [
            &mut self.blkio_weight_device,
            &mut self.blkio_device_read_bps,
            &mut self.blkio_device_write_bps,
            &mut self.blkio_device_read_iops,
            &mut self.blkio_device_write_iops,
        ] {
            list.clear();
        }
    }
}

/// `HostConfig`: what depends on the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// Bind mounts: `SOURCE:TARGET[:OPTIONS]`.
    pub binds: Vec<String>,
    /// File that the container's ID is written to, by the client.
    #[serde(rename = "ContainerIDFile")]
    pub container_id_file: String,
    /// Driver of logs.
    pub log_config: LogConfig,
    /// `bridge`, `none`, `host`, `container:NAME`, a network.
    pub network_mode: String,
    /// Port → where it is published.
    pub port_bindings: BTreeMap<String, Vec<PortBinding>>,
    /// When it is started again.
    pub restart_policy: RestartPolicy,
    /// Whether it is removed when it ends.
    pub auto_remove: bool,
    /// Driver of its volumes.
    pub volume_driver: String,
    /// Containers whose volumes it gets.
    pub volumes_from: Vec<String>,
    /// Size of the terminal.
    pub console_size: [u32; 2],
    /// Annotations of the OCI configuration.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Capabilities beyond the usual.
    pub cap_add: Vec<String>,
    /// Usual capabilities that it does not get.
    pub cap_drop: Vec<String>,
    /// `private` or `host`; empty for the default.
    pub cgroupns_mode: String,
    /// DNS servers.
    pub dns: Vec<String>,
    /// DNS options.
    pub dns_options: Vec<String>,
    /// DNS search domains.
    pub dns_search: Vec<String>,
    /// Lines for /etc/hosts: `NAME:ADDRESS`.
    pub extra_hosts: Vec<String>,
    /// Groups beyond the user's.
    pub group_add: Vec<String>,
    /// `private`, `shareable`, `none`, `host`, `container:NAME`; empty for the default.
    pub ipc_mode: String,
    /// Cgroup of another container.
    pub cgroup: String,
    /// Links to other containers: `NAME[:ALIAS]`.
    pub links: Vec<String>,
    /// Preference of the OOM killer.
    pub oom_score_adj: i32,
    /// `host` or `container:NAME`.
    pub pid_mode: String,
    /// Whether every protection is off.
    pub privileged: bool,
    /// Whether each exposed port is published.
    pub publish_all_ports: bool,
    /// Whether the root file system is read-only.
    pub readonly_rootfs: bool,
    /// Options of seccomp, AppArmor, SELinux.
    pub security_opt: Vec<String>,
    /// Options of the storage.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub storage_opt: BTreeMap<String, String>,
    /// Path → options of a tmpfs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<String, String>,
    /// `host` or empty.
    #[serde(rename = "UTSMode")]
    pub uts_mode: String,
    /// `host` or empty.
    pub userns_mode: String,
    /// Size of /dev/shm, in bytes; 0 for 64 MiB.
    pub shm_size: i64,
    /// Kernel parameters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// `default` or empty: other kinds are of other systems.
    pub isolation: String,
    /// Runtime; empty for the default.
    pub runtime: String,
    /// Mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountRequest>,
    /// Paths that are hidden, where they differ from the usual.
    pub masked_paths: Option<Vec<String>>,
    /// Paths that are read-only, where they differ from the usual.
    pub readonly_paths: Option<Vec<String>>,
    /// Whether process 1 is an init of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Limits.
    #[serde(flatten)]
    pub resources: Resources,
    /// What nothing here reads.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// `NetworkingConfig`: networks to join at the start, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkingConfig {
    /// Name → settings.
    pub endpoints_config: BTreeMap<String, Value>,
}

/// The body of `POST /containers/create`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateBody {
    /// What does not depend on the host.
    #[serde(flatten)]
    pub config: Config,
    /// What does.
    pub host_config: HostConfig,
    /// Networks.
    pub networking_config: NetworkingConfig,
    /// Whether a build makes it, for one of its steps; no client says so.
    #[serde(skip)]
    pub is_step: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_send_words_or_lists() {
        let body: CreateBody =
            serde_json::from_str(r#"{"Cmd":"sh","Entrypoint":["a","b"],"HostConfig":{"Memory":5,"Odd":1}}"#)
                .unwrap();
        assert_eq!(body.config.cmd, Some(vec!["sh".to_owned()]));
        assert_eq!(body.config.entrypoint, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(body.host_config.resources.memory, 5);
        assert_eq!(body.host_config.rest["Odd"], 1);
        let stored = serde_json::to_string(&body.config).unwrap();
        assert!(stored.contains("\"Volumes\":null"));
        assert_eq!(serde_json::from_str::<Config>(&stored).unwrap(), body.config);
        let shown = serde_json::to_value(&body.host_config).unwrap();
        assert_eq!((&shown["Memory"], &shown["Odd"]), (&Value::from(5), &Value::from(1)));
    }
}
