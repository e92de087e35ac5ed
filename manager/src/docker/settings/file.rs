//! The text of a daemon.json: every key that dockerd knows, each carried out, without effect here, or refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::Level;
use crate::docker::container::config::Ulimit;

/// Keys that change nothing here: the work is done by something else, or always as they may ask. That is logged.
const WITHOUT_EFFECT: [&str; 36] = [
    "allow-nondistributable-artifacts",
    "builder",
    "containerd",
    "containerd-namespace",
    "containerd-plugin-namespace",
    "cpu-rt-period",
    "cpu-rt-runtime",
    "cri-containerd",
    "data-root",
    "default-init",
    "deprecated-key-path",
    "exec-root",
    "experimental",
    "features",
    "group",
    "ip-forward",
    "ip-forward-no-drop",
    "live-restore",
    "log-format",
    "max-concurrent-downloads",
    "max-concurrent-uploads",
    "max-download-attempts",
    "metrics-addr",
    "network-control-plane-mtu",
    "network-diagnostic-port",
    "node-generic-resources",
    "pidfile",
    "raw-logs",
    "rootless",
    "shutdown-timeout",
    "storage-driver",
    "storage-opts",
    "swarm-default-advertise-addr",
    "swarm-raft-election-tick",
    "swarm-raft-heartbeat-tick",
    "userland-proxy",
];
/// Keys without effect that say nothing here, on or off.
const SILENT: [&str; 3] = ["live-restore", "features", "experimental"];
/// Keys without effect that dockerd has on: they say something when they are off.
const USUALLY_ON: [&str; 2] = ["ip-forward", "userland-proxy"];

/// A runtime besides `runc`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Runtime {
    /// The OCI runtime's program.
    pub path: String,
    /// Its first arguments.
    pub runtime_args: Vec<String>,
    /// Name of a shim, in place of a program.
    pub runtime_type: String,
    /// Options of that shim.
    pub options: Map<String, Value>,
}

/// A range that networks are taken from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AddressPool {
    /// The whole range.
    pub base: String,
    /// Prefix length of a network's part.
    pub size: u8,
}

/// Proxies that registries are reached through.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Proxies {
    /// For `http`.
    pub http_proxy: String,
    /// For `https`.
    pub https_proxy: String,
    /// Hosts that are reached without.
    pub no_proxy: String,
}

/// A size that people write as `64M` or as a number.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// In bytes.
    Bytes(i64),
    /// With a unit.
    Text(String),
}

/// The file; what is absent has its default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[allow(missing_docs, reason = "the names are dockerd's, and its manual says what they mean")]
pub struct File {
    /// Where it is.
    #[serde(skip)]
    pub path: PathBuf,
    /// Keys that it has and that have no effect here.
    #[serde(skip)]
    pub without_effect: Vec<String>,
    pub log_driver: String,
    pub log_opts: BTreeMap<String, String>,
    pub log_level: String,
    pub debug: bool,
    pub labels: Vec<String>,
    pub hosts: Vec<String>,
    pub tls: bool,
    pub tlsverify: bool,
    pub tlscacert: Option<PathBuf>,
    pub tlscert: Option<PathBuf>,
    pub tlskey: Option<PathBuf>,
    pub registry_mirrors: Vec<String>,
    pub insecure_registries: Vec<String>,
    pub runtimes: BTreeMap<String, Runtime>,
    pub default_runtime: String,
    pub exec_opts: Vec<String>,
    pub cgroup_parent: String,
    pub default_cgroupns_mode: String,
    pub default_ipc_mode: String,
    pub default_shm_size: Option<Size>,
    pub default_ulimits: BTreeMap<String, Value>,
    pub init: bool,
    pub init_path: String,
    pub no_new_privileges: bool,
    pub seccomp_profile: String,
    pub cdi_spec_dirs: Option<Vec<PathBuf>>,
    pub dns: Vec<String>,
    pub dns_opts: Vec<String>,
    pub dns_search: Vec<String>,
    pub host_gateway_ip: String,
    pub host_gateway_ips: Vec<String>,
    pub bip: String,
    pub bip6: String,
    pub bridge: String,
    pub fixed_cidr: String,
    pub fixed_cidr_v6: String,
    pub default_gateway: String,
    pub default_gateway_v6: String,
    pub ipv6: bool,
    pub mtu: Option<u32>,
    pub ip: String,
    pub icc: Option<bool>,
    pub ip_masq: Option<bool>,
    pub default_address_pools: Vec<AddressPool>,
    pub default_network_opts: BTreeMap<String, BTreeMap<String, String>>,
    pub iptables: Option<bool>,
    pub ip6tables: Option<bool>,
    pub userns_remap: String,
    pub selinux_enabled: bool,
    pub authorization_plugins: Vec<String>,
    pub allow_direct_routing: bool,
    pub resolv_conf: Option<PathBuf>,
    pub userland_proxy_path: String,
    pub api_cors_header: String,
    pub proxies: Proxies,
}

/// The keys of [`File`], as they are written.
const CARRIED_OUT: [&str; 55] = [
    "log-driver",
    "log-opts",
    "log-level",
    "debug",
    "labels",
    "hosts",
    "tls",
    "tlsverify",
    "tlscacert",
    "tlscert",
    "tlskey",
    "registry-mirrors",
    "insecure-registries",
    "runtimes",
    "default-runtime",
    "exec-opts",
    "cgroup-parent",
    "default-cgroupns-mode",
    "default-ipc-mode",
    "default-shm-size",
    "default-ulimits",
    "init",
    "init-path",
    "no-new-privileges",
    "seccomp-profile",
    "cdi-spec-dirs",
    "dns",
    "dns-opts",
    "dns-search",
    "host-gateway-ip",
    "host-gateway-ips",
    "bip",
    "bip6",
    "bridge",
    "fixed-cidr",
    "fixed-cidr-v6",
    "default-gateway",
    "default-gateway-v6",
    "ipv6",
    "mtu",
    "ip",
    "icc",
    "ip-masq",
    "default-address-pools",
    "default-network-opts",
    "iptables",
    "ip6tables",
    "userns-remap",
    "selinux-enabled",
    "authorization-plugins",
    "allow-direct-routing",
    "resolv-conf",
    "userland-proxy-path",
    "api-cors-header",
    "proxies",
];

impl File {
    /// Reads a file; nothing for one that is missing and need not be there.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` in dockerd's words.
    pub fn read(path: &Path, must_be_there: bool) -> Result<Option<File>> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_be_there => return Ok(None),
            text => text.context("read", path.display().to_string())?,
        };
        match File::parse(&text) {
            Ok(file) => Ok(Some(File { path: path.to_owned(), ..file })),
            Err(why) => Err(File { path: path.to_owned(), ..File::default() }.wrong(&why)),
        }
    }

    /// Refuses this file, in dockerd's words, and says what can be done: who never ran orlopd for Docker may not know that it
    /// reads it.
    pub fn wrong(&self, why: &str) -> Error {
        let text = format!(
            "unable to configure the Docker daemon with file {}: {why} (change it, or name another file as daemon_json in \
             [docker] of orlopd's configuration)",
            self.path.display()
        );
        Error::exactly(Kind::InvalidArgument, text)
    }

    /// Reads the text of a file.
    fn parse(text: &str) -> Result<File, String> {
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Ok(File::default());
        }
        let mut members: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let is_known =
            |key: &&String| CARRIED_OUT.contains(&key.as_str()) || WITHOUT_EFFECT.contains(&key.as_str());
        let unknown: Vec<&str> = members.keys().filter(|key| !is_known(key)).map(String::as_str).collect();
        if !unknown.is_empty() {
            return Err(format!(
                "the following directives don't match any configuration option: {}",
                unknown.join(", ")
            ));
        }
        members.retain(|_, value| !value.is_null());
        let says_something = |key: &str, value: &Value| {
            let usual = Value::Bool(USUALLY_ON.contains(&key));
            WITHOUT_EFFECT.contains(&key) && !SILENT.contains(&key) && *value != usual
        };
        let missed = members.iter().filter(|(key, value)| says_something(key, value));
        let without_effect = missed.map(|(key, _)| key.clone()).collect();
        let file: File = serde_json::from_value(Value::Object(members)).map_err(|error| error.to_string())?;
        Ok(File { without_effect, ..file })
    }

    /// Why this file cannot be carried out, if it cannot.
    pub fn refusal(&self) -> Option<String> {
        let without = |key: &str| Some(format!("{key} is not supported by this engine"));
        match () {
            () if self.selinux_enabled => without("selinux-enabled"),
            () if !self.authorization_plugins.is_empty() => without("authorization-plugins"),
            () if self.iptables == Some(false) => without("\"iptables\": false"),
            () if self.ip6tables == Some(false) && self.ipv6 => without("\"ip6tables\": false with ipv6"),
            () if !self.bridge.is_empty() => without("bridge"),
            () if !self.default_gateway.is_empty() => without("default-gateway"),
            () if !self.default_gateway_v6.is_empty() => without("default-gateway-v6"),
            () if self.allow_direct_routing => without("allow-direct-routing"),
            () if self.resolv_conf.is_some() => without("resolv-conf"),
            () if !self.userland_proxy_path.is_empty() => without("userland-proxy-path"),
            () if !self.api_cors_header.is_empty() => Some(
                "DEPRECATED: The \"api-cors-header\" config parameter and the dockerd \"--api-cors-header\" option have been \
                 removed; use a reverse proxy if you need CORS headers"
                    .to_owned(),
            ),
            () if self.proxies != Proxies::default() => without("proxies (set HTTPS_PROXY for orlopd instead)"),
            () => None,
        }
    }

    /// What is logged at least, where the file says so.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what is no level.
    pub fn level(&self) -> Result<Option<Level>> {
        Ok(Some(match self.log_level.as_str() {
            _ if self.debug => Level::Debug,
            "" => return Ok(None),
            "trace" => Level::Trace,
            "debug" => Level::Debug,
            "info" => Level::Info,
            "warn" | "warning" => Level::Warn,
            "error" | "fatal" | "panic" => Level::Error,
            other => {
                return Err(self.wrong(&format!("invalid logging level: {other}")));
            }
        }))
    }

    /// The limits of setrlimit(2) that containers have unless they say otherwise.
    ///
    /// # Errors
    ///
    /// A sentence, for what is no limit.
    pub fn ulimits(&self) -> Result<Vec<Ulimit>, String> {
        let one = |(key, value): (&String, &Value)| {
            let number = |name: &str| value.get(name).and_then(Value::as_i64);
            let name = value.get("Name").and_then(Value::as_str).unwrap_or(key).to_owned();
            let (Some(soft), Some(hard)) = (number("Soft"), number("Hard")) else {
                return Err(format!("default-ulimits: {key}: Soft and Hard are numbers"));
            };
            Ok(Ulimit { name, hard, soft })
        };
        self.default_ulimits.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_named() {
        let error = File::parse(r#"{"debug": true, "foo": 1, "bar": {}}"#).unwrap_err();
        assert_eq!(error, "the following directives don't match any configuration option: bar, foo");
        assert!(File::parse("{").is_err() && File::parse(r#"{"debug": "x"}"#).is_err());
        assert_eq!(File::parse(" \n").unwrap(), File::default());
    }

    #[test]
    fn each_key_is_one_of_three_kinds() {
        let twice = CARRIED_OUT.iter().find(|key| WITHOUT_EFFECT.contains(key));
        assert_eq!(twice, None);
        for key in WITHOUT_EFFECT {
            assert!(File::parse(&format!("{{{key:?}: 7.5}}")).is_ok(), "{key}");
        }
        for key in CARRIED_OUT {
            // No key takes this; one that has no field would.
            assert!(File::parse(&format!("{{{key:?}: 7.5}}")).is_err(), "{key}");
        }
        assert!(USUALLY_ON.iter().chain(&SILENT).all(|key| WITHOUT_EFFECT.contains(key)));
    }

    #[test]
    fn what_would_be_missed_is_refused() {
        for text in
            [r#"{"iptables": false}"#, r#"{"selinux-enabled": true}"#, r#"{"authorization-plugins": ["x"]}"#]
        {
            assert!(File::parse(text).unwrap().refusal().is_some(), "{text}");
        }
        let usual = r#"{"log-driver": "local", "live-restore": true, "storage-driver": "overlay2", "iptables": true}"#;
        assert_eq!(File::parse(usual).unwrap().refusal(), None);
        assert_eq!(File::parse(usual).unwrap().without_effect, ["storage-driver"]);
        let off = r#"{"userland-proxy": false, "ip-forward": true, "rootless": false}"#;
        assert_eq!(File::parse(off).unwrap().without_effect, ["userland-proxy"]);
    }

    #[test]
    fn limits_have_two_numbers() {
        let file = r#"{"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 64, "Hard": 128}}}"#;
        let limits = File::parse(file).unwrap().ulimits().unwrap();
        assert_eq!(limits, [Ulimit { name: "nofile".into(), hard: 128, soft: 64 }]);
        assert!(File::parse(r#"{"default-ulimits": {"nofile": {}}}"#).unwrap().ulimits().is_err());
    }
}
