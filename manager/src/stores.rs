//! Everything that outlives the daemon, opened in order: directories, lock, database, content, layers.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::config::Config;
use crate::content::ContentStore;
use crate::db::Database;
use crate::events::Exchange;
use crate::external::differ::Differs;
use crate::fsck::Checker;
use crate::gc::Collector;
use crate::image::processor::Processors;
use crate::image::registry::{self, Registries};
use crate::image::verifier::Verifiers;
use crate::image::{ImageService, Programs};
use crate::mount::Mounts;
use crate::snapshot::Snapshots;
use crate::store::containers::Containers;
use crate::store::images::Images;
use crate::store::leases::Leases;
use crate::store::namespaces::Namespaces;
use crate::store::sandboxes::Sandboxes;

/// The stores of one root directory, which nobody else uses meanwhile.
pub struct Stores {
    /// The metadata.
    pub database: Database,
    /// Where events go.
    pub exchange: Exchange,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// Containers.
    pub containers: Containers,
    /// Images' names.
    pub images: Images,
    /// Leases.
    pub leases: Leases,
    /// Sandboxes' records.
    pub sandboxes: Sandboxes,
    /// Blobs.
    pub content: ContentStore,
    /// Layers.
    pub snapshots: Snapshots,
    /// Mounts made for clients.
    pub mounts: Mounts,
    /// Images' transfers.
    pub transfers: ImageService,
    /// Removes what nothing refers to.
    pub collector: Collector,
    /// The directory of the Docker API's files.
    docker: PathBuf,
    _lock: Flock<File>,
}

impl Stores {
    /// Opens what is there and makes what is missing. Nothing is repaired or removed.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` while another daemon uses the root, or when a newer version wrote it.
    pub fn open(config: &Config) -> Result<Stores> {
        directory(&config.root)?;
        let lock = lock(&config.root)?;
        let database = Database::open(&config.root.join("meta.redb"))?;
        let exchange = Exchange::default();
        let images = Images::new(database.clone(), exchange.clone());
        let images = match config.docker_address() {
            Some(_) => images.keeping(crate::docker::KEPT),
            None => images,
        };
        let leases = Leases::new(database.clone());
        let content = ContentStore::open(&config.root.join("content"), database.clone(), exchange.clone())?;
        let snapshots = Snapshots::open(
            &config.root,
            &config.state,
            &config.proxy_plugins,
            database.clone(),
            exchange.clone(),
        )?;
        snapshots.set_write_back_delay(Duration::from_secs(config.snapshots.write_back_delay));
        snapshots.set_seals(config.snapshots.fs_verity);
        let mounts = Mounts::new(&config.root, &config.state, database.clone());
        let registries = Registries::new(registry::Settings {
            connect_timeout: Duration::from_secs(config.registry.connect_timeout),
            stall_timeout: Duration::from_secs(config.registry.stall_timeout),
            hosts: config.registry.config_path.clone(),
            ranges: config.registry.ranges,
        });
        let transfers = ImageService::new(
            content.clone(),
            snapshots.clone(),
            images.clone(),
            leases.clone(),
            registries,
            Programs {
                verifiers: Verifiers::new(config.image_verifier.clone()),
                processors: Processors::new(config.stream_processors.clone()),
                differs: Differs::new(&config.proxy_plugins)?,
            },
        );
        transfers.set_erofs_layers(config.snapshots.erofs_layers);
        Ok(Stores {
            namespaces: Namespaces::new(database.clone(), exchange.clone()),
            containers: Containers::new(database.clone(), exchange.clone()),
            sandboxes: Sandboxes::new(database.clone()),
            collector: Collector::new(
                database.clone(),
                content.clone(),
                snapshots.clone(),
                mounts.clone(),
                config.gc.clone(),
            ),
            database,
            exchange,
            images,
            leases,
            content,
            snapshots,
            mounts,
            transfers,
            docker: config.root.join("docker"),
            _lock: lock,
        })
    }

    /// Brings files in line with the records after a stop of any kind, and layers after a power cut.
    pub async fn recover(&self) -> Result<()> {
        self.content.recover()?;
        self.snapshots.recover()?;
        // Before anybody mounts them.
        self.transfers.restore_unsynced().await?;
        self.snapshots.recover_mounts()?;
        self.mounts.recover()
    }

    /// Checks these stores.
    pub fn checker(&self) -> Checker {
        Checker {
            db: self.database.clone(),
            content: self.content.clone(),
            snapshots: self.snapshots.clone(),
            images: self.transfers.clone(),
            docker: self.docker.clone(),
        }
    }
}

/// Makes a directory that others may pass but not list, as shims of other users need its sockets.
pub fn directory(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o711).create(path).context("create", path.display().to_string())
}

/// How files are made that only root may use.
pub fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// Keeps a second daemon off the same root for as long as the value lives.
fn lock(root: &Path) -> Result<Flock<File>> {
    let path = root.join("lock");
    let file = private_file().open(&path).context("create", path.display().to_string())?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        Error::because(
            Kind::FailedPrecondition,
            "lock",
            root.display().to_string(),
            if errno == nix::errno::Errno::EWOULDBLOCK {
                "another orlopd uses this root".to_owned()
            } else {
                errno.to_string()
            },
        )
    })
}
