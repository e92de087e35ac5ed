//! What options become, as tables.

use super::*;

fn facts() -> Facts {
    Facts {
        id: "c1".to_owned(),
        cgroup_parent: "/docker".to_owned(),
        accounts: Accounts {
            passwd: Some("root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n".to_owned()),
            group: Some("root:x:0:\nlog:x:40:\n".to_owned()),
        },
        capabilities: orlop_proto::spec::capabilities_of(u64::MAX),
        ..Facts::default()
    }
}

fn config() -> Config {
    Config { hostname: "box".to_owned(), cmd: Some(vec!["sh".to_owned()]), ..Config::default() }
}

fn made(host: &HostConfig) -> Spec {
    make(&config(), host, &facts()).unwrap()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn the_defaults_are_dockers() {
    let spec = made(&HostConfig::default());
    let process = spec.process.clone().unwrap();
    assert_eq!(process.env, words(&[DEFAULT_PATH, "HOSTNAME=box"]));
    assert!(!process.no_new_privileges && process.rlimits.is_empty());
    assert_eq!(process.capabilities.unwrap().bounding.len(), DEFAULT_CAPABILITIES.len());
    let linux = spec.linux.clone().unwrap();
    assert_eq!(linux.cgroups_path, "/docker/c1");
    assert!(linux.seccomp.is_some());
    assert!(!linux.namespaces.iter().any(|namespace| namespace.kind == "cgroup"));
    let shm = spec.mounts.iter().find(|mount| mount.destination == "/dev/shm").unwrap();
    assert!(shm.options.contains(&"size=67108864".to_owned()), "{shm:?}");
    assert!(!spec.mounts.iter().any(|mount| mount.destination == "/run"));
    assert_eq!(spec.hostname, "box");
}

#[test]
fn capabilities_are_added_and_dropped() {
    for (add, drop, held, lacks) in [
        (&["net_admin"][..], &["CHOWN"][..], "CAP_NET_ADMIN", "CAP_CHOWN"),
        (&["ALL"], &["sys_admin"], "CAP_NET_ADMIN", "CAP_SYS_ADMIN"),
        (&["kill"], &["ALL"], "CAP_KILL", "CAP_CHOWN"),
    ] {
        let held_now = capabilities(&words(add), &words(drop), &facts().capabilities).unwrap();
        assert!(
            held_now.contains(&held.to_owned()) && !held_now.contains(&lacks.to_owned()),
            "{add:?} {drop:?}"
        );
    }
    assert!(capabilities(&words(&["nope"]), &[], &facts().capabilities).is_err());
}

#[test]
fn limits_are_those_of_dockerd() {
    let limits =
        Resources { memory: 1 << 20, nano_cpus: 1_500_000_000, pids_limit: Some(7), ..Resources::default() };
    let mut spec = made(&HostConfig { resources: limits, ..HostConfig::default() });
    let resources = spec.resources_mut();
    let memory = resources.memory.clone().unwrap();
    assert_eq!((memory.limit, memory.swap), (Some(1 << 20), Some(2 << 20)));
    let cpu = resources.cpu.clone().unwrap();
    assert_eq!((cpu.quota, cpu.period), (Some(150_000), Some(100_000)));
    assert_eq!(resources.pids.as_ref().unwrap().limit, 7);
    let both = Resources { nano_cpus: 1, cpu_quota: 1, ..Resources::default() };
    assert!(make(&config(), &HostConfig { resources: both, ..HostConfig::default() }, &facts()).is_err());
}

#[test]
fn privileged_and_unconfined_lift_the_filter() {
    let privileged = made(&HostConfig { privileged: true, ..HostConfig::default() });
    let linux = privileged.linux.unwrap();
    assert!(linux.seccomp.is_none() && linux.masked_paths.is_empty());
    let open = words(&["seccomp=unconfined", "systempaths=unconfined", "no-new-privileges"]);
    let spec = made(&HostConfig { security_opt: open, ..HostConfig::default() });
    assert!(spec.process.unwrap().no_new_privileges);
    let linux = spec.linux.unwrap();
    assert!(linux.seccomp.is_none() && linux.readonly_paths.is_empty());
    assert!(SecurityOptions::default().parse(&words(&["nope"])).is_err());
}

#[test]
fn apparmor_confines_what_is_not_privileged() {
    let profile = |options: &[&str], privileged: bool, machine: apparmor::Machine| {
        let host = HostConfig { security_opt: words(options), privileged, ..HostConfig::default() };
        let spec = make(&config(), &host, &Facts { apparmor: machine, ..facts() }).unwrap();
        spec.process.unwrap().apparmor_profile
    };
    let machine = apparmor::Machine { is_on: true, has_parser: true };
    assert_eq!(profile(&[], false, machine), apparmor::DEFAULT);
    assert_eq!(profile(&[], true, machine), "unconfined");
    assert_eq!(profile(&["apparmor=unconfined"], false, machine), "unconfined");
    assert_eq!(profile(&["apparmor:mine"], true, machine), "mine");
    assert_eq!(profile(&["apparmor=mine"], false, apparmor::Machine::default()), "");
    assert_eq!(named_profile(&words(&["label=disable", "apparmor=mine"])), "mine");
    assert_eq!(named_profile(&[]), "");
}

#[test]
fn a_profile_follows_capabilities() {
    let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
        "syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":null},
                    {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
                    {"name":"chroot","action":"SCMP_ACT_ALLOW","excludes":{"arches":["arm64"]}}]}"#;
    let names = |held: &[&str]| -> Vec<String> {
        profile(text, &words(held), "x86_64")
            .unwrap()
            .syscalls
            .into_iter()
            .flat_map(|rule| rule.names)
            .collect()
    };
    assert_eq!(names(&[]), ["read", "chroot"]);
    assert_eq!(names(&["CAP_SYS_ADMIN"]), ["read", "mount", "chroot"]);
    assert_eq!(profile(text, &[], "x86_64").unwrap().architectures, ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    assert!(profile("x", &[], "x86_64").is_err());
}

#[test]
fn users_and_groups_are_the_containers_own() {
    let config = Config { user: "web".to_owned(), ..config() };
    let host = HostConfig { group_add: words(&["log", "50"]), ..HostConfig::default() };
    let process = make(&config, &host, &facts()).unwrap().process.unwrap();
    assert_eq!((process.user.uid, process.user.gid), (33, 34));
    assert_eq!(process.user.additional_gids, [34, 40, 50]);
    assert!(process.capabilities.unwrap().effective.is_empty());
    let unknown = Config { user: "nobody".to_owned(), ..config };
    let failure = make(&unknown, &HostConfig::default(), &facts()).unwrap_err();
    assert_eq!(failure.message, "unable to find user nobody: no matching entries in passwd file");
}

#[test]
fn namespaces_are_joined_or_shared() {
    let namespaces = [("network", "host".to_owned()), ("pid", "/proc/7/ns/pid".to_owned())].into();
    let spec = make(&config(), &HostConfig::default(), &Facts { namespaces, ..facts() }).unwrap();
    let linux = spec.linux.unwrap();
    assert!(!linux.namespaces.iter().any(|namespace| namespace.kind == "network"));
    assert!(linux.namespaces.iter().any(|namespace| namespace.path == "/proc/7/ns/pid"));
}

#[test]
fn rules_and_inits() {
    assert_eq!(device_rule("c 1:* rw").unwrap().minor, None);
    for wrong in ["", "x 1:1 r", "c 1 r", "c 1:1 q"] {
        assert!(device_rule(wrong).is_err(), "{wrong}");
    }
    let host = HostConfig { init: Some(true), ..HostConfig::default() };
    assert!(make(&config(), &host, &facts()).is_err());
    let facts = Facts { init: Some("/usr/bin/tini".to_owned()), ..facts() };
    let spec = make(&config(), &host, &facts).unwrap();
    assert_eq!(spec.process.unwrap().args, words(&[INIT_TARGET, "--", "sh"]));
    let nothing = Config { cmd: None, ..config() };
    assert_eq!(make(&nothing, &HostConfig::default(), &facts).unwrap_err().message, "no command specified");
}

#[test]
fn systemd_has_slices() {
    let facts = Facts { systemd_cgroup: true, ..facts() };
    let path = |parent: &str| {
        let mut host = HostConfig::default();
        host.resources.cgroup_parent = parent.to_owned();
        let made = make(&config(), &host, &facts);
        made.map(|spec| spec.linux.unwrap().cgroups_path).map_err(|failure| failure.message)
    };
    assert_eq!(path("").unwrap(), "system.slice:docker:c1");
    assert_eq!(path("mine.slice").unwrap(), "mine.slice:docker:c1");
    assert_eq!(path("/mine").unwrap_err(), NO_SLICE);
    assert_eq!(path(".slice").unwrap_err(), NO_SLICE);
}

#[test]
fn root_is_a_user_of_the_host_in_a_user_namespace() {
    use orlop_proto::spec::types::IdMapping;
    let range = |host_id| vec![IdMapping { container_id: 0, host_id, size: 10 }];
    let owners = Owners { uids: range(1000), gids: range(2000) };
    let facts = Facts { owners: Some(owners), ..facts() };
    let mut spec = make(&config(), &HostConfig::default(), &facts).unwrap();
    let linux = spec.linux_mut().clone();
    assert!(linux.namespaces.iter().any(|namespace| namespace.kind == "user" && namespace.path.is_empty()));
    assert_eq!((linux.uid_mappings, linux.gid_mappings), (range(1000), range(2000)));
    // Not all groups of the usual range are the container's.
    assert_eq!(linux.sysctl, [("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())].into());
    // Who shares what another has lives in the other's user namespace.
    let namespaces =
        [("network", "/proc/7/ns/net".to_owned()), ("user", "/proc/7/ns/user".to_owned())].into();
    let host = HostConfig { network_mode: "container:x".to_owned(), ..HostConfig::default() };
    let mut spec = make(&config(), &host, &Facts { namespaces, ..facts }).unwrap();
    let linux = spec.linux_mut().clone();
    let users: Vec<_> = linux.namespaces.iter().filter(|namespace| namespace.kind == "user").collect();
    assert!(matches!(users[..], [only] if only.path == "/proc/7/ns/user"));
    assert!(linux.sysctl.is_empty());
}

#[test]
fn users_have_ports_and_echo_requests_in_a_network_of_their_own() {
    let sysctls = |mode: &str, own: &[(&str, &str)]| {
        let sysctls = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let host = HostConfig { network_mode: mode.to_owned(), sysctls, ..HostConfig::default() };
        let mut spec = make(&config(), &host, &facts()).unwrap();
        spec.linux_mut()
            .sysctl
            .clone()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
    };
    let (port, ping) = ("net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range=0 2147483647");
    assert_eq!(sysctls("bridge", &[]), [format!("{port}=0"), ping.to_owned()]);
    assert_eq!(sysctls("none", &[(port, "1024")]), [format!("{port}=1024"), ping.to_owned()]);
    assert!(sysctls("host", &[]).is_empty() && sysctls("container:x", &[]).is_empty());
}
