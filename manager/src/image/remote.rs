//! Layers that an external snapshotter brings by itself (remote snapshotters): they are asked for before anything is fetched.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_proto::error::Result;
use orlop_proto::kind::Kind;

use super::download::Download;
use super::manifest::{Config, Manifest, chain_ids};
use super::unpacker::SNAPSHOT_REFERENCE;
use super::{ImageService, Job, Unpack, unique};
use crate::content::digest::Digest;
use crate::labels::{self, Labels};

/// Prefix of annotations of a layer that its snapshot gets as labels.
const INHERITED: &str = "containerd.io/snapshot/";

/// A stack of layers to unpack.
pub struct Stack<'a> {
    /// What it was pulled as; nothing where it was not.
    pub reference: &'a str,
    /// The digest of the image's manifest; nothing where it has none yet.
    pub digest: &'a str,
    /// The image's manifest.
    pub manifest: &'a Manifest,
    /// Its configuration.
    pub config: &'a Config,
    /// Layers on their way into the content store, by digest; the others are there.
    pub downloads: &'a HashMap<Digest, Arc<Download>>,
}

impl Stack<'_> {
    /// The labels of a layer's snapshot: what it will be committed as, and for a remote snapshotter where to find it.
    pub fn labels(&self, index: usize, name: &str, is_remote: bool) -> Labels {
        let mut made = Labels::from([(SNAPSHOT_REFERENCE.to_owned(), name.to_owned())]);
        let Some(layer) = self.manifest.layers.get(index) else { return made };
        let inherited = layer.annotations.iter().filter(|(key, _)| key.starts_with(INHERITED));
        made.extend(inherited.map(|(key, value)| (key.clone(), value.clone())));
        if is_remote && !self.reference.is_empty() {
            // The names that CRI gave them first.
            let mut add = |key: &str, value: String| {
                made.entry(format!("{INHERITED}cri.{key}")).or_insert(value);
            };
            add("image-ref", self.reference.to_owned());
            add("manifest-digest", self.digest.to_owned());
            add("layer-digest", layer.digest.to_string());
            add("image-layers", self.digests_from(index));
        }
        // What is no label is no reason to refuse an image.
        made.retain(|key, value| labels::validate_one(key, value).is_ok());
        made
    }

    /// The digests of a layer and of those above it, as many as a label takes.
    fn digests_from(&self, index: usize) -> String {
        let mut joined = String::new();
        for layer in &self.manifest.layers[index..] {
            let digest = layer.digest.as_str();
            if INHERITED.len() + "cri.image-layers".len() + joined.len() + 1 + digest.len()
                > labels::MAX_LABEL
            {
                break;
            }
            if !joined.is_empty() {
                joined.push(',');
            }
            joined.push_str(digest);
        }
        joined
    }
}

impl ImageService {
    /// How many layers, from the lowest on, need not be fetched: every snapshotter that the image is unpacked with has them.
    pub(super) async fn claim(&self, job: &Job, unpacks: &[&Unpack], stack: &Stack<'_>) -> Result<usize> {
        let mut claimed = None;
        for unpack in unpacks {
            let count = match self.shared.snapshots.snapshotter(&unpack.snapshotter)?.is_remote() {
                true => self.claim_of(job, &unpack.snapshotter, stack).await?,
                false => 0,
            };
            claimed = Some(claimed.map_or(count, |least: usize| least.min(count)));
        }
        Ok(claimed.unwrap_or(0))
    }

    async fn claim_of(&self, job: &Job, snapshotter: &str, stack: &Stack<'_>) -> Result<usize> {
        let snapshots = &self.shared.snapshots;
        let chain = chain_ids(&stack.config.rootfs.diff_ids);
        for (index, name) in chain.iter().enumerate() {
            job.check()?;
            let flight = format!("{}/{snapshotter}/{name}", job.context.namespace);
            let _turn = self.shared.unpacks.enter(&flight).await;
            let parent = if index == 0 { "" } else { &chain[index - 1] };
            if !self.hold_snapshot(job, snapshotter, name).await? {
                let labels = stack.labels(index, name, true);
                let key = format!("extract-{} {name}", unique());
                match snapshots.prepare(&job.context, snapshotter, &key, parent, labels).await {
                    Ok(_) => {
                        snapshots.remove(&job.context, snapshotter, &key).await?;
                        return Ok(index);
                    }
                    Err(error) if error.kind() == Kind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
            }
            match snapshots.is_adopted(&job.context, snapshotter, name).await {
                Ok(true) => {}
                // Unpacked here: its blob is part of the image.
                Ok(false) => return Ok(index),
                Err(error) if error.kind() == Kind::NotFound => return Ok(index),
                Err(error) => return Err(error),
            }
            if let Some(layer) = stack.manifest.layers.get(index) {
                job.progress.blob("already exists", layer, "", layer.size).await;
            }
        }
        Ok(chain.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::Descriptor;
    use crate::image::media;

    #[test]
    fn labels_say_what_a_layer_is_and_where_it_comes_from() {
        let mut layers: Vec<Descriptor> =
            (0..100).map(|n: u32| Descriptor::of(media::OCI_LAYER, &n.to_be_bytes())).collect();
        layers[0].annotations.insert(format!("{INHERITED}own"), "v".to_owned());
        layers[0].annotations.insert("other".to_owned(), "v".to_owned());
        let manifest = Manifest {
            schema_version: 2,
            media_type: String::new(),
            config: Descriptor::of(media::OCI_CONFIG, b"{}"),
            layers,
            annotations: Default::default(),
        };
        let config: Config = serde_json::from_str(r#"{"os":"linux","architecture":"amd64"}"#).unwrap();
        let (digest, downloads) = ("sha256:m", HashMap::new());
        let stack = Stack {
            reference: "r.test/a:1",
            digest,
            manifest: &manifest,
            config: &config,
            downloads: &downloads,
        };
        let local = stack.labels(0, "chain", false);
        assert_eq!(local.keys().collect::<Vec<_>>(), [SNAPSHOT_REFERENCE, &format!("{INHERITED}own")]);
        let remote = stack.labels(0, "chain", true);
        assert_eq!(remote[&format!("{INHERITED}cri.image-ref")], "r.test/a:1");
        assert_eq!(remote[&format!("{INHERITED}cri.layer-digest")], manifest.layers[0].digest.as_str());
        let all = &remote[&format!("{INHERITED}cri.image-layers")];
        assert!(all.starts_with(manifest.layers[0].digest.as_str()) && all.len() > 4000 && all.len() < 4096);
        assert_eq!(
            stack.labels(99, "c", true)[&format!("{INHERITED}cri.image-layers")],
            manifest.layers[99].digest.as_str()
        );
    }
}
