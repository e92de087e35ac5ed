//! Makes snapshots of layers: one per layer, each once however many ask.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::future::join_all;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::download::{Download, Follow};
use super::manifest::{Config, Descriptor, Manifest, chain_ids};
use super::media::{self, Form};
use super::processor::Processors;
pub use super::remote::Stack;
use super::unpack::{self, Applied, Place, Target};
use super::{ImageService, Job, canceled, mounts, unique};
use crate::content::digest::Digest;
use crate::db::blocking;
use crate::external::differ::Differs;
use crate::labels::Labels;
use crate::metrics::METRICS;
use crate::snapshot::{Mount, UnpackPlace};
use crate::store::leases::{self, Resource};

/// Label that names what a snapshot will be, or is, committed as.
pub(super) const SNAPSHOT_REFERENCE: &str = "containerd.io/snapshot.ref";
/// How often a new key is tried should one be taken.
const KEY_ATTEMPTS: u32 = 3;

impl Stack<'_> {
    /// Checks, before anything is fetched or made, that the layers can be unpacked at all.
    pub fn check(
        manifest: &Manifest,
        config: &Config,
        processors: &Processors,
        differs: &Differs,
    ) -> Result<()> {
        let fail = |kind, object: &str, why: String| Err(Error::because(kind, "unpack", object, why));
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            let why = format!("the manifest has {layers} layers, the configuration {diff_ids}");
            return fail(Kind::InvalidArgument, manifest.config.digest.as_str(), why);
        }
        for diff_id in &config.rootfs.diff_ids {
            Digest::parse(diff_id)?;
        }
        for layer in &manifest.layers {
            if differs.is_empty() && !processors.is_layer(&layer.media_type) {
                let why = format!("media type {:?} is not that of a layer", media::bare(&layer.media_type));
                return fail(Kind::Unimplemented, layer.digest.as_str(), why);
            }
        }
        Ok(())
    }
}

impl ImageService {
    /// Unpacks a stack of layers and labels the configuration with the topmost snapshot, which keeps them all.
    pub(super) async fn unpack(&self, job: &Job, snapshotter: &str, stack: &Stack<'_>) -> Result<()> {
        let diff_ids = &stack.config.rootfs.diff_ids;
        let chain = chain_ids(diff_ids);
        let mut start = 0;
        for (index, name) in chain.iter().enumerate().rev() {
            if self.hold_snapshot(job, snapshotter, name).await? {
                start = index + 1;
                break;
            }
        }
        let kind = self.shared.snapshots.snapshotter(snapshotter)?;
        // A program that applies layers goes by the mounts.
        let is_apart = kind.unpack_place(0).is_some() && self.shared.differs.is_empty();
        self.check_forms(snapshotter, stack.manifest)?;
        let is_remote = kind.is_remote();
        let steps = (start..chain.len()).map(|index| Step {
            layer: &stack.manifest.layers[index],
            diff_id: &diff_ids[index],
            parent: if index == 0 { "" } else { &chain[index - 1] },
            name: &chain[index],
            download: stack.downloads.get(&stack.manifest.layers[index].digest),
            is_apart,
            labels: stack.labels(index, &chain[index], is_remote),
            below: None,
        });
        if is_apart {
            self.unpack_apart(job, snapshotter, steps).await?;
        } else {
            for step in steps {
                job.check()?;
                self.unpack_layer(job, snapshotter, step).await?;
            }
        }
        let Some(top) = chain.last() else { return Ok(()) };
        let label = Labels::from([(format!("containerd.io/gc.ref.snapshot.{snapshotter}"), top.clone())]);
        self.label(&job.context, &stack.manifest.config.digest, label).await
    }

    /// Checks, before anything is fetched or made, that a snapshotter takes the forms of all layers. Programs that apply layers
    /// know for themselves.
    pub(super) fn check_forms(&self, snapshotter: &str, manifest: &Manifest) -> Result<()> {
        if !self.shared.differs.is_empty() {
            return Ok(());
        }
        let place = self.shared.snapshots.snapshotter(snapshotter)?.unpack_place(0);
        let check = |layer: &Descriptor| self.form(&layer.media_type, layer.digest.as_str(), place.as_ref());
        manifest.layers.iter().try_for_each(|layer| check(layer).map(drop))
    }

    /// What a layer holds, if it may be unpacked to that place.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` for an EROFS image where nobody has said that strangers' images may be mounted, and where it would
    /// have to become files.
    pub(super) fn form(&self, media_type: &str, layer: &str, place: Option<&UnpackPlace>) -> Result<Form> {
        let form = self.shared.processors.form(media_type);
        let are_allowed = self.shared.erofs_layers.load(Ordering::Relaxed);
        let why = match (form, are_allowed, place) {
            (Form::Archive, ..) | (Form::Image, true, Some(UnpackPlace::Image(_))) => return Ok(form),
            (Form::Image, false, _) => {
                "it is an EROFS image, which the kernel would read as a stranger made it: `erofs_layers` in [snapshots] allows that"
            }
            (Form::Image, true, _) => "it is an EROFS image, which the snapshotter erofs alone mounts",
        };
        Err(Error::because(Kind::FailedPrecondition, "unpack", layer, why))
    }

    /// Whether the snapshot is there; if so, the job's lease holds it from now on.
    pub(super) async fn hold_snapshot(&self, job: &Job, snapshotter: &str, name: &str) -> Result<bool> {
        match self.shared.snapshots.stat(&job.context, snapshotter, name).await {
            Ok(_) => {}
            Err(error) if error.kind() == Kind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        if let Some(lease) = &job.context.lease {
            let resource =
                Resource { id: name.to_owned(), kind: format!("{}/{snapshotter}", leases::SNAPSHOTS) };
            self.shared.leases.add_resource(&job.context, lease, resource).await?;
        }
        Ok(true)
    }

    /// Unpacks layers side by side and puts each on top of the one below when both are complete.
    async fn unpack_apart<'a>(
        &self,
        job: &Job,
        snapshotter: &str,
        steps: impl Iterator<Item = Step<'a>>,
    ) -> Result<()> {
        // When one layer fails, the others are given up.
        let mut job = job.clone();
        job.cancel = job.cancel.child_token();
        let mut below: Option<oneshot::Receiver<()>> = None;
        let mut layers = Vec::new();
        for step in steps {
            let (done, above) = oneshot::channel();
            let below = below.replace(above);
            let job = job.clone();
            layers.push(async move {
                let result = match job.check() {
                    Ok(()) => self.unpack_layer(&job, snapshotter, Step { below, ..step }).await,
                    Err(error) => Err(error),
                };
                match &result {
                    // The one above may have failed and be gone.
                    Ok(()) => drop(done.send(())),
                    Err(_) => job.cancel.cancel(),
                }
                result
            });
        }
        let mut result = Ok(());
        for layer in join_all(layers).await {
            result = match (result, layer) {
                (Ok(()), layer) => layer,
                // The others were given up; this one knows why.
                (Err(first), Err(cause)) if first.kind() == Kind::Canceled => Err(cause),
                (Err(first), _) => Err(first),
            };
        }
        result
    }

    async fn unpack_layer(&self, job: &Job, snapshotter: &str, step: Step<'_>) -> Result<()> {
        let flight = format!("{}/{snapshotter}/{}", job.context.namespace, step.name);
        let _turn = self.shared.unpacks.enter(&flight).await;
        if self.hold_snapshot(job, snapshotter, step.name).await? {
            return self.wait(&step).await;
        }
        let snapshots = &self.shared.snapshots;
        let Some((key, mounts)) = self.prepare(job, snapshotter, &step).await? else {
            return self.wait(&step).await;
        };
        job.progress.blob("extracting", step.layer, "", 0).await;
        let (layer, name, parent) = (step.layer, step.name, step.parent);
        let labels = step.labels.clone();
        let begin = Instant::now();
        let span = tracing::debug_span!("unpack", layer = %layer.digest, snapshotter);
        let applied = self.apply_verified(job, snapshotter, &key, step, mounts).instrument(span).await;
        METRICS.work("unpack", &applied, begin.elapsed());
        let result = match applied {
            Ok(()) => snapshots.commit_on(&job.context, snapshotter, name, &key, parent, labels).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            // Ignoring: the first error is the one to tell; what cannot be removed now is collected with the lease.
            let _ = snapshots.remove(&job.context, snapshotter, &key).await;
            return match error.kind() {
                Kind::AlreadyExists => Ok(()),
                _ => Err(error),
            };
        }
        job.progress.blob("extracted", layer, "", layer.size).await;
        Ok(())
    }

    /// A layer whose snapshot is there is fetched all the same: the image refers to it.
    async fn wait(&self, step: &Step<'_>) -> Result<()> {
        match step.download {
            Some(download) => download.finished().await,
            None => Ok(()),
        }
    }

    /// A writable snapshot for a layer, or nothing when somebody made the final one meanwhile.
    async fn prepare(
        &self,
        job: &Job,
        snapshotter: &str,
        step: &Step<'_>,
    ) -> Result<Option<(String, Vec<Mount>)>> {
        // What is unpacked apart gets its parent when it is committed.
        let parent = if step.is_apart { "" } else { step.parent };
        let mut attempt = 1;
        loop {
            let key = format!("extract-{} {}", unique(), step.name);
            let snapshots = &self.shared.snapshots;
            match snapshots.prepare(&job.context, snapshotter, &key, parent, step.labels.clone()).await {
                Ok(mounts) => return Ok(Some((key, mounts))),
                Err(error) if error.kind() == Kind::AlreadyExists => {
                    if self.hold_snapshot(job, snapshotter, step.name).await? {
                        return Ok(None);
                    }
                    if attempt == KEY_ATTEMPTS {
                        return Err(error);
                    }
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Applies a layer; its bytes and what they unpack to are as the manifest and the configuration say.
    async fn apply_verified(
        &self,
        job: &Job,
        snapshotter: &str,
        key: &str,
        step: Step<'_>,
        mounts: Vec<Mount>,
    ) -> Result<()> {
        let permit = self.shared.extractions.acquire().await.map_err(|_| canceled())?;
        job.check()?;
        if !self.shared.differs.is_empty() {
            if let Some(download) = step.download {
                download.finished().await?;
            }
            let applied = self.shared.differs.apply_layer(&job.context, step.layer, mounts.clone()).await?;
            if let Some(digest) = applied {
                return step.verify(digest.as_str());
            }
        }
        let follow = match step.download {
            Some(download) => download.started().await?.then(|| download.clone()),
            None => None,
        };
        let input: Box<dyn Read + Send> = match &follow {
            Some(download) => Box::new(Follow::new(download.clone())),
            None => Box::new(self.shared.content.open_blob(&job.context, &step.layer.digest).await?.file),
        };
        let input = self.shared.processors.layer(&step.layer.media_type, input)?;
        let place = match step.is_apart {
            true => self.shared.snapshots.unpack_place(&job.context, snapshotter, key).await?,
            false => None,
        };
        let form = self.form(&step.layer.media_type, step.layer.digest.as_str(), place.as_ref())?;
        let unpacked = blocking(move || match place {
            Some(place) => Ok((mounts::unpack(input, form, &place)?, Vec::new())),
            None => {
                let Target { root, lowers, whiteouts } = mounts::target(&mounts)?;
                Ok((unpack::unpack(input, Place::Directory { root, whiteouts, owners: None })?, lowers))
            }
        })
        .await;
        drop(permit);
        // A download that failed says why better than the unpacking that it broke off.
        if let (Some(download), Err(_)) = (step.download, &unpacked) {
            let is_own =
                |error: &Error| error.kind() == Kind::DataLoss || error.kind() == Kind::InvalidArgument;
            match &unpacked {
                // The layer is wrong, or whoever sent it: where somebody else could, its digest is waited for.
                Err(error) if is_own(error) && !download.is_elsewhere() => {}
                _ => download.finished().await?,
            }
        }
        let layer = step.layer.digest.as_str();
        let of_layer = |error: Error| Error::because(error.kind(), "apply layer", layer, error);
        let (unpacked, mut lowers) = unpacked.map_err(of_layer)?;
        if let Some(download) = step.download {
            download.finished().await?;
        }
        let Applied { diff_id, .. } = &unpacked.applied;
        step.verify(diff_id)?;
        if let Some(below) = step.below {
            below.await.map_err(|_| canceled())?;
        }
        if step.is_apart {
            lowers = self.shared.snapshots.roots(&job.context, snapshotter, step.parent).await?;
        }
        blocking(move || unpacked.finish(&lowers)).await.map(drop).map_err(of_layer)
    }
}

/// One layer of a stack.
struct Step<'a> {
    layer: &'a Descriptor,
    diff_id: &'a str,
    /// Name of the snapshot below.
    parent: &'a str,
    /// Name of the snapshot to be.
    name: &'a str,
    download: Option<&'a Arc<Download>>,
    /// Whether it is unpacked before its parent is there.
    is_apart: bool,
    /// The labels of its snapshot.
    labels: Labels,
    /// Tells that the snapshot below is there, where it is not yet.
    below: Option<oneshot::Receiver<()>>,
}

impl Step<'_> {
    /// Checks that a layer unpacks to what the configuration says.
    fn verify(&self, diff_id: &str) -> Result<()> {
        if diff_id == self.diff_id {
            return Ok(());
        }
        let why = format!("it unpacks to {diff_id}, the configuration says {}", self.diff_id);
        Err(Error::because(Kind::FailedPrecondition, "apply layer", self.layer.digest.as_str(), why))
    }
}
