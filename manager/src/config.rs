//! The configuration file, `/etc/orlop/config.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cli::DEFAULT_CONFIG;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::LevelFilter;

/// The commented default configuration, as `orlopd config default` prints it.
pub const DEFAULT_TEXT: &str = include_str!("default.toml");
/// The runtime name that stock clients ask for.
pub const RUNC_V2: &str = "io.containerd.runc.v2";

/// Docker's own configuration file.
const DAEMON_JSON: &str = "/etc/docker/daemon.json";
/// Directory of what a reboot may remove, unless told otherwise.
const DEFAULT_STATE: &str = "/run/orlopd";

/// Everything that can be configured; each value has a default.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of everything that outlives a reboot.
    pub root: PathBuf,
    /// Directory of what a reboot may remove.
    pub state: PathBuf,
    /// The containerd API's socket.
    pub grpc: Grpc,
    /// The Docker Engine API.
    pub docker: Docker,
    /// Logging.
    pub debug: Debug,
    /// Metrics over HTTP.
    pub metrics: Metrics,
    /// Traces to a collector.
    pub tracing: Tracing,
    /// Garbage collection.
    pub gc: Gc,
    /// Layers.
    pub snapshots: Snapshots,
    /// Registries.
    pub registry: Registry,
    /// What holds for all shims.
    pub shim: Shim,
    /// Containers that are started again when they end.
    pub restart: Restart,
    /// Programs that decide which images may be pulled.
    pub image_verifier: ImageVerifier,
    /// Programs that clients install.
    pub opt: Opt,
    /// Parts that run as programs of their own, by the name that clients ask for.
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// Programs that turn layers of other media types into ones that are unpacked here.
    pub stream_processors: BTreeMap<String, StreamProcessor>,
    /// Runtime name → shim and OCI runtime.
    pub runtimes: BTreeMap<String, Runtime>,
}

/// The containerd API's socket.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Path of the socket; by default `orlopd.sock` in the state directory.
    pub address: Option<PathBuf>,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// Largest message in either direction, in bytes.
    pub max_message_size: usize,
    /// How many calls are answered at once; more are refused.
    pub max_calls: usize,
}

/// The Docker Engine API.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Docker {
    /// Path of the socket; by default `docker.sock` in the default state directory, and none in another.
    pub address: Option<PathBuf>,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// The cgroup above those of containers that name none.
    pub cgroup_parent: String,
    /// Docker's own configuration file; by default `/etc/docker/daemon.json` with the default state directory, if it is
    /// there, and none with another.
    pub daemon_json: Option<PathBuf>,
    /// Further places to serve the API: `unix://PATH`, and `tcp://HOST:PORT` to clients with a certificate.
    pub hosts: Vec<String>,
    /// Authorities of the certificates of clients on TCP.
    pub tls_ca_cert: Option<PathBuf>,
    /// Our certificate on TCP.
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
    /// The buildkitd that clients of BuildKit are given, `unix://PATH`; they are refused without one.
    pub buildkit: Option<String>,
}

/// Logging.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Debug {
    /// What is logged at least.
    pub level: Level,
    /// Form of the lines.
    pub format: LogFormat,
    /// Path of a socket for profiles; nobody is served without one.
    pub address: Option<PathBuf>,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Metrics over HTTP.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Host and port; nobody is served without one.
    pub address: Option<String>,
}

/// Traces to a collector, where the environment (`OTEL_…`) names none.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Tracing {
    /// Address of the collector, as a URL; nothing is sent without one.
    pub endpoint: Option<String>,
    /// How it is spoken to.
    pub protocol: TracingProtocol,
    /// The name under which this daemon's spans are found; `orlopd` by default.
    pub service_name: Option<String>,
}

/// Protocols of collectors.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq)]
pub enum TracingProtocol {
    /// Protobuf over HTTP.
    #[default]
    #[serde(rename = "http/protobuf")]
    Http,
    /// gRPC.
    #[serde(rename = "grpc")]
    Grpc,
}

/// Log levels.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Everything.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What an administrator wants to know.
    Info,
    /// What went wrong without failing a request.
    Warn,
    /// What failed.
    Error,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> LevelFilter {
        match level {
            Level::Trace => LevelFilter::TRACE,
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warn => LevelFilter::WARN,
            Level::Error => LevelFilter::ERROR,
        }
    }
}

/// Garbage collection.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Gc {
    /// Time between a change that may free something and the collection, in milliseconds.
    pub schedule_delay: u64,
    /// Number of changes after which a collection runs even if nothing was deleted; 0 for never.
    pub mutation_threshold: u64,
    /// Time without a change after which what fewer changes left is collected, in seconds; 0 for never.
    pub idle_delay: u64,
    /// Age at which an ingest that no lease holds is given up, in seconds.
    pub ingest_expiry: u64,
}

/// Layers.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Snapshots {
    /// Time between the commit of a layer and the writing back of its files, in seconds.
    pub write_back_delay: u64,
    /// Whether layers that are EROFS images are mounted as they come, after a check.
    pub erofs_layers: bool,
    /// Whether the kernel checks images of layers at each read (fs-verity), where kernel and file system can.
    pub fs_verity: bool,
}

/// Registries.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// Directory of the registries' `hosts.toml` files, laid out as containerd's `certs.d`.
    pub config_path: PathBuf,
    /// Time for a connection to a registry to be made, in seconds.
    pub connect_timeout: u64,
    /// Time without a byte after which a registry counts as hanging, in seconds.
    pub stall_timeout: u64,
    /// How many parts of large blobs are fetched at once; each takes 4 to 8 MiB of memory. 0 for one request per blob.
    pub ranges: usize,
}

/// What holds for all shims.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Shim {
    /// How long a shim may take to start, in seconds.
    pub start_timeout: u64,
}

/// Containers that are started again when they end.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Restart {
    /// Time after which all are looked at again if nothing happened, in seconds.
    pub interval: u64,
}

/// Programs that decide which images may be pulled.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ImageVerifier {
    /// The directory that they are in; where it is missing or empty, every image may be pulled.
    pub bin_dir: PathBuf,
    /// How many are asked at most; all where it is negative.
    pub max_verifiers: i64,
    /// How long each may take, in seconds.
    pub per_verifier_timeout: u64,
}

/// Programs that clients install (`ctr install`).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Opt {
    /// The directory whose `bin` and `lib` they are in. Shims and runtimes are looked for there, too.
    pub path: PathBuf,
}

/// A program that turns layers of other media types, such as encrypted ones, into ones that are unpacked here.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct StreamProcessor {
    /// Media types that it reads.
    pub accepts: Vec<String>,
    /// The media type that it writes.
    pub returns: String,
    /// The program, by its path or from PATH.
    pub path: PathBuf,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Variables that it gets besides the daemon's, as NAME=VALUE.
    #[serde(default)]
    pub env: Vec<String>,
}

/// A part that runs as a program of its own.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ProxyPlugin {
    /// What it does.
    #[serde(rename = "type")]
    pub kind: ProxyKind,
    /// Path of the unix socket on which it serves gRPC.
    pub address: PathBuf,
    /// The name by which the program itself knows the snapshotter; the plugin's own where there is none.
    pub snapshotter: Option<String>,
    /// What clients are told that it can do.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// What clients are told of it besides, such as `root`.
    #[serde(default)]
    pub exports: BTreeMap<String, String>,
}

/// What external parts can be.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum ProxyKind {
    /// A snapshotter.
    Snapshot,
    /// What applies layers and makes them.
    Diff,
    /// What runs sandboxes.
    Sandbox,
}

/// Which shim serves a runtime name.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// A program in PATH, or beside orlopd, or an absolute path; by default containerd's naming rule.
    pub shim: Option<PathBuf>,
    /// The OCI runtime that the shim runs unless the container's options say otherwise.
    pub binary: Option<PathBuf>,
    /// State directory of the OCI runtime.
    pub root: Option<PathBuf>,
    /// Create cgroups through systemd.
    pub systemd_cgroup: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            root: "/var/lib/orlopd".into(),
            state: DEFAULT_STATE.into(),
            grpc: Grpc::default(),
            docker: Docker::default(),
            debug: Debug::default(),
            metrics: Metrics::default(),
            tracing: Tracing::default(),
            gc: Gc::default(),
            snapshots: Snapshots::default(),
            registry: Registry::default(),
            shim: Shim::default(),
            restart: Restart::default(),
            image_verifier: ImageVerifier::default(),
            opt: Opt::default(),
            proxy_plugins: BTreeMap::new(),
            stream_processors: BTreeMap::new(),
            runtimes: BTreeMap::from([(RUNC_V2.to_owned(), Runtime::runc_v2())]),
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Grpc { address: None, uid: 0, gid: 0, max_message_size: 16 << 20, max_calls: 8192 }
    }
}

impl Default for Docker {
    fn default() -> Self {
        Docker {
            address: None,
            uid: 0,
            gid: 0,
            cgroup_parent: "/docker".to_owned(),
            daemon_json: None,
            hosts: Vec::new(),
            tls_ca_cert: None,
            tls_cert: None,
            tls_key: None,
            buildkit: None,
        }
    }
}

impl Default for Debug {
    fn default() -> Self {
        Debug { level: Level::Info, format: LogFormat::Text, address: None }
    }
}

impl Default for Gc {
    fn default() -> Self {
        Gc { schedule_delay: 100, mutation_threshold: 100, idle_delay: 300, ingest_expiry: 24 * 60 * 60 }
    }
}

impl Default for Snapshots {
    fn default() -> Self {
        Snapshots { write_back_delay: 2, erofs_layers: false, fs_verity: false }
    }
}

impl Default for Shim {
    fn default() -> Self {
        Shim { start_timeout: 30 }
    }
}

impl Default for Restart {
    fn default() -> Self {
        Restart { interval: 10 }
    }
}

impl Default for Opt {
    fn default() -> Self {
        Opt { path: "/opt/containerd".into() }
    }
}

impl Default for ImageVerifier {
    fn default() -> Self {
        ImageVerifier {
            bin_dir: "/opt/containerd/image-verifier/bin".into(),
            max_verifiers: 10,
            per_verifier_timeout: 10,
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Registry {
            config_path: "/etc/containerd/certs.d".into(),
            connect_timeout: 10,
            stall_timeout: 30,
            ranges: 3,
        }
    }
}

impl Runtime {
    /// What serves [`RUNC_V2`] where the configuration says nothing else.
    fn runc_v2() -> Runtime {
        Runtime {
            shim: Some("containerd-shim-orlop-v1".into()),
            binary: Some("orlop".into()),
            ..Runtime::default()
        }
    }
}

impl Config {
    /// Reads a configuration; a missing file at the default path means the defaults.
    pub fn load(path: &Path) -> Result<Config> {
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&text).map_err(|cause| {
                Error::because(
                    Kind::InvalidArgument,
                    "read configuration",
                    path.display().to_string(),
                    cause.to_string(),
                )
            }),
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_CONFIG) =>
            {
                Ok(Config::default())
            }
            Err(error) => Err(error).context("read configuration", path.display().to_string()),
        }
    }

    /// Parses the text of a configuration; keys that do not exist are named in the error.
    fn parse(text: &str) -> Result<Config, toml::de::Error> {
        let mut config: Config = toml::from_str(text)?;
        let runc = config.runtimes.entry(RUNC_V2.to_owned()).or_default();
        if runc.shim.is_none() {
            let default = Runtime::runc_v2();
            runc.shim = default.shim;
            runc.binary = runc.binary.take().or(default.binary);
        }
        Ok(config)
    }

    /// The configuration as text, with everything that was left out.
    pub fn dump(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::because(Kind::Internal, "write", "configuration", error))
    }

    /// The same with absolute directories, as clients are told of them.
    pub fn absolute(mut self) -> Result<Config> {
        for path in [&mut self.root, &mut self.state] {
            *path = std::path::absolute(&*path).context("resolve", path.display().to_string())?;
        }
        Ok(self)
    }

    /// Path of the containerd API's socket.
    pub fn address(&self) -> PathBuf {
        self.grpc.address.clone().unwrap_or_else(|| self.state.join("orlopd.sock"))
    }

    /// Path of the socket on which shims forward events.
    pub fn ttrpc_address(&self) -> PathBuf {
        let mut path = self.address().into_os_string();
        path.push(".ttrpc");
        path.into()
    }

    /// Path of the Docker API's socket, where it is served: a second daemon, with a state directory of its own, serves
    /// it only when told where.
    pub fn docker_address(&self) -> Option<PathBuf> {
        let default = || (self.state == Path::new(DEFAULT_STATE)).then(|| self.state.join("docker.sock"));
        self.docker.address.clone().or_else(default)
    }

    /// Path of Docker's own configuration file, and whether it must be there.
    pub fn daemon_json(&self) -> Option<(PathBuf, bool)> {
        let default = || (self.state == Path::new(DEFAULT_STATE)).then(|| (DAEMON_JSON.into(), false));
        self.docker.daemon_json.clone().map(|path| (path, true)).or_else(default)
    }

    /// How many threads drive the asynchronous work: it never blocks, so two serve any number of cores at the
    /// price of two stacks.
    pub fn workers(&self) -> usize {
        2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_default_is_the_default() {
        assert_eq!(Config::parse(DEFAULT_TEXT).unwrap(), Config::default());
        let uncommented: String = DEFAULT_TEXT
            .lines()
            .filter(|line| !line.starts_with("# root = \"/run/orlop\""))
            .take_while(|line| !line.starts_with("# [proxy_plugins"))
            .fold(String::new(), |text, line| {
                let value = line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line);
                text + value + "\n"
            });
        let mut explicit = Config::parse(&uncommented).unwrap();
        assert_eq!(explicit.grpc.address.take(), Some("/run/orlopd/orlopd.sock".into()));
        assert_eq!(explicit.metrics.address.take().as_deref(), Some("127.0.0.1:9324"));
        assert_eq!(explicit.debug.address.take(), Some("/run/orlopd/debug.sock".into()));
        assert_eq!(explicit.tracing.endpoint.take().as_deref(), Some("http://127.0.0.1:4318"));
        assert_eq!(explicit.tracing.service_name.take().as_deref(), Some("orlopd"));
        assert_eq!(explicit.docker.address.take(), Some("/run/orlopd/docker.sock".into()));
        assert_eq!(explicit.docker.daemon_json.take(), Some("/etc/docker/daemon.json".into()));
        assert_eq!(explicit.docker.tls_ca_cert.take(), Some("/etc/docker/ca.pem".into()));
        assert_eq!(explicit.docker.tls_cert.take(), Some("/etc/docker/server-cert.pem".into()));
        assert_eq!(explicit.docker.tls_key.take(), Some("/etc/docker/server-key.pem".into()));
        assert_eq!(explicit, Config::default());
    }

    #[test]
    fn what_is_dumped_reads_as_the_same() {
        let config =
            Config::parse("root = \"/x\"\n[debug]\nformat = \"json\"\n[runtimes.other]\nbinary = \"crun\"\n");
        let config = config.unwrap();
        assert_eq!(Config::parse(&config.dump().unwrap()).unwrap(), config);
    }

    #[test]
    fn names_unknown_keys() {
        let error = Config::parse("rooot = \"/x\"").unwrap_err().to_string();
        assert!(error.contains("rooot"), "{error}");
        let error = Config::parse("[runtimes.x]\nshimm = \"y\"").unwrap_err().to_string();
        assert!(error.contains("shimm"), "{error}");
    }

    #[test]
    fn maps_runtime_names() {
        let config = Config::parse(
            "[runtimes.\"io.containerd.runc.v2\"]\nshim = \"/usr/bin/containerd-shim-runc-v2\"\n[runtimes.other]\nbinary = \"crun\"\n",
        )
        .unwrap();
        let runc = &config.runtimes[RUNC_V2];
        assert_eq!(runc.shim.as_deref(), Some(Path::new("/usr/bin/containerd-shim-runc-v2")));
        assert_eq!(runc.binary, None, "a foreign shim keeps its own default runtime");
        assert_eq!(config.runtimes["other"].binary.as_deref(), Some(Path::new("crun")));
    }

    #[test]
    fn sockets_follow_the_state_directory() {
        let config = Config::parse("state = \"/tmp/s\"").unwrap();
        assert_eq!(config.address(), Path::new("/tmp/s/orlopd.sock"));
        assert_eq!(config.ttrpc_address(), Path::new("/tmp/s/orlopd.sock.ttrpc"));
        assert_eq!(config.docker_address(), None);
        assert_eq!(Config::default().docker_address(), Some("/run/orlopd/docker.sock".into()));
    }
}
