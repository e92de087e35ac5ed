//! Images: pulled, pushed, unpacked, imported and exported.

mod assemble;
mod checkpoint;
pub mod diff;
mod download;
pub mod erofs;
mod export;
mod fetch;
pub mod flights;
mod import;
mod layer_image;
mod lookup;
pub mod manifest;
pub mod media;
pub mod mounts;
mod object;
pub mod platform;
pub mod processor;
pub mod progress;
mod pull;
mod push;
pub mod reference;
mod referrers;
pub mod registry;
mod remote;
pub mod restore;
pub mod unpack;
mod unpacker;
pub mod verifier;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::assemble::Made;
pub use self::export::ExportRequest;
use self::flights::Flights;
pub use self::import::ImportRequest;
use self::manifest::Descriptor;
use self::media::Role;
pub use self::object::PushObjectRequest;
use self::processor::Processors;
use self::progress::Progress;
pub use self::pull::PullRequest;
pub use self::push::PushRequest;
pub use self::referrers::ReferrersRequest;
use self::registry::Registries;
use self::verifier::Verifiers;
use crate::content::ContentStore;
use crate::content::digest::Digest;
use crate::external::differ::Differs;
use crate::labels::Labels;
use crate::request::RequestContext;
use crate::snapshot::Snapshots;
use crate::store::images::{self, Image, Images};
use crate::store::leases::Leases;

/// The snapshotter that is used where the client names none.
pub const DEFAULT_SNAPSHOTTER: &str = "overlayfs";
/// How many blobs are downloaded or uploaded at a time, whoever asks for them.
const TRANSFERS: usize = 4;
/// How many layers are unpacked at a time at most: each takes a few megabytes and keeps more than one core busy.
const MAX_EXTRACTIONS: usize = 4;
/// How long a lease of our own lasts at most, should the daemon be killed before it ends it.
const LEASE_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Images; cheap to clone.
#[derive(Clone)]
pub struct ImageService {
    shared: Arc<Shared>,
}

/// Programs that have a say in what becomes of images.
pub struct Programs {
    /// They decide what may be pulled.
    pub verifiers: Verifiers,
    /// They turn layers of other types into ones that are unpacked here.
    pub processors: Processors,
    /// They apply and make layers.
    pub differs: Differs,
}

struct Shared {
    content: ContentStore,
    snapshots: Snapshots,
    images: Images,
    leases: Leases,
    registries: Registries,
    verifiers: Verifiers,
    processors: Processors,
    differs: Differs,
    /// Whether layers that are EROFS images already may be mounted.
    erofs_layers: AtomicBool,
    /// Blobs being downloaded, by digest.
    downloads: Flights,
    /// Snapshots being made, by namespace, snapshotter and name.
    unpacks: Flights,
    transfers: Semaphore,
    extractions: Semaphore,
}

/// One request at work.
#[derive(Clone)]
pub struct Job {
    /// On whose behalf.
    pub context: RequestContext,
    /// Where its steps are told.
    pub progress: Arc<Progress>,
    /// Cancelled when nobody waits for the result any more.
    pub cancel: CancellationToken,
}

impl Job {
    /// The error of a job that was cancelled, once it is.
    fn check(&self) -> Result<()> {
        match self.cancel.is_cancelled() {
            true => Err(canceled()),
            false => Ok(()),
        }
    }
}

/// The error of a job that was cancelled.
fn canceled() -> Error {
    Error::because(Kind::Canceled, "transfer", "", "the client gave up")
}

/// What is unpacked for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpack {
    /// The platform whose layers are unpacked; all that were fetched where there is none.
    pub platform: Option<platform::Platform>,
    /// Where to.
    pub snapshotter: String,
}

/// Under which further names an image is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtraName {
    /// The name, or what it starts with.
    pub name: String,
    /// Whether it is a prefix.
    pub is_prefix: bool,
    /// Whether an image of that name may be replaced.
    pub allow_overwrite: bool,
    /// Whether the digest is part of the name.
    pub add_digest: bool,
    /// Whether a digest name is left out where the archive gives a name.
    pub skip_named_digest: bool,
}

impl ImageService {
    /// Images over these stores.
    pub fn new(
        content: ContentStore,
        snapshots: Snapshots,
        images: Images,
        leases: Leases,
        registries: Registries,
        programs: Programs,
    ) -> ImageService {
        let Programs { verifiers, processors, differs } = programs;
        ImageService {
            shared: Arc::new(Shared {
                content,
                snapshots,
                images,
                leases,
                registries,
                verifiers,
                processors,
                differs,
                erofs_layers: AtomicBool::new(false),
                downloads: Flights::default(),
                unpacks: Flights::default(),
                transfers: Semaphore::new(TRANSFERS),
                extractions: Semaphore::new(extractions()),
            }),
        }
    }

    /// The programs that apply and make layers before we do.
    pub fn differs(&self) -> &Differs {
        &self.shared.differs
    }

    /// Says whether layers that are EROFS images already may be mounted.
    pub fn set_erofs_layers(&self, are_allowed: bool) {
        self.shared.erofs_layers.store(are_allowed, Ordering::Relaxed);
    }

    /// Gives an image another name.
    pub async fn tag(&self, job: &Job, source: &str, name: &str, labels: &Labels) -> Result<Image> {
        let image = self.shared.images.get(&job.context, source).await?;
        let mut target = Descriptor::of(&image.target.media_type, b"");
        target.digest = Digest::parse(&image.target.digest)?;
        target.size = image.target.size.unsigned_abs();
        target.annotations = image.target.annotations;
        self.store(job, name, labels, &target).await
    }

    /// Runs work whose results are held by a lease until something refers to them: the client's lease, or one that
    /// lasts as long as the work.
    async fn under_lease<T>(&self, job: &Job, work: impl AsyncFnOnce(Job) -> Result<T>) -> Result<T> {
        if job.context.lease.is_some() {
            return work(job.clone()).await;
        }
        let mut own = job.clone();
        own.context = self.begin_lease(&job.context).await?;
        let leased = own.context.clone();
        let result = work(own).await;
        let ended = self.end_lease(&leased).await;
        result.and_then(|value| ended.map(|()| value))
    }

    /// The same context with a lease of its own: what is made in it stays until [`ImageService::end_lease`], named or not.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn begin_lease(&self, context: &RequestContext) -> Result<RequestContext> {
        self.begin_lease_named(context, format!("orlop-{}", unique())).await
    }

    /// The same under a name by which it is found again after a kill.
    ///
    /// # Errors
    ///
    /// Those of the database; `AlreadyExists` for a name in use.
    pub async fn begin_lease_named(&self, context: &RequestContext, id: String) -> Result<RequestContext> {
        let expiry = SystemTime::now() + LEASE_TIME;
        let expiry = prost_types::Timestamp::from(expiry).to_string();
        let labels = Labels::from([("containerd.io/gc.expire".to_owned(), expiry)]);
        self.shared.leases.create(context, &id, labels).await?;
        Ok(RequestContext { lease: Some(id), ..context.clone() })
    }

    /// Ends the lease of a context.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn end_lease(&self, leased: &RequestContext) -> Result<()> {
        let Some(id) = &leased.lease else { return Ok(()) };
        let context = RequestContext { lease: None, ..leased.clone() };
        self.shared.leases.delete(&context, id).await
    }

    /// Gives content a name, whether or not the name was there.
    async fn store(&self, job: &Job, name: &str, labels: &Labels, target: &Descriptor) -> Result<Image> {
        let size = i64::try_from(target.size).map_err(|_| {
            Error::because(Kind::OutOfRange, "create image", name, "the size is out of range")
        })?;
        let image = Image {
            name: name.to_owned(),
            labels: labels.clone(),
            target: images::Descriptor {
                media_type: target.media_type.clone(),
                digest: target.digest.to_string(),
                size,
                annotations: target.annotations.clone(),
            },
            ..Image::default()
        };
        // Without a lease: a name is what the lease waited for.
        match self.shared.images.create(&job.context, image.clone()).await {
            Err(error) if error.kind() == Kind::AlreadyExists => {
                self.shared.images.update(&job.context, image, Vec::new()).await
            }
            result => result,
        }
    }
}

/// containerd's name of a blob's write, under which its progress is told too (`remotes.MakeRefKey`).
pub fn ingest_name(descriptor: &Descriptor) -> String {
    let role = match descriptor.role() {
        Role::Index => "index-",
        Role::Manifest => "manifest-",
        Role::Config => "config-",
        Role::Layer => "layer-",
        Role::Other => "unknown-",
    };
    format!("{role}{}", descriptor.digest)
}

/// How many layers are unpacked at a time.
fn extractions() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, MAX_EXTRACTIONS)
}

/// Text that names something only once: nanoseconds and chance, as containerd's keys have it.
pub fn unique() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    // Every state has its own random keys.
    let chance = RandomState::new().build_hasher().finish();
    format!("{nanoseconds}-{:04x}", chance & 0xffff_ffff)
}

#[cfg(test)]
mod fuzz;
