//! The configuration that `runc spec` writes, for a person to start from.

use super::types::*;
use super::{MASKED_PATHS, READONLY_PATHS, namespaces};
use crate::contract::OCI_VERSION;

/// What the shell may do, in every set but the inheritable one.
const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// The document of `runc spec`: a shell on a terminal with a read-only root.
///
/// `unified` says whether the host has cgroup v2 alone, where a cgroup namespace is asked for too.
pub fn example(unified: bool) -> Spec {
    let capabilities: Vec<String> = CAPABILITIES.map(str::to_owned).into();
    let mut kinds = vec!["pid", "network", "ipc", "uts", "mount"];
    if unified {
        kinds.push("cgroup");
    }
    Spec {
        oci_version: OCI_VERSION.to_owned(),
        process: Some(Process {
            terminal: true,
            args: vec!["sh".to_owned()],
            env: vec![
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
                "TERM=xterm".to_owned(),
            ],
            cwd: "/".to_owned(),
            capabilities: Some(Capabilities {
                bounding: capabilities.clone(),
                effective: capabilities.clone(),
                inheritable: Vec::new(),
                permitted: capabilities.clone(),
                ambient: capabilities,
            }),
            rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: 1024, soft: 1024 }],
            no_new_privileges: true,
            ..Process::default()
        }),
        root: Some(Root { path: "rootfs".to_owned(), readonly: true }),
        hostname: "runc".to_owned(),
        mounts: mounts(),
        linux: Some(Linux {
            resources: Some(Resources {
                devices: vec![DeviceRule { access: "rwm".to_owned(), ..DeviceRule::default() }],
                ..Resources::default()
            }),
            namespaces: namespaces(&kinds),
            masked_paths: MASKED_PATHS.map(str::to_owned).into(),
            readonly_paths: READONLY_PATHS.map(str::to_owned).into(),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

/// The document of `runc spec --rootless`: `spec` changed so that an unprivileged user can run it.
///
/// `uid` and `gid` are the caller's; root in the container maps to them.
pub fn rootless(mut spec: Spec, uid: u32, gid: u32) -> Spec {
    let linux = spec.linux_mut();
    linux.namespaces.retain(|namespace| namespace.kind != "network" && namespace.kind != "user");
    linux.namespaces.extend(namespaces(&["user"]));
    linux.uid_mappings = vec![IdMapping { container_id: 0, host_id: uid, size: 1 }];
    linux.gid_mappings = vec![IdMapping { container_id: 0, host_id: gid, size: 1 }];
    // An unprivileged user cannot set limits without delegation.
    linux.resources = None;
    for mount in &mut spec.mounts {
        if mount.destination == "/sys" {
            // sysfs belongs to a network namespace of one's own, which is not made here.
            *mount = Mount::new("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]);
        }
        // Only one ID is mapped, so that no other owner can be given.
        mount.options.retain(|option| !option.starts_with("gid=") && !option.starts_with("uid="));
    }
    spec
}

fn mounts() -> Vec<Mount> {
    vec![
        Mount::new("/proc", "proc", "proc", &[]),
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
        Mount::new("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_a_cgroup_namespace_only_on_v2() {
        let kinds = |spec: Spec| -> Vec<String> {
            spec.linux.unwrap().namespaces.into_iter().map(|namespace| namespace.kind).collect()
        };
        assert!(!kinds(example(false)).contains(&"cgroup".to_owned()));
        assert!(kinds(example(true)).contains(&"cgroup".to_owned()));
    }

    #[test]
    fn rootless_needs_no_privilege() {
        let spec = rootless(example(false), 1000, 1001);
        let linux = spec.linux.unwrap();
        assert!(linux.resources.is_none());
        assert_eq!(linux.uid_mappings, [IdMapping { container_id: 0, host_id: 1000, size: 1 }]);
        assert_eq!(linux.gid_mappings, [IdMapping { container_id: 0, host_id: 1001, size: 1 }]);
        let kinds: Vec<_> = linux.namespaces.iter().map(|namespace| namespace.kind.as_str()).collect();
        assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "user"]);
        let pts = spec.mounts.iter().find(|mount| mount.destination == "/dev/pts").unwrap();
        assert!(!pts.options.iter().any(|option| option.starts_with("gid=")));
    }
}
