//! What holds for the whole engine, as a daemon.json says it: defaults of containers and networks, registries, sockets.

mod file;
mod remap;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use orlop_proto::contract::size;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

pub use self::file::{File, Runtime, Size};
pub use self::remap::owners;
use super::container::config::Ulimit;
use crate::network::Defaults;
use crate::network::ipam::Pool;

/// Directories of the Container Device Interface's files.
const CDI: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// The runtime that is always there.
pub const RUNC: &str = "runc";

/// What holds for the whole engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Driver of logs of containers that name none.
    pub log_driver: String,
    /// Options of that driver.
    pub log_options: BTreeMap<String, String>,
    /// The engine's labels.
    pub labels: Vec<String>,
    /// Runtimes besides `runc`, by name.
    pub runtimes: BTreeMap<String, Runtime>,
    /// The runtime of containers that name none.
    pub default_runtime: String,
    /// Whether cgroups are made through systemd.
    pub systemd_cgroup: bool,
    /// The cgroup above those of containers that name none; empty for the configuration's.
    pub cgroup_parent: String,
    /// Mode of cgroup namespaces; empty for the kernel's custom.
    pub cgroup_mode: String,
    /// Mode of IPC namespaces.
    pub ipc_mode: String,
    /// Size of /dev/shm, in bytes.
    pub shm_size: i64,
    /// Limits of setrlimit(2).
    pub ulimits: Vec<Ulimit>,
    /// Whether containers have an init process.
    pub init: bool,
    /// That process's program; empty for the one in PATH.
    pub init_path: String,
    /// Whether programs gain no privileges.
    pub no_new_privileges: bool,
    /// Profile of seccomp as JSON, or `unconfined`; empty for the engine's own.
    pub seccomp: String,
    /// Directories of the Container Device Interface's files.
    pub cdi: Vec<PathBuf>,
    /// Servers, options and domains of resolver configurations that containers leave open.
    pub dns: [Vec<String>; 3],
    /// The address that `host-gateway` stands for; empty for the default network's gateway.
    pub host_gateway: String,
    /// What the default network and new ones are like.
    pub network: Defaults,
    /// Mirrors of Docker's own registry, in the order in which they are asked.
    pub mirrors: Vec<String>,
    /// Whose subordinate users and groups containers have; empty for none.
    pub userns_remap: String,
    /// Registries (`HOST[:PORT]` or `ADDRESS/LENGTH`) that may speak plain HTTP or have any certificate.
    pub insecure: Vec<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            log_driver: "json-file".to_owned(),
            log_options: BTreeMap::new(),
            labels: Vec::new(),
            runtimes: BTreeMap::new(),
            default_runtime: RUNC.to_owned(),
            systemd_cgroup: false,
            cgroup_parent: String::new(),
            cgroup_mode: String::new(),
            ipc_mode: "private".to_owned(),
            shm_size: super::spec::SHM_SIZE,
            ulimits: Vec::new(),
            init: false,
            init_path: String::new(),
            no_new_privileges: false,
            seccomp: String::new(),
            cdi: CDI.map(PathBuf::from).into(),
            dns: Default::default(),
            host_gateway: String::new(),
            network: Defaults::default(),
            mirrors: Vec::new(),
            userns_remap: String::new(),
            insecure: Vec::new(),
        }
    }
}

fn wrong(text: impl Into<String>) -> Error {
    Error::exactly(Kind::InvalidArgument, text)
}

impl Settings {
    /// What a file says.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what cannot be carried out, in dockerd's words where it has some.
    pub fn of(file: &File) -> Result<Settings> {
        for key in &file.without_effect {
            tracing::warn!(key, path = %file.path.display(), "this has no effect here");
        }
        Settings::said_by(file).map_err(|why| file.wrong(&why.to_string()))
    }

    fn said_by(file: &File) -> Result<Settings> {
        if let Some(refusal) = file.refusal() {
            return Err(wrong(refusal));
        }
        let default = Settings::default();
        let or = |text: &str, default: String| if text.is_empty() { default } else { text.to_owned() };
        let settings = Settings {
            log_driver: or(&file.log_driver, default.log_driver),
            log_options: file.log_opts.clone(),
            labels: file.labels.clone(),
            runtimes: file.runtimes.clone(),
            default_runtime: or(&file.default_runtime, default.default_runtime),
            systemd_cgroup: driver(&file.exec_opts)?,
            cgroup_parent: file.cgroup_parent.clone(),
            cgroup_mode: file.default_cgroupns_mode.clone(),
            ipc_mode: or(&file.default_ipc_mode, default.ipc_mode),
            shm_size: match &file.default_shm_size {
                None => default.shm_size,
                Some(size) => bytes(size)?,
            },
            ulimits: file.ulimits().map_err(wrong)?,
            init: file.init,
            init_path: file.init_path.clone(),
            no_new_privileges: file.no_new_privileges,
            seccomp: seccomp(&file.seccomp_profile)?,
            cdi: file.cdi_spec_dirs.clone().unwrap_or(default.cdi),
            dns: [file.dns.clone(), file.dns_opts.clone(), file.dns_search.clone()],
            host_gateway: file.host_gateway_ips.first().unwrap_or(&file.host_gateway_ip).clone(),
            network: network(file)?,
            mirrors: file.registry_mirrors.iter().map(|text| mirror(text)).collect::<Result<_>>()?,
            userns_remap: file.userns_remap.clone(),
            insecure: file.insecure_registries.iter().map(|text| insecure(text)).collect::<Result<_>>()?,
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        use super::container::logs::Limits;
        Limits::parse(&self.log_driver, &self.log_options).map_err(|failure| wrong(failure.message))?;
        if !["private", "shareable"].contains(&self.ipc_mode.as_str()) {
            return Err(wrong(format!(
                "IPC mode \"{}\" is not supported as default value for containers",
                self.ipc_mode
            )));
        }
        if !["", "private", "host"].contains(&self.cgroup_mode.as_str()) {
            return Err(wrong(format!(
                "default cgroup namespace mode (\"{}\") is invalid",
                self.cgroup_mode
            )));
        }
        if self.systemd_cgroup && !super::spec::is_slice(&self.cgroup_parent) {
            return Err(wrong(super::spec::NO_SLICE));
        }
        for server in &self.dns[0] {
            server.parse::<std::net::IpAddr>().map_err(|_| wrong(format!("invalid IP address: {server}")))?;
        }
        if let Some(label) = self.labels.iter().find(|label| !label.contains('=')) {
            return Err(wrong(format!("bad attribute format: {label}")));
        }
        for (name, runtime) in &self.runtimes {
            match (name.as_str(), runtime.path.is_empty(), runtime.runtime_type.is_empty()) {
                (RUNC, ..) => return Err(wrong("runtime name 'runc' is reserved")),
                (name, ..) if name.is_empty() || name.contains('/') || name.starts_with('.') => {
                    return Err(wrong(format!("runtime name '{name}' is invalid")));
                }
                (_, false, false) => {
                    return Err(wrong(format!(
                        "runtime {name}: cannot configure both path and runtimeType for the same runtime"
                    )));
                }
                (_, true, true) => {
                    return Err(wrong(format!(
                        "runtime {name}: either a runtimeType or a path must be configured"
                    )));
                }
                (_, true, false) if !runtime.runtime_args.is_empty() => {
                    return Err(wrong(format!("runtime {name}: runtimeArgs cannot be used with a shim")));
                }
                (_, false, true) if !runtime.options.is_empty() => {
                    return Err(wrong(format!(
                        "runtime {name}: options cannot be used with a runtime's path"
                    )));
                }
                _ if !runtime.options.is_empty() => {
                    return Err(wrong(format!(
                        "runtime {name}: options of shims are not supported by this engine"
                    )));
                }
                _ => {}
            }
        }
        if !self.has_runtime(&self.default_runtime) {
            return Err(wrong(format!(
                "specified default runtime '{}' does not exist",
                self.default_runtime
            )));
        }
        Ok(())
    }

    /// Whether a container may name this runtime.
    pub fn has_runtime(&self, name: &str) -> bool {
        name == RUNC || name.contains('.') || self.runtimes.contains_key(name)
    }

    /// These with what dockerd takes over from a file that is read again.
    pub fn reloaded(&self, new: &Settings) -> Settings {
        Settings {
            labels: new.labels.clone(),
            runtimes: new.runtimes.clone(),
            default_runtime: new.default_runtime.clone(),
            ipc_mode: new.ipc_mode.clone(),
            shm_size: new.shm_size,
            mirrors: new.mirrors.clone(),
            insecure: new.insecure.clone(),
            ..self.clone()
        }
    }
}

/// The driver of cgroups among `exec-opts`: whether it is systemd.
fn driver(options: &[String]) -> Result<bool> {
    let mut is_systemd = false;
    for option in options {
        match option.split_once('=') {
            Some(("native.cgroupdriver", "cgroupfs")) => is_systemd = false,
            Some(("native.cgroupdriver", "systemd")) => is_systemd = true,
            Some(("native.cgroupdriver", other)) => {
                return Err(wrong(format!(
                    "invalid cgroupdriver: {other}, allowed options are cgroupfs, systemd"
                )));
            }
            _ => return Err(wrong(format!("invalid exec-opts: {option}"))),
        }
    }
    Ok(is_systemd)
}

fn bytes(size: &Size) -> Result<i64> {
    match size {
        Size::Bytes(bytes) if *bytes > 0 => Ok(*bytes),
        Size::Text(text) => {
            let parsed = size::bytes(text).and_then(|bytes| i64::try_from(bytes).ok());
            parsed.filter(|&bytes| bytes > 0).ok_or_else(|| wrong(format!("invalid size: '{text}'")))
        }
        Size::Bytes(_) => Err(wrong("SHM size can not be less than 0")),
    }
}

/// The text of a profile of seccomp.
fn seccomp(path: &str) -> Result<String> {
    match path {
        "" | "builtin" => Ok(String::new()),
        "unconfined" => Ok(path.to_owned()),
        path => std::fs::read_to_string(Path::new(path))
            .map_err(|error| wrong(format!("opening seccomp profile ({path}) failed: {error}"))),
    }
}

fn network(file: &File) -> Result<Defaults> {
    let parse = |what: &str, text: &str| -> Result<()> {
        let parsed = text.parse::<ipnet::IpNet>();
        parsed.map(drop).map_err(|_| wrong(format!("{what}: invalid CIDR address: {text}")))
    };
    for (what, text) in [
        ("bip", &file.bip),
        ("bip6", &file.bip6),
        ("fixed-cidr", &file.fixed_cidr),
        ("fixed-cidr-v6", &file.fixed_cidr_v6),
    ] {
        if !text.is_empty() {
            parse(what, text)?;
        }
    }
    let pools = file.default_address_pools.iter().map(|pool| {
        let base: Ipv4Net = pool
            .base
            .parse()
            .map_err(|_| wrong(format!("invalid base pool {:?}: must be in CIDR form", pool.base)))?;
        if pool.size < base.prefix_len() || pool.size > 30 {
            return Err(wrong(format!("invalid default address pool size: {}", pool.size)));
        }
        Ok(Pool { base: base.trunc(), size: pool.size })
    });
    Ok(Defaults {
        bridge_address: file.bip.clone(),
        bridge_address6: file.bip6.clone(),
        range: file.fixed_cidr.clone(),
        range6: file.fixed_cidr_v6.clone(),
        has_v6: file.ipv6,
        mtu: file.mtu,
        host_address: file.ip.clone(),
        is_closed: file.icc == Some(false),
        is_routed: file.ip_masq == Some(false),
        pools: pools.collect::<Result<_>>()?,
        options: file.default_network_opts.clone(),
    })
}

/// A mirror's address, as `scheme://host[:port][/path]`.
fn mirror(text: &str) -> Result<String> {
    let refuse = |why: &str| Err(wrong(format!("invalid mirror: {why}: {text}")));
    match text.split_once("://") {
        Some(("http" | "https", rest)) if rest.contains(['?', '#', '@']) => {
            refuse("query, fragment or user in URI")
        }
        Some(("http" | "https", rest)) if !rest.is_empty() => Ok(text.trim_end_matches('/').to_owned()),
        Some(_) => refuse("unsupported scheme"),
        None => refuse("no scheme specified"),
    }
}

/// A registry that is trusted unseen.
fn insecure(text: &str) -> Result<String> {
    let plain = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    if plain.contains("://") {
        return Err(wrong(format!("insecure registry {text} should not contain '://'")));
    }
    if plain.is_empty() || (plain.contains('/') && plain.parse::<ipnet::IpNet>().is_err()) {
        return Err(wrong(format!("insecure registry {text} is not valid: invalid host {plain:?}")));
    }
    Ok(plain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Settings> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("daemon.json");
        std::fs::write(&path, text).unwrap();
        Settings::of(&File::read(&path, true)?.unwrap())
    }

    #[test]
    fn an_empty_file_says_nothing() {
        assert_eq!(of("{}").unwrap(), Settings::default());
        assert!(File::read(Path::new("/nowhere/daemon.json"), false).unwrap().is_none());
        assert!(File::read(Path::new("/nowhere/daemon.json"), true).is_err());
    }

    #[test]
    fn what_people_write_is_understood() {
        let settings = of(
            r#"{"log-driver": "local", "log-opts": {"max-size": "1m"}, "exec-opts": ["native.cgroupdriver=systemd"],
                "default-runtime": "crun", "runtimes": {"crun": {"path": "/usr/bin/crun"}}, "bip": "10.9.0.1/24",
                "default-address-pools": [{"base": "10.10.0.0/16", "size": 24}], "default-shm-size": "1M",
                "registry-mirrors": ["http://mirror.example/"], "insecure-registries": ["10.0.0.0/8", "r.example:5000"]}"#,
        )
        .unwrap();
        assert!(settings.systemd_cgroup && settings.has_runtime("crun"));
        assert_eq!((settings.shm_size, settings.mirrors[0].as_str()), (1 << 20, "http://mirror.example"));
        assert_eq!(settings.network.pools.len(), 1);
        assert_eq!(settings.network.bridge_address, "10.9.0.1/24");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            r#"{"log-driver": "nope"}"#,
            r#"{"log-opts": {"nope": "1"}}"#,
            r#"{"default-runtime": "nope"}"#,
            r#"{"runtimes": {"runc": {"path": "/x"}}}"#,
            r#"{"runtimes": {"x": {}}}"#,
            r#"{"runtimes": {"a/x": {"path": "/x"}}}"#,
            r#"{"runtimes": {"..": {"path": "/x"}}}"#,
            r#"{"exec-opts": ["native.cgroupdriver=nope"]}"#,
            r#"{"exec-opts": ["native.cgroupdriver=systemd"], "cgroup-parent": "/docker"}"#,
            r#"{"bip": "x"}"#,
            r#"{"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}"#,
            r#"{"registry-mirrors": ["mirror"]}"#,
            r#"{"labels": ["x"]}"#,
            r#"{"dns": ["x"]}"#,
        ] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn some_of_it_is_taken_over_while_serving() {
        let old = of(r#"{"log-driver": "local", "labels": ["a=1"]}"#).unwrap();
        let new = old.reloaded(&of(r#"{"labels": ["b=2"]}"#).unwrap());
        assert_eq!((new.log_driver.as_str(), new.labels), ("local", vec!["b=2".to_owned()]));
    }
}
