//! What is lost is brought back: blobs from the registry that they came from, layers from their blobs.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::manifest::{Config, Descriptor, Document, MAX_DOCUMENT, chain_ids};
use super::media;
use super::reference::Reference;
use super::registry::{Access, Repository};
use super::{ImageService, canceled, diff, mounts, unpack};
use crate::content::digest::Digest;
use crate::content::health::Replacement;
use crate::db::blocking;
use crate::labels::Labels;
use crate::request::{Namespace, RequestContext};
use crate::snapshot::{Rebuilt, Unsynced};

/// Prefix of the label, followed by a registry, whose value are the repositories that a blob came from.
const SOURCE_LABEL: &str = "containerd.io/distribution.source.";
/// How many bytes of two files are compared at a time.
const COMPARED: usize = 256 << 10;
/// How many paths in which a layer differs are told.
const TOLD: usize = 3;

/// The blob that a snapshot was unpacked from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSource {
    /// Digest of the blob.
    pub blob: Digest,
    /// Its media type: it may have to go through programs first.
    pub media_type: String,
    /// Digest of what it decompresses to.
    pub diff_id: String,
}

/// The blobs of snapshots, by namespace and name.
pub type LayerSources = HashMap<(String, String), LayerSource>;

impl ImageService {
    /// Which blobs the images' snapshots are made of. What cannot be read has none.
    pub async fn layer_sources(&self) -> Result<LayerSources> {
        let mut sources = LayerSources::new();
        let mut seen = HashSet::new();
        for (namespace, image) in self.shared.images.everywhere().await? {
            let context = RequestContext { namespace: Namespace::new(namespace.as_str())?, lease: None };
            let mut open = vec![(image.target.media_type, image.target.digest)];
            while let Some((media_type, digest)) = open.pop() {
                let Ok(digest) = Digest::parse(&digest) else { continue };
                if !seen.insert((namespace.clone(), digest.clone())) {
                    continue;
                }
                let Ok(bytes) = self.shared.content.read_all(&context, &digest, MAX_DOCUMENT).await else {
                    continue;
                };
                match Document::parse(&media_type, &digest, &bytes) {
                    Ok(Document::Index(index)) => open.extend(
                        index.manifests.into_iter().map(|child| (child.media_type, child.digest.to_string())),
                    ),
                    Ok(Document::Manifest(manifest)) => {
                        let config =
                            self.shared.content.read_all(&context, &manifest.config.digest, MAX_DOCUMENT);
                        let Ok(bytes) = config.await else { continue };
                        let Ok(config) = Config::parse(&manifest.config.digest, &bytes) else { continue };
                        let diff_ids = config.rootfs.diff_ids;
                        for ((name, diff_id), layer) in
                            chain_ids(&diff_ids).into_iter().zip(diff_ids).zip(manifest.layers)
                        {
                            if self.shared.processors.is_layer(&layer.media_type) {
                                let (blob, media_type) = (layer.digest, layer.media_type);
                                let source = LayerSource { blob, media_type, diff_id };
                                sources.entry((namespace.clone(), name)).or_insert(source);
                            }
                        }
                    }
                    Err(_) => {}
                }
            }
        }
        Ok(sources)
    }

    /// Unpacks again the layers that the machine went down on before they were on the disk, and has the others written
    /// back. What cannot be brought back is logged and stays as it is.
    pub async fn restore_unsynced(&self) -> Result<()> {
        let snapshots = self.shared.snapshots.clone();
        let unsynced = blocking(move || snapshots.unsynced()).await?;
        let (doubtful, waiting): (Vec<_>, Vec<_>) = unsynced.into_iter().partition(|one| one.is_doubtful);
        for layer in waiting {
            self.shared.snapshots.write_back(layer);
        }
        if doubtful.is_empty() {
            return Ok(());
        }
        let sources = self.layer_sources().await?;
        let mut without_image = Vec::new();
        for layer in doubtful {
            let name = format!("{}/{}", layer.snapshotter, layer.name);
            let Some(source) = sources.get(&(layer.namespace.clone(), layer.name.clone())) else {
                without_image.push(layer);
                continue;
            };
            let restored = match self.unpack_again(&layer, source).await {
                Ok(rebuilt) => blocking(move || rebuilt.adopt()).await,
                Err(error) => Err(error),
            };
            match restored {
                Ok(()) => tracing::info!(
                    layer = name,
                    "unpacked again, as the machine went down before it was on the disk"
                ),
                Err(error) => {
                    tracing::warn!(layer = name, %error, "the machine went down before this layer was on the disk")
                }
            }
        }
        self.give_up(without_image).await
    }

    /// Removes layers that may be damaged, that no image has yet and nothing stands on: they are those of a pull that the machine went
    /// down on, and the next one must not take them for whole. What else has such a layer keeps it, and it is logged.
    async fn give_up(&self, mut layers: Vec<Unsynced>) -> Result<()> {
        loop {
            let mut left = Vec::new();
            let before = layers.len();
            for layer in layers {
                let context =
                    RequestContext { namespace: Namespace::new(layer.namespace.as_str())?, lease: None };
                // Layers of images have the digest of what they and those below them are for a name.
                let is_images = Digest::parse(&layer.name).is_ok();
                let snapshots = &self.shared.snapshots;
                let is_gone =
                    is_images && snapshots.remove(&context, &layer.snapshotter, &layer.name).await.is_ok();
                if !is_gone {
                    left.push(layer);
                }
            }
            if left.len() == before {
                for layer in left {
                    let name = format!("{}/{}", layer.snapshotter, layer.name);
                    tracing::warn!(
                        layer = name,
                        "the machine went down before this layer was on the disk, and no image has its blob"
                    );
                }
                return Ok(());
            }
            // One that was removed may have stood on another.
            layers = left;
        }
    }

    /// Unpacks a snapshot's blob beside the snapshot.
    pub async fn unpack_again(&self, snapshot: &Unsynced, source: &LayerSource) -> Result<Rebuilt> {
        let Unsynced { namespace, snapshotter, name, .. } = snapshot;
        let context = RequestContext { namespace: Namespace::new(namespace.as_str())?, lease: None };
        let _permit = self.shared.extractions.acquire().await.map_err(|_| canceled())?;
        let blob = self.shared.content.open_blob(&context, &source.blob).await?;
        let snapshots = self.shared.snapshots.clone();
        let (snapshotter, name) = (snapshotter.clone(), name.clone());
        let namespace = namespace.clone();
        let (layer, expected) = (source.blob.to_string(), source.diff_id.clone());
        let input = self.shared.processors.layer(&source.media_type, Box::new(blob.file))?;
        let service = self.clone();
        let media_type = source.media_type.clone();
        blocking(move || {
            let rebuilt = snapshots.rebuild(&namespace, &snapshotter, &name)?;
            let target = mounts::target(&rebuilt.mounts)?;
            let place = rebuilt.image_place();
            let form = service.form(&media_type, &layer, place.as_ref())?;
            let applied = match place {
                Some(place) => {
                    mounts::unpack(input, form, &place).and_then(|made| made.finish(&target.lowers))
                }
                None => unpack::apply(input, target),
            };
            let applied =
                applied.map_err(|error| Error::because(error.kind(), "apply layer", layer.clone(), error))?;
            if applied.diff_id != expected {
                let why = format!("it unpacks to {}, the configuration says {expected}", applied.diff_id);
                return Err(Error::because(Kind::FailedPrecondition, "apply layer", layer, why));
            }
            Ok(rebuilt)
        })
        .await
    }

    /// What a layer differs in from what was unpacked again, in words; nothing where it does not.
    pub async fn compare(&self, rebuilt: Rebuilt) -> Result<(Rebuilt, Option<String>)> {
        blocking(move || {
            if let Some((fresh, old)) = rebuilt.images() {
                let text = "its image is not that of its blob".to_owned();
                return Ok((rebuilt, (!has_same_bytes(&fresh, &old)?).then_some(text)));
            }
            let (fresh, old) = rebuilt.files()?;
            let open = |path: &std::path::Path| {
                File::open(path).map(OwnedFd::from).context("open", path.display().to_string())
            };
            let fresh = open(&fresh)?;
            let names = match open(&old) {
                Ok(old) => diff::differences(fresh, old)?,
                Err(error) if error.kind() == Kind::NotFound => {
                    return Ok((rebuilt, Some("its files are missing".to_owned())));
                }
                Err(error) => return Err(error),
            };
            Ok((rebuilt, describe(&names)))
        })
        .await
    }

    /// Fetches a blob anew from where its labels say it came from, and puts it in the place of what is there.
    pub async fn fetch_again(&self, digest: &Digest, size: u64, labels: &Labels) -> Result<()> {
        let mut failure = None;
        for (key, repositories) in labels {
            let Some(domain) = key.strip_prefix(SOURCE_LABEL) else { continue };
            for repository in repositories.split(',').filter(|name| !name.is_empty()) {
                match self.fetch_from(&format!("{domain}/{repository}@{digest}"), digest, size).await {
                    Ok(()) => return Ok(()),
                    Err(error) => failure = Some(error),
                }
            }
        }
        Err(failure.unwrap_or_else(|| {
            Error::because(Kind::NotFound, "fetch", digest.to_string(), "nothing says where it came from")
        }))
    }

    async fn fetch_from(&self, place: &str, digest: &Digest, size: u64) -> Result<()> {
        let reference = Reference::parse(place)?;
        let access = Access::default();
        let repository = self.shared.registries.repository(&reference, access, &Arc::default())?;
        let repository = Arc::new(repository);
        let mut descriptor = Descriptor::of(media::OCI_MANIFEST, b"");
        (descriptor.digest, descriptor.size) = (digest.clone(), size);
        match self.fetch_into(&repository, &descriptor).await {
            // Registries keep manifests elsewhere.
            Err(error) if size <= MAX_DOCUMENT => {
                let Ok(bytes) = repository.manifest(&descriptor).await else { return Err(error) };
                let mut replacement = self.replacement(digest).await?;
                blocking(move || {
                    replacement.write(&bytes)?;
                    replacement.finish()
                })
                .await
            }
            result => result,
        }
    }

    async fn fetch_into(&self, repository: &Arc<Repository>, descriptor: &Descriptor) -> Result<()> {
        let _permit = self.shared.transfers.acquire().await.map_err(|_| canceled())?;
        let mut replacement = self.replacement(&descriptor.digest).await?;
        let mut reader = repository.blob(descriptor, 0);
        while let Some(bytes) = reader.next().await? {
            replacement = blocking(move || {
                replacement.write(&bytes)?;
                Ok(replacement)
            })
            .await?;
        }
        blocking(move || replacement.finish()).await
    }

    async fn replacement(&self, digest: &Digest) -> Result<Replacement> {
        let (content, digest) = (self.shared.content.clone(), digest.clone());
        blocking(move || content.replacement(&digest)).await
    }
}

/// Whether two files hold the same.
fn has_same_bytes(one: &Path, other: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).context("open", path.display().to_string());
    let (mut one, mut other) = (open(one)?, open(other)?);
    let size = |file: &File| file.metadata().map(|found| found.len()).context("inspect", "image");
    if size(&one)? != size(&other)? {
        return Ok(false);
    }
    let (mut ours, mut theirs) = (vec![0; COMPARED], vec![0; COMPARED]);
    loop {
        let length = one.read(&mut ours).context("read", "image")?;
        if length == 0 {
            return Ok(true);
        }
        // A file that cannot be read, or ends before its size, is another one.
        if other.read_exact(&mut theirs[..length]).is_err() || ours[..length] != theirs[..length] {
            return Ok(false);
        }
    }
}

/// Paths in words.
fn describe(names: &[String]) -> Option<String> {
    let told = names.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        count if count <= TOLD => Some(format!("its files are not those of its blob: {told}")),
        count => Some(format!("its files are not those of its blob: {told} and {} more", count - TOLD)),
    }
}
