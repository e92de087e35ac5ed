//! Pulls an image: resolve, fetch what is missing, unpack as it comes, name it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::download::Download;
use super::fetch::Origin;
use super::manifest::{Config, Descriptor, Document, Manifest, select};
use super::media::Role;
use super::platform::Platform;
use super::reference::Reference;
use super::registry::Access;
use super::unpacker::Stack;
use super::{ExtraName, ImageService, Job, Unpack, ingest_name};
use crate::content::digest::Digest;
use crate::labels::Labels;
use crate::metrics::METRICS;
use crate::store::images::Image;

/// How deep indexes may refer to indexes.
const MAX_DEPTH: u32 = 4;

/// An image to pull.
#[derive(Clone, Default)]
pub struct PullRequest {
    /// What to ask the registry for.
    pub reference: String,
    /// How to reach it.
    pub access: Access,
    /// The name to store it under; without one, only the extra names count.
    pub name: String,
    /// Labels of the image.
    pub labels: Labels,
    /// Further names.
    pub extra_names: Vec<ExtraName>,
    /// The platforms to fetch; all when there is none.
    pub platforms: Vec<Platform>,
    /// Whether manifests and configurations of the other platforms are fetched too.
    pub all_metadata: bool,
    /// What to unpack.
    pub unpacks: Vec<Unpack>,
}

/// What was found below an image's root.
#[derive(Default)]
struct Found {
    /// Images whose layers are wanted, with their platform where the index tells it.
    wanted: Vec<(Descriptor, Manifest, Option<Platform>)>,
}

impl ImageService {
    /// Pulls an image and returns it under each of its names.
    ///
    /// # Errors
    /// `NotFound` where the registry does not have it, `DeadlineExceeded` where it hangs, `FailedPrecondition` where
    /// it sends something else. Nothing is left of a failed pull but verified blobs that the next collection takes,
    /// and starts of layers that the next pull goes on from.
    pub async fn pull(&self, job: &Job, request: PullRequest) -> Result<Vec<Image>> {
        let begin = Instant::now();
        let pulled = self.pull_now(job, request).instrument(tracing::debug_span!("pull")).await;
        METRICS.work("pull", &pulled, begin.elapsed());
        pulled
    }

    async fn pull_now(&self, job: &Job, request: PullRequest) -> Result<Vec<Image>> {
        let reference = Reference::parse(&request.reference)?;
        for unpack in &request.unpacks {
            self.shared.snapshots.snapshotter(&unpack.snapshotter)?;
        }
        let repository =
            Arc::new(self.shared.registries.repository(&reference, request.access.clone(), &job.progress)?);
        job.progress.note(&format!("Resolving from {reference}"), "").await;
        let root = tokio::select! {
            biased;
            () = job.cancel.cancelled() => return Err(super::canceled()),
            root = repository.resolve() => root?,
        };
        if !matches!(root.role(), Role::Index | Role::Manifest) {
            let why = format!("media type {:?} is not that of an image", root.media_type);
            return Err(Error::because(Kind::Unimplemented, "pull", reference.to_string(), why));
        }
        self.shared.verifiers.check(&reference.to_string(), &root).await?;
        let images = self
            .under_lease(job, async |job: Job| {
                let origin = Arc::new(Origin::new(repository, job.clone()));
                let mut found = Found::default();
                self.discover(&origin, &request, &root, None, MAX_DEPTH, &mut found).await?;
                // With the metadata of all platforms there is something to store all the same, as with containerd.
                if found.wanted.is_empty() && !request.all_metadata {
                    let platforms: Vec<String> = request.platforms.iter().map(Platform::to_string).collect();
                    let why = format!("no match for platform {}", platforms.join(", "));
                    return Err(Error::because(Kind::NotFound, "pull", reference.to_string(), why));
                }
                for (descriptor, manifest, platform) in &found.wanted {
                    let pull =
                        || self.pull_manifest(&origin, &request, descriptor, manifest, platform.as_ref());
                    origin.fetch_anywhere(pull).await?;
                }
                self.store_all(&job, &request, &root).await
            })
            .await?;
        job.progress.note(&format!("Completed pull from {reference}"), "").await;
        Ok(images)
    }

    /// Fetches indexes and manifests, and notes the images whose layers are wanted.
    async fn discover(
        &self,
        origin: &Origin,
        request: &PullRequest,
        descriptor: &Descriptor,
        platform: Option<Platform>,
        depth: u32,
        found: &mut Found,
    ) -> Result<()> {
        if depth == 0 {
            let digest = descriptor.digest.to_string();
            return Err(Error::because(Kind::InvalidArgument, "pull", digest, "indexes are nested too deep"));
        }
        let index = match self.fetch_document(origin, descriptor).await? {
            Document::Manifest(manifest) => {
                found.wanted.push((descriptor.clone(), manifest, platform));
                return Ok(());
            }
            Document::Index(index) => index,
        };
        let mut wanted: Vec<&Descriptor> = Vec::new();
        if request.platforms.is_empty() {
            wanted
                .extend(index.manifests.iter().filter(|m| matches!(m.role(), Role::Index | Role::Manifest)));
        }
        for platform in &request.platforms {
            // The best match alone: lesser variants would be fetched for nothing.
            let best = select(&index, platform).into_iter().next();
            wanted.extend(best.filter(|best| !wanted.contains(best)));
        }
        for child in &index.manifests {
            if wanted.contains(&child) {
                Box::pin(self.discover(origin, request, child, child.platform.clone(), depth - 1, found))
                    .await?;
            } else if request.all_metadata
                && child.role() == Role::Manifest
                && let Document::Manifest(manifest) = self.fetch_document(origin, child).await?
            {
                self.fetch_small(origin, &manifest.config, &ingest_name(child)).await?;
            }
        }
        Ok(())
    }

    /// Fetches an image's layers, several at a time, and unpacks each while it comes in. What was unpacked of a layer that turns
    /// out wrong is thrown away.
    async fn pull_manifest(
        &self,
        origin: &Arc<Origin>,
        request: &PullRequest,
        descriptor: &Descriptor,
        manifest: &Manifest,
        platform: Option<&Platform>,
    ) -> Result<()> {
        let parent = ingest_name(descriptor);
        let config_bytes = self.fetch_small(origin, &manifest.config, &parent).await?;
        let is_image = manifest.config.role() == Role::Config;
        let config =
            if is_image { Some(Config::parse(&manifest.config.digest, &config_bytes)?) } else { None };
        if let (Some(config), None, false) = (&config, platform, request.platforms.is_empty()) {
            // Only the configuration says what an image without an index is for.
            let offered = &config.platform;
            let runs = request.platforms.iter().any(|wanted| wanted.rank(offered).is_some());
            if !runs && !offered.architecture.is_empty() {
                if request.all_metadata {
                    return Ok(());
                }
                let why = format!("no match for platform: the image is for {offered}");
                return Err(Error::because(Kind::NotFound, "pull", request.reference.clone(), why));
            }
        }
        let unpacks: Vec<&Unpack> = match &config {
            Some(config) => {
                request.unpacks.iter().filter(|unpack| unpack.concerns(platform, config)).collect()
            }
            None => Vec::new(),
        };
        if let (Some(config), false) = (&config, unpacks.is_empty()) {
            Stack::check(manifest, config, &self.shared.processors, &self.shared.differs)?;
            unpacks.iter().try_for_each(|unpack| self.check_forms(&unpack.snapshotter, manifest))?;
        }

        // When one layer fails, the others are given up.
        let mut job = origin.job.clone();
        job.cancel = job.cancel.child_token();
        let origin = Arc::new(origin.with_job(job.clone()));
        let (reference, digest) = (request.reference.as_str(), descriptor.digest.as_str());
        let claimed = match &config {
            Some(config) => {
                let stack = Stack { reference, digest, manifest, config, downloads: &HashMap::new() };
                self.claim(&job, &unpacks, &stack).await?
            }
            None => 0,
        };
        let mut downloads: HashMap<Digest, Arc<Download>> = HashMap::new();
        let mut fetches = JoinSet::new();
        for layer in manifest.layers.iter().skip(claimed) {
            if downloads.contains_key(&layer.digest) {
                continue;
            }
            let download = Download::new();
            downloads.insert(layer.digest.clone(), download.clone());
            let (service, origin, layer, parent) =
                (self.clone(), origin.clone(), layer.clone(), parent.clone());
            fetches.spawn(async move { service.fetch_blob(&origin, &layer, &parent, &download).await });
        }
        let unpacked = async {
            if let Some(config) = &config {
                let stack = Stack { reference, digest, manifest, config, downloads: &downloads };
                for unpack in unpacks {
                    self.unpack(&job, &unpack.snapshotter, &stack).await?;
                }
            }
            Ok(())
        };
        let fetched = async {
            let mut result = Ok(());
            while let Some(fetch) = fetches.join_next().await {
                let fetch = fetch.unwrap_or_else(|error| {
                    Err(Error::because(Kind::Internal, "fetch", request.reference.clone(), error))
                });
                if fetch.is_err() {
                    job.cancel.cancel();
                    // The first failure is the cause; the others only follow from it.
                    result = result.and(fetch);
                }
            }
            result
        };
        let unpacked = async {
            let result: Result<()> = unpacked.await;
            if result.is_err() {
                job.cancel.cancel();
            }
            result
        };
        let (unpacked, fetched) = tokio::join!(unpacked, fetched);
        match (unpacked, fetched) {
            (Ok(()), fetched) => fetched,
            // Each side gives up when the other fails; the one that was not told to knows why.
            (Err(unpack), Err(fetch)) if unpack.kind() == Kind::Canceled => Err(fetch),
            (Err(unpack), _) => Err(unpack),
        }
    }

    async fn store_all(&self, job: &Job, request: &PullRequest, root: &Descriptor) -> Result<Vec<Image>> {
        let mut names = Vec::new();
        if !request.name.is_empty() {
            names.push(request.name.clone());
        }
        names.extend(
            request.extra_names.iter().filter(|extra| !extra.is_prefix).map(|extra| extra.name.clone()),
        );
        if names.is_empty() {
            names.push(Reference::parse(&request.reference)?.to_string());
        }
        let mut images = Vec::new();
        for name in names {
            images.push(self.store(job, &name, &request.labels, root).await?);
            job.progress.note("saved", &name).await;
        }
        Ok(images)
    }
}

impl Unpack {
    /// Whether an image is to be unpacked.
    pub(super) fn concerns(&self, platform: Option<&Platform>, config: &Config) -> bool {
        match &self.platform {
            None => true,
            Some(wanted) => {
                let offered = platform.unwrap_or(&config.platform);
                offered.architecture.is_empty() || wanted.rank(offered).is_some()
            }
        }
    }
}
