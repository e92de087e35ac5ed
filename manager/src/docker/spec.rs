//! From a container's documents to its OCI configuration: pure. What has to be looked up on the host (devices, accounts,
//! volumes' directories, other containers' processes) comes in as [`Facts`].
//!
//! Follows dockerd's defaults (`oci.DefaultLinuxSpec`) and the order in which it applies options.

use std::collections::BTreeMap;

use orlop_proto::spec::types::{
    Cpu, Device, DeviceRule, Memory, Mount, Rlimit, Seccomp, SeccompArg, SeccompRule, Spec,
};
use orlop_proto::spec::{self, Accounts, DEFAULT_CAPABILITIES, MASKED_PATHS, merge_env};
use serde::Deserialize;
use serde_json::{Value, json};

use super::apparmor;
use super::container::config::{Config, DeviceNumber, HostConfig, Resources, Ulimit};
use super::failure::{Failure, Result};
use crate::owners::Owners;

/// Size of /dev/shm where nothing else is said.
pub const SHM_SIZE: i64 = 64 << 20;
/// Where the init of `--init` is seen in the container.
const INIT_TARGET: &str = "/sbin/docker-init";
/// The period behind a number of processors, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// The environment's first entry, unless the image has one.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// dockerd's words for a cgroup above a container's that systemd cannot have.
pub const NO_SLICE: &str = "cgroup-parent for systemd cgroup should be a valid slice named as \"xxx.slice\"";

/// Whether systemd can have a container's cgroup there; nothing said leaves it to the engine.
pub fn is_slice(parent: &str) -> bool {
    parent.is_empty() || parent.strip_suffix(".slice").is_some_and(|name| !name.is_empty())
}

/// What has been looked up.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The container's full ID.
    pub id: String,
    /// The cgroup above those of containers that name none.
    pub cgroup_parent: String,
    /// The account files of its root file system.
    pub accounts: Accounts,
    /// Mounts beyond the usual, in the order of their depth.
    pub mounts: Vec<Mount>,
    /// Its users and groups on the host, in a user namespace.
    pub owners: Option<Owners>,
    /// Whether the daemon is in a user namespace itself.
    pub is_inner: bool,
    /// Namespaces to join: kind → path. `host` stands for the daemon's own.
    pub namespaces: BTreeMap<&'static str, String>,
    /// Devices with what is allowed on them.
    pub devices: Vec<(Device, String)>,
    /// Every device of the host, for a privileged container.
    pub all_devices: Vec<Device>,
    /// Capabilities that the daemon has.
    pub capabilities: Vec<String>,
    /// Whether the host has cgroup v2 alone.
    pub unified: bool,
    /// Whether cgroups are made through systemd.
    pub systemd_cgroup: bool,
    /// Limits of setrlimit(2) that hold unless the container has its own.
    pub ulimits: Vec<Ulimit>,
    /// Whether programs gain no privileges unless the container says otherwise.
    pub no_new_privileges: bool,
    /// Profile of seccomp as JSON, or `unconfined`, unless the container has its own; empty for the engine's.
    pub seccomp: String,
    /// What the machine has of AppArmor.
    pub apparmor: apparmor::Machine,
    /// Variables from outside: those of links.
    pub variables: Vec<String>,
    /// The host's init program, for `--init`.
    pub init: Option<String>,
    /// Numbers of block devices that limits name.
    pub block_devices: BTreeMap<String, (u64, u64)>,
}

/// Makes the configuration.
///
/// # Errors
///
/// 400 for what cannot be carried out, in dockerd's words where it has some.
pub fn make(config: &Config, host: &HostConfig, facts: &Facts) -> Result<Spec> {
    let mut spec = spec::container("docker", &facts.id, facts.unified);
    defaults(&mut spec, host, facts.unified);
    let parent = match host.resources.cgroup_parent.as_str() {
        "" => &facts.cgroup_parent,
        own => own,
    };
    if facts.systemd_cgroup && !is_slice(&host.resources.cgroup_parent) {
        return Err(Failure::invalid(NO_SLICE));
    }
    spec.linux_mut().cgroups_path = match facts.systemd_cgroup {
        // A slice that systemd knows, a prefix, and what is below it.
        true if parent.ends_with(".slice") => format!("{parent}:docker:{}", facts.id),
        true => format!("system.slice:docker:{}", facts.id),
        false => format!("/{}/{}", parent.trim_matches('/'), facts.id),
    };
    process(&mut spec, config, host, facts)?;
    namespaces(&mut spec, config, host, facts);
    spec.root_mut().readonly = host.readonly_rootfs;
    mounts(&mut spec, host, facts)?;
    resources(&mut spec, &host.resources, facts)?;
    spec.linux_mut().masked_paths = host.masked_paths.clone().unwrap_or_else(masked_paths);
    if let Some(paths) = &host.readonly_paths {
        spec.linux_mut().readonly_paths.clone_from(paths);
    }
    security(&mut spec, host, facts)?;
    spec.linux_mut().sysctl = sysctls(host, facts);
    spec.annotations.clone_from(&host.annotations);
    Ok(spec)
}

/// What dockerd starts from, where it differs from containerd.
fn defaults(spec: &mut Spec, host: &HostConfig, unified: bool) {
    let process = spec.process_mut();
    process.no_new_privileges = false;
    process.rlimits.clear();
    spec.mounts.retain(|mount| mount.destination != "/run");
    let options: &[&str] = &["ro", "nosuid", "noexec", "nodev"];
    spec.mounts.push(Mount::new("/sys/fs/cgroup", "cgroup", "cgroup", options));
    let size = if host.shm_size > 0 { host.shm_size } else { SHM_SIZE };
    for mount in &mut spec.mounts {
        if mount.destination == "/dev/shm" {
            mount.options.retain(|option| !option.starts_with("size="));
            mount.options.push(format!("size={size}"));
        }
    }
    let is_private = match host.cgroupns_mode.as_str() {
        "private" => true,
        "host" => false,
        _ => unified && !host.privileged,
    };
    if is_private {
        spec.join_namespace("cgroup", "");
    } else {
        spec.share_namespace("cgroup");
    }
}

fn process(spec: &mut Spec, config: &Config, host: &HostConfig, facts: &Facts) -> Result<()> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", config.hostname)];
    if config.tty {
        env.push("TERM=xterm".to_owned());
    }
    env.extend(facts.variables.iter().cloned());
    let process = spec.process_mut();
    process.env = merge_env(&env, &config.env);
    process.args =
        [&config.entrypoint, &config.cmd].into_iter().flatten().flatten().cloned().collect::<Vec<String>>();
    if process.args.iter().all(String::is_empty) {
        return Err(Failure::invalid("no command specified"));
    }
    if host.init == Some(true) {
        let mut args = vec![INIT_TARGET.to_owned(), "--".to_owned()];
        args.append(&mut process.args);
        process.args = args;
    }
    process.cwd = if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir.clone() };
    process.terminal = config.tty;
    if config.tty && host.console_size != [0, 0] {
        let [height, width] = host.console_size;
        process.console_size = Some(spec::types::ConsoleSize { height, width });
    }
    process.oom_score_adj = Some(host.oom_score_adj);
    let user = if config.user.is_empty() { "0" } else { &config.user };
    set_user(spec, user, &host.group_add, &facts.accounts)?;
    for limit in facts.ulimits.iter().chain(&host.resources.ulimits) {
        spec.set_rlimit(rlimit(limit));
    }
    Ok(())
}

/// Sets user, group and further groups.
///
/// # Errors
///
/// 400 for a user or a group that the container does not have.
pub fn set_user(spec: &mut Spec, user: &str, groups: &[String], accounts: &Accounts) -> Result<()> {
    // Without a name it is root, whatever the group.
    let whole = if user.starts_with(':') { format!("0{user}") } else { user.to_owned() };
    let mut parts = user.split(':').chain(groups.iter().map(String::as_str));
    let is_too_far =
        |part: &str| part.parse::<i64>().is_ok_and(|number| !(0..=i64::from(i32::MAX)).contains(&number));
    if parts.any(is_too_far) {
        return Err(Failure::invalid("uids and gids must be in range 0-2147483647"));
    }
    spec.set_user(&whole, accounts).map_err(|error| match error.operation() {
        "user" => Failure::invalid(format!(
            "unable to find user {}: no matching entries in passwd file",
            name(user)
        )),
        "group" => Failure::invalid(format!(
            "unable to find group {}: no matching entries in group file",
            group(user)
        )),
        _ => error.into(),
    })?;
    for wanted in groups {
        let number = match wanted.parse::<u32>() {
            Ok(number) => number,
            Err(_) => {
                accounts
                    .user(&format!("0:{wanted}"))
                    .map_err(|_| {
                        Failure::invalid(format!(
                            "Unable to find group {wanted}: no matching entries in group file"
                        ))
                    })?
                    .gid
            }
        };
        let held = &mut spec.process_mut().user.additional_gids;
        if !held.contains(&number) {
            held.push(number);
        }
    }
    Ok(())
}

fn name(user: &str) -> &str {
    user.split_once(':').map_or(user, |(user, _)| user)
}

fn group(user: &str) -> &str {
    user.split_once(':').map_or("", |(_, group)| group)
}

fn rlimit(limit: &Ulimit) -> Rlimit {
    // -1 is as much as there is, which as an unsigned number it says itself.
    let number = |value: i64| value as u64;
    Rlimit {
        kind: format!("RLIMIT_{}", limit.name.to_uppercase()),
        hard: number(limit.hard),
        soft: number(limit.soft),
    }
}

fn namespaces(spec: &mut Spec, config: &Config, host: &HostConfig, facts: &Facts) {
    if let Some(Owners { uids, gids }) = facts.owners.clone() {
        spec.map_users(uids, gids);
    }
    for (kind, path) in &facts.namespaces {
        match path.as_str() {
            "host" => spec.share_namespace(kind),
            path => spec.join_namespace(kind, path),
        }
    }
    if host.uts_mode != "host" {
        spec.hostname.clone_from(&config.hostname);
        spec.domainname.clone_from(&config.domainname);
    }
    if facts.namespaces.get("network").is_some_and(|path| path == "host") {
        // The host's own network is not this container's to configure.
        for mount in spec.mounts.iter_mut().filter(|mount| mount.destination == "/sys") {
            if !mount.options.iter().any(|option| option == "ro") {
                mount.options.push("ro".to_owned());
            }
        }
    }
    if host.ipc_mode == "none" {
        spec.mounts.retain(|mount| mount.destination != "/dev/shm");
    }
    if facts.namespaces.contains_key("ipc") {
        spec.mounts.retain(|mount| mount.destination != "/dev/shm" && mount.destination != "/dev/mqueue");
    }
}

/// What is said of sysctl(8), and by whom nothing is said: in a network of its own a container's users may have every port and send
/// ICMP echo requests. In a user namespace the latter cannot be said: the group range has groups that it does not have.
fn sysctls(host: &HostConfig, facts: &Facts) -> BTreeMap<String, String> {
    let mut all = host.sysctls.clone();
    let is_shared = host.network_mode == "host" || host.network_mode.starts_with("container:");
    if !is_shared {
        let mut usual = |name: &str, value: &str| {
            all.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        };
        usual("net.ipv4.ip_unprivileged_port_start", "0");
        if facts.owners.is_none() && !facts.is_inner {
            usual("net.ipv4.ping_group_range", "0 2147483647");
        }
    }
    all
}

fn mounts(spec: &mut Spec, host: &HostConfig, facts: &Facts) -> Result<()> {
    for mount in &facts.mounts {
        spec.mounts.retain(|known| known.destination != mount.destination);
        spec.mounts.push(mount.clone());
    }
    if let (Some(true), Some(init)) = (host.init, &facts.init) {
        spec.mounts.push(Mount::new(INIT_TARGET, "bind", init, &["bind", "ro"]));
    } else if host.init == Some(true) {
        return Err(Failure::invalid("exec: \"docker-init\": executable file not found in $PATH"));
    }
    if facts.mounts.iter().any(|mount| mount.options.iter().any(|option| option.ends_with("shared"))) {
        spec.linux_mut().rootfs_propagation = "rshared".to_owned();
    } else if facts.mounts.iter().any(|mount| mount.options.iter().any(|option| option.ends_with("slave"))) {
        spec.linux_mut().rootfs_propagation = "rslave".to_owned();
    }
    Ok(())
}

/// What is hidden from a container unless it says otherwise: beyond runc's list what tells how much power the processor takes,
/// from which keys have been read (CVE-2020-8694).
pub fn masked_paths() -> Vec<String> {
    MASKED_PATHS.into_iter().chain(["/sys/devices/virtual/powercap"]).map(str::to_owned).collect()
}

/// The limits in the configuration's terms; also what `docker update` hands to a running container.
///
/// # Errors
///
/// 400 for limits that contradict each other.
pub fn resources(spec: &mut Spec, limits: &Resources, facts: &Facts) -> Result<()> {
    if limits.nano_cpus > 0 && (limits.cpu_quota > 0 || limits.cpu_period > 0) {
        return Err(Failure::invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set."));
    }
    let resources = spec.resources_mut();
    let positive = |number: i64| (number > 0).then_some(number);
    let memory = Memory {
        limit: positive(limits.memory),
        reservation: positive(limits.memory_reservation),
        swap: match (limits.memory, limits.memory_swap) {
            (memory, 0) if memory > 0 => Some(memory.saturating_mul(2)),
            (_, 0) => None,
            (_, swap) => Some(swap),
        },
        swappiness: limits.memory_swappiness.and_then(|number| u64::try_from(number).ok()),
        disable_oom_killer: limits.oom_kill_disable.filter(|&disabled| disabled),
    };
    if memory != Memory::default() {
        resources.memory = Some(memory);
    }
    let mut cpu = Cpu {
        shares: u64::try_from(limits.cpu_shares).ok().filter(|&shares| shares > 0),
        quota: (limits.cpu_quota != 0).then_some(limits.cpu_quota),
        period: u64::try_from(limits.cpu_period).ok().filter(|&period| period > 0),
        cpus: limits.cpuset_cpus.clone(),
        mems: limits.cpuset_mems.clone(),
    };
    if limits.nano_cpus > 0 {
        cpu.quota = Some(limits.nano_cpus.saturating_mul(CPU_PERIOD as i64) / 1_000_000_000);
        cpu.period = Some(CPU_PERIOD);
    }
    if cpu != Cpu::default() {
        resources.cpu = Some(cpu);
    }
    if let Some(limit) = limits.pids_limit.filter(|&limit| limit != 0) {
        spec.limit_pids(limit);
    }
    let block = block_io(limits, facts)?;
    if block.as_object().is_some_and(|members| !members.is_empty()) {
        spec.resources_mut().block_io = Some(block);
    }
    Ok(())
}

fn block_io(limits: &Resources, facts: &Facts) -> Result<Value> {
    let mut block = json!({});
    if limits.blkio_weight > 0 {
        block["weight"] = json!(limits.blkio_weight);
    }
    let devices = |list: &[DeviceNumber], what: &str| -> Result<Vec<Value>> {
        list.iter()
            .map(|device| {
                let (major, minor) = facts
                    .block_devices
                    .get(&device.path)
                    .ok_or_else(|| Failure::invalid(format!("no such device: {}", device.path)))?;
                let number = if what == "weight" { device.weight } else { device.rate };
                Ok(json!({ "major": major, "minor": minor, what: number }))
            })
            .collect()
    };
    for (list, name, what) in [
        (&limits.blkio_weight_device, "weightDevice", "weight"),
        (&limits.blkio_device_read_bps, "throttleReadBpsDevice", "rate"),
        (&limits.blkio_device_write_bps, "throttleWriteBpsDevice", "rate"),
        (&limits.blkio_device_read_iops, "throttleReadIOPSDevice", "rate"),
        (&limits.blkio_device_write_iops, "throttleWriteIOPSDevice", "rate"),
    ] {
        if !list.is_empty() {
            block[name] = json!(devices(list, what)?);
        }
    }
    Ok(block)
}

/// The profile of AppArmor that options name; empty when they name none.
pub fn named_profile(security_options: &[String]) -> String {
    SecurityOptions::default().parse(security_options).map(|options| options.apparmor).unwrap_or_default()
}

fn security(spec: &mut Spec, host: &HostConfig, facts: &Facts) -> Result<()> {
    let usual = SecurityOptions {
        no_new_privileges: facts.no_new_privileges,
        seccomp: match facts.seccomp.as_str() {
            "" => Profile::Default,
            "unconfined" => Profile::Unconfined,
            text => Profile::Given(text.to_owned()),
        },
        ..SecurityOptions::default()
    };
    let options = usual.parse(&host.security_opt)?;
    if host.privileged {
        spec.set_privileged(&facts.capabilities, Some(facts.all_devices.clone()));
    } else {
        let held = capabilities(&host.cap_add, &host.cap_drop, &facts.capabilities)?;
        spec.set_capabilities(&held);
        for (device, access) in &facts.devices {
            spec.add_device(device.clone(), access);
        }
        for rule in &host.resources.device_cgroup_rules {
            let rule = device_rule(rule)?;
            spec.resources_mut().devices.push(rule);
        }
        let architecture = std::env::consts::ARCH;
        spec.linux_mut().seccomp = match &options.seccomp {
            Profile::Default => Some(spec::default_profile(&held, architecture)),
            Profile::Unconfined => None,
            Profile::Given(text) => Some(profile(text, &held, architecture)?),
        };
    }
    if options.is_open {
        let linux = spec.linux_mut();
        linux.masked_paths.clear();
        linux.readonly_paths.clear();
    }
    let process = spec.process_mut();
    process.no_new_privileges = options.no_new_privileges;
    process.apparmor_profile = facts.apparmor.profile(&options.apparmor, host.privileged).unwrap_or_default();
    // A user other than root starts without capabilities, as execve(2) would leave it.
    if process.user.uid != 0
        && let Some(sets) = &mut process.capabilities
    {
        sets.effective.clear();
        sets.permitted.clear();
    }
    Ok(())
}

/// Which system calls are filtered.
#[derive(Clone, Debug, Default, PartialEq)]
enum Profile {
    #[default]
    Default,
    Unconfined,
    Given(String),
}

/// `--security-opt`, taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
struct SecurityOptions {
    seccomp: Profile,
    /// Name of a profile; empty when nothing is said.
    apparmor: String,
    no_new_privileges: bool,
    /// `systempaths=unconfined`.
    is_open: bool,
}

impl SecurityOptions {
    /// These with what a container says.
    fn parse(self, options: &[String]) -> Result<SecurityOptions> {
        let mut parsed = self;
        for option in options {
            if option == "no-new-privileges" {
                parsed.no_new_privileges = true;
                continue;
            }
            let wrong = || Failure::invalid(format!("invalid --security-opt 1: {option:?}"));
            let (key, value) = option.split_once('=').or_else(|| option.split_once(':')).ok_or_else(wrong)?;
            match key {
                "seccomp" if value == "unconfined" => parsed.seccomp = Profile::Unconfined,
                "seccomp" if value == "builtin" => parsed.seccomp = Profile::Default,
                "seccomp" => parsed.seccomp = Profile::Given(value.to_owned()),
                "apparmor" => value.clone_into(&mut parsed.apparmor),
                "no-new-privileges" => {
                    parsed.no_new_privileges = value
                        .parse()
                        .map_err(|_| Failure::invalid(format!("invalid --security-opt 2: {option:?}")))?;
                }
                "systempaths" if value == "unconfined" => parsed.is_open = true,
                "label" => {}
                _ => return Err(Failure::invalid(format!("invalid --security-opt 2: {option:?}"))),
            }
        }
        Ok(parsed)
    }
}

/// The capabilities of a container that is not privileged.
fn capabilities(add: &[String], drop: &[String], all: &[String]) -> Result<Vec<String>> {
    let full = |name: &String| {
        let upper = name.to_uppercase();
        if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
    };
    let (add, drop): (Vec<String>, Vec<String>) =
        (add.iter().map(full).collect(), drop.iter().map(full).collect());
    for (list, member) in [(&add, "CapAdd"), (&drop, "CapDrop")] {
        if let Some(name) = list.iter().find(|&name| name != "ALL" && !all.contains(name)) {
            return Err(Failure::invalid(format!("invalid {member}: unknown capability: {name:?}")));
        }
    }
    let has = |list: &[String], name: &str| list.iter().any(|held| held == name);
    let (adds_all, drops_all) = (has(&add, "ALL"), has(&drop, "ALL"));
    let defaults = DEFAULT_CAPABILITIES.map(str::to_owned);
    Ok(all
        .iter()
        .filter(|name| match (adds_all, drops_all) {
            (true, _) => !has(&drop, name),
            (false, true) => has(&add, name),
            (false, false) => has(&add, name) || (has(&defaults, name) && !has(&drop, name)),
        })
        .cloned()
        .collect())
}

/// A rule of the device cgroup: `c 1:3 rwm`.
fn device_rule(text: &str) -> Result<DeviceRule> {
    let wrong = || Failure::invalid(format!("invalid device cgroup rule format: '{text}'"));
    let [kind, numbers, access] =
        text.split_whitespace().collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
    let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
    let number = |text: &str| match text {
        "*" => Ok(None),
        text => text.parse().map(Some).map_err(|_| wrong()),
    };
    if !["a", "b", "c"].contains(&kind)
        || access.is_empty()
        || access.chars().any(|letter| !"rwm".contains(letter))
    {
        return Err(wrong());
    }
    Ok(DeviceRule {
        allow: true,
        kind: kind.to_owned(),
        major: number(major)?,
        minor: number(minor)?,
        access: access.to_owned(),
    })
}

/// A profile in Docker's form: rules that hold for some capabilities and architectures only.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct ProfileDocument {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Vec<String>,
    arch_map: Vec<ArchitectureMap>,
    syscalls: Vec<RuleDocument>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ArchitectureMap {
    architecture: String,
    sub_architectures: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RuleDocument {
    name: String,
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Vec<SeccompArg>,
    includes: Condition,
    excludes: Condition,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
}

fn profile(text: &str, held: &[String], architecture: &str) -> Result<Seccomp> {
    let wrong = |error: String| Failure::invalid(format!("Decoding seccomp profile failed: {error}"));
    let mut value: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    super::message::without_nulls(&mut value);
    let document: ProfileDocument =
        serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
    let short = match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let native = format!("SCMP_ARCH_{}", architecture.to_uppercase());
    let mut architectures = document.architectures;
    for map in document.arch_map.into_iter().filter(|map| map.architecture == native) {
        architectures.push(map.architecture);
        architectures.extend(map.sub_architectures);
    }
    let has = |cap: &String| held.contains(cap);
    let syscalls = document.syscalls.into_iter().filter(|rule| {
        let (wanted, refused) = (&rule.includes, &rule.excludes);
        (wanted.caps.is_empty() || wanted.caps.iter().all(has))
            && (wanted.arches.is_empty() || wanted.arches.iter().any(|name| name == short))
            && !refused.caps.iter().any(has)
            && !refused.arches.iter().any(|name| name == short)
    });
    Ok(Seccomp {
        default_action: document.default_action,
        default_errno_ret: document.default_errno_ret,
        architectures,
        syscalls: syscalls
            .map(|rule| SeccompRule {
                names: if rule.name.is_empty() { rule.names } else { vec![rule.name] },
                action: rule.action,
                errno_ret: rule.errno_ret,
                args: rule.args,
            })
            .collect(),
        ..Seccomp::default()
    })
}

#[cfg(test)]
mod tests;
