//! Pushes an image: what the registry lacks, the lowest first, the name last.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::try_unfold;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use reqwest::Body;
use tokio::task::JoinSet;

use super::manifest::{Descriptor, Document, select};
use super::media::{self, Role};
use super::platform::Platform;
use super::reference::Reference;
use super::referrers::as_referrer;
use super::registry::{Access, Repository, Source};
use super::{ImageService, Job, canceled, ingest_name};
use crate::content::at_hand;
use crate::content::digest::Digest;

/// How often an upload is tried.
const ATTEMPTS: u32 = 5;
/// The pause before the second time; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How many bytes are read at a time: less than what the allocator maps on its own.
const PIECE: u64 = 64 << 10;

/// An image to push.
#[derive(Clone, Default)]
pub struct PushRequest {
    /// The image's name here.
    pub name: String,
    /// What to push it as.
    pub reference: String,
    /// How to reach the registry.
    pub access: Access,
    /// The platforms to push; all when there is none.
    pub platforms: Vec<Platform>,
}

/// What is pushed, each once, children before parents.
#[derive(Default)]
struct Tree {
    blobs: Vec<(Descriptor, String)>,
    documents: Vec<(Descriptor, Bytes)>,
    seen: HashSet<Digest>,
}

impl ImageService {
    /// Pushes an image.
    ///
    /// # Errors
    /// `NotFound` where the image or a part of it is not here; otherwise what the registry says.
    pub async fn push(&self, job: &Job, request: PushRequest) -> Result<()> {
        let reference = Reference::parse(&request.reference)?;
        let image = self.shared.images.get(&job.context, &request.name).await?;
        let mut root = Descriptor::of(&image.target.media_type, b"");
        root.digest = Digest::parse(&image.target.digest)?;
        root.size = image.target.size.unsigned_abs();
        let mut tree = Tree::default();
        let root = self.collect(job, &request, root, &mut tree).await?;

        let repository =
            Arc::new(self.shared.registries.repository(&reference, request.access, &job.progress)?);
        repository.choose_for_push().await?;
        job.progress.note(&format!("Pushing to {reference}"), "").await;
        let mut uploads = JoinSet::new();
        for (descriptor, parent) in tree.blobs {
            let (service, job, repository) = (self.clone(), job.clone(), repository.clone());
            uploads.spawn(async move {
                tokio::select! {
                    biased;
                    () = job.cancel.cancelled() => Err(canceled()),
                    result = service.push_blob(&job, &repository, &descriptor, &parent) => result,
                }
            });
        }
        while let Some(upload) = uploads.join_next().await {
            // Dropping the set gives up the other uploads.
            upload
                .map_err(|error| Error::because(Kind::Internal, "push", reference.to_string(), error))??;
        }
        for (descriptor, bytes) in tree.documents {
            job.check()?;
            let is_root = descriptor.digest == root;
            // A tag is given even where the registry has the manifest under another one.
            if !is_root && repository.has_manifest(&descriptor.digest).await? {
                job.progress.blob("already exists", &descriptor, "", descriptor.size).await;
                continue;
            }
            let object = match reference.tag() {
                Some(tag) if is_root => tag,
                _ => descriptor.digest.as_str(),
            };
            job.progress.blob("uploading", &descriptor, "", 0).await;
            put_document(&repository, object, &descriptor, bytes).await?;
            job.progress.blob("complete", &descriptor, "", descriptor.size).await;
        }
        job.progress.note(&format!("Completed push to {reference}"), "").await;
        Ok(())
    }

    /// Finds what is to be pushed; returns the digest of the root, which is the one image's where a single platform of
    /// an index was asked for and the others are not here.
    async fn collect(
        &self,
        job: &Job,
        request: &PushRequest,
        root: Descriptor,
        tree: &mut Tree,
    ) -> Result<Digest> {
        let bytes = self.read_document(&job.context, &root).await?;
        let document = Document::parse(&root.media_type, &root.digest, &bytes)?;
        if let (Document::Index(index), [platform]) = (&document, request.platforms.as_slice()) {
            let best = select(index, platform).into_iter().next().ok_or_else(|| {
                let why = format!("no match for platform {platform}");
                Error::because(Kind::NotFound, "push", request.name.clone(), why)
            })?;
            if !self.is_complete(job, &document).await? {
                return Box::pin(self.collect(job, request, best.clone(), tree)).await;
            }
        }
        let digest = root.digest.clone();
        self.add(job, root, bytes, document, tree).await?;
        Ok(digest)
    }

    /// Whether every manifest of an index is here.
    async fn is_complete(&self, job: &Job, document: &Document) -> Result<bool> {
        for child in document.children() {
            match self.shared.content.info(&job.context, &child.digest).await {
                Ok(_) => {}
                Err(error) if error.kind() == Kind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    async fn add(
        &self,
        job: &Job,
        descriptor: Descriptor,
        bytes: Bytes,
        document: Document,
        tree: &mut Tree,
    ) -> Result<()> {
        if !tree.seen.insert(descriptor.digest.clone()) {
            return Ok(());
        }
        let parent = ingest_name(&descriptor);
        for child in document.children() {
            match child.role() {
                Role::Index | Role::Manifest => {
                    let bytes = self.read_document(&job.context, child).await?;
                    let inner = Document::parse(&child.media_type, &child.digest, &bytes)?;
                    Box::pin(self.add(job, child.clone(), bytes, inner, tree)).await?;
                }
                // Layers of this kind are had from where they come from.
                Role::Layer if media::is_foreign(&child.media_type) => {}
                _ => {
                    if tree.seen.insert(child.digest.clone()) {
                        tree.blobs.push((child.clone(), parent.clone()));
                    }
                }
            }
        }
        tree.documents.push((descriptor, bytes));
        Ok(())
    }

    pub(super) async fn push_blob(
        &self,
        job: &Job,
        repository: &Repository,
        descriptor: &Descriptor,
        parent: &str,
    ) -> Result<()> {
        job.progress.blob("waiting", descriptor, parent, 0).await;
        let _permit = self.shared.transfers.acquire().await.map_err(|_| canceled())?;
        if repository.has_blob(&descriptor.digest).await? {
            job.progress.blob("already exists", descriptor, parent, descriptor.size).await;
            return Ok(());
        }
        let neighbour = self.neighbour(job, repository, &descriptor.digest).await?;
        let (mut attempt, mut pause) = (1, FIRST_PAUSE);
        loop {
            let from = neighbour.as_deref().filter(|_| attempt == 1);
            let Some(upload) = repository.start_upload(&descriptor.digest, from).await? else {
                job.progress.blob("mounted", descriptor, parent, descriptor.size).await;
                return Ok(());
            };
            job.progress.blob("uploading", descriptor, parent, 0).await;
            let blob = self.shared.content.open_blob(&job.context, &descriptor.digest).await?;
            let source = Blob {
                file: Arc::new(blob.file),
                job: job.clone(),
                descriptor: descriptor.clone(),
                parent: parent.to_owned(),
            };
            match upload.send(descriptor, &source).await {
                Ok(()) => break,
                Err(error) if error.kind() != Kind::Unavailable || attempt == ATTEMPTS => return Err(error),
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    (attempt, pause) = (attempt + 1, pause * 2);
                }
            }
        }
        job.progress.blob("complete", descriptor, parent, descriptor.size).await;
        Ok(())
    }

    /// Another repository of the same registry that the blob was pulled from.
    async fn neighbour(&self, job: &Job, repository: &Repository, digest: &Digest) -> Result<Option<String>> {
        let reference = repository.reference();
        let key = format!("containerd.io/distribution.source.{}", reference.domain());
        let info = self.shared.content.info(&job.context, digest).await?;
        let sources = info.labels.get(&key).map(String::as_str).unwrap_or_default();
        Ok(sources
            .split(',')
            .find(|source| !source.is_empty() && *source != reference.path())
            .map(str::to_owned))
    }
}

/// Puts a manifest or index under a tag or its digest, and on the list of its subject's referrers where the registry does not
/// keep that by itself.
pub(super) async fn put_document(
    repository: &Repository,
    object: &str,
    descriptor: &Descriptor,
    bytes: Bytes,
) -> Result<()> {
    let is_listed = repository.put_manifest(object, descriptor, bytes.clone()).await?;
    if !is_listed && let Some((subject, referrer)) = as_referrer(descriptor, &bytes) {
        repository.add_referrer(&subject, &referrer).await?;
    }
    Ok(())
}

/// A blob of the content store, whose upload is told as it goes on.
struct Blob {
    file: Arc<File>,
    job: Job,
    descriptor: Descriptor,
    parent: String,
}

impl Source for Blob {
    fn open(&self, offset: u64, length: u64) -> Body {
        let (file, job, descriptor, parent) =
            (self.file.clone(), self.job.clone(), self.descriptor.clone(), self.parent.clone());
        let end = offset + length;
        Body::wrap_stream(try_unfold(offset, move |at| {
            if at > offset {
                job.progress.step("uploading", &descriptor, &parent, at);
            }
            let (file, piece) = (file.clone(), PIECE.min(end - at));
            async move {
                if piece == 0 {
                    return Ok::<_, Error>(None);
                }
                Ok(Some((at_hand::read_or_wait(&file, at, piece as usize).await?, at + piece)))
            }
        }))
    }
}
