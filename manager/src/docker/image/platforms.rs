//! The parts of an image for its platforms, as clients from API 1.47 on see them.

use serde_json::{Value, json};

use super::found::{Found, is_attestation};
use crate::content::digest::Digest;
use crate::docker::Engine;
use crate::image::DEFAULT_SNAPSHOTTER;
use crate::image::manifest::{Config, Descriptor, Document, MAX_DOCUMENT, Manifest, chain_ids};
use crate::store::images::Image;

impl Found {
    /// What its first name stands for.
    pub(super) fn root(&self) -> Value {
        let target = self.names.first().map(|image| &image.target);
        target.map_or(
            Value::Null,
            |target| json!({ "mediaType": target.media_type, "digest": target.digest, "size": target.size }),
        )
    }
}

impl Engine {
    /// The parts of an image, whether they are here or not.
    pub(super) async fn parts_of(&self, image: &Image) -> Vec<Value> {
        let Ok(digest) = Digest::parse(&image.target.digest) else { return Vec::new() };
        let mut root = Descriptor::of(&image.target.media_type, b"");
        root.digest = digest;
        root.size = image.target.size.unsigned_abs();
        let children = match self.document(&root).await {
            Some(Document::Index(index)) => index.manifests,
            Some(Document::Manifest(_)) => vec![root],
            None => Vec::new(),
        };
        let mut parts = Vec::new();
        for child in &children {
            parts.push(self.part_shown(child).await);
        }
        parts
    }

    async fn document(&self, descriptor: &Descriptor) -> Option<Document> {
        let content = &self.parts.content;
        let bytes = content.read_all(&self.context, &descriptor.digest, MAX_DOCUMENT).await.ok()?;
        Document::parse(&descriptor.media_type, &descriptor.digest, &bytes).ok()
    }

    async fn part_shown(&self, descriptor: &Descriptor) -> Value {
        let manifest = match self.document(descriptor).await {
            Some(Document::Manifest(manifest)) => Some(manifest),
            _ => None,
        };
        let (mut is_here, mut content) =
            (manifest.is_some(), if manifest.is_some() { descriptor.size } else { 0 });
        let blobs: Vec<Digest> = manifest.iter().flat_map(blobs).collect();
        for digest in &blobs {
            match self.parts.content.info(&self.context, digest).await {
                Ok(info) => content += info.size,
                Err(_) => is_here = false,
            }
        }
        let config = match &manifest {
            Some(manifest) => self.configuration(manifest).await,
            None => None,
        };
        let mut unpacked = 0;
        let layers = config.as_ref().map(|config| chain_ids(&config.rootfs.diff_ids)).unwrap_or_default();
        for name in &layers {
            let usage = self.parts.snapshots.usage(&self.context, DEFAULT_SNAPSHOTTER, name).await;
            unpacked += usage.map_or(0, |usage| usage.size);
        }
        let shown = json!({ "mediaType": descriptor.media_type, "digest": descriptor.digest.as_str(), "size": descriptor.size });
        let mut part = json!({
            "ID": descriptor.digest.as_str(),
            "Descriptor": shown,
            "Available": is_here,
            "Size": { "Content": content, "Total": content + unpacked },
        });
        if is_attestation(descriptor) {
            part["Kind"] = json!("attestation");
            let about = descriptor.annotations.get("vnd.docker.reference.digest");
            part["AttestationData"] = json!({ "For": about });
            return part;
        }
        let platform =
            descriptor.platform.clone().or(config.map(|config| config.platform)).unwrap_or_default();
        let mut named = json!({ "architecture": platform.architecture, "os": platform.os });
        if !platform.variant.is_empty() {
            named["variant"] = json!(platform.variant);
        }
        let id = manifest.map(|manifest| manifest.config.digest.to_string());
        let users = id.map(|id| self.users_of(&id)).unwrap_or_default();
        let users: Vec<String> = users.into_iter().map(|(container, _)| container).collect();
        part["Kind"] = json!("image");
        part["ImageData"] =
            json!({ "Platform": named, "Containers": users, "Size": { "Unpacked": unpacked } });
        part
    }

    async fn configuration(&self, manifest: &Manifest) -> Option<Config> {
        let digest = &manifest.config.digest;
        let bytes = self.parts.content.read_all(&self.context, digest, MAX_DOCUMENT).await.ok()?;
        Config::parse(digest, &bytes).ok()
    }
}

/// What a manifest lists.
fn blobs(manifest: &Manifest) -> Vec<Digest> {
    manifest.layers.iter().chain([&manifest.config]).map(|blob| blob.digest.clone()).collect()
}
