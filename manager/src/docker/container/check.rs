//! What a container may be: checks that need nothing but its configuration and the engine's settings. Pure.

use serde_json::Value;

use super::config::{Config, Healthcheck, HostConfig, NetworkingConfig, Resources, RestartPolicy};
use super::logs::Limits;
use crate::docker::failure::{Failure, Result};
use crate::docker::settings::Settings;

/// The least memory that a container may have, in bytes.
const LEAST_MEMORY: i64 = 6 << 20;
/// The least time between health checks and for one of them, in nanoseconds.
const LEAST_TIME: i64 = 1_000_000;

/// Checks a container's configuration.
///
/// # Errors
///
/// 400 for what cannot be, in dockerd's words.
pub fn whole(config: &Config, host: &HostConfig, settings: &Settings) -> Result<()> {
    let refuse = |text: String| Err(Failure::invalid(text));
    match host.log_config.options.get("mode").map(String::as_str) {
        None | Some("blocking" | "non-blocking") => {}
        Some(mode) => return refuse(format!("logger: logging mode not supported: {mode}")),
    }
    Limits::parse(log_driver(host), &host.log_config.options)?;
    if let Some(check) = &config.healthcheck {
        health(check)?;
    }
    if !config.stop_signal.is_empty() {
        crate::docker::signal::parse(&config.stop_signal)?;
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return refuse(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        ));
    }
    limits(&host.resources)?;
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return refuse(format!(
            "invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        ));
    }
    if host.shm_size < 0 {
        return refuse("SHM size can not be less than 0".to_owned());
    }
    if !["", "default"].contains(&host.isolation.as_str()) {
        let isolation = &host.isolation;
        return refuse(format!("invalid isolation {isolation:?}: linux only supports 'default'"));
    }
    if host.network_mode == "container:" {
        return refuse("invalid network mode: invalid container format container:<name|id>".to_owned());
    }
    for (what, mode, known) in [
        ("IPC", &host.ipc_mode, &["", "none", "private", "shareable", "host"][..]),
        ("PID", &host.pid_mode, &["", "host"]),
        ("UTS", &host.uts_mode, &["", "host"]),
    ] {
        let is_shared = what != "UTS" && mode.strip_prefix("container:").is_some_and(|name| !name.is_empty());
        if !known.contains(&mode.as_str()) && !is_shared {
            return refuse(format!("invalid {what} mode: {mode}"));
        }
    }
    if !["", "host"].contains(&host.userns_mode.as_str()) {
        return refuse(format!("invalid user namespace mode: {}", host.userns_mode));
    }
    restart_policy(&host.restart_policy)?;
    if host.auto_remove && !["", "no"].contains(&host.restart_policy.name.as_str()) {
        return refuse("can't create 'AutoRemove' container with restart policy".to_owned());
    }
    if !host.runtime.is_empty() && !settings.has_runtime(&host.runtime) {
        return refuse(format!("unknown or invalid runtime name: {}", host.runtime));
    }
    if let Some(entry) = config.env.iter().find(|entry| entry.starts_with('=') || entry.is_empty()) {
        return refuse(format!("invalid environment variable: {entry}"));
    }
    Ok(())
}

/// Checks what a request says of networks, before its image's configuration comes to it.
///
/// # Errors
///
/// 400 for what contradicts itself, in dockerd's words.
pub fn networks(config: &Config, host: &HostConfig, wanted: &NetworkingConfig) -> Result<()> {
    let is_joined = host.network_mode.starts_with("container:");
    let is_host = host.network_mode == "host";
    let publishes = !host.port_bindings.is_empty() || host.publish_all_ports;
    let contradictions = [
        (host.uts_mode == "host" && !config.hostname.is_empty(), "hostname and the UTS mode"),
        (is_joined && !config.hostname.is_empty(), "hostname and the network mode"),
        (
            is_joined && !host.links.is_empty(),
            "container type network can't be used with links. This would result in undefined behavior",
        ),
        (
            is_host && !host.links.is_empty(),
            "host type networking can't be used with links. This would result in undefined behavior",
        ),
        (is_joined && !host.dns.is_empty(), "dns and the network mode"),
        (is_joined && !host.extra_hosts.is_empty(), "custom host-to-IP mapping and the network mode"),
        (is_joined && !config.mac_address.is_empty(), "mac-address and the network mode"),
        (is_joined && publishes, "port publishing and the container type network mode"),
        (is_joined && !config.exposed_ports.is_empty(), "port exposing and the container type network mode"),
    ];
    if let Some((_, what)) = contradictions.into_iter().find(|(is_there, _)| *is_there) {
        return Err(Failure::invalid(format!("conflicting options: {what}")));
    }
    let has_address = |settings: &Value| {
        ["IPv4Address", "IPv6Address"]
            .iter()
            .any(|name| settings["IPAMConfig"][name].as_str().is_some_and(|text| !text.is_empty()))
    };
    let is_predefined =
        |name: &str| ["bridge", "default", "host", "none"].contains(&name) || name.starts_with("container:");
    if wanted.endpoints_config.iter().any(|(name, settings)| is_predefined(name) && has_address(settings)) {
        return Err(Failure::invalid("user specified IP address is supported on user defined networks only"));
    }
    Ok(())
}

/// Checks limits of a container that is made.
fn limits(limits: &Resources) -> Result<()> {
    if limits.memory == 0 && limits.memory_swap > 0 {
        return Err(Failure::invalid(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ));
    }
    update(limits)
}

/// Checks limits that are to replace a container's; where memory is not among them, it stays.
///
/// # Errors
///
/// 400 for what cannot be.
pub fn update(limits: &Resources) -> Result<()> {
    let refuse = |text: String| Err(Failure::invalid(text));
    if limits.memory > 0 && limits.memory < LEAST_MEMORY {
        return refuse("Minimum memory limit allowed is 6MB".to_owned());
    }
    if limits.memory > 0 && limits.memory_swap > 0 && limits.memory_swap < limits.memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage".to_owned());
    }
    if limits.memory > 0 && limits.memory_reservation > limits.memory {
        return refuse(
            "Minimum memory limit can not be less than memory reservation limit, see usage".to_owned(),
        );
    }
    let processors = crate::docker::host::processors() as i64 * 1_000_000_000;
    if limits.nano_cpus < 0 || limits.nano_cpus > processors {
        let most = processors / 1_000_000_000;
        return refuse(format!(
            "range of CPUs is from 0.01 to {most}.00, as there are only {most} CPUs available"
        ));
    }
    if limits.blkio_weight > 0 && !(10..=1000).contains(&limits.blkio_weight) {
        return refuse("range of blkio weight is from 10 to 1000".to_owned());
    }
    Ok(())
}

/// Checks when a container is to be started again.
///
/// # Errors
///
/// 400 for a policy that there is not, and for a number of times that it does not go with.
pub fn restart_policy(policy: &RestartPolicy) -> Result<()> {
    let refuse = |text: String| Err(Failure::invalid(text));
    if !["", "no", "always", "unless-stopped", "on-failure"].contains(&policy.name.as_str()) {
        return refuse(format!(
            "invalid restart policy: unknown policy '{}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            policy.name
        ));
    }
    if policy.maximum_retry_count != 0 && policy.name != "on-failure" {
        return refuse(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'".to_owned(),
        );
    }
    if policy.maximum_retry_count < 0 {
        return refuse("invalid restart policy: maximum retry count cannot be negative".to_owned());
    }
    Ok(())
}

/// Checks how often and how long health is checked.
fn health(check: &Healthcheck) -> Result<()> {
    for (name, time) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if time != 0 && time < LEAST_TIME {
            return Err(Failure::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    if check.retries < 0 {
        return Err(Failure::invalid("Retries in Healthcheck cannot be negative"));
    }
    Ok(())
}

/// What a configuration asks for that its owner may not mean.
pub fn warnings(host: &HostConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    if host.resources.oom_kill_disable == Some(true) && host.resources.memory == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."
                .to_owned(),
        );
    }
    if host.network_mode == "host" && (!host.port_bindings.is_empty() || host.publish_all_ports) {
        warnings.push("Published ports are discarded when using host network mode".to_owned());
    }
    warnings
}

fn log_driver(host: &HostConfig) -> &str {
    match host.log_config.kind.as_str() {
        "" => "json-file",
        other => other,
    }
}

/// Refuses what a container in a user namespace cannot have.
///
/// # Errors
///
/// 400 in dockerd's words.
pub fn remapped(host: &HostConfig) -> Result<()> {
    let shared = |what: &str| format!("cannot share the host's {what} when user namespaces are enabled");
    let text = match () {
        () if host.privileged => {
            "privileged mode is incompatible with user namespaces.  You must run the container in the host \
                                  namespace when running privileged mode"
                .to_owned()
        }
        () if host.network_mode == "host" => shared("network namespace"),
        () if host.pid_mode == "host" => {
            "cannot share the host PID namespace when user namespaces are enabled".to_owned()
        }
        () => return Ok(()),
    };
    Err(Failure::invalid(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused() {
        let with = |change: fn(&mut HostConfig)| {
            let mut host = HostConfig::default();
            change(&mut host);
            whole(&Config::default(), &host, &Settings::default())
        };
        assert!(with(|_| {}).is_ok());
        assert_eq!(
            with(|host| host.resources.memory = 1).unwrap_err().message,
            "Minimum memory limit allowed is 6MB"
        );
        assert!(with(|host| host.restart_policy.name = "often".into()).is_err());
        assert!(with(|host| host.resources.memory_swap = 5).is_err());
        assert!(with(|host| host.log_config.kind = "nope".into()).is_err());
        assert!(with(|host| host.oom_score_adj = 1001).is_err());
        assert!(with(|host| host.runtime = "nope".into()).is_err());
    }

    #[test]
    fn who_shares_a_network_has_nothing_of_its_own() {
        let with = |mode: &str, change: fn(&mut Config, &mut HostConfig)| {
            let (mut config, mut host) = (Config::default(), HostConfig::default());
            mode.clone_into(&mut host.network_mode);
            change(&mut config, &mut host);
            networks(&config, &host, &NetworkingConfig::default())
        };
        assert!(with("container:x", |_, _| {}).is_ok());
        assert!(with("bridge", |config, _| config.hostname = "h".into()).is_ok());
        assert_eq!(
            with("container:x", |config, _| config.hostname = "h".into()).unwrap_err().message,
            "conflicting options: hostname and the network mode"
        );
        assert!(with("container:x", |_, host| host.publish_all_ports = true).is_err());
        assert!(with("host", |_, host| host.links.push("a".into())).is_err());
    }

    #[test]
    fn addresses_are_for_networks_of_the_users() {
        let on = |name: &str| {
            let settings = serde_json::json!({ "IPAMConfig": { "IPv4Address": "10.0.0.5" } });
            let wanted = NetworkingConfig { endpoints_config: [(name.to_owned(), settings)].into() };
            networks(&Config::default(), &HostConfig::default(), &wanted)
        };
        assert!(on("mine").is_ok() && on("host").is_err() && on("bridge").is_err());
    }

    #[test]
    fn health_is_not_checked_all_the_time() {
        let with = |change: fn(&mut Healthcheck)| {
            let mut check = Healthcheck::default();
            change(&mut check);
            health(&check)
        };
        assert!(with(|check| check.interval = LEAST_TIME).is_ok());
        assert_eq!(
            with(|check| check.start_period = 1).unwrap_err().message,
            "StartPeriod in Healthcheck cannot be less than 1ms"
        );
        assert!(with(|check| check.timeout = -1).is_err());
        assert!(with(|check| check.retries = -1).is_err());
    }
}
