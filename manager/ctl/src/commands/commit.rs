//! `orlopctl containers commit` and `orlopctl images squash`: images made of snapshots.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use orlop_proto::containerd::services::diff::v1::DiffRequest;
use orlop_proto::containerd::services::images::v1::Image as Record;
use orlop_proto::containerd::services::tasks::v1::{GetRequest, PauseTaskRequest, ResumeTaskRequest};
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::contract::time::rfc3339_nano;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost_types::Timestamp;
use serde_json::{Value, json};
use tonic::Code;

use super::{Context, containers, convert, snapshots};
use crate::blob::{self, write_document};
use crate::cli::container::Commit;
use crate::cli::images::Squash;
use crate::client::{Client, random_id};
use crate::image::{self, Descriptor, Image};
use crate::media::{self, Compression};
use crate::platform::Platform;
use crate::{output, unpack};

/// The variable with which builds are made reproducible: seconds since 1970.
const EPOCH: &str = "SOURCE_DATE_EPOCH";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Label of a layer: the digest of what it decompresses to.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
const KEEP: &str = "containerd.io/gc.ref.content";

/// Makes an image of a container's changes and prints its digest.
pub async fn commit(context: &Context<'_>, options: &Commit) -> Result<()> {
    let epoch = epoch()?;
    let container = containers::get(context, &options.container).await?;
    let refuse = |why: String| {
        let id = format!("{:?}", container.id);
        Err(Error::because(Kind::FailedPrecondition, "commit container", id, why))
    };
    if container.image.is_empty() || container.snapshot_key.is_empty() {
        return refuse("it was not made of an image".to_owned());
    }
    let record = image::record(context.client, &container.image).await?;
    let platform = Platform::wanted(options.platform.as_deref())?;
    let base = image::resolve(context.client, &image::target(&record)?, &platform).await?;
    let snapshotter = container.snapshotter.as_str();
    let info = snapshots::stat(context.client, snapshotter, &container.snapshot_key).await?;
    if info.parent != base.chain_id() {
        return refuse(format!("image {} is another one than the container was made of", container.image));
    }
    let digest = context
        .client
        .with_lease(async |client| {
            let request = layer_request(options.zstd, epoch);
            let diff = snapshots::diff(client, snapshotter, request, &container.snapshot_key, None);
            let layer = match options.no_pause {
                true => diff.await,
                false => while_paused(client, &container.id, diff).await,
            }?;
            let made = Made {
                layers: base.manifest.layers.iter().cloned().chain([(&layer).into()]).collect(),
                history: json!({
                    "created_by": "orlopctl containers commit",
                    "author": options.author,
                    "comment": options.message,
                }),
                is_squashed: false,
            };
            let target = made.image(client, &base, epoch).await?;
            let record = Record { name: record.name.clone(), ..Record::default() };
            convert::store(client, Record { target: Some((&target).into()), ..record }, &options.image)
                .await?;
            Ok(target.digest)
        })
        .await?;
    output::print(&format!("{digest}\n"))
}

/// Makes an image of one layer and prints its digest.
pub async fn squash(context: &Context<'_>, options: &Squash) -> Result<()> {
    let epoch = epoch()?;
    let record = image::record(context.client, &options.source).await?;
    let platform = Platform::wanted(options.platform.as_deref())?;
    let base = image::resolve(context.client, &image::target(&record)?, &platform).await?;
    let snapshotter = options.snapshotter.name();
    let digest = context
        .client
        .with_lease(async |client| {
            unpack::unpack(client, snapshotter, &base).await?;
            // From nothing to all layers.
            let request = layer_request(options.zstd, epoch);
            let layer = snapshots::diff(client, snapshotter, request, "", Some(&base.chain_id())).await?;
            let made = Made {
                layers: vec![(&layer).into()],
                history: json!({ "created_by": "orlopctl images squash" }),
                is_squashed: true,
            };
            let target = made.image(client, &base, epoch).await?;
            convert::store(client, Record { target: Some((&target).into()), ..record }, &options.target)
                .await?;
            Ok(target.digest)
        })
        .await?;
    output::print(&format!("{digest}\n"))
}

/// The time that no part of the image may be newer than, in seconds since 1970, where the environment says so.
fn epoch() -> Result<Option<i64>> {
    let Some(text) = std::env::var_os(EPOCH).filter(|text| !text.is_empty()) else { return Ok(None) };
    let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| *seconds >= 0);
    let wrong = || Error::new(Kind::InvalidArgument, "read", format!("{EPOCH}={}", text.display()));
    seconds.map(Some).ok_or_else(wrong)
}

/// Does something while a container's processes stand still, where it runs.
pub async fn while_paused<T>(client: &Client, id: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let request = GetRequest { container_id: id.to_owned(), ..GetRequest::default() };
    let is_running = match client.tasks().get(request).await {
        Ok(found) => found.into_inner().process.unwrap_or_default().status == Status::Running as i32,
        Err(status) if status.code() == Code::NotFound => false,
        Err(status) => return Err(status.into()),
    };
    if !is_running {
        return work.await;
    }
    client.tasks().pause(PauseTaskRequest { container_id: id.to_owned() }).await?;
    let result = work.await;
    let resumed = client.tasks().resume(ResumeTaskRequest { container_id: id.to_owned() }).await;
    result.and_then(|value| resumed.map(|_| value).map_err(Error::from))
}

/// The request for a new layer.
fn layer_request(zstd: bool, epoch: Option<i64>) -> DiffRequest {
    let compression = if zstd { Compression::Zstd } else { Compression::Gzip };
    DiffRequest {
        media_type: media::compressed(LAYER, compression),
        r#ref: format!("orlopctl-diff-{}", random_id()),
        source_date_epoch: epoch.map(|seconds| Timestamp { seconds, nanos: 0 }),
        ..Default::default()
    }
}

/// What an image is made of.
struct Made {
    layers: Vec<Descriptor>,
    /// The new layer's entry.
    history: Value,
    /// Whether the new layer is in place of all others.
    is_squashed: bool,
}

impl Made {
    /// Stores configuration and manifest of an image like another one.
    async fn image(self, client: &Client, base: &Image, epoch: Option<i64>) -> Result<Descriptor> {
        let top = self.layers.last().ok_or_else(|| Error::new(Kind::Internal, "make", "image"))?;
        let diff_id = blob::labels(client, &top.digest).await?.remove(UNCOMPRESSED).ok_or_else(|| {
            Error::because(Kind::Internal, "make", "image", "the layer's content has no digest")
        })?;
        let config: Value = image::document(client, &base.manifest.config.digest).await?;
        let time = match epoch {
            Some(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs()),
            None => SystemTime::now(),
        };
        let config = self.config(config, &diff_id, &rfc3339_nano(time));
        let old = base.path.last().cloned().unwrap_or_default();
        let like = Descriptor { annotations: HashMap::new(), ..base.manifest.config.clone() };
        let config = write_document(client, &config, HashMap::new(), &like).await?;
        // A layer that is made here has OCI's type; within Docker's manifest it is Docker's.
        let is_docker = old.media_type.contains(".docker.");
        let mut labels = HashMap::from([(format!("{KEEP}.config"), config.digest.clone())]);
        let mut layers = Vec::new();
        for (n, layer) in self.layers.iter().enumerate() {
            labels.insert(format!("{KEEP}.l.{n}"), layer.digest.clone());
            let media_type = match is_docker {
                true => media::docker(&layer.media_type),
                false => layer.media_type.clone(),
            };
            layers.push(Descriptor { media_type, ..layer.clone() });
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": old.media_type,
            "config": config,
            "layers": layers,
        });
        let like = Descriptor { media_type: old.media_type, ..Descriptor::default() };
        write_document(client, &manifest, labels, &like).await
    }

    /// The configuration with the new layer.
    fn config(&self, mut config: Value, diff_id: &str, time: &str) -> Value {
        let mut entry = self.history.clone();
        entry["created"] = time.into();
        if let Some(fields) = entry.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut history = list(&config["history"]);
        let mut diff_ids = list(&config["rootfs"]["diff_ids"]);
        if self.is_squashed {
            diff_ids.clear();
            // What was done is still told; its layers are gone.
            for entry in &mut history {
                entry["empty_layer"] = true.into();
            }
        }
        history.push(entry);
        diff_ids.push(diff_id.into());
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        config["history"] = history.into();
        config["created"] = time.into();
        if let Some(author) = self.history["author"].as_str() {
            config["author"] = author.into();
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(is_squashed: bool) -> Made {
        Made { layers: Vec::new(), history: json!({"created_by": "x", "author": null}), is_squashed }
    }

    #[test]
    fn a_layer_is_added_and_what_is_unknown_stays() {
        let base = json!({
            "os": "linux",
            "unknown": {"a": 1},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:a"]},
            "history": [{"created_by": "a"}],
        });
        let config = made(false).config(base.clone(), "sha256:b", "2026-01-01T00:00:00Z");
        assert_eq!(config["rootfs"]["diff_ids"], json!(["sha256:a", "sha256:b"]));
        assert_eq!(config["unknown"], base["unknown"]);
        let added = json!({"created_by": "x", "created": "2026-01-01T00:00:00Z"});
        assert_eq!(config["history"], json!([{"created_by": "a"}, added]));
        let squashed = made(true).config(base, "sha256:b", "2026-01-01T00:00:00Z");
        assert_eq!(squashed["rootfs"]["diff_ids"], json!(["sha256:b"]));
        assert_eq!(squashed["history"], json!([{"created_by": "a", "empty_layer": true}, added]));
    }
}
