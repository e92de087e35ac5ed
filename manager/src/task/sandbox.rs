//! Sandboxes that run: shims which serve groups of containers by the shim protocol's Sandbox service.
//!
//! Follows containerd's sandbox controller `shim` in procedure and error texts. A container that names a running
//! sandbox is served by its shim; one whose sandbox is unknown here gets a shim of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop_proto::containerd::runtime::sandbox::v1 as api;
use orlop_proto::containerd::runtime::sandbox::v1::sandbox_ttrpc as method;
use orlop_proto::containerd::types::{Metric, Mount, Platform};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost_types::Any;

use super::launch::{Bootstrap, Launcher, TTRPC};
use super::log::Log;
use super::runtime::Choice;
use super::shim::Shim;
use super::supervisor::to_the_end;
use super::{Supervisor, bundle};
use crate::db::blocking;
use crate::request::Namespace;

/// How long the shim of a sandbox that could not be made may take to end.
const CLEANUP: Duration = Duration::from_secs(5);

/// A sandbox to be brought up.
#[derive(Clone, Debug, Default)]
pub struct CreateSandbox {
    /// Name of the sandbox.
    pub id: String,
    /// Name of the runtime.
    pub runtime: String,
    /// Options of the runtime.
    pub runtime_options: Option<Any>,
    /// Its specification, as the bundle's `config.json`; may be empty.
    pub spec: Vec<u8>,
    /// Mounts that make its root file system.
    pub rootfs: Vec<Mount>,
    /// What the shim is to know besides.
    pub options: Option<Any>,
    /// Path of its network namespace.
    pub network: String,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// The shim of one sandbox.
pub struct Sandbox {
    launcher: Launcher,
    shim: Shim,
    bootstrap: Bootstrap,
}

/// Where a sandbox's containers are served.
pub(super) struct Group {
    id: String,
    /// The shim's program.
    shim: PathBuf,
    bootstrap: Bootstrap,
}

impl Group {
    /// A sandbox of an external controller, which tells an address such as `ttrpc+unix:///path`.
    pub fn external(id: &str, address: &str, version: u32, shim: &Path) -> Result<Group> {
        let (protocol, address) = address.split_once('+').unwrap_or((TTRPC, address));
        let answer = serde_json::json!({ "version": version, "address": address, "protocol": protocol });
        let bootstrap = Bootstrap::parse(answer.to_string().as_bytes())?;
        Ok(Group { id: id.to_owned(), shim: shim.to_owned(), bootstrap })
    }
}

/// Sandboxes by namespace and name; none under a name that is taken by one being brought up.
type Slots = BTreeMap<(Namespace, String), Option<Arc<Sandbox>>>;

/// Which sandboxes run. Clones share them.
#[derive(Clone, Default)]
pub struct Running {
    slots: Arc<Mutex<Slots>>,
}

impl Running {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running sandbox of a name.
    pub fn find(&self, namespace: &Namespace, id: &str) -> Option<Arc<Sandbox>> {
        self.slots().get(&(namespace.clone(), id.to_owned())).cloned().flatten()
    }

    /// Takes a name; says whether it was free.
    fn reserve(&self, namespace: &Namespace, id: &str) -> bool {
        let key = (namespace.clone(), id.to_owned());
        let mut slots = self.slots();
        let free = !slots.contains_key(&key);
        if free {
            slots.insert(key, None);
        }
        free
    }

    fn put(&self, sandbox: Arc<Sandbox>) {
        let bundle = &sandbox.launcher.bundle;
        let key = (bundle.namespace.clone(), bundle.id.clone());
        self.slots().insert(key, Some(sandbox));
    }

    fn remove(&self, namespace: &Namespace, id: &str) {
        self.slots().remove(&(namespace.clone(), id.to_owned()));
    }
}

impl Sandbox {
    /// Where the shim listens, as `ttrpc+unix:///path`, and the version of its task service.
    pub fn endpoint(&self) -> (String, u32) {
        (format!("ttrpc+{}", self.bootstrap.address), self.bootstrap.version)
    }

    /// What its containers need to join it.
    pub(super) fn group(&self) -> Group {
        Group { id: self.id(), shim: self.launcher.shim.clone(), bootstrap: self.bootstrap.clone() }
    }

    fn id(&self) -> String {
        self.launcher.bundle.id.clone()
    }

    /// What may run in it.
    pub async fn platform(&self) -> Result<Option<Platform>> {
        let request = api::PlatformRequest { sandbox_id: self.id() };
        let answer = self.shim.call_sandbox::<api::PlatformResponse>(method::PLATFORM, &request).await;
        Ok(answer.map_err(failed("failed to get sandbox platform"))?.platform)
    }

    /// Ends what runs in it; one that has ended is no error.
    pub async fn stop(&self, timeout_secs: u32) -> Result<()> {
        let request = api::StopSandboxRequest { sandbox_id: self.id(), timeout_secs };
        match self.shim.call_sandbox::<api::StopSandboxResponse>(method::STOP_SANDBOX, &request).await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unavailable) => Ok(()),
            Err(error) => Err(failed("failed to stop sandbox")(error)),
        }
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Result<api::WaitSandboxResponse> {
        let id = self.id();
        let request = api::WaitSandboxRequest { sandbox_id: id.clone() };
        let answer = self.shim.call_sandbox(method::WAIT_SANDBOX, &request).await;
        answer.map_err(failed(format!("failed to wait sandbox {id}")))
    }

    /// How it is.
    pub async fn status(&self, verbose: bool) -> Result<api::SandboxStatusResponse> {
        let id = self.id();
        let request = api::SandboxStatusRequest { sandbox_id: id.clone(), verbose };
        let answer = self.shim.call_sandbox(method::SANDBOX_STATUS, &request).await;
        answer.map_err(failed(format!("failed to query sandbox {id} status")))
    }

    /// What it uses.
    pub async fn metrics(&self) -> Result<Option<Metric>> {
        let request = api::SandboxMetricsRequest { sandbox_id: self.id() };
        let answer: api::SandboxMetricsResponse =
            self.shim.call_sandbox(method::SANDBOX_METRICS, &request).await?;
        Ok(answer.metrics)
    }
}

fn failed(operation: impl Into<String>) -> impl FnOnce(Error) -> Error {
    let operation = operation.into();
    move |error| Error::because(error.kind(), operation, "", error)
}

impl Supervisor {
    /// The running sandbox of a name.
    ///
    /// # Errors
    ///
    /// `NotFound` when none runs under it.
    pub fn sandbox(&self, namespace: &Namespace, id: &str) -> Result<Arc<Sandbox>> {
        self.sandboxes
            .find(namespace, id)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("sandbox {id:?}"), ""))
    }

    /// Starts a sandbox's shim and makes the sandbox in it.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` when it runs; the shim's own. Nothing is left.
    pub async fn create_sandbox(&self, namespace: &Namespace, create: CreateSandbox) -> Result<()> {
        if !self.sandboxes.reserve(namespace, &create.id) {
            let text = format!("sandbox {} already running", create.id);
            return Err(Error::new(Kind::AlreadyExists, text, ""));
        }
        let (this, namespace) = (self.clone(), namespace.clone());
        to_the_end(async move {
            let id = create.id.clone();
            let made = this.bring_up_sandbox(&namespace, create).await;
            match made {
                Ok(sandbox) => this.keep_sandbox(sandbox),
                Err(error) => {
                    this.sandboxes.remove(&namespace, &id);
                    return Err(error);
                }
            }
            Ok(())
        })
        .await
    }

    async fn bring_up_sandbox(&self, namespace: &Namespace, create: CreateSandbox) -> Result<Sandbox> {
        let CreateSandbox { id, runtime, runtime_options, spec, rootfs, options, network, annotations } =
            create;
        let not_started = || failed(format!("failed to start new shim for sandbox {id}"));
        let Choice { shim, options: runtime_options } =
            self.shared.runtimes.choose(&runtime, runtime_options).map_err(not_started())?;
        // Shims read their group from it.
        let spec = if spec.is_empty() { b"{}".to_vec() } else { spec };
        let (bundles, owner, name) = (self.shared.sandbox_bundles.clone(), namespace.clone(), id.clone());
        let bundle = blocking(move || bundles.create(&owner, &name, &spec)).await?;
        let launcher = Launcher { shim, bundle, daemon: self.shared.daemon.clone(), sandboxed: false };
        let (shim, bootstrap) = match self.start_shim(&launcher, runtime_options.as_ref()).await {
            Ok(started) => started,
            Err(error) => {
                self.abandon(&launcher).await;
                return Err(not_started()(error));
            }
        };
        let request = api::CreateSandboxRequest {
            sandbox_id: id.clone(),
            bundle_path: launcher.bundle.path.display().to_string(),
            rootfs,
            options,
            netns_path: network,
            annotations: annotations.into_iter().collect(),
        };
        let sandbox = Sandbox { launcher, shim, bootstrap };
        match sandbox.shim.call_sandbox::<api::CreateSandboxResponse>(method::CREATE_SANDBOX, &request).await
        {
            Ok(_) => Ok(sandbox),
            Err(error) => {
                self.end_sandbox(&sandbox).await;
                Err(failed(format!("failed to create sandbox {id}"))(error))
            }
        }
    }

    /// Starts a sandbox that was made.
    ///
    /// # Errors
    ///
    /// The shim's own; the sandbox is gone then.
    pub async fn start_sandbox(
        &self,
        namespace: &Namespace,
        id: &str,
    ) -> Result<(Arc<Sandbox>, api::StartSandboxResponse)> {
        let sandbox = self
            .sandboxes
            .find(namespace, id)
            .ok_or_else(|| Error::exactly(Kind::Unknown, format!("unable to find sandbox {id:?}")))?;
        let request = api::StartSandboxRequest { sandbox_id: id.to_owned() };
        match sandbox.shim.call_sandbox(method::START_SANDBOX, &request).await {
            Ok(started) => Ok((sandbox, started)),
            Err(error) => {
                self.sandboxes.remove(namespace, id);
                self.end_sandbox(&sandbox).await;
                Err(failed(format!("failed to start sandbox {id}"))(error))
            }
        }
    }

    /// Ends a sandbox with its shim, and removes its bundle.
    ///
    /// # Errors
    ///
    /// `NotFound`, and the shim's own.
    pub async fn shut_down_sandbox(&self, namespace: &Namespace, id: &str) -> Result<()> {
        let sandbox = self.sandbox(namespace, id)?;
        let request = api::ShutdownSandboxRequest { sandbox_id: id.to_owned() };
        let told = sandbox
            .shim
            .call_sandbox::<api::ShutdownSandboxResponse>(method::SHUTDOWN_SANDBOX, &request)
            .await;
        match told {
            Err(error) if !sandbox.shim.has_ended() => {
                return Err(failed("failed to shutdown sandbox")(error));
            }
            _ => {}
        }
        let this = self.clone();
        let namespace = namespace.clone();
        to_the_end(async move {
            this.sandboxes.remove(&namespace, &sandbox.id());
            this.tear_down(&sandbox.launcher, &sandbox.shim).await;
            Ok(())
        })
        .await
    }

    async fn end_sandbox(&self, sandbox: &Sandbox) {
        let request = api::ShutdownSandboxRequest { sandbox_id: sandbox.id() };
        let told =
            sandbox.shim.call_sandbox::<api::ShutdownSandboxResponse>(method::SHUTDOWN_SANDBOX, &request);
        // A shim that does not listen is ended by force.
        let _ = tokio::time::timeout(CLEANUP, told).await;
        self.tear_down(&sandbox.launcher, &sandbox.shim).await;
    }

    /// Keeps a sandbox until its shim ends.
    fn keep_sandbox(&self, sandbox: Sandbox) {
        let sandbox = Arc::new(sandbox);
        self.sandboxes.put(sandbox.clone());
        let this = self.clone();
        tokio::spawn(async move {
            sandbox.shim.ended().await;
            let bundle = &sandbox.launcher.bundle;
            let still_there = this.sandboxes.find(&bundle.namespace, &bundle.id);
            if still_there.is_some_and(|found| Arc::ptr_eq(&found, &sandbox)) {
                tracing::warn!(id = %bundle.id, "cleaning up after a sandbox's shim disconnected");
                this.abandon(&sandbox.launcher).await;
                this.sandboxes.remove(&bundle.namespace, &bundle.id);
            }
        });
    }

    /// Connects a container to its sandbox's shim.
    pub(super) async fn join_sandbox(&self, launcher: &Launcher, group: &Group) -> Result<Shim> {
        let saved = serde_json::to_vec(&group.bootstrap)
            .map_err(|error| Error::because(Kind::Internal, "encode", "bootstrap.json", error))?;
        let (bundle, program, id) = (launcher.bundle.clone(), group.shim.clone(), group.id.clone());
        blocking(move || {
            bundle.save_sandbox(&id)?;
            bundle.save_shim(&program)?;
            bundle.save_bootstrap(&saved)
        })
        .await?;
        Shim::connect(&group.bootstrap, launcher.bundle.namespace.as_str()).await
    }

    /// Takes up the sandboxes found below the state directory.
    pub(super) async fn recover_sandboxes(&self) -> Result<()> {
        let bundles = self.shared.sandbox_bundles.clone();
        let found = blocking(move || {
            let found = bundles.existing()?;
            bundles.sweep_work()?;
            Ok(found)
        })
        .await?;
        for bundle in found {
            self.recover_sandbox(bundle).await;
        }
        Ok(())
    }

    async fn recover_sandbox(&self, bundle: bundle::Bundle) {
        let id = bundle.id.clone();
        let (shim, bootstrap) = (bundle.shim().unwrap_or_default(), bundle.bootstrap());
        let launcher = Launcher { shim, bundle, daemon: self.shared.daemon.clone(), sandboxed: false };
        if let Some(bootstrap) = bootstrap.and_then(|answer| Bootstrap::parse(&answer).ok())
            && let Ok(shim) = Shim::connect(&bootstrap, launcher.bundle.namespace.as_str()).await
        {
            match Log::open(&launcher.bundle.log()) {
                Ok(log) => drop(tokio::spawn(log.copy(id, shim.clone()))),
                Err(error) => tracing::warn!(id, "{error}"),
            }
            self.keep_sandbox(Sandbox { launcher, shim, bootstrap });
            return;
        }
        tracing::info!(id, "removing a sandbox whose shim is gone");
        self.abandon(&launcher).await;
    }
}
