//! Unpacking an image's layers into snapshots through the server's own services.

use orlop_proto::containerd::services::content::v1::{Info, UpdateRequest};
use orlop_proto::containerd::services::diff::v1::ApplyRequest;
use orlop_proto::containerd::services::snapshots::v1::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost_types::FieldMask;
use tonic::Code;

use crate::client::{Client, random_id};
use crate::image::{Descriptor, Image, chain_ids};

/// Whether the image's top snapshot is there.
///
/// # Errors
///
/// What the server says.
pub async fn is_unpacked(client: &Client, snapshotter: &str, chain: &str) -> Result<bool> {
    let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: chain.to_owned() };
    match client.snapshots().stat(request).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status.into()),
    }
}

/// Unpacks the layers that have no snapshot yet, and ties the snapshots to the image's configuration.
///
/// # Errors
///
/// What the server says; a layer that failed leaves no snapshot.
pub async fn unpack(client: &Client, snapshotter: &str, image: &Image) -> Result<()> {
    let diff_ids = &image.config.rootfs.diff_ids;
    if diff_ids.len() != image.manifest.layers.len() {
        let reason = format!(
            "{} layers in the manifest, {} in the configuration",
            image.manifest.layers.len(),
            diff_ids.len()
        );
        return Err(Error::because(Kind::DataLoss, "image", &image.manifest.config.digest, reason));
    }
    let mut parent = String::new();
    for ((layer, diff_id), chain) in image.manifest.layers.iter().zip(diff_ids).zip(chain_ids(diff_ids)) {
        if !is_unpacked(client, snapshotter, &chain).await? {
            apply(client, snapshotter, layer, diff_id, &parent, &chain).await?;
        }
        parent = chain;
    }
    let label = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
    set_label(client, &image.manifest.config.digest, &label, &parent).await
}

async fn apply(
    client: &Client,
    snapshotter: &str,
    layer: &Descriptor,
    diff_id: &str,
    parent: &str,
    chain: &str,
) -> Result<()> {
    let key = format!("extract-{} {chain}", random_id());
    let labels = [("containerd.io/snapshot.ref".to_owned(), chain.to_owned())];
    let request = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.clone(),
        parent: parent.to_owned(),
        labels: labels.clone().into(),
    };
    let mounts = match client.snapshots().prepare(request).await {
        Ok(response) => response.into_inner().mounts,
        // Somebody else has made it meanwhile.
        Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    let applied = async {
        let request = ApplyRequest { diff: Some(layer.into()), mounts, ..ApplyRequest::default() };
        let digest = client.diff().apply(request).await?.into_inner().applied.unwrap_or_default().digest;
        if digest != diff_id {
            let reason = format!("unpacked to {digest}, the configuration says {diff_id}");
            return Err(Error::because(Kind::DataLoss, "layer", &layer.digest, reason));
        }
        let request = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: chain.to_owned(),
            key: key.clone(),
            labels: labels.into(),
        };
        match client.snapshots().commit(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(status.into()),
        }
    }
    .await;
    if !matches!(applied, Ok(true)) {
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
        // What went wrong before is what is reported.
        let _ = client.snapshots().remove(request).await;
    }
    applied?;
    set_label(client, &layer.digest, "containerd.io/uncompressed", diff_id).await
}

async fn set_label(client: &Client, digest: &str, label: &str, value: &str) -> Result<()> {
    let info = Info {
        digest: digest.to_owned(),
        labels: [(label.to_owned(), value.to_owned())].into(),
        ..Info::default()
    };
    let update_mask = Some(FieldMask { paths: vec![format!("labels.{label}")] });
    client.content().update(UpdateRequest { info: Some(info), update_mask }).await?;
    Ok(())
}
