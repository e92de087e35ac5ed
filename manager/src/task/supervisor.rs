//! Bringing containers up and down: the procedures around a shim's life.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use orlop_proto::any;
use orlop_proto::containerd::events::{TaskDelete, TaskExit};
use orlop_proto::containerd::task::v2::task_ttrpc as method;
use orlop_proto::containerd::task::v2::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse,
};
use orlop_proto::containerd::types::{self, Envelope, RuntimeInfo, RuntimeRequest};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Name;
use prost_types::Any;
use tokio::sync::SetOnce;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::bundle::{Bundle, Bundles};
use super::dialect::{self, Dialects};
use super::launch::{Bootstrap, Daemon, Launcher, kill_in};
use super::log::Log;
use super::registry::{Registry, Reservation};
use super::runtime::{Choice, Runtimes};
use super::sandbox::{Group, Running};
use super::shim::Shim;
use super::sockets::Sockets;
use super::{Create, Exit, Images, Stdio, Task, no_task};
use crate::api::convert::{decode_mounts, mounts as encode_mounts};
use crate::config::{self, Config};
use crate::db::blocking;
use crate::events::Exchange;
use crate::labels::Labels;
use crate::metrics::METRICS;
use crate::mount::Mounts;
use crate::request::{Namespace, RequestContext};

/// How long a shim may take to end once it was told to.
const SHUTDOWN: Duration = Duration::from_secs(3);
/// How long the shim's `delete` action, or undoing a creation, may take.
const CLEANUP: Duration = Duration::from_secs(5);
/// Label of mounts that are kept for as long as a container is there.
const KEPT_BY: &str = "containerd.io/gc.bref.container";
/// Beginning of the names of directories that containers are restored from.
const RESTORED: &str = "restored";
/// Exit status of a container whose own nobody knows any more, as containerd reports it.
const UNKNOWN_STATUS: u32 = 255;

/// All tasks. Clones are handles of one supervisor.
#[derive(Clone)]
pub struct Supervisor {
    pub(super) registry: Registry,
    pub(super) sandboxes: Running,
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub bundles: Bundles,
    pub sandbox_bundles: Bundles,
    pub daemon: Arc<Daemon>,
    pub runtimes: Runtimes,
    dialects: Dialects,
    mounts: Mounts,
    exchange: Exchange,
    start_deadline: Duration,
}

impl Supervisor {
    /// A supervisor of the tasks below the configured directories.
    ///
    /// # Errors
    ///
    /// When the paths of the configuration or of this program cannot be told, or the directory for sockets not made.
    pub fn new(config: &Config, exchange: Exchange, mounts: Mounts) -> Result<Supervisor> {
        let absolute = |path: &std::path::Path| {
            std::path::absolute(path).map_err(|error| Error::io("resolve", path.display().to_string(), error))
        };
        let daemon = Daemon {
            address: absolute(&config.address())?,
            ttrpc_address: absolute(&config.ttrpc_address())?,
            binary: std::env::current_exe()
                .map_err(|error| Error::io("find", "the daemon's own binary", error))?,
            debug: tracing::enabled!(tracing::Level::DEBUG),
            sockets: Sockets::open(&absolute(&config.state)?)?,
            installed: absolute(&config.opt.path)?,
        };
        let shared = Shared {
            bundles: Bundles::new(&absolute(&config.state)?, &absolute(&config.root)?),
            sandbox_bundles: Bundles::of_sandboxes(&absolute(&config.state)?, &absolute(&config.root)?),
            daemon: Arc::new(daemon),
            runtimes: Runtimes::new(config.runtimes.clone(), &config.opt.path),
            dialects: Dialects::default(),
            mounts,
            exchange,
            start_deadline: Duration::from_secs(config.shim.start_timeout),
        };
        Ok(Supervisor {
            registry: Registry::default(),
            sandboxes: Running::default(),
            shared: Arc::new(shared),
        })
    }

    /// Takes away what is needed only while a daemon runs. Containers go on.
    pub fn close(&self) {
        self.shared.daemon.sockets.close();
    }

    /// New containers go by these from now on.
    pub fn configure(&self, runtimes: BTreeMap<String, config::Runtime>) {
        self.shared.runtimes.configure(runtimes);
    }

    /// How many tasks there are, in all namespaces.
    pub fn count(&self) -> usize {
        self.registry.count()
    }

    /// The task of a container.
    ///
    /// # Errors
    ///
    /// `NotFound` in containerd's words.
    pub async fn get(&self, namespace: &Namespace, id: &str) -> Result<Arc<Task>> {
        self.registry.get(namespace, id).await
    }

    /// The tasks of a namespace, by name.
    pub async fn list(&self, namespace: &Namespace) -> Vec<Arc<Task>> {
        self.registry.list(namespace).await
    }

    /// What a runtime's shim says of itself and of the OCI runtime behind it.
    ///
    /// # Errors
    ///
    /// For a name that is no runtime's, and the shim's own.
    pub async fn runtime_info(&self, request: RuntimeRequest) -> Result<RuntimeInfo> {
        let Choice { shim, options } = self.shared.runtimes.choose(&request.runtime_path, request.options)?;
        dialect::info(&self.shared.daemon, &shim, "default", options.as_ref()).await
    }

    /// Publishes an event that a shim sent, and remembers what it tells of a container's exit.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a malformed envelope.
    pub fn forward(&self, envelope: Envelope) -> Result<()> {
        if let Some(event) = envelope.event.as_ref().filter(|event| any::is::<TaskExit>(event))
            && let Ok(exit) = any::unpack::<TaskExit>(event)
            && exit.id == exit.container_id
            && let Some(task) = self.registry.peek(&envelope.namespace, &exit.container_id)
        {
            // Ignoring: it ends once, however often that is told.
            let _ = task.exit.set(Exit { pid: exit.pid, status: exit.exit_status, at: exit.exited_at });
        }
        self.shared.exchange.forward(envelope)
    }

    /// Brings a container up to the point where its process can be started; returns the process's number.
    ///
    /// A caller that goes away meanwhile gets everything undone.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` when it has a task; the shim's and the runtime's own, in their words. Nothing is left.
    pub async fn create(&self, namespace: &Namespace, create: Create) -> Result<u32> {
        let reservation = self.registry.reserve(namespace, &create.id)?;
        let gone = CancellationToken::new();
        let _guard = gone.clone().drop_guard();
        let this = self.clone();
        let begin = Instant::now();
        let span = tracing::debug_span!("create", id = create.id);
        let work = async move { this.bring_up(reservation, create, &gone).await };
        let created = to_the_end(work.instrument(span)).await;
        METRICS.work("create", &created, begin.elapsed());
        created
    }

    async fn bring_up(
        self,
        reservation: Reservation,
        create: Create,
        gone: &CancellationToken,
    ) -> Result<u32> {
        let start_failed = |error: Error| Error::because(error.kind(), "failed to start shim", "", error);
        let Create { id, spec, runtime, options, rootfs, stdio, images, sandbox, endpoint } = create;
        let Choice { shim, options } =
            self.shared.runtimes.choose(&runtime, options).map_err(start_failed)?;
        // A sandbox without a shim of ours is the client's own grouping: its containers get shims of their own.
        let group = match (self.sandboxes.find(reservation.namespace(), &sandbox), endpoint) {
            (Some(sandbox), _) => Some(sandbox.group()),
            (None, Some((address, version))) => {
                Some(Group::external(&sandbox, &address, version, &shim).map_err(start_failed)?)
            }
            (None, None) => None,
        };
        let (bundles, namespace, name) =
            (self.shared.bundles.clone(), reservation.namespace().clone(), id.clone());
        let bundle =
            blocking(move || bundles.create(&namespace, &name, &spec)).await.map_err(start_failed)?;

        let images = match self.images(&bundle, images).await {
            Ok(images) => images,
            Err(error) => {
                let removed = blocking(move || bundle.remove()).await;
                return Err(removed.err().unwrap_or(error));
            }
        };
        let (daemon, sandboxed) = (self.shared.daemon.clone(), group.is_some());
        let launcher = Launcher { shim, bundle, daemon, sandboxed };
        let started = match &group {
            Some(group) => self.join_sandbox(&launcher, group).await,
            None => unless(gone, self.start_shim(&launcher, options.as_ref())).await.map(|(shim, _)| shim),
        };
        let shim = match started {
            Ok(shim) => shim,
            Err(error) => {
                self.abandon(&launcher).await;
                return Err(start_failed(error));
            }
        };

        let rootfs = match self.activate(&launcher, rootfs).await {
            Ok(rootfs) => rootfs,
            Err(error) => {
                self.tear_down(&launcher, &shim).await;
                return Err(error);
            }
        };
        let Stdio { stdin, stdout, stderr, terminal } = stdio;
        let request = CreateTaskRequest {
            id,
            bundle: launcher.bundle.path.display().to_string(),
            rootfs,
            terminal,
            stdin,
            stdout,
            stderr,
            options,
            checkpoint: images,
            ..Default::default()
        };
        match unless(gone, shim.call::<CreateTaskResponse>(method::CREATE, &request)).await {
            Ok(created) => {
                let task = Task::new(launcher, shim);
                reservation.fulfil(task.clone());
                self.watch(task);
                Ok(created.pid)
            }
            Err(error) => {
                let delete = DeleteRequest { id: request.id, ..Default::default() };
                // What the shim cannot undo itself is undone by ending it.
                let _ = shim.call_within::<DeleteResponse>(method::DELETE, &delete, CLEANUP).await;
                if shim.has_ended() {
                    // It died in the middle of it: what it made is cleared away by its delete action alone.
                    self.abandon(&launcher).await;
                } else {
                    self.tear_down(&launcher, &shim).await;
                }
                Err(Error::because(error.kind(), "failed to create shim task", "", error))
            }
        }
    }

    /// The directory of CRIU's images that a container is restored from; empty for a new one.
    async fn images(&self, bundle: &Bundle, images: Images) -> Result<String> {
        match images {
            Images::None => Ok(String::new()),
            Images::In(directory) => Ok(directory),
            Images::Saved(saved) => {
                let (bundle, name) = (bundle.clone(), RESTORED);
                let directory = blocking(move || bundle.work_directory(name)).await?;
                saved.unpack(directory.path()).await?;
                Ok(directory.path().display().to_string())
            }
        }
    }

    /// Makes what mounts of a root file system a shim cannot make; returns those that are left for it.
    async fn activate(&self, launcher: &Launcher, rootfs: Vec<types::Mount>) -> Result<Vec<types::Mount>> {
        let (context, id) = (context(launcher), launcher.bundle.id.as_str());
        let labels = Labels::from([(KEPT_BY.to_owned(), id.to_owned())]);
        let mounts = decode_mounts(rootfs.clone());
        let activated = match self.shared.mounts.activate(&context, id, mounts, labels, false).await {
            // An earlier task of the container had them made.
            Err(error) if error.kind() == Kind::AlreadyExists => self.shared.mounts.info(&context, id).await,
            activated => activated,
        };
        match activated {
            Ok(activation) => Ok(encode_mounts(activation.system())),
            // The shim can make them all.
            Err(error) if error.kind() == Kind::Unimplemented => Ok(rootfs),
            Err(error) => Err(error),
        }
    }

    /// Starts a shim and connects to it.
    pub(super) async fn start_shim(
        &self,
        launcher: &Launcher,
        options: Option<&Any>,
    ) -> Result<(Shim, Bootstrap)> {
        let (bundle, program) = (launcher.bundle.clone(), launcher.shim.clone());
        let log = blocking(move || {
            bundle.save_shim(&program)?;
            Log::open(&bundle.log())
        })
        .await?;
        let dialect = self.shared.dialects.of(launcher, options).await;
        let bootstrap = launcher.start(options, dialect, self.shared.start_deadline).await?;
        let bundle = launcher.bundle.clone();
        let namespace = bundle.namespace.clone();
        let id = bundle.id.clone();
        let saved = serde_json::to_vec(&bootstrap)
            .map_err(|error| Error::because(Kind::Internal, "encode", "bootstrap.json", error))?;
        blocking(move || bundle.save_bootstrap(&saved)).await?;
        let shim = Shim::connect(&bootstrap, namespace.as_str())
            .await
            .map_err(|error| Error::because(error.kind(), "start failed", "", error))?;
        tokio::spawn(log.copy(id, shim.clone()));
        Ok((shim, bootstrap))
    }

    /// Removes a container that has ended, with its shim and bundle; returns its exit.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` while it runs, in the shim's words; `NotFound`.
    pub async fn delete(&self, namespace: &Namespace, id: &str) -> Result<Exit> {
        let task = self.get(namespace, id).await?;
        let this = self.clone();
        to_the_end(async move { this.bring_down(task).await }).await
    }

    pub(super) async fn bring_down(self, task: Arc<Task>) -> Result<Exit> {
        let mut retired = task.retired.lock().await;
        if *retired {
            return Err(no_task(task.id()));
        }
        let request = DeleteRequest { id: task.id().to_owned(), ..Default::default() };
        let deleted = task.shim.call::<DeleteResponse>(method::DELETE, &request).await;
        match &deleted {
            Ok(_) => {}
            // The shim knows no such container: there is nothing but the shim to remove.
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(_) if task.shim.has_ended() => {
                drop(retired);
                let exit = task.cleaned_up().await;
                return exit.ok_or_else(|| no_task(task.id()));
            }
            Err(_) => return deleted.map(Exit::from),
        }
        *retired = true;
        let _name = self.registry.withdraw(&task.launcher.bundle.namespace, task.id());
        self.tear_down(&task.launcher, &task.shim).await;
        deleted.map(Exit::from)
    }

    /// Watches a shim, whose container is cleaned up if it dies.
    pub(super) fn watch(&self, task: Arc<Task>) {
        let this = self.clone();
        tokio::spawn(async move {
            task.shim.ended().await;
            let mut retired = task.retired.lock().await;
            if !std::mem::replace(&mut *retired, true) {
                let name = this.registry.withdraw(&task.launcher.bundle.namespace, task.id());
                // In a box: each container that runs would have room for it from the start.
                Box::pin(this.clean_up(&task.launcher, &task.exit, name)).await;
            }
        });
    }

    /// Removes what a dead shim left, and publishes the container's end.
    pub(super) async fn clean_up(&self, launcher: &Launcher, known: &SetOnce<Exit>, name: Reservation) {
        let id = launcher.bundle.id.clone();
        tracing::warn!(%id, "cleaning up after shim disconnected");
        let deleted = launcher.delete(CLEANUP).await.unwrap_or_else(|error| {
            tracing::warn!(%id, "failed to clean up after shim disconnected: {error}");
            Exit { pid: 0, status: UNKNOWN_STATUS, at: Some(SystemTime::now().into()) }
        });
        self.remove_bundle(launcher).await;

        let is_told = known.set(deleted).is_err();
        let Exit { pid, status: exit_status, at: exited_at } = *known.wait().await;
        drop(name);
        if !is_told {
            let event = TaskExit { container_id: id.clone(), id: id.clone(), pid, exit_status, exited_at };
            self.publish(launcher, "/tasks/exit", &event);
        }
        let event = TaskDelete { container_id: id, pid, exit_status, exited_at, ..Default::default() };
        self.publish(launcher, "/tasks/delete", &event);
    }

    pub(super) fn publish(&self, launcher: &Launcher, topic: &str, event: &impl Name) {
        let namespace = launcher.bundle.namespace.as_str();
        if let Err(error) = self.shared.exchange.publish(namespace, topic, any::pack(event)) {
            tracing::error!(id = %launcher.bundle.id, topic, "{error}");
        }
    }

    /// Ends a shim that has no container any more, by force if it does not go, and removes its bundle.
    pub(super) async fn tear_down(&self, launcher: &Launcher, shim: &Shim) {
        if launcher.sandboxed || shim.shut_down(&launcher.bundle.id, SHUTDOWN).await {
            self.remove_bundle(launcher).await;
        } else {
            tracing::warn!(id = %launcher.bundle.id, "the shim does not end, it is killed");
            self.abandon(launcher).await;
        }
    }

    /// Ends by force whatever was started in a bundle, and removes it.
    pub(super) async fn abandon(&self, launcher: &Launcher) {
        if launcher.sandboxed {
            return self.remove_bundle(launcher).await;
        }
        end_processes(launcher).await;
        if let Err(error) = launcher.delete(CLEANUP).await {
            tracing::warn!(id = %launcher.bundle.id, "{error}");
        }
        // A shim that leaves processes behind leaves one more when it is called to delete.
        end_processes(launcher).await;
        self.remove_bundle(launcher).await;
    }

    pub(super) async fn remove_bundle(&self, launcher: &Launcher) {
        // First: a start after a kill finds by the bundle what is still to be undone.
        match self.shared.mounts.deactivate(&context(launcher), &launcher.bundle.id).await {
            Err(error) if error.kind() != Kind::NotFound => {
                tracing::error!(id = %launcher.bundle.id, "{error}");
            }
            _ => {}
        }
        let bundle = launcher.bundle.clone();
        if let Err(error) = blocking(move || bundle.remove()).await {
            tracing::error!(id = %launcher.bundle.id, "{error}");
        }
    }
}

fn context(launcher: &Launcher) -> RequestContext {
    RequestContext { namespace: launcher.bundle.namespace.clone(), lease: None }
}

async fn end_processes(launcher: &Launcher) {
    let directory = launcher.bundle.path.clone();
    let killed = blocking(move || {
        kill_in(&directory);
        Ok(())
    });
    if let Err(error) = killed.await {
        tracing::error!("{error}");
    }
}

/// Runs work that must not stop half-way when its caller goes away.
pub(super) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::because(Kind::Internal, "run", "task procedure", error)),
    }
}

/// Gives work up when its caller has gone.
async fn unless<T>(gone: &CancellationToken, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        () = gone.cancelled() => Err(Error::new(Kind::Canceled, "the caller went away", "")),
    }
}
