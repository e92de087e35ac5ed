//! Options of what a container shares with its host: namespaces, mounts, devices, privileges.

use super::types::*;

/// Names of namespaces in the configuration (config-linux.md).
pub const NAMESPACE_KINDS: [&str; 8] = ["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"];

impl Spec {
    /// Joins a namespace in place of making a new one of the kind.
    pub fn join_namespace(&mut self, kind: &str, path: &str) {
        let namespaces = &mut self.linux_mut().namespaces;
        let joined = Namespace { kind: kind.to_owned(), path: path.to_owned() };
        match namespaces.iter_mut().find(|namespace| namespace.kind == kind) {
            Some(namespace) => *namespace = joined,
            None => namespaces.push(joined),
        }
    }

    /// Stays in the host's namespace of the kind.
    pub fn share_namespace(&mut self, kind: &str) {
        self.linux_mut().namespaces.retain(|namespace| namespace.kind != kind);
    }

    /// Uses the host's network, names and host name of `hostname` included.
    pub fn share_network(&mut self, hostname: &str) {
        self.share_namespace("network");
        for file in ["/etc/hosts", "/etc/resolv.conf"] {
            self.mounts.push(Mount::new(file, "bind", file, &["rbind", "ro"]));
        }
        self.set_env(&[format!("HOSTNAME={hostname}")]);
    }

    /// Makes a user namespace with these mappings.
    pub fn map_users(&mut self, uids: Vec<IdMapping>, gids: Vec<IdMapping>) {
        self.join_namespace("user", "");
        let linux = self.linux_mut();
        linux.uid_mappings = uids;
        linux.gid_mappings = gids;
    }

    /// Lifts the protections: `capabilities` (the caller's own), nothing masked or read-only, writable /sys, no
    /// mandatory access control, no seccomp, and unless they are left out the host's `devices` with access to every one.
    pub fn set_privileged(&mut self, capabilities: &[String], devices: Option<Vec<Device>>) {
        self.set_capabilities(capabilities);
        let process = self.process_mut();
        process.selinux_label.clear();
        process.apparmor_profile.clear();
        for mount in &mut self.mounts {
            if mount.kind == "sysfs" || mount.kind == "cgroup" {
                for option in mount.options.iter_mut().filter(|option| *option == "ro") {
                    "rw".clone_into(option);
                }
            }
        }
        let linux = self.linux_mut();
        linux.masked_paths.clear();
        linux.readonly_paths.clear();
        linux.seccomp = None;
        let Some(devices) = devices else { return };
        linux.devices.extend(devices);
        self.resources_mut().devices =
            vec![DeviceRule { allow: true, access: "rwm".to_owned(), ..DeviceRule::default() }];
    }

    /// Makes a device in the container and allows `access` (of `r`, `w` and `m`) to it.
    pub fn add_device(&mut self, device: Device, access: &str) {
        let rule = DeviceRule {
            allow: true,
            kind: device.kind.clone(),
            major: Some(device.major),
            minor: Some(device.minor),
            access: access.to_owned(),
        };
        self.linux_mut().devices.push(device);
        self.resources_mut().devices.push(rule);
    }

    /// Limits CPU time to `quota` microseconds in each `period` microseconds.
    pub fn limit_cpu_time(&mut self, quota: i64, period: u64) {
        let cpu = self.resources_mut().cpu.get_or_insert_default();
        cpu.quota = Some(quota);
        cpu.period = Some(period);
    }

    /// Limits memory to `bytes`.
    pub fn limit_memory(&mut self, bytes: i64) {
        self.resources_mut().memory.get_or_insert_default().limit = Some(bytes);
    }

    /// Limits the number of tasks.
    pub fn limit_pids(&mut self, limit: i64) {
        self.resources_mut().pids = Some(Pids { limit });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(spec: &mut Spec) -> Vec<(String, String)> {
        spec.linux_mut().namespaces.iter().map(|n| (n.kind.clone(), n.path.clone())).collect()
    }

    #[test]
    fn a_joined_namespace_replaces_the_new_one() {
        let mut spec = super::super::container("n", "i", false);
        spec.join_namespace("pid", "/p");
        spec.join_namespace("time", "/t");
        spec.share_namespace("ipc");
        let kinds = kinds(&mut spec);
        assert_eq!(kinds[0], ("pid".to_owned(), "/p".to_owned()));
        assert_eq!(kinds.last().unwrap(), &("time".to_owned(), "/t".to_owned()));
        assert!(!kinds.iter().any(|(kind, _)| kind == "ipc"));
    }

    #[test]
    fn the_hosts_network_comes_with_its_names() {
        let mut spec = super::super::container("n", "i", false);
        spec.share_network("box");
        assert!(!kinds(&mut spec).iter().any(|(kind, _)| kind == "network"));
        let binds: Vec<_> = spec.mounts.iter().filter(|mount| mount.kind == "bind").collect();
        assert_eq!(binds.len(), 2);
        assert_eq!(binds[1].options, ["rbind", "ro"]);
        assert_eq!(spec.process_mut().env, ["HOSTNAME=box"]);
    }

    #[test]
    fn privileged_lifts_every_protection() {
        let mut spec = super::super::container("n", "i", false);
        let device = Device { path: "/dev/x".to_owned(), kind: "c".to_owned(), ..Device::default() };
        spec.set_privileged(&["CAP_SYS_ADMIN".to_owned()], Some(vec![device]));
        assert_eq!(spec.process_mut().capabilities.as_ref().unwrap().bounding, ["CAP_SYS_ADMIN"]);
        let sys = spec.mounts.iter().find(|mount| mount.destination == "/sys").unwrap();
        assert!(sys.options.contains(&"rw".to_owned()) && !sys.options.contains(&"ro".to_owned()));
        let linux = spec.linux_mut();
        assert!(linux.masked_paths.is_empty() && linux.readonly_paths.is_empty());
        assert_eq!(linux.devices.len(), 1);
        assert_eq!(spec.resources_mut().devices.len(), 1);
        assert!(spec.resources_mut().devices[0].allow);
        let mut without = super::super::container("n", "i", false);
        let rules = without.resources_mut().devices.clone();
        without.set_privileged(&["CAP_SYS_ADMIN".to_owned()], None);
        assert!(without.linux_mut().masked_paths.is_empty() && without.linux_mut().devices.is_empty());
        assert_eq!(without.resources_mut().devices, rules);
    }

    #[test]
    fn limits_share_one_section() {
        let mut spec = super::super::container("n", "i", false);
        spec.limit_cpu_time(5, 10);
        spec.limit_memory(1 << 20);
        spec.limit_pids(7);
        let resources = spec.resources_mut();
        assert_eq!(resources.cpu.as_ref().unwrap().quota, Some(5));
        assert_eq!(resources.memory.as_ref().unwrap().limit, Some(1 << 20));
        assert_eq!(resources.pids, Some(Pids { limit: 7 }));
    }

    #[test]
    fn a_device_is_made_and_allowed() {
        let mut spec = super::super::container("n", "i", false);
        let device = Device {
            path: "/dev/fuse".to_owned(),
            kind: "c".to_owned(),
            major: 10,
            minor: 229,
            ..Device::default()
        };
        spec.add_device(device, "rw");
        let rule = spec.resources_mut().devices.last().unwrap();
        assert_eq!(
            (rule.allow, rule.major, rule.minor, rule.access.as_str()),
            (true, Some(10), Some(229), "rw")
        );
    }
}
