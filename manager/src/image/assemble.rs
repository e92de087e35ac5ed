//! Images that are made here: a configuration and a manifest over layers that are there.

use std::collections::{BTreeMap, HashMap};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use serde_json::{Value, json};

use super::diff::DiffRequest;
use super::manifest::{Config, Descriptor, Document, Manifest};
use super::media;
use super::unpacker::Stack;
use super::{ImageService, Job};
use crate::content::digest::Digest;
use crate::labels::Labels;
use crate::store::images;

/// Label of a layer's blob: the digest of what it decompresses to.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// How long what was made waits for a name, in seconds.
const UNNAMED: u64 = 60 * 60;

/// An image that was made, and waits for its name.
pub struct Made {
    /// What a name is given to.
    pub target: images::Descriptor,
    /// Digest of its configuration.
    pub config: Digest,
}

impl ImageService {
    /// Makes an image of layers that are there and one of what differs between two sets of mounts. `document` is its
    /// configuration, to which the new layer is added.
    ///
    /// # Errors
    ///
    /// Those of reading, writing and unpacking.
    pub async fn add_layer(
        &self,
        job: &Job,
        difference: DiffRequest,
        mut layers: Vec<Descriptor>,
        snapshotter: &str,
        document: &mut Value,
    ) -> Result<Made> {
        self.under_lease(job, async |job: Job| {
            let layer = self.diff(&job.context, difference).await?;
            let info = self.shared.content.info(&job.context, &layer.digest).await?;
            let diff_id = info.labels.get(UNCOMPRESSED).cloned();
            let diff_id = diff_id
                .ok_or_else(|| Error::new(Kind::Internal, "find diff ID of", layer.digest.to_string()))?;
            layers.push(layer);
            match document["rootfs"]["diff_ids"].as_array_mut() {
                Some(ids) => ids.push(json!(diff_id)),
                None => document["rootfs"] = json!({ "type": "layers", "diff_ids": [diff_id] }),
            }
            self.assemble(&job, layers, snapshotter, document).await
        })
        .await
    }

    /// Stores configuration and manifest, and unpacks the layers. A label keeps the manifest until it has a name.
    async fn assemble(
        &self,
        job: &Job,
        layers: Vec<Descriptor>,
        snapshotter: &str,
        document: &Value,
    ) -> Result<Made> {
        let encode = |value: &Value| {
            serde_json::to_vec(value)
                .map_err(|error| Error::because(Kind::Internal, "encode", "image", error))
        };
        let config_bytes = encode(document)?;
        let config = Descriptor::of(media::OCI_CONFIG, &config_bytes);
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::OCI_MANIFEST.to_owned(),
            config: config.clone(),
            layers,
            annotations: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest)
            .map_err(|error| Error::because(Kind::Internal, "encode", "manifest", error))?;
        let descriptor = Descriptor::of(media::OCI_MANIFEST, &bytes);
        let parsed = Config::parse(&config.digest, &config_bytes)?;
        self.keep(&job.context, &config, config_bytes.into(), Labels::new()).await?;
        let stack = Stack {
            reference: "",
            digest: "",
            manifest: &manifest,
            config: &parsed,
            downloads: &HashMap::new(),
        };
        self.unpack(job, snapshotter, &stack).await?;
        let expiry = std::time::SystemTime::now() + std::time::Duration::from_secs(UNNAMED);
        let mut labels: Labels =
            Document::Manifest(manifest).reference_labels(|_| true).into_iter().collect();
        labels.insert("containerd.io/gc.expire".to_owned(), prost_types::Timestamp::from(expiry).to_string());
        self.keep(&job.context, &descriptor, bytes.into(), labels).await?;
        let target = images::Descriptor {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.to_string(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            annotations: BTreeMap::new(),
        };
        Ok(Made { target, config: config.digest })
    }
}
