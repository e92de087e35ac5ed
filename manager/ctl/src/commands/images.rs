//! `orlopctl images`.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use orlop_proto::containerd::services::containers::v1::ListContainersRequest;
use orlop_proto::containerd::services::content::v1::InfoRequest;
use orlop_proto::containerd::services::images::v1::*;
use orlop_proto::containerd::services::leases::v1::{CreateRequest, DeleteRequest};
use orlop_proto::containerd::services::snapshots::v1::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};
use orlop_proto::containerd::types::Mount;
use orlop_proto::contract::time::rfc3339;
use orlop_proto::error::Result;
use orlop_proto::kind::Kind;
use serde_json::json;
use tonic::Code;

use super::{Context, commit, convert, history, referrers, transfers};
use crate::cli::images::{Images, Snapshotter};
use crate::client::Client;
use crate::image::{self, Descriptor};
use crate::output::{self, Gap, Table};
use crate::platform::Platform;
use crate::{labels, mounts, unpack};

pub async fn execute(context: &Context<'_>, verb: Images) -> Result<()> {
    match verb {
        Images::Check { quiet, snapshotter, filters } => check(context, quiet, &snapshotter, filters).await,
        Images::Convert(options) => convert::convert(context, &options).await,
        Images::Export(options) => transfers::export(context, &options).await,
        Images::History { platform, image } => history::history(context, platform.as_deref(), &image).await,
        Images::Import(options) => transfers::import(context, &options).await,
        Images::Inspect { image, .. } => inspect(context, &image).await,
        Images::List { quiet, filters } => list(context, quiet, filters).await,
        Images::Mount { snapshotter, rw, platform, expiration, image, target, .. } => {
            let options = Mounting { snapshotter: snapshotter.name(), rw, expiration };
            mount(context, options, platform.as_deref(), &image, &target).await
        }
        Images::Unmount { snapshotter, rm, target, .. } => {
            unmount(context, snapshotter.name(), rm, &target).await
        }
        Images::Pull(options) => transfers::pull(context, &options).await,
        Images::Push(options) => transfers::push(context, &options).await,
        Images::Prune { all } => prune(context, all).await,
        Images::Referrers(options) => referrers::list(context, &options).await,
        Images::Delete { sync, images } => delete(context, sync, images).await,
        Images::Squash(options) => commit::squash(context, &options).await,
        Images::Tag { force, source, targets, .. } => tag(context, force, &source, targets).await,
        Images::Label { replace_all, image, labels } => label(context, replace_all, image, &labels).await,
        Images::Usage { snapshotter, filters } => usage(context, &snapshotter, filters).await,
    }
}

async fn records(context: &Context<'_>, filters: Vec<String>) -> Result<Vec<Image>> {
    Ok(context.client.images().list(ListImagesRequest { filters }).await?.into_inner().images)
}

async fn list(context: &Context<'_>, quiet: bool, filters: Vec<String>) -> Result<()> {
    let images = records(context, filters).await?;
    if quiet {
        let names: String = images.iter().map(|image| format!("{}\n", image.name)).collect();
        return output::print(&names);
    }
    let mut table = Table::new(Gap::Spaces(1), &["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]);
    let mut rows = Vec::new();
    for record in images {
        let target = image::target(&record)?;
        // An image whose content is incomplete is listed all the same.
        let platforms = image::platforms(context.client, &target).await.ok();
        let found = image::resolve(context.client, &target, &Platform::host()).await.ok();
        let size = found.map(|found| found.descriptors().map(|descriptor| descriptor.size).sum::<i64>());
        rows.push(json!({
            "name": record.name,
            "media_type": target.media_type,
            "digest": target.digest,
            "size": size,
            "platforms": platforms,
            "labels": record.labels,
            "created_at": output::timestamp(&record.created_at),
        }));
        let labels = match output::labels(&record.labels) {
            labels if labels.is_empty() => "-".to_owned(),
            labels => labels,
        };
        table.closed([
            record.name,
            target.media_type,
            target.digest,
            size.map_or_else(|| "-".to_owned(), output::binary_size),
            platforms.map_or_else(|| "-".to_owned(), |platforms| platforms.join(",")),
            labels,
        ]);
    }
    if context.json() { output::json(&rows.into()) } else { table.print() }
}

/// What of an image is there.
struct Presence {
    status: String,
    complete: bool,
    have: i64,
    need: i64,
    unpacked: bool,
}

async fn presence(client: &Client, target: &Descriptor, snapshotter: &str) -> Result<Presence> {
    let found = match image::resolve(client, target, &Platform::host()).await {
        Ok(found) => found,
        Err(error) if error.kind() == Kind::NotFound => {
            let status = "incomplete (manifest or configuration is missing)".to_owned();
            return Ok(Presence { status, complete: false, have: 0, need: target.size, unpacked: false });
        }
        Err(error) => return Err(error),
    };
    let needed = [&found.manifest.config].into_iter().chain(&found.manifest.layers);
    let (mut have, mut need, mut present, mut count) = (0, 0, 0, 0);
    for descriptor in needed {
        need += descriptor.size;
        count += 1;
        match client.content().info(InfoRequest { digest: descriptor.digest.clone() }).await {
            Ok(_) => {
                have += descriptor.size;
                present += 1;
            }
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
    }
    let complete = present == count;
    let status = format!("{} ({present}/{count})", if complete { "complete" } else { "incomplete" });
    let unpacked = unpack::is_unpacked(client, snapshotter, &found.chain_id()).await?;
    Ok(Presence { status, complete, have, need, unpacked })
}

async fn check(
    context: &Context<'_>,
    quiet: bool,
    snapshotter: &Snapshotter,
    filters: Vec<String>,
) -> Result<()> {
    let mut table = Table::new(Gap::Spaces(1), &["REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"]);
    let mut rows = Vec::new();
    let mut ready = String::new();
    for record in records(context, filters).await? {
        let target = image::target(&record)?;
        let found = presence(context.client, &target, snapshotter.name()).await?;
        if found.complete && found.unpacked {
            ready.push_str(&format!("{}\n", record.name));
        }
        rows.push(json!({
            "name": record.name,
            "digest": target.digest,
            "complete": found.complete,
            "size": found.have,
            "total": found.need,
            "unpacked": found.unpacked,
        }));
        let size = format!("{}/{}", output::binary_size(found.have), output::binary_size(found.need));
        table.open([
            record.name,
            target.media_type,
            target.digest,
            found.status,
            size,
            found.unpacked.to_string(),
        ]);
    }
    if quiet {
        return output::print(&ready);
    }
    if context.json() { output::json(&rows.into()) } else { table.print() }
}

async fn inspect(context: &Context<'_>, name: &str) -> Result<()> {
    let record = image::record(context.client, name).await?;
    let target = image::target(&record)?;
    let found = image::resolve(context.client, &target, &Platform::host()).await?;
    output::json(&json!({
        "name": record.name,
        "labels": record.labels,
        "target": target,
        "platforms": image::platforms(context.client, &target).await?,
        "manifest": found.manifest,
        "config": found.config,
        "chain_id": found.chain_id(),
        "created_at": output::timestamp(&record.created_at),
        "updated_at": output::timestamp(&record.updated_at),
    }))
}

async fn delete(context: &Context<'_>, sync: bool, images: Vec<String>) -> Result<()> {
    let count = images.len();
    for (done, name) in images.into_iter().enumerate() {
        // One collection at the end finds everything.
        let request =
            DeleteImageRequest { name: name.clone(), sync: sync && done + 1 == count, ..Default::default() };
        match context.client.images().delete(request).await {
            Ok(_) => output::print(&format!("{name}\n"))?,
            Err(status) if status.code() == Code::NotFound => eprintln!("orlopctl: {name}: image not found"),
            Err(status) => return Err(status.into()),
        }
    }
    Ok(())
}

/// Removes the images that no container names, and waits for the collection, as `ctr` does.
async fn prune(context: &Context<'_>, all: bool) -> Result<()> {
    if !all {
        eprintln!("orlopctl: No images pruned. `image prune` requires --all to be specified.");
        return Ok(());
    }
    let request = ListContainersRequest::default();
    let containers = context.client.containers().list(request).await?.into_inner().containers;
    let mut unused: Vec<String> =
        records(context, Vec::new()).await?.into_iter().map(|record| record.name).collect();
    unused.retain(|name| containers.iter().all(|container| container.image != *name));
    delete(context, true, unused).await
}

async fn tag(context: &Context<'_>, force: bool, source: &str, targets: Vec<String>) -> Result<()> {
    let record = image::record(context.client, source).await?;
    let mut service = context.client.images();
    for name in targets {
        let copy = Image {
            name: name.clone(),
            labels: record.labels.clone(),
            target: record.target.clone(),
            ..Image::default()
        };
        let request = CreateImageRequest { image: Some(copy.clone()), ..Default::default() };
        match service.create(request).await {
            Ok(_) => {}
            Err(status) if force && status.code() == Code::AlreadyExists => {
                service.update(UpdateImageRequest { image: Some(copy), ..Default::default() }).await?;
            }
            Err(status) => return Err(status.into()),
        }
        output::print(&format!("{name}\n"))?;
    }
    Ok(())
}

async fn label(context: &Context<'_>, replace_all: bool, name: String, words: &[String]) -> Result<()> {
    let changes = labels::changes(words);
    let mask = if replace_all {
        prost_types::FieldMask { paths: vec!["labels".to_owned()] }
    } else {
        labels::mask(&changes)
    };
    let image = Some(Image { name, labels: changes, ..Image::default() });
    let request = UpdateImageRequest { image, update_mask: Some(mask), ..Default::default() };
    let updated = context.client.images().update(request).await?.into_inner().image.unwrap_or_default();
    output::print(&format!("{}\n", output::labels(&updated.labels)))
}

async fn usage(context: &Context<'_>, snapshotter: &Snapshotter, filters: Vec<String>) -> Result<()> {
    let mut table = Table::new(Gap::Spaces(1), &["REF", "CONTENT", "SNAPSHOTS"]);
    let mut rows = Vec::new();
    for record in records(context, filters).await? {
        let found = image::resolve(context.client, &image::target(&record)?, &Platform::host()).await?;
        let content: i64 = found.descriptors().map(|descriptor| descriptor.size).sum();
        let mut snapshots = 0;
        for key in image::chain_ids(&found.config.rootfs.diff_ids) {
            let request = UsageRequest { snapshotter: snapshotter.name().to_owned(), key };
            match context.client.snapshots().usage(request).await {
                Ok(response) => snapshots += response.into_inner().size,
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status.into()),
            }
        }
        rows.push(json!({ "name": record.name, "content": content, "snapshots": snapshots }));
        table.closed([record.name, output::binary_size(content), output::binary_size(snapshots)]);
    }
    if context.json() { output::json(&rows.into()) } else { table.print() }
}

/// How an image is mounted.
struct Mounting<'a> {
    snapshotter: &'a str,
    rw: bool,
    /// How long its snapshot is kept; for ever where it is zero.
    expiration: Duration,
}

async fn mount(
    context: &Context<'_>,
    options: Mounting<'_>,
    platform: Option<&str>,
    name: &str,
    target: &Path,
) -> Result<()> {
    let client = context.client;
    let record = image::record(client, name).await?;
    let found = image::resolve(client, &image::target(&record)?, &Platform::wanted(platform)?).await?;
    let key = target.to_string_lossy().into_owned();
    let chain = found.chain_id();
    // The snapshot belongs to no container: a lease keeps it until it is unmounted.
    let Mounting { snapshotter, rw, expiration } = options;
    let mut labels: HashMap<String, String> =
        [(format!("containerd.io/gc.ref.snapshot.{snapshotter}"), key.clone())].into();
    if !expiration.is_zero() {
        labels.insert("containerd.io/gc.expire".to_owned(), rfc3339(SystemTime::now() + expiration));
    }
    match client.leases().create(CreateRequest { id: key.clone(), labels }).await {
        Ok(_) => {}
        Err(status) if status.code() == Code::AlreadyExists => {}
        Err(status) => return Err(status.into()),
    }
    let made = match client.under_lease(&key) {
        Ok(client) => mount_leased(&client, snapshotter, rw, &key, &chain, target).await,
        Err(error) => Err(error),
    };
    if made.is_err() {
        // What went wrong before is what is reported.
        let _ = client.leases().delete(DeleteRequest { id: key.clone(), sync: false }).await;
    }
    made?;
    output::print(&format!("{chain}\n{key}\n"))
}

async fn mount_leased(
    client: &Client,
    snapshotter: &str,
    rw: bool,
    key: &str,
    chain: &str,
    target: &Path,
) -> Result<()> {
    let mut service = client.snapshots();
    let (snapshotter, key, parent) = (snapshotter.to_owned(), key.to_owned(), chain.to_owned());
    let made: Result<Vec<Mount>, tonic::Status> = if rw {
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent,
            ..Default::default()
        };
        service.prepare(request).await.map(|response| response.into_inner().mounts)
    } else {
        let request = ViewSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent,
            ..Default::default()
        };
        service.view(request).await.map(|response| response.into_inner().mounts)
    };
    let (found, is_new) = match made {
        Ok(found) => (found, true),
        Err(status) if status.code() == Code::AlreadyExists => {
            let request = MountsRequest { snapshotter: snapshotter.clone(), key: key.clone() };
            (service.mounts(request).await?.into_inner().mounts, false)
        }
        Err(status) => return Err(status.into()),
    };
    let mounted = mounts::mount_all(&found, target);
    if mounted.is_err() && is_new {
        // What went wrong before is what is reported.
        let _ = service.remove(RemoveSnapshotRequest { snapshotter, key }).await;
    }
    mounted
}

async fn unmount(context: &Context<'_>, snapshotter: &str, rm: bool, target: &Path) -> Result<()> {
    mounts::unmount(target)?;
    let key = target.to_string_lossy().into_owned();
    if rm {
        let mut service = context.client.snapshots();
        let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.clone() };
        match service.stat(request).await {
            Ok(_) => {
                service
                    .remove(RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.clone() })
                    .await?;
            }
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
        match context.client.leases().delete(DeleteRequest { id: key.clone(), sync: false }).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
    }
    output::print(&format!("{key}\n"))
}
