//! Making a container from the options of `run` and `containers create`.
//!
//! Everything that can be refused is refused before the first side effect; what was made is removed when a later
//! step fails.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options as RuncOptions;
use orlop_proto::containerd::services::containers::v1::container::Runtime;
use orlop_proto::containerd::services::containers::v1::{Container, CreateContainerRequest};
use orlop_proto::containerd::services::snapshots::v1::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::runtimeoptions::v1::Options as ConfigOptions;
use orlop_proto::spec::cdi::Edits;
use orlop_proto::spec::types::*;
use orlop_proto::spec::{self, Accounts, Spec, arguments};
use prost_types::Any;

use crate::cli::Global;
use crate::cli::container::{Create, Process};
use crate::client::Client;
use crate::image::{self, Image};
use crate::platform::Platform;
use crate::{host, labels, mounts, unpack};

/// The label by which `tasks kill` learns how a container wants to be stopped.
pub const STOP_SIGNAL: &str = "io.containerd.image.config.stop-signal";
/// Runtimes that take the options of runc.
pub const RUNC_RUNTIMES: [&str; 2] = ["io.containerd.runc.v2", "io.containerd.orlop.v1"];
/// The vendor and class behind `--gpus`, as NVIDIA's tools write their files.
const GPU: &str = "nvidia.com/gpu";
/// The period behind `--cpus`, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// Options with every word of the command line checked and every file read.
struct Checked {
    env: Vec<String>,
    mounts: Vec<Mount>,
    namespaces: Vec<Namespace>,
    annotations: BTreeMap<String, String>,
    uid_mappings: Vec<IdMapping>,
    gid_mappings: Vec<IdMapping>,
    rlimits: Vec<Rlimit>,
    sysctl: BTreeMap<String, String>,
    devices: Vec<Device>,
    edits: Vec<Edits>,
    profile: Option<Seccomp>,
    runtime: Option<Any>,
    platform: Platform,
}

/// Makes the container and returns its ID.
///
/// `shares` is the CPU share where no option gives one.
///
/// # Errors
///
/// Those of the options, of reading the image, and what the server says.
pub async fn create(
    client: &Client,
    global: &Global,
    options: &Create,
    shares: Option<u64>,
) -> Result<String> {
    if options.config.is_some() {
        return create_from_file(client, options).await;
    }
    let (source, id, arguments) = words(options)?;
    let checked = check(options)?;
    let mut spec = spec::container(&global.namespace, id, host::unified_cgroups());
    spec.set_env(&checked.env);
    spec.mounts.extend(checked.mounts.iter().cloned());

    if options.rootfs {
        let path = std::path::absolute(source).context("resolve", source)?;
        let accounts = match &options.process.user {
            Some(_) => mounts::accounts_below(&path)?,
            None => Accounts::default(),
        };
        spec.root_mut().path = path.to_string_lossy().into_owned();
        finish(&mut spec, options, &checked, arguments, &accounts, shares)?;
        let container =
            Container { labels: labels::new(&options.label), ..record(options, &checked, id, &spec)? };
        return register(client, container).await;
    }

    let image_record = image::record(client, source).await?;
    let found = image::resolve(client, &image::target(&image_record)?, &checked.platform).await?;
    let snapshotter = options.snapshotter.name();
    client
        .with_lease(async |client| {
            if !unpack::is_unpacked(client, snapshotter, &found.chain_id()).await? {
                unpack::unpack(client, snapshotter, &found).await?;
            }
            prepare(client, options, &checked, &found, id).await?;
            let made = async {
                let accounts = snapshot_accounts(client, global, snapshotter, id).await?;
                let config = found.config.config.clone().unwrap_or_default();
                spec.apply_image(&config, &accounts)?;
                finish(&mut spec, options, &checked, arguments, &accounts, shares)?;
                let container = Container {
                    image: image_record.name.clone(),
                    snapshotter: snapshotter.to_owned(),
                    snapshot_key: id.to_owned(),
                    labels: image_labels(options, &found, &image_record.labels),
                    ..record(options, &checked, id, &spec)?
                };
                register(client, container).await
            }
            .await;
            if made.is_err() {
                let request =
                    RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: id.to_owned() };
                // What went wrong before is what is reported.
                let _ = client.snapshots().remove(request).await;
            }
            made
        })
        .await
}

/// The first two words, and the command after them.
fn words(options: &Create) -> Result<(&str, &str, &[String])> {
    let missing = |what: &'static str| Error::because(Kind::InvalidArgument, what, "", "must be provided");
    match options.words.as_slice() {
        [] => Err(missing("image ref")),
        [_] => Err(missing("container id")),
        [source, id, command @ ..] => Ok((source, id, command)),
    }
}

fn invalid(option: &'static str, reason: impl Into<String>) -> Error {
    Error::because(Kind::InvalidArgument, option, "", reason.into())
}

/// Checks the options, reading the files they name.
fn check(options: &Create) -> Result<Checked> {
    let (process, isolation, limits) = (&options.process, &options.isolation, &options.limits);
    for capability in process.cap_add.iter().chain(&process.cap_drop) {
        if !capability.starts_with("CAP_") {
            return Err(invalid("--cap-add", "capabilities must be specified with 'CAP_' prefix"));
        }
    }
    if isolation.seccomp_profile.is_some() && !isolation.seccomp {
        let reason = "seccomp must be set to true, if using a custom seccomp-profile";
        return Err(invalid("--seccomp-profile", reason));
    }
    if limits.cpus > 0.0 && (limits.cpu_quota != -1 || limits.cpu_period != 0) {
        return Err(invalid("--cpus", "cpus and quota/period should be used separately"));
    }
    if isolation.privileged_without_host_devices && !isolation.privileged {
        let reason = "can't use 'privileged-without-host-devices' without 'privileged' specified";
        return Err(invalid("--privileged-without-host-devices", reason));
    }
    if isolation.apparmor_default_profile.is_some() && isolation.apparmor_profile.is_some() {
        let reason = "apparmor-profile conflicts with apparmor-default-profile";
        return Err(invalid("--apparmor-profile", reason));
    }
    let mut env = match &process.env_file {
        Some(path) => env_file(path)?,
        None => Vec::new(),
    };
    env.extend(process.env.iter().cloned());
    let mut annotations = labels::pairs("annotation", &options.annotation)?;
    annotations.extend(labels::new(&options.label));
    let mut devices = Vec::new();
    let mut named = Vec::new();
    for device in &isolation.device {
        match device.to_str().filter(|word| spec::cdi::is_qualified(word)) {
            Some(name) => named.push(name.to_owned()),
            None => devices.extend(host::devices(device)?),
        }
    }
    named.extend(isolation.gpus.iter().flat_map(|word| word.split(',')).map(|gpu| format!("{GPU}={gpu}")));
    Ok(Checked {
        env,
        mounts: collect(&isolation.mount, arguments::mount)?,
        namespaces: collect(&isolation.with_ns, arguments::namespace)?,
        annotations,
        uid_mappings: collect(&isolation.uidmap, arguments::id_mapping)?,
        gid_mappings: collect(&isolation.gidmap, arguments::id_mapping)?,
        rlimits: rlimits(process)?,
        sysctl: labels::pairs("sysctl", &isolation.sysctl)?,
        devices,
        edits: spec::cdi_files::edits(&isolation.cdi_spec_dir, &named, |error| {
            eprintln!("orlopctl: {error}")
        })?,
        profile: isolation.seccomp_profile.as_deref().map(seccomp_profile).transpose()?,
        runtime: runtime_options(options)?,
        platform: Platform::wanted(options.platform.as_deref())?,
    })
}

/// The limits of setrlimit(2); the one of open files has an option of its own, too.
fn rlimits(process: &Process) -> Result<Vec<Rlimit>> {
    let mut all = collect(&process.ulimit, arguments::rlimit)?;
    if let Some(values) = &process.rlimit_nofile {
        all.push(arguments::rlimit(&format!("nofile={values}"))?);
    }
    Ok(all)
}

fn collect<T>(words: &[String], parse: fn(&str) -> Result<T>) -> Result<Vec<T>> {
    words.iter().map(|word| parse(word)).collect()
}

/// Variables, one on each line.
fn env_file(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).context("read", path.display().to_string())?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn seccomp_profile(path: &Path) -> Result<Seccomp> {
    let shown = path.display().to_string();
    let text = std::fs::read(path).context("read seccomp profile", &shown)?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::because(Kind::InvalidArgument, "read seccomp profile", shown, error))
}

/// The options that go to the runtime with the container.
fn runtime_options(options: &Create) -> Result<Option<Any>> {
    let runtime = &options.runtime;
    if RUNC_RUNTIMES.contains(&runtime.runtime.as_str()) {
        if runtime.runc_systemd_cgroup && options.limits.cgroup.as_deref().is_none_or(str::is_empty) {
            let reason = "requires --cgroup to be set, e.g. \"machine.slice:foo:deadbeef\"";
            return Err(invalid("--runc-systemd-cgroup", reason));
        }
        let owner = |mappings: &[String]| -> Result<u32> {
            let mappings = collect(mappings, arguments::id_mapping)?;
            Ok(mappings.iter().find(|mapping| mapping.container_id == 0).map_or(0, |mapping| mapping.host_id))
        };
        return Ok(Some(any::pack(&RuncOptions {
            binary_name: runtime.runc_binary.clone().unwrap_or_default(),
            root: runtime.runc_root.clone().unwrap_or_default(),
            systemd_cgroup: runtime.runc_systemd_cgroup,
            no_pivot_root: runtime.no_pivot,
            io_uid: owner(&options.isolation.uidmap)?,
            io_gid: owner(&options.isolation.gidmap)?,
            ..RuncOptions::default()
        })));
    }
    if runtime.runc_binary.is_some() || runtime.runc_systemd_cgroup {
        let reason = format!("not supported by runtime {:?}", runtime.runtime);
        return Err(invalid("--runc-binary", reason));
    }
    let config = runtime.runtime_config_path.as_ref();
    Ok(config.map(|path| any::pack(&ConfigOptions { config_path: path.clone(), ..ConfigOptions::default() })))
}

/// Applies to the specification what comes after the image's own configuration, in `ctr`'s order.
fn finish(
    spec: &mut Spec,
    options: &Create,
    checked: &Checked,
    arguments: &[String],
    accounts: &Accounts,
    shares: Option<u64>,
) -> Result<()> {
    let (process, isolation) = (&options.process, &options.isolation);
    if !checked.uid_mappings.is_empty() {
        spec.map_users(checked.uid_mappings.clone(), checked.gid_mappings.clone());
    }
    spec.root_mut().readonly = isolation.read_only;
    if !arguments.is_empty() {
        spec.process_mut().args = arguments.to_vec();
    }
    if let Some(directory) = process.cwd.as_ref().filter(|directory| !directory.is_empty()) {
        spec.process_mut().cwd.clone_from(directory);
    }
    if let Some(user) = &process.user {
        spec.set_user(user, accounts)?;
    }
    if process.tty {
        spec.set_terminal();
    }
    if isolation.privileged {
        let has_devices = !isolation.privileged_without_host_devices;
        let devices = has_devices.then(|| host::devices(Path::new("/dev"))).transpose()?;
        spec.set_privileged(&host::capabilities()?, devices);
    }
    if isolation.net_host {
        spec.share_network(&host::name()?);
    }
    if let Some(name) = &isolation.hostname {
        spec.hostname.clone_from(name);
    }
    spec.annotations.extend(checked.annotations.clone());
    spec.add_capabilities(&process.cap_add);
    spec.drop_capabilities(&process.cap_drop);
    if isolation.seccomp {
        let capabilities = spec.process_mut().capabilities.clone().unwrap_or_default();
        let default = || spec::default_profile(&capabilities.bounding, std::env::consts::ARCH);
        spec.linux_mut().seccomp = Some(checked.profile.clone().unwrap_or_else(default));
    }
    if let Some(profile) = &isolation.apparmor_default_profile {
        spec::apparmor::load(profile)?;
        spec.process_mut().apparmor_profile.clone_from(profile);
    }
    if let Some(profile) = &isolation.apparmor_profile {
        spec.process_mut().apparmor_profile.clone_from(profile);
    }
    for limit in &checked.rlimits {
        spec.set_rlimit(limit.clone());
    }
    spec.process_mut().oom_score_adj = process.oom_score_adj;
    for namespace in &checked.namespaces {
        spec.join_namespace(&namespace.kind, &namespace.path);
    }
    if process.allow_new_privs {
        spec.process_mut().no_new_privileges = false;
    }
    spec.linux_mut().sysctl.clone_from(&checked.sysctl);
    if let Some(kind) = &isolation.rootfs_propagation {
        spec.linux_mut().rootfs_propagation.clone_from(kind);
    }
    for device in &checked.devices {
        spec.add_device(device.clone(), "rwm");
    }
    for edits in &checked.edits {
        edits.apply(spec, |path| host::node(Path::new(path)))?;
    }
    limit(spec, options, shares);
    Ok(())
}

fn limit(spec: &mut Spec, options: &Create, shares: Option<u64>) {
    let limits = &options.limits;
    if limits.cpus > 0.0 {
        spec.limit_cpu_time((limits.cpus * CPU_PERIOD as f64) as i64, CPU_PERIOD);
    }
    if let Some(shares) = limits.cpu_shares.or(shares).filter(|&shares| shares > 0) {
        spec.resources_mut().cpu.get_or_insert_default().shares = Some(shares);
    }
    if limits.cpu_quota != -1 || limits.cpu_period != 0 {
        spec.limit_cpu_time(limits.cpu_quota, limits.cpu_period);
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        spec.resources_mut().cpu.get_or_insert_default().cpus.clone_from(cpus);
    }
    if let Some(nodes) = &limits.cpuset_mems {
        spec.resources_mut().cpu.get_or_insert_default().mems.clone_from(nodes);
    }
    if let Some(path) = &limits.cgroup {
        spec.linux_mut().cgroups_path.clone_from(path);
    }
    if limits.memory_limit != 0 {
        spec.limit_memory(i64::try_from(limits.memory_limit).unwrap_or(i64::MAX));
    }
    if limits.pids_limit != 0 {
        spec.limit_pids(limits.pids_limit);
    }
    if let Some(class) = &limits.rdt_class {
        spec.linux_mut().intel_rdt = Some(serde_json::json!({ "closID": class }));
    }
}

/// The container's labels: the image configuration's, the image's own, and those of the command line.
fn image_labels(
    options: &Create,
    image: &Image,
    record: &HashMap<String, String>,
) -> HashMap<String, String> {
    let config = image.config.config.as_ref();
    let mut all: HashMap<String, String> = HashMap::new();
    all.extend(config.and_then(|config| config.labels.clone()).unwrap_or_default());
    all.extend(record.clone());
    all.extend(labels::new(&options.label));
    let signal = config.and_then(|config| config.stop_signal.clone()).filter(|signal| !signal.is_empty());
    all.insert(STOP_SIGNAL.to_owned(), signal.unwrap_or_else(|| "SIGTERM".to_owned()));
    all
}

/// Makes the container's writable snapshot.
async fn prepare(
    client: &Client,
    options: &Create,
    checked: &Checked,
    image: &Image,
    id: &str,
) -> Result<()> {
    let mut snapshot_labels = labels::new(&options.snapshotter_label);
    for (label, mappings) in [
        ("containerd.io/snapshot/uidmapping", &checked.uid_mappings),
        ("containerd.io/snapshot/gidmapping", &checked.gid_mappings),
    ] {
        let ranges: Vec<String> =
            mappings.iter().map(|m| format!("{}:{}:{}", m.container_id, m.host_id, m.size)).collect();
        if !ranges.is_empty() {
            snapshot_labels.insert(label.to_owned(), ranges.join(","));
        }
    }
    let request = PrepareSnapshotRequest {
        snapshotter: options.snapshotter.name().to_owned(),
        key: id.to_owned(),
        parent: image.chain_id(),
        labels: snapshot_labels,
    };
    client.snapshots().prepare(request).await?;
    Ok(())
}

/// The account files in a container's snapshot.
///
/// # Errors
///
/// What the server says, and those of mounting.
pub async fn snapshot_accounts(
    client: &Client,
    global: &Global,
    snapshotter: &str,
    key: &str,
) -> Result<Accounts> {
    let request = MountsRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    let found = client.snapshots().mounts(request).await?.into_inner().mounts;
    // Any directory will do: it is covered for a moment, in a namespace of its own.
    let cover = global.address().parent().filter(|parent| !parent.as_os_str().is_empty());
    mounts::accounts(found, cover.unwrap_or(Path::new("/")))
}

fn record(options: &Create, checked: &Checked, id: &str, spec: &Spec) -> Result<Container> {
    let value = serde_json::to_vec(spec)
        .map_err(|error| Error::because(Kind::Internal, "encode", "configuration", error))?;
    Ok(Container {
        id: id.to_owned(),
        runtime: Some(Runtime { name: options.runtime.runtime.clone(), options: checked.runtime.clone() }),
        spec: Some(Any { type_url: any::SPEC_URL.to_owned(), value }),
        sandbox: options.sandbox.clone().unwrap_or_default(),
        ..Container::default()
    })
}

/// A container whose configuration is a file, taken as it is.
async fn create_from_file(client: &Client, options: &Create) -> Result<String> {
    let path = options.config.as_deref().unwrap_or(Path::new(""));
    let [id] = options.words.as_slice() else {
        return Err(invalid("--config", "with spec config file, only container id should be provided"));
    };
    let shown = path.display().to_string();
    let value = std::fs::read(path).context("read", &shown)?;
    serde_json::from_slice::<serde::de::IgnoredAny>(&value)
        .map_err(|error| Error::because(Kind::InvalidArgument, "parse", shown, error))?;
    let container = Container {
        id: id.clone(),
        labels: labels::new(&options.label),
        runtime: Some(Runtime { name: options.runtime.runtime.clone(), options: runtime_options(options)? }),
        spec: Some(Any { type_url: any::SPEC_URL.to_owned(), value }),
        sandbox: options.sandbox.clone().unwrap_or_default(),
        ..Container::default()
    };
    register(client, container).await
}

async fn register(client: &Client, container: Container) -> Result<String> {
    let id = container.id.clone();
    client.containers().create(CreateContainerRequest { container: Some(container) }).await?;
    Ok(id)
}
