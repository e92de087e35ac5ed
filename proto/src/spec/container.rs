//! containerd's default container configuration, on which the options of a client build.

use super::types::*;
use super::{MASKED_PATHS, READONLY_PATHS, namespaces};
use crate::contract::OCI_VERSION;

/// What a container may do unless its user says otherwise; Docker's and containerd's list in their order.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Character devices every container may use, as (major, minor): null, random, full, tty, zero, urandom, console,
/// all of devpts, ptmx.
const DEFAULT_DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(8)),
    (1, Some(7)),
    (5, Some(0)),
    (1, Some(5)),
    (1, Some(9)),
    (5, Some(1)),
    (136, None),
    (5, Some(2)),
];

/// containerd's default configuration of container `id` in `namespace`, device rules for the default devices included.
///
/// `unified` says whether the host has cgroup v2 alone, where a cgroup namespace is made too.
pub fn container(namespace: &str, id: &str, unified: bool) -> Spec {
    let mut spec = any_container(namespace, unified);
    spec.linux_mut().cgroups_path = format!("/{namespace}/{id}");
    spec.resources_mut().devices.extend(DEFAULT_DEVICES.map(|(major, minor)| DeviceRule {
        allow: true,
        kind: "c".to_owned(),
        major: Some(major),
        minor,
        access: "rwm".to_owned(),
    }));
    spec
}

/// What containerd's configurations begin with in `namespace`, whichever container it will be.
pub fn any_container(namespace: &str, unified: bool) -> Spec {
    let capabilities: Vec<String> = DEFAULT_CAPABILITIES.map(str::to_owned).into();
    let mut kinds = vec!["pid", "ipc", "uts", "mount", "network"];
    if unified {
        kinds.push("cgroup");
    }
    let devices = vec![DeviceRule { access: "rwm".to_owned(), ..DeviceRule::default() }];
    Spec {
        oci_version: OCI_VERSION.to_owned(),
        process: Some(Process {
            cwd: "/".to_owned(),
            capabilities: Some(Capabilities {
                bounding: capabilities.clone(),
                effective: capabilities.clone(),
                permitted: capabilities,
                ..Capabilities::default()
            }),
            rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: 1024, soft: 1024 }],
            no_new_privileges: true,
            ..Process::default()
        }),
        root: Some(Root { path: "rootfs".to_owned(), readonly: false }),
        mounts: mounts(),
        linux: Some(Linux {
            resources: Some(Resources { devices, ..Resources::default() }),
            cgroups_path: format!("/{namespace}"),
            namespaces: namespaces(&kinds),
            masked_paths: MASKED_PATHS.map(str::to_owned).into(),
            readonly_paths: READONLY_PATHS.map(str::to_owned).into(),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

fn mounts() -> Vec<Mount> {
    vec![
        Mount::new("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        Mount::new("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        Mount::new(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        Mount::new("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        Mount::new("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        Mount::new("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        Mount::new("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ]
}
