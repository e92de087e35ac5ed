//! Brings blobs into the content store: documents whole, layers as they come.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::download::Download;
use super::manifest::{Descriptor, Document, MAX_DOCUMENT};
use super::registry::{BlobReader, Repository};
use super::{ImageService, Job, canceled, ingest_name};
use crate::content::Writer;
use crate::content::digest::Digest;
use crate::labels::Labels;
use crate::request::RequestContext;
use crate::store::leases::{self, Resource};

/// How many bytes are written at a time.
const BUFFER: usize = 512 << 10;
/// How often one looks whether another writer of the same blob is done.
const RETRY: Duration = Duration::from_millis(50);

/// What a download is part of.
pub struct Origin {
    /// The repository.
    pub repository: Arc<Repository>,
    /// The job.
    pub job: Job,
    /// The blobs that went on from a start which turned out wrong; shared by all attempts of a pull.
    wrong_starts: Arc<Mutex<HashSet<Digest>>>,
}

impl Origin {
    /// Of a job's first attempt.
    pub fn new(repository: Arc<Repository>, job: Job) -> Origin {
        Origin { repository, job, wrong_starts: Arc::default() }
    }

    /// The same for another job, such as a part of this one.
    pub fn with_job(&self, job: Job) -> Origin {
        Origin { repository: self.repository.clone(), job, wrong_starts: self.wrong_starts.clone() }
    }

    /// Fetches, once more for every place that turned out to send something else and for every start of a blob that was none
    /// of it. What was verified stays.
    pub async fn fetch_anywhere<T, F: Future<Output = Result<T>> + Send>(
        &self,
        fetch: impl Fn() -> F,
    ) -> Result<T> {
        loop {
            let lessons = self.lessons();
            match fetch().await {
                Err(_) if self.lessons() > lessons => self.job.check()?,
                result => return result,
            }
        }
    }

    /// How often something was found out that makes another attempt worth it.
    fn lessons(&self) -> usize {
        self.repository.distrusted() + self.wrong_starts().len()
    }

    fn wrong_starts(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.wrong_starts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what an earlier attempt left of a blob may be gone on from: not once that was wrong, nor what may be from a
    /// place that sent something else. So each blob is wrong in this way once at most.
    fn may_go_on(&self, digest: &Digest) -> bool {
        self.repository.distrusted() == 0 && !self.wrong_starts().contains(digest)
    }

    /// The label that says where a blob comes from, so that a push to a neighbour can take it over.
    fn label(&self) -> (String, String) {
        let reference = self.repository.reference();
        (format!("containerd.io/distribution.source.{}", reference.domain()), reference.path().to_owned())
    }
}

/// What became of an attempt to write a blob.
enum Opened {
    /// It is there already.
    Known,
    /// It can be written.
    Writer(Writer),
}

impl ImageService {
    /// Fetches an index or manifest, if it is not there, and labels it so that what it lists is kept.
    pub(super) async fn fetch_document(&self, origin: &Origin, descriptor: &Descriptor) -> Result<Document> {
        let Job { context, progress, .. } = &origin.job;
        let digest = &descriptor.digest;
        origin.job.check()?;
        let _turn = self.shared.downloads.enter(digest.as_str()).await;
        let bytes = match self.read_document(context, descriptor).await {
            Ok(bytes) => {
                progress.blob("already exists", descriptor, "", descriptor.size).await;
                bytes
            }
            Err(error) if error.kind() == Kind::NotFound => {
                progress.blob("downloading", descriptor, "", 0).await;
                origin.repository.manifest(descriptor).await?
            }
            Err(error) => return Err(error),
        };
        let document = Document::parse(&descriptor.media_type, digest, &bytes)?;
        let mut labels: Labels = document.reference_labels(|_| true).into_iter().collect();
        labels.extend([origin.label()]);
        self.keep(context, descriptor, bytes, labels).await?;
        progress.blob("complete", descriptor, "", descriptor.size).await;
        Ok(document)
    }

    /// Fetches a small blob (an image's configuration), if it is not there.
    pub(super) async fn fetch_small(
        &self,
        origin: &Origin,
        descriptor: &Descriptor,
        parent: &str,
    ) -> Result<Bytes> {
        if descriptor.size > MAX_DOCUMENT {
            let why = format!("{} bytes are more than a configuration may have", descriptor.size);
            return Err(Error::because(Kind::ResourceExhausted, "fetch", descriptor.digest.to_string(), why));
        }
        let download = Download::new();
        self.fetch_blob(origin, descriptor, parent, &download).await?;
        self.read_document(&origin.job.context, descriptor).await
    }

    /// A document from the content store.
    pub(super) async fn read_document(
        &self,
        context: &RequestContext,
        descriptor: &Descriptor,
    ) -> Result<Bytes> {
        let bytes = self.shared.content.read_all(context, &descriptor.digest, MAX_DOCUMENT).await?;
        check_size(descriptor, bytes.len() as u64)?;
        Ok(bytes.into())
    }

    /// Writes a document that is at hand; one that is there gets the labels it lacks.
    pub(super) async fn keep(
        &self,
        context: &RequestContext,
        descriptor: &Descriptor,
        bytes: Bytes,
        labels: Labels,
    ) -> Result<()> {
        match self.open(context, descriptor).await? {
            Opened::Known => self.label(context, &descriptor.digest, labels).await,
            Opened::Writer(mut writer) => {
                // What an earlier attempt left is not worth resuming.
                if writer.status().offset != descriptor.size {
                    if writer.status().offset > 0 {
                        writer.truncate(0).await?;
                    }
                    writer.write(bytes).await?;
                }
                self.commit(context, descriptor, writer, labels).await
            }
        }
    }

    /// Adds labels to a blob that is there; those that it has stay as they are.
    pub(super) async fn label(
        &self,
        context: &RequestContext,
        digest: &Digest,
        labels: Labels,
    ) -> Result<()> {
        let info = self.shared.content.info(context, digest).await?;
        let missing: Labels = labels.into_iter().filter(|(key, _)| !info.labels.contains_key(key)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let paths = missing.keys().map(|key| format!("labels.{key}")).collect();
        self.shared.content.update(context, digest, missing, paths).await.map(|_| ())
    }

    /// Fetches a blob, once however many ask for it at the same time. Whoever reads along learns of the end too.
    pub(super) async fn fetch_blob(
        &self,
        origin: &Origin,
        descriptor: &Descriptor,
        parent: &str,
        download: &Download,
    ) -> Result<()> {
        let result = tokio::select! {
            biased;
            () = origin.job.cancel.cancelled() => Err(canceled()),
            result = self.fetch_now(origin, descriptor, parent, download) => result,
        };
        download.end(result.as_ref().copied());
        result
    }

    async fn fetch_now(
        &self,
        origin: &Origin,
        descriptor: &Descriptor,
        parent: &str,
        download: &Download,
    ) -> Result<()> {
        let Job { context, progress, .. } = &origin.job;
        progress.blob("waiting", descriptor, parent, 0).await;
        let _turn = self.shared.downloads.enter(descriptor.digest.as_str()).await;
        let labels = Labels::from([origin.label()]);
        // The lease holds the blob, before it is there, but not the write: that outlives a pull that fails, so that the
        // next one goes on from there.
        if let Some(lease) = &context.lease {
            let resource = Resource { id: descriptor.digest.to_string(), kind: leases::CONTENT.to_owned() };
            self.shared.leases.add_resource(context, lease, resource).await?;
        }
        let context = &RequestContext { namespace: context.namespace.clone(), lease: None };
        let mut writer = match self.open(context, descriptor).await? {
            Opened::Writer(writer) => writer,
            Opened::Known => {
                check_size(descriptor, self.shared.content.info(context, &descriptor.digest).await?.size)?;
                progress.blob("already exists", descriptor, parent, descriptor.size).await;
                return self.label(context, &descriptor.digest, labels).await;
            }
        };
        let _permit = self.shared.transfers.acquire().await.map_err(|_| canceled())?;
        let mut offset = writer.status().offset;
        if offset > descriptor.size || !origin.may_go_on(&descriptor.digest) {
            writer.truncate(0).await?;
            offset = 0;
        }
        progress.blob("downloading", descriptor, parent, offset).await;
        let mut reader = None;
        let received = match writer.file()? {
            Some(file) => {
                if origin.repository.has_others() || offset > 0 {
                    download.note_elsewhere();
                }
                download.begin(file, offset);
                let reader = reader.insert(origin.repository.blob(descriptor, offset));
                self.receive(origin, descriptor, parent, download, &mut writer, reader).await
            }
            None => Ok(()),
        };
        let done = match received {
            Ok(()) => self.commit(context, descriptor, writer, labels).await,
            Err(error) if error.kind() == Kind::FailedPrecondition => {
                drop(writer);
                self.throw_away(context, descriptor).await;
                Err(error)
            }
            Err(error) => Err(error),
        };
        if let (Err(error), Some(reader)) = (&done, &reader)
            && error.kind() == Kind::FailedPrecondition
        {
            let text = if offset > 0 {
                // Who is to blame is not known: whoever sent the start may be another one.
                origin.wrong_starts().insert(descriptor.digest.clone());
                Some("fetching it from the start")
            } else {
                reader.distrust().then_some("asking elsewhere")
            };
            if let Some(text) = text {
                progress.note(&format!("wrong content of {}: {text}", descriptor.digest), "").await;
            }
        }
        done?;
        progress.blob("complete", descriptor, parent, descriptor.size).await;
        Ok(())
    }

    /// Writes what comes in. What came before a failure is kept, so that the next attempt goes on from there.
    async fn receive(
        &self,
        origin: &Origin,
        descriptor: &Descriptor,
        parent: &str,
        download: &Download,
        writer: &mut Writer,
        reader: &mut BlobReader,
    ) -> Result<()> {
        let mut offset = writer.status().offset;
        let mut buffer = BytesMut::with_capacity(BUFFER);
        loop {
            let next = reader.next().await;
            if let Ok(Some(chunk)) = &next {
                buffer.extend_from_slice(chunk);
            }
            let is_last = !matches!(next, Ok(Some(_)));
            if buffer.len() >= BUFFER || (is_last && !buffer.is_empty()) {
                offset += buffer.len() as u64;
                writer.write(buffer.split().freeze()).await?;
                buffer.reserve(BUFFER);
                download.advance(offset);
                origin.job.progress.step("downloading", descriptor, parent, offset);
            }
            if next?.is_none() {
                return Ok(());
            }
        }
    }

    /// Throws away the start of a blob that is no start to go on from.
    async fn throw_away(&self, context: &RequestContext, descriptor: &Descriptor) {
        // Ignoring: the write may be gone already, and whoever calls this has an error to tell.
        let _ = self.shared.content.abort(context, &ingest_name(descriptor)).await;
    }

    /// Opens a write, waiting for another writer of the same name to finish or give up.
    async fn open(&self, context: &RequestContext, descriptor: &Descriptor) -> Result<Opened> {
        let name = ingest_name(descriptor);
        loop {
            match self.shared.content.writer(context, &name, descriptor.size, Some(&descriptor.digest)).await
            {
                Ok(writer) => return Ok(Opened::Writer(writer)),
                Err(error) if error.kind() == Kind::AlreadyExists => return Ok(Opened::Known),
                Err(error) if error.kind() == Kind::Unavailable => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Finishes a write. Bytes that turn out wrong are thrown away, since they are no start to go on from.
    async fn commit(
        &self,
        context: &RequestContext,
        descriptor: &Descriptor,
        writer: Writer,
        labels: Labels,
    ) -> Result<()> {
        match writer.commit(descriptor.size, Some(&descriptor.digest), labels.clone()).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == Kind::AlreadyExists => {
                self.label(context, &descriptor.digest, labels).await
            }
            Err(error) if error.kind() == Kind::FailedPrecondition => {
                self.throw_away(context, descriptor).await;
                Err(Error::because(Kind::FailedPrecondition, "verify", descriptor.digest.to_string(), error))
            }
            Err(error) => Err(error),
        }
    }
}

/// The blob must be as long as whoever names it says.
fn check_size(descriptor: &Descriptor, size: u64) -> Result<()> {
    if size == descriptor.size {
        return Ok(());
    }
    let why = format!("it has {size} bytes, its descriptor says {}", descriptor.size);
    Err(Error::because(Kind::FailedPrecondition, "use", descriptor.digest.to_string(), why))
}
