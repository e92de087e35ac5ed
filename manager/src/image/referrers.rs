//! What refers to an image: listed, and fetched so that it stays as long as the image.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use serde::Deserialize;

use super::download::Download;
use super::fetch::Origin;
use super::manifest::{Descriptor, Document, select};
use super::media::Role;
use super::platform::Platform;
use super::reference::Reference;
use super::registry::{Access, Referrer};
use super::{ImageService, Job, canceled, ingest_name};
use crate::content::digest::Digest;
use crate::labels::Labels;

/// Prefix of the labels by which a manifest keeps what refers to it.
const KEPT: &str = "containerd.io/gc.ref.content.referrer.";
/// How many digits of a digest name a label.
const DIGITS: usize = 12;
/// How deep indexes may refer to indexes.
const MAX_DEPTH: u32 = 4;

/// Whose referrers are wanted.
#[derive(Clone, Default)]
pub struct ReferrersRequest {
    /// The image, as its registry knows it.
    pub reference: String,
    /// How to reach that.
    pub access: Access,
    /// The platforms whose manifests count as well as the index that lists them; all when there is none.
    pub platforms: Vec<Platform>,
    /// What they are for; anything where nothing is said.
    pub artifact_type: Option<String>,
    /// Whether those of what is here are fetched.
    pub is_fetch: bool,
}

impl ImageService {
    /// What refers to an image and to its manifests: each with the digest of what it refers to.
    ///
    /// Fetched ones stay as long as what they refer to. Those of a type that is not a manifest's are listed alone.
    ///
    /// # Errors
    ///
    /// Those of the registry; with `is_fetch`, `NotFound` where the image is not here and `FailedPrecondition` for a manifest
    /// that does not refer to what the list says.
    pub async fn referrers(&self, job: &Job, request: ReferrersRequest) -> Result<Vec<(Digest, Referrer)>> {
        let reference = Reference::parse(&request.reference)?;
        let repository =
            Arc::new(self.shared.registries.repository(&reference, request.access.clone(), &job.progress)?);
        // Given up within the lease, which then ends.
        let work = async |job: Job| {
            tokio::select! {
                biased;
                () = job.cancel.cancelled() => Err(canceled()),
                found = self.find_referrers(Origin::new(repository, job.clone()), &request) => found,
            }
        };
        match request.is_fetch {
            true => self.under_lease(job, work).await,
            false => work(job.clone()).await,
        }
    }

    async fn find_referrers(
        &self,
        origin: Origin,
        request: &ReferrersRequest,
    ) -> Result<Vec<(Digest, Referrer)>> {
        let root = origin.repository.resolve().await?;
        let mut found = Vec::new();
        for subject in self.subjects(&origin, &root, request).await? {
            for referrer in origin.repository.referrers(&subject, request.artifact_type.as_deref()).await? {
                if request.is_fetch {
                    self.fetch_referrer(&origin, &subject, &referrer).await?;
                }
                found.push((subject.clone(), referrer));
            }
        }
        Ok(found)
    }

    /// The digests that count: the image's, and those of its manifests for the platforms.
    async fn subjects(
        &self,
        origin: &Origin,
        root: &Descriptor,
        request: &ReferrersRequest,
    ) -> Result<Vec<Digest>> {
        let mut subjects = vec![root.digest.clone()];
        if root.role() == Role::Index {
            let bytes = match self.read_document(&origin.job.context, root).await {
                Err(error) if error.kind() == Kind::NotFound && !request.is_fetch => {
                    origin.repository.manifest(root).await?
                }
                bytes => bytes?,
            };
            if let Document::Index(index) = Document::parse(&root.media_type, &root.digest, &bytes)? {
                let best = |platform| select(&index, platform).into_iter().next();
                let wanted: Vec<&Descriptor> = match request.platforms.as_slice() {
                    [] => index.manifests.iter().collect(),
                    platforms => platforms.iter().filter_map(best).collect(),
                };
                for child in wanted {
                    if !subjects.contains(&child.digest) {
                        subjects.push(child.digest.clone());
                    }
                }
            }
        }
        if request.is_fetch {
            // What is not here cannot keep anything.
            self.shared.content.info(&origin.job.context, &root.digest).await?;
            let mut here = Vec::new();
            for subject in subjects {
                match self.shared.content.info(&origin.job.context, &subject).await {
                    Ok(_) => here.push(subject),
                    Err(error) if error.kind() == Kind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            return Ok(here);
        }
        Ok(subjects)
    }

    /// Fetches a manifest with all that it lists, and has what it refers to keep it.
    async fn fetch_referrer(&self, origin: &Origin, subject: &Digest, referrer: &Referrer) -> Result<()> {
        let descriptor = &referrer.descriptor;
        if !matches!(descriptor.role(), Role::Index | Role::Manifest) {
            return Ok(());
        }
        self.fetch_document(origin, descriptor).await?;
        let context = &origin.job.context;
        let bytes = self.read_document(context, descriptor).await?;
        if as_referrer(descriptor, &bytes).is_none_or(|(named, _)| named != *subject) {
            let why = format!("the registry says that it refers to {subject}");
            let name = descriptor.digest.to_string();
            return Err(Error::because(Kind::FailedPrecondition, "fetch referrer", name, why));
        }
        origin.fetch_anywhere(|| self.fetch_all(origin, descriptor, MAX_DEPTH)).await?;
        let digits = &descriptor.digest.hex()[..DIGITS];
        let kept = Labels::from([(format!("{KEPT}{digits}"), descriptor.digest.to_string())]);
        self.label(context, subject, kept).await
    }

    async fn fetch_all(&self, origin: &Origin, descriptor: &Descriptor, depth: u32) -> Result<()> {
        if depth == 0 {
            let digest = descriptor.digest.to_string();
            return Err(Error::because(
                Kind::InvalidArgument,
                "fetch",
                digest,
                "indexes are nested too deep",
            ));
        }
        let document = self.fetch_document(origin, descriptor).await?;
        let parent = ingest_name(descriptor);
        for child in document.children() {
            match child.role() {
                Role::Index | Role::Manifest => Box::pin(self.fetch_all(origin, child, depth - 1)).await?,
                _ => self.fetch_blob(origin, child, &parent, &Download::new()).await?,
            }
        }
        Ok(())
    }
}

/// What a manifest or index refers to, if to anything, and how the list of that has it.
pub(super) fn as_referrer(descriptor: &Descriptor, bytes: &[u8]) -> Option<(Digest, Referrer)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Referring {
        subject: Descriptor,
        artifact_type: Option<String>,
        config: Option<Descriptor>,
        annotations: Option<BTreeMap<String, String>>,
    }
    let referring: Referring = serde_json::from_slice(bytes).ok()?;
    let of_config = referring.config.map(|config| config.media_type);
    let descriptor = Descriptor {
        annotations: referring.annotations.unwrap_or_default(),
        platform: None,
        ..descriptor.clone()
    };
    let artifact_type = referring.artifact_type.or(of_config).unwrap_or_default();
    Some((referring.subject.digest, Referrer { descriptor, artifact_type }))
}
