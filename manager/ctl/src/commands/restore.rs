//! `orlopctl containers restore`: a container from an image that one was saved into, by orlopctl or by containerd's Go client.

use std::collections::HashMap;

use orlop_proto::containerd::services::containers::v1::container::Runtime;
use orlop_proto::containerd::services::containers::v1::{Container, CreateContainerRequest};
use orlop_proto::containerd::services::diff::v1::ApplyRequest;
use orlop_proto::containerd::services::snapshots::v1::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use prost_types::Any;
use serde::Deserialize;

use super::checkpoint::{CONFIG, CRIU, IMAGE_NAME, RUNTIME, RUNTIME_OPTIONS, SNAPSHOTTER};
use super::commit::LAYER;
use super::{Context, containers, run};
use crate::cli::container::Restore;
use crate::client::Client;
use crate::image::{self, Descriptor};
use crate::platform::Platform;
use crate::unpack;

/// The index of such an image.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

/// Makes the container and starts it; returns its exit code where it has a terminal, 0 otherwise.
///
/// # Errors
///
/// `NotFound` for what the image lacks; what the server says. Nothing is left of a container that cannot be made; one that cannot be
/// started stays, as with ctr.
pub async fn restore(context: &Context<'_>, options: &Restore) -> Result<u32> {
    let target = image::target(&image::record(context.client, &options.image).await?)?;
    let index: Index = image::document(context.client, &target.digest).await?;
    let task = options.live.then(|| index.part(|kind| kind == CRIU, &options.image)).transpose()?;
    let changes =
        options.rw.then(|| index.part(|kind| kind.starts_with(LAYER), &options.image)).transpose()?;
    let id = &options.container;
    context.client.with_lease(async |client| make(client, &index, options, changes).await).await?;
    let spec = containers::spec_json(&containers::get(context, id).await?)?;
    let tty = spec["process"]["terminal"].as_bool().unwrap_or(false);
    let start = run::Start { checkpoint: task, ..run::Start::new(&options.stdio, tty, !tty) };
    run::start(context, id, start).await
}

impl Index {
    fn part(&self, is_it: impl Fn(&str) -> bool, image: &str) -> Result<&Descriptor> {
        let found = self.manifests.iter().find(|part| is_it(&part.media_type));
        found.ok_or_else(|| missing(image, "what was to be restored was not saved in it"))
    }

    fn annotation(&self, key: &str, image: &str) -> Result<&str> {
        let found = self.annotations.get(key).map(String::as_str).filter(|value| !value.is_empty());
        found.ok_or_else(|| {
            missing(image, &format!("no container was saved in it: it has no annotation {key}"))
        })
    }
}

fn missing(image: &str, why: &str) -> Error {
    Error::because(Kind::NotFound, "restore from", image, why.to_owned())
}

async fn make(client: &Client, index: &Index, options: &Restore, changes: Option<&Descriptor>) -> Result<()> {
    let saved = &options.image;
    let (name, runtime) = (index.annotation(IMAGE_NAME, saved)?, index.annotation(RUNTIME, saved)?);
    let snapshotter = index.annotation(SNAPSHOTTER, saved)?;
    let spec = index.part(|kind| kind == CONFIG, saved)?;
    let runtime_options = index.manifests.iter().find(|part| part.media_type == RUNTIME_OPTIONS);
    let container = Container {
        id: options.container.clone(),
        image: name.to_owned(),
        spec: Some(envelope(client, spec).await?),
        runtime: Some(Runtime {
            name: runtime.to_owned(),
            options: match runtime_options {
                Some(part) => Some(envelope(client, part).await?),
                None => None,
            },
        }),
        snapshotter: snapshotter.to_owned(),
        snapshot_key: options.container.clone(),
        ..Container::default()
    };
    let base = image::target(&image::record(client, name).await?)?;
    let base = image::resolve(client, &base, &Platform::host()).await?;
    if !unpack::is_unpacked(client, snapshotter, &base.chain_id()).await? {
        unpack::unpack(client, snapshotter, &base).await?;
    }
    let prepare = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: options.container.clone(),
        parent: base.chain_id(),
        ..PrepareSnapshotRequest::default()
    };
    let mounts = client.snapshots().prepare(prepare).await?.into_inner().mounts;
    let made = async {
        if let Some(changes) = changes {
            let apply = ApplyRequest { diff: Some(changes.into()), mounts, ..ApplyRequest::default() };
            client.diff().apply(apply).await?;
        }
        client.containers().create(CreateContainerRequest { container: Some(container) }).await?;
        Ok(())
    }
    .await;
    if made.is_err() {
        let key = options.container.clone();
        // What went wrong before is what is reported.
        let _ = client
            .snapshots()
            .remove(RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key })
            .await;
    }
    made
}

/// A typed value that was saved.
async fn envelope(client: &Client, part: &Descriptor) -> Result<Any> {
    let data = image::read(client, &part.digest).await?;
    Any::decode(data.as_slice()).map_err(|error| Error::because(Kind::DataLoss, "parse", &part.digest, error))
}
