//! Bringing a container up: facts, configuration, record of the containerd API, pipes, task, network, process.
//!
//! Each step that is done is undone when a later one fails.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::error::{Context, Error};
use orlop_proto::spec::cdi::is_qualified;
use orlop_proto::spec::types::Mount;
use orlop_proto::spec::{Accounts, Spec};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::record::{MountPoint, Record};
use super::state::{NEVER, Status};
use super::stream::{self, Pipes};
use super::{Container, devices, marks, place};
use crate::api::convert;
use crate::db::blocking;
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::runtimes::program;
use crate::docker::settings::RUNC;
use crate::docker::spec::{self, Facts};
use crate::image::{DEFAULT_SNAPSHOTTER, mounts};
use crate::network::files;
use crate::owners::Owners;
use crate::store::containers::{Container as Registered, Runtime};
use crate::task::{Create, Images, Task};

/// The longest account file that is read, in bytes.
const MAX_ACCOUNTS: u64 = 4 << 20;
/// The runtime of the containerd API that serves containers which name none.
const RUNTIME: &str = "io.containerd.runc.v2";

impl Engine {
    /// Starts a container, to the end whether or not the caller waits.
    ///
    /// # Errors
    ///
    /// 304 while it runs, 409 in other states; 400 for a program that cannot be run, in the runtime's words.
    pub async fn start_container(&self, container: &Arc<Container>) -> Result<()> {
        let (engine, container) = (self.clone(), container.clone());
        let started = tokio::spawn(async move {
            let _turn = container.turn.lock().await;
            container.called_off.notify_waiters();
            *container.restarts.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = 0;
            match container.with(|record| record.state.status) {
                Status::Running => return Err(Failure::not_modified()),
                Status::Paused => {
                    return Err(Failure::conflict("cannot start a paused container, try unpause instead"));
                }
                Status::Removing | Status::Dead => {
                    return Err(Failure::conflict("container is marked for removal and cannot be started"));
                }
                Status::Created | Status::Exited | Status::Restarting => {}
            }
            engine.change(&container, |record| record.state.restart_count = 0).await?;
            engine.bring_up(&container).await
        });
        started.await.map_err(|error| Failure::internal(error.to_string()))?
    }

    /// Brings a container up; the caller has its turn.
    pub(super) async fn bring_up(&self, container: &Arc<Container>) -> Result<()> {
        match self.try_bring_up(container).await {
            Ok(()) => Ok(()),
            Err(failure) => {
                let (code, status) = exit_code(&failure.message);
                let message = failure.message.clone();
                let noted = self
                    .change(container, |record| {
                        record.state.exit_code = code;
                        record.state.error.clone_from(&message);
                        if record.state.status == Status::Restarting {
                            record.state.status = Status::Exited;
                        }
                    })
                    .await;
                if let Err(other) = noted {
                    tracing::error!(id = container.id, "{}", other.message);
                }
                container.output.end();
                container.milestones.send_modify(|milestones| {
                    milestones.exits += 1;
                    milestones.code = code;
                });
                if container.with(Record::removes_itself) {
                    let (engine, container) = (self.clone(), container.clone());
                    tokio::spawn(async move { engine.remove_ended(&container).await });
                }
                Err(status.map_or(failure.clone(), |status| Failure { status, ..failure }))
            }
        }
    }

    async fn try_bring_up(&self, container: &Arc<Container>) -> Result<()> {
        let mut record = container.record();
        let id = record.id.clone();
        let root = self.parts.snapshots.mounts(&self.context, DEFAULT_SNAPSHOTTER, &id).await?;
        self.make_files(&record)?;
        let accounts = match record.state.started_at == NEVER {
            true => mark(root.clone()).await?,
            false => accounts_of(root.clone()).await?,
        };
        self.prepare_places(&mut record, &root).await?;
        let facts = self.facts(&record, accounts)?;
        let mut spec = spec::make(&record.config, &record.host, &facts)?;
        for edits in self.device_edits(&record.host.resources)? {
            edits.apply(&mut spec, devices::node)?;
        }
        let profile = spec.process_mut().apparmor_profile.clone();
        self.apparmor.ensure(&profile).await?;
        self.register(&record, &spec).await?;
        let pipes = self.pipes(&record);
        let mut shown = root;
        if let Some(owners) = &record.owners {
            owners.shift(&mut shown);
        }
        let begun = self.begin(container, &record, &pipes, shown).await;
        let (task, pid) = match begun {
            Ok(begun) => begun,
            Err(failure) => {
                pipes.remove();
                self.unregister(&id).await;
                return Err(failure);
            }
        };
        let health = record.config.healthcheck.clone();
        self.change(container, |record| {
            record.state.started(pid, SystemTime::now());
            record.apparmor = profile;
            record.state.health = super::health::first(health.as_ref());
        })
        .await?;
        self.container_event(container, "start", &[]);
        self.watch_health(container);
        drop(task);
        Ok(())
    }

    /// Makes the task, joins networks, starts the process.
    async fn begin(
        &self,
        container: &Arc<Container>,
        record: &Record,
        pipes: &Pipes,
        root: Vec<crate::snapshot::Mount>,
    ) -> Result<(Arc<Task>, u32)> {
        let id = &record.id;
        pipes.make()?;
        let ends = pipes.open()?;
        let registered = self.parts.records.get(&self.context, id).await?;
        let create = Create {
            id: id.clone(),
            spec: registered.spec.map(|spec| spec.value).unwrap_or_default(),
            runtime: registered.runtime.name,
            options: registered
                .runtime
                .options
                .map(|any| prost_types::Any { type_url: any.type_url, value: any.value }),
            rootfs: convert::mounts(root),
            stdio: pipes.stdio(record.config.tty),
            images: Images::None,
            sandbox: String::new(),
            endpoint: None,
        };
        let supervisor = &self.parts.supervisor;
        let pid = supervisor
            .create(&self.context.namespace, create)
            .await
            .map_err(|error| Failure::from(error).within("failed to create task for container"))?;
        let started = async {
            let task = supervisor.get(&self.context.namespace, id).await?;
            self.join_networks(record, pid).await?;
            let copying =
                tokio::spawn(stream::copy(ends, container.output.clone(), Some(container.log.clone())));
            if let Some(stdin) = &pipes.stdin {
                container.output.open_stdin(stdin.clone());
            }
            let waiting = task.clone();
            // From before the start, so that no exit is missed.
            let told = container.told.subscribe();
            let exit = tokio::spawn(async move { waiting.wait("").await });
            match task.start("").await {
                Ok(pid) => {
                    tokio::spawn(self.clone().until_end(container.clone(), exit, copying, told));
                    Ok((task, pid))
                }
                Err(error) => {
                    exit.abort();
                    copying.abort();
                    Err(Failure::from(error).within("failed to start task for container"))
                }
            }
        }
        .await;
        if started.is_err() {
            if let Ok(task) = supervisor.get(&self.context.namespace, id).await {
                // Ignoring: it may never have had a process.
                let _ = task.kill("", 9, true).await;
            }
            if let Err(error) = supervisor.delete(&self.context.namespace, id).await {
                tracing::warn!(id, "{error}");
            }
            self.leave_networks(record).await;
        }
        started
    }

    /// Where a container's standard streams go.
    pub(super) fn pipes(&self, record: &Record) -> Pipes {
        let has_stdin = record.config.open_stdin;
        Pipes::named(&self.pipe_directory(&record.id), "", has_stdin, record.config.tty)
    }

    /// What the containerd API shows of a running container.
    async fn register(&self, record: &Record, spec: &Spec) -> Result<()> {
        let value =
            serde_json::to_vec(spec).map_err(|error| Failure::internal(format!("encode: {error}")))?;
        let runtime = self.runtime(&record.host.runtime, record.owners.as_ref());
        let registered = Registered {
            id: record.id.clone(),
            image: record.config.image.clone(),
            runtime,
            spec: Some(crate::store::Any { type_url: any::SPEC_URL.to_owned(), value }),
            snapshotter: DEFAULT_SNAPSHOTTER.to_owned(),
            snapshot_key: record.id.clone(),
            labels: [("com.docker/engine.bundle.path".to_owned(), String::new())].into(),
            ..Registered::default()
        };
        match self.parts.records.create(&self.context, registered.clone()).await {
            Err(error) if error.kind() == orlop_proto::kind::Kind::AlreadyExists => {
                // Left by a daemon that was killed.
                self.parts.records.delete(&self.context, &record.id).await?;
                self.parts.records.create(&self.context, registered).await?;
            }
            result => drop(result?),
        }
        Ok(())
    }

    /// The runtime of the containerd API that a name of this one means.
    fn runtime(&self, name: &str, owners: Option<&Owners>) -> Runtime {
        let settings = self.settings();
        // Whom standard streams belong to: the program opens /dev/stdout anew.
        let (io_uid, io_gid) = owners.map_or((0, 0), Owners::root);
        let systemd_cgroup = settings.systemd_cgroup;
        let mut options = Options { systemd_cgroup, io_uid, io_gid, ..Options::default() };
        let shim = match settings.runtimes.get(name) {
            Some(runtime) if runtime.runtime_type.is_empty() => {
                options.binary_name = program(&self.parts.root, name, runtime);
                RUNTIME
            }
            Some(runtime) => &runtime.runtime_type,
            None if ["", RUNC].contains(&name) => RUNTIME,
            None => name,
        };
        let is_plain = shim != RUNTIME || options == Options::default();
        let options = (!is_plain).then(|| any::pack(&options));
        let options = options.map(|any| crate::store::Any { type_url: any.type_url, value: any.value });
        Runtime { name: shim.to_owned(), options }
    }

    /// Takes it back.
    pub(super) async fn unregister(&self, id: &str) {
        if let Err(error) = self.parts.records.delete(&self.context, id).await
            && error.kind() != orlop_proto::kind::Kind::NotFound
        {
            tracing::warn!(id, "{error}");
        }
    }

    /// Writes the files that are mounted over the image's: name, hosts, resolver.
    fn make_files(&self, record: &Record) -> Result<()> {
        let directory = self.container_directory(&record.id);
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).context("write", path.display().to_string())?;
            let Some((uid, gid)) = record.owners.as_ref().map(Owners::root) else { return Ok(()) };
            chown(&path, Some(uid), Some(gid)).context("change owner of", path.display().to_string())
        };
        std::fs::create_dir_all(&directory).context("create", directory.display().to_string())?;
        write("hostname", &format!("{}\n", record.config.hostname))?;
        if record.host.network_mode == "host" {
            let (hosts, resolver) =
                files::of_host(&super::joined::extra_hosts(record), &self.resolver(record));
            write("hosts", &hosts)?;
            write("resolv.conf", &resolver)?;
        } else if !record.host.network_mode.starts_with("container:") {
            let hosts = super::joined::plain_hosts(record);
            write("hosts", &hosts)?;
            write("resolv.conf", &files::resolver_of_host(&self.resolver(record)))?;
        }
        Ok(())
    }

    /// The mounts of those files.
    fn file_mounts(&self, record: &Record) -> Result<Vec<Mount>> {
        let own = self.container_directory(&record.id);
        let shared = match record.host.network_mode.strip_prefix("container:") {
            Some(other) => self.container_directory(&self.containers.get(other)?.id),
            None => own.clone(),
        };
        let mount = |target: &str, source: &Path| {
            Mount::new(target, "bind", &source.display().to_string(), &["rbind", "rprivate"])
        };
        Ok(vec![
            mount("/etc/resolv.conf", &shared.join("resolv.conf")),
            mount("/etc/hostname", &shared.join("hostname")),
            mount("/etc/hosts", &shared.join("hosts")),
        ])
    }

    fn facts(&self, record: &Record, accounts: Accounts) -> Result<Facts> {
        let host = &record.host;
        let mut mounted = self.file_mounts(record)?;
        let places = place::mounts(&record.mounts);
        mounted.retain(|mount| !places.iter().any(|place| place.destination == mount.destination));
        mounted.extend(places);
        let mut found = Vec::new();
        if !host.privileged {
            for mapping in host.resources.devices.iter().filter(|device| !is_qualified(&device.path_on_host))
            {
                found.extend(devices::mapped(mapping)?);
            }
        }
        let limits = &host.resources;
        let named = [
            &limits.blkio_weight_device,
            &limits.blkio_device_read_bps,
            &limits.blkio_device_write_bps,
            &limits.blkio_device_read_iops,
            &limits.blkio_device_write_iops,
        ];
        let settings = self.settings();
        let parent = match settings.cgroup_parent.as_str() {
            "" => &self.parts.cgroup_parent,
            own => own,
        };
        let paths = named.into_iter().flatten().map(|device| device.path.clone());
        Ok(Facts {
            id: record.id.clone(),
            cgroup_parent: parent.to_owned(),
            systemd_cgroup: settings.systemd_cgroup,
            ulimits: settings.ulimits.clone(),
            no_new_privileges: settings.no_new_privileges,
            seccomp: settings.seccomp.clone(),
            accounts,
            mounts: mounted,
            owners: record.owners.clone(),
            is_inner: crate::snapshot::is_user_namespace(),
            namespaces: self.namespaces(record)?,
            devices: found,
            all_devices: if host.privileged { devices::all() } else { Vec::new() },
            capabilities: devices::capabilities(),
            unified: crate::docker::host::is_unified(),
            apparmor: self.apparmor.machine,
            variables: self.link_variables(record),
            init: devices::init_program(&settings.init_path),
            block_devices: paths
                .filter_map(|path| Some((path.clone(), devices::block_numbers(&path)?)))
                .collect(),
        })
    }

    /// The namespaces that are the host's or another container's.
    fn namespaces(&self, record: &Record) -> Result<BTreeMap<&'static str, String>> {
        let host = &record.host;
        let mut namespaces = BTreeMap::new();
        for (kind, file, mode) in [
            ("network", "net", &host.network_mode),
            ("ipc", "ipc", &host.ipc_mode),
            ("pid", "pid", &host.pid_mode),
        ] {
            if mode == "host" {
                namespaces.insert(kind, "host".to_owned());
            } else if let Some(other) = mode.strip_prefix("container:") {
                let other = self.containers.get(other)?;
                let lends = |record: &Record| ["shareable", "host"].contains(&record.host.ipc_mode.as_str());
                if kind == "ipc"
                    && !other.with(lends)
                    && !other.with(|record| record.host.ipc_mode.starts_with("container:"))
                {
                    return Err(Failure::invalid(format!(
                        "can't join IPC of container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
                        other.id
                    )));
                }
                let pid = other.with(|record| if record.state.is_running() { record.state.pid } else { 0 });
                if pid == 0 {
                    return Err(Failure::conflict(format!(
                        "cannot join {kind} namespace of a non running container: container {} is {}",
                        other.with(|record| record.name.clone()),
                        other.with(|record| record.state.status.word())
                    )));
                }
                namespaces.insert(kind, format!("/proc/{pid}/ns/{file}"));
                if let Some(owners) = &record.owners {
                    if other.with(|record| record.owners.as_ref() != Some(owners)) {
                        return Err(Failure::invalid(format!(
                            "cannot share the {kind} namespace of container {}, which is not in a user namespace of the same \
                             users and groups",
                            other.with(|record| record.name.clone()),
                        )));
                    }
                    // What is shared belongs to the other's user namespace: nobody else may do much with it.
                    namespaces.insert("user", format!("/proc/{pid}/ns/user"));
                }
            }
        }
        if host.uts_mode == "host" {
            namespaces.insert("uts", "host".to_owned());
        }
        Ok(namespaces)
    }

    /// Makes missing sources of bind mounts, and fills volumes.
    async fn prepare_places(&self, record: &mut Record, root: &[crate::snapshot::Mount]) -> Result<()> {
        for place in &mut record.mounts {
            match place.kind.as_str() {
                "bind" => make_source(place, record.owners.as_ref())?,
                "volume" => self.open_volume(&record.id, place, root, record.owners.as_ref()).await?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Makes the source of a `-v` mount that is not there: a directory, as dockerd does.
fn make_source(place: &MountPoint, owners: Option<&Owners>) -> Result<()> {
    let path = Path::new(&place.source);
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    if !place.makes_source {
        return Err(Failure::invalid(format!(
            "invalid mount config for type \"bind\": bind source path does not exist: {}",
            place.source
        )));
    }
    let missing: Vec<&Path> = path.ancestors().take_while(|path| path.symlink_metadata().is_err()).collect();
    let given = |path: &&Path| match owners.map(Owners::root) {
        Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
        None => Ok(()),
    };
    let made = std::fs::create_dir_all(path).and_then(|()| missing.iter().try_for_each(given));
    made.map_err(|error| {
        Failure::internal(format!(
            "error while creating mount source path '{}': mkdir {}: {error}",
            place.source, place.source
        ))
    })
}

/// The account files of a file system that is not mounted.
pub(super) async fn accounts_of(root: Vec<crate::snapshot::Mount>) -> Result<Accounts> {
    let read = blocking(move || {
        let root = mounts::readable(&root)?;
        Ok(accounts_below(&root))
    });
    Ok(read.await?)
}

/// Makes what dockerd puts into a container before its first start; its account files.
async fn mark(root: Vec<crate::snapshot::Mount>) -> Result<Accounts> {
    let made = blocking(move || {
        let root = mounts::root(&root)?;
        marks::make(&root).map_err(|error| Error::io("make", "/.dockerenv", error.into()))?;
        Ok(accounts_below(&root))
    });
    Ok(made.await?)
}

/// The account files below a directory.
pub fn accounts_below(root: &OwnedFd) -> Accounts {
    Accounts { passwd: text_below(root, "etc/passwd"), group: text_below(root, "etc/group") }
}

fn text_below(root: &OwnedFd, path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    file_below(root, path).ok()?.take(MAX_ACCOUNTS).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens a file of somebody else's for reading, without following anything out of the root. What is no file is not opened:
/// a FIFO would wait for ever, and opening a device can be enough to set it going.
pub fn file_below(root: &OwnedFd, path: &str) -> rustix::io::Result<File> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::INVAL),
    }
    let same = format!("/proc/self/fd/{}", place.as_raw_fd());
    rustix::fs::open(same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(File::from)
}

/// The exit code of a container that could not be started, and the status of the request, by the runtime's words: they
/// are the only thing that a runtime, ours or another, says.
fn exit_code(message: &str) -> (i64, Option<StatusCode>) {
    let has = |words: &str| message.contains(words);
    if !has("OCI runtime") && !has("exec:") {
        return (128, None);
    }
    if has("executable file not found") || has("no such file or directory") {
        (127, Some(StatusCode::BAD_REQUEST))
    } else if has("permission denied") || has("not a directory") || has("is a directory") {
        (126, Some(StatusCode::BAD_REQUEST))
    } else {
        (128, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_codes() {
        let text = |cause: &str| format!("OCI runtime create failed: exec: \"x\": {cause}");
        assert_eq!(exit_code(&text("executable file not found in $PATH")).0, 127);
        assert_eq!(exit_code(&text("permission denied")).0, 126);
        assert_eq!(exit_code(&text("odd")), (128, None));
    }

    #[test]
    fn account_files_stay_below_the_root() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        std::fs::write(directory.path().join("etc/group"), "g").unwrap();
        std::os::unix::fs::symlink("/../../../../../../etc/group", directory.path().join("etc/passwd"))
            .unwrap();
        let root = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        let accounts = accounts_below(&root);
        assert_eq!((accounts.passwd.as_deref(), accounts.group.as_deref()), (Some("g"), Some("g")));
        rustix::fs::mknodat(&root, "pipe", FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(file_below(&root, "pipe").unwrap_err(), Errno::INVAL);
        assert_eq!(file_below(&root, "etc").unwrap_err(), Errno::ISDIR);
    }
}
