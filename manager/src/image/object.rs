//! Single objects of a registry: a manifest or blob that is fetched and not stored, and one that is pushed by itself.

use std::sync::Arc;

use bytes::Bytes;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::manifest::Descriptor;
use super::media::Role;
use super::progress::Progress;
use super::push::put_document;
use super::reference::Reference;
use super::registry::{Access, BlobReader};
use super::{ImageService, Job, ingest_name};
use crate::content::digest::{Digest, Hasher};

/// The longest piece of a manifest, in bytes.
const PIECE: usize = 256 << 10;

/// An object on its way from a registry.
pub enum Object {
    /// What is left of a manifest or index, which is known to be the right one.
    Document(Bytes),
    /// A blob.
    Blob(Box<Coming>),
}

/// A blob of which a part came.
pub struct Coming {
    digest: Digest,
    reader: BlobReader,
    hasher: Hasher,
}

impl Object {
    /// Its next piece, or `None` when all of it came.
    ///
    /// # Errors
    ///
    /// Those of the registry; `FailedPrecondition` instead of the end of a blob that is not the one that was asked for.
    pub async fn next(self) -> Result<Option<(Bytes, Object)>> {
        match self {
            Object::Document(mut rest) => {
                let piece = rest.split_to(rest.len().min(PIECE));
                Ok((!piece.is_empty()).then_some((piece, Object::Document(rest))))
            }
            Object::Blob(mut coming) => match coming.reader.next().await? {
                Some(piece) => {
                    coming.hasher.update(&piece);
                    Ok(Some((piece, Object::Blob(coming))))
                }
                None => coming.check().map(|()| None),
            },
        }
    }
}

impl Coming {
    /// Whether it was the right one.
    fn check(self) -> Result<()> {
        let (got, name) = (self.hasher.finish(), self.digest.to_string());
        if got != self.digest {
            let why = format!("the registry sent other content, digest {got}");
            return Err(Error::because(Kind::FailedPrecondition, "fetch", name, why));
        }
        Ok(())
    }
}

/// A blob of the content store to push by itself.
pub struct PushObjectRequest {
    /// Which one.
    pub digest: Digest,
    /// What it is, which says how it is pushed.
    pub media_type: String,
    /// Where to.
    pub reference: String,
    /// How to reach the registry.
    pub access: Access,
}

impl ImageService {
    /// Finds what a reference means at its registry: a manifest or index, or a blob if it is pinned to one's digest.
    ///
    /// # Errors
    ///
    /// Those of the registry.
    pub async fn fetch_object(&self, reference: &str, access: Access) -> Result<Object> {
        let reference = Reference::parse(reference)?;
        let progress = Arc::new(Progress::default());
        let repository = Arc::new(self.shared.registries.repository(&reference, access, &progress)?);
        // Blobs first: there are registries that fail where a blob is taken for a manifest.
        if let Some(digest) = reference.digest() {
            match repository.resolve_blob(&Digest::parse(digest)?).await {
                Ok(found) => {
                    return Ok(Object::Blob(Box::new(Coming {
                        hasher: Hasher::new(found.digest.algorithm()),
                        reader: repository.blob(&found, 0),
                        digest: found.digest,
                    })));
                }
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let found = repository.resolve().await?;
        repository.manifest(&found).await.map(Object::Document)
    }

    /// Pushes one blob of the content store; a manifest or index gets the reference's tag.
    ///
    /// # Errors
    ///
    /// `NotFound` where it is not here, `AlreadyExists` where the registry has it under that name; otherwise what the registry
    /// says.
    pub async fn push_object(&self, job: &Job, request: PushObjectRequest) -> Result<()> {
        let reference = Reference::parse(&request.reference)?;
        let digest = &request.digest;
        let info = self.shared.content.info(&job.context, digest).await?;
        let descriptor = Descriptor {
            digest: digest.clone(),
            size: info.size,
            ..Descriptor::of(&request.media_type, b"")
        };
        let repository =
            Arc::new(self.shared.registries.repository(&reference, request.access, &job.progress)?);
        repository.choose_for_push().await?;
        let exists = || Error::new(Kind::AlreadyExists, "push", format!("{digest} to {reference}"));
        if !matches!(descriptor.role(), Role::Index | Role::Manifest) {
            if repository.has_blob(digest).await? {
                return Err(exists());
            }
            return self.push_blob(job, &repository, &descriptor, &ingest_name(&descriptor)).await;
        }
        let object = reference.tag().unwrap_or(digest.as_str());
        if repository.is_manifest(object, digest).await? {
            return Err(exists());
        }
        let bytes = self.read_document(&job.context, &descriptor).await?;
        put_document(&repository, object, &descriptor, bytes).await
    }
}
