//! Images that are made here: a configuration and a manifest over layers that are there.

use std::collections::{BTreeMap, HashMap};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use serde_json::{Value, json};

use super::diff::DiffRequest;
use super::manifest::{Config, Descriptor, Document, MAX_DOCUMENT, Manifest};
use super::media;
use super::unpacker::Stack;
use super::{ImageService, Job};
use crate::content::digest::Digest;
use crate::labels::Labels;
use crate::store::images;

/// Label of a layer's blob: the digest of what it decompresses to.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The diff ID of a layer in which nothing is: the end of an archive alone.
const EMPTY: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// An image that was made, and waits for its name.
pub struct Made {
    /// What a name is given to.
    pub target: images::Descriptor,
    /// Digest of its configuration.
    pub config: Digest,
    /// Its manifest.
    pub manifest: Manifest,
}

impl ImageService {
    /// Makes an image of layers that are there and one of what differs between two sets of mounts. `document` is its
    /// configuration, to which the new layer and its step in the history are added. Where nothing differs there is no
    /// new layer, and the step says so.
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
        mut step: Value,
    ) -> Result<Made> {
        self.under_lease(job, async |job: Job| {
            let layer = self.diff(&job.context, difference).await?;
            let diff_id = self.diff_id(&job, &layer).await?;
            if diff_id == EMPTY {
                step["empty_layer"] = json!(true);
            } else {
                add_diff_id(document, &diff_id);
                layers.push(layer);
            }
            add_step(document, step);
            self.assemble(&job, layers, snapshotter, document).await
        })
        .await
    }

    /// Makes an image of layers that are there. `document` is its configuration, to which the step is added.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub async fn add_step(
        &self,
        job: &Job,
        layers: Vec<Descriptor>,
        snapshotter: &str,
        document: &mut Value,
        mut step: Value,
    ) -> Result<Made> {
        step["empty_layer"] = json!(true);
        add_step(document, step);
        self.make(job, layers, snapshotter, document).await
    }

    /// Makes an image of layers that are there and a configuration that is complete.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub async fn make(
        &self,
        job: &Job,
        layers: Vec<Descriptor>,
        snapshotter: &str,
        document: &Value,
    ) -> Result<Made> {
        self.under_lease(job, async |job: Job| self.assemble(&job, layers, snapshotter, document).await).await
    }

    async fn diff_id(&self, job: &Job, layer: &Descriptor) -> Result<String> {
        let info = self.shared.content.info(&job.context, &layer.digest).await?;
        let diff_id = info.labels.get(UNCOMPRESSED).cloned();
        diff_id.ok_or_else(|| Error::new(Kind::Internal, "find diff ID of", layer.digest.to_string()))
    }

    /// Stores configuration and manifest, and unpacks the layers. The caller's lease keeps them until they have a name.
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
        if config_bytes.len() as u64 > MAX_DOCUMENT {
            // It could be stored, and never be read again.
            let why = format!("{} bytes are more than {MAX_DOCUMENT}", config_bytes.len());
            return Err(Error::because(Kind::InvalidArgument, "make", "image configuration", why));
        }
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
        let labels: Labels =
            Document::Manifest(manifest.clone()).reference_labels(|_| true).into_iter().collect();
        self.keep(&job.context, &descriptor, bytes.into(), labels).await?;
        let target = images::Descriptor {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.to_string(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            annotations: BTreeMap::new(),
        };
        Ok(Made { target, config: config.digest, manifest })
    }
}

/// Adds a layer to a configuration.
fn add_diff_id(document: &mut Value, diff_id: &str) {
    match document["rootfs"]["diff_ids"].as_array_mut() {
        Some(ids) => ids.push(json!(diff_id)),
        None => document["rootfs"] = json!({ "type": "layers", "diff_ids": [diff_id] }),
    }
}

/// Adds a step to a configuration's history.
fn add_step(document: &mut Value, step: Value) {
    match document["history"].as_array_mut() {
        Some(history) => history.push(step),
        None => document["history"] = json!([step]),
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;

    #[test]
    fn the_empty_layer_is_the_end_of_an_archive() {
        let end = [0_u8; 1024];
        assert_eq!(EMPTY, format!("sha256:{}", crate::image::unpack::hex(&sha2::Sha256::digest(end))));
        let mut document = json!({});
        add_diff_id(&mut document, "a");
        add_diff_id(&mut document, "b");
        add_step(&mut document, json!(1));
        assert_eq!(document["rootfs"], json!({ "type": "layers", "diff_ids": ["a", "b"] }));
        assert_eq!(document["history"], json!([1]));
    }
}
