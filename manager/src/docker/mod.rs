//! The Docker Engine API over the manager's own objects, in process.
//!
//! `connection` accepts, `route` finds the end point, one file or directory per kind of object answers: it decodes, calls
//! the domain and encodes. Everything lives in the namespace `moby`, as dockerd's does, where the containerd API sees it.
//! Follows the Engine API reference and, where that is silent, dockerd.

mod apparmor;
mod auth;
mod build;
pub mod buildkit;
mod connection;
pub mod container;
mod errand;
mod events;
mod failure;
mod fetch;
mod filters;
mod host;
mod image;
mod message;
mod moment;
mod names;
mod networks;
mod route;
mod runtimes;
pub mod settings;
mod signal;
pub mod sockets;
mod spec;
mod swarm;
mod system;
mod usage;
mod volumes;

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

pub use connection::{serve, serve_tls};

use crate::content::ContentStore;
use crate::db::Database;
use crate::events::Exchange;
use crate::image::{DEFAULT_SNAPSHOTTER, ImageService};
use crate::network::Networks;
use crate::owners::Owners;
use crate::request::{Namespace, RequestContext};
use crate::snapshot::Snapshots;
use crate::store::containers::Containers;
use crate::store::images::{Images, Kept};
use crate::task::Supervisor;
use crate::volume::Volumes;
use apparmor::AppArmor;
use settings::Settings;

/// The namespace of everything that is made through this API.
pub const NAMESPACE: &str = "moby";

/// Where an image is that has lost its name to another, also one that a buildkitd names.
pub const KEPT: Kept = Kept { namespace: NAMESPACE, prefix: image::DANGLING };

/// What the engine stands on.
pub struct Parts {
    /// Metadata.
    pub database: Database,
    /// Blobs.
    pub content: ContentStore,
    /// File systems.
    pub snapshots: Snapshots,
    /// Names of images.
    pub names: Images,
    /// Containers as the containerd API has them.
    pub records: Containers,
    /// Pulling, pushing, unpacking.
    pub images: ImageService,
    /// Running containers.
    pub supervisor: Supervisor,
    /// Where shims tell what happens.
    pub exchange: Exchange,
    /// Directory of everything that outlives a reboot.
    pub root: PathBuf,
    /// Directory of what a reboot may remove.
    pub state: PathBuf,
    /// Name of this installation.
    pub id: String,
    /// The cgroup above those of containers that name none.
    pub cgroup_parent: String,
    /// The socket of the buildkitd that clients of BuildKit are given.
    pub buildkit: Option<PathBuf>,
    /// What holds for the whole engine.
    pub settings: Settings,
    /// The users and groups of new containers, where they live in a user namespace.
    pub owners: Option<Owners>,
}

/// The engine; clones are handles of one.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

/// What the end points use.
pub struct Shared {
    /// What the engine stands on.
    pub parts: Parts,
    /// On whose behalf everything is done.
    pub context: RequestContext,
    /// What happened, for those who listen.
    pub events: events::Bus,
    /// The containers.
    pub containers: container::Register,
    /// The networks.
    pub networks: Networks,
    /// The volumes.
    pub volumes: Volumes,
    /// The builds of BuildKit.
    builds: buildkit::Builds,
    /// Profiles of AppArmor.
    apparmor: AppArmor,
    /// What holds for the whole engine now.
    settings: RwLock<Arc<Settings>>,
}

impl Deref for Engine {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Engine {
    /// An engine over these parts.
    ///
    /// # Errors
    ///
    /// When its directories cannot be made.
    pub fn new(parts: Parts) -> Result<Engine> {
        let context = RequestContext { namespace: Namespace::new(NAMESPACE)?, lease: None };
        let (events, containers) = (events::Bus::default(), container::Register::default());
        let defaults = parts.settings.network.clone();
        let networks = Networks::new(parts.database.clone(), &parts.state, &parts.id, defaults)?;
        let root = parts.owners.as_ref().map(Owners::root);
        let volumes = Volumes::new(parts.database.clone(), &parts.root, root)?;
        let can_shift = |word: &String| word == "remap-ids";
        let snapshotter = parts.snapshots.snapshotter(DEFAULT_SNAPSHOTTER)?;
        if parts.owners.is_some() && !snapshotter.capabilities().iter().any(can_shift) {
            let why =
                "this kernel or the file system below cannot shift owners of overlays (mount_setattr(2))";
            return Err(Error::because(Kind::Unimplemented, "use", "userns-remap", why));
        }
        runtimes::write_scripts(&parts.root, &parts.settings.runtimes)?;
        let apparmor = AppArmor::find();
        let settings = RwLock::new(Arc::new(parts.settings.clone()));
        let builds = buildkit::Builds::default();
        let shared =
            Shared { parts, context, events, containers, networks, volumes, builds, apparmor, settings };
        Ok(Engine(Arc::new(shared)))
    }

    /// Loads what containers are confined by, beside whatever else the daemon does.
    pub fn prepare_confinement(&self) {
        let engine = self.clone();
        tokio::spawn(async move { engine.apparmor.prepare().await });
    }

    /// What holds for the whole engine now.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what can change while serving.
    pub fn reload(&self, new: &Settings) {
        let reloaded = self.settings().reloaded(new);
        if let Err(error) = runtimes::write_scripts(&self.parts.root, &reloaded.runtimes) {
            tracing::error!("{error}");
        }
        let attributes = [
            ("default-runtime", reloaded.default_runtime.clone()),
            ("labels", format!("{:?}", reloaded.labels)),
            ("registry-mirrors", format!("{:?}", reloaded.mirrors)),
            ("insecure-registries", format!("{:?}", reloaded.insecure)),
            ("name", host::name()),
        ];
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(reloaded);
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value)).into();
        self.events.tell("daemon", "reload", &self.parts.id, attributes);
    }
}
