//! `orlopctl images`.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use orlop_proto::any;
use orlop_proto::containerd::services::content::v1::InfoRequest;
use orlop_proto::containerd::services::images::v1::*;
use orlop_proto::containerd::services::leases::v1::{CreateRequest, DeleteRequest};
use orlop_proto::containerd::services::snapshots::v1::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};
use orlop_proto::containerd::types::transfer::*;
use orlop_proto::containerd::types::{Mount, Platform as WirePlatform};
use orlop_proto::contract::time::rfc3339;
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Code;

use super::Context;
use crate::cli::images::{Export, Images, Import, Pull, Push, Snapshotter};
use crate::client::Client;
use crate::image::{self, Descriptor};
use crate::output::{self, Gap, Table};
use crate::platform::Platform;
use crate::progress::Display;
use crate::transfer::{Flow, Stream, transfer};
use crate::{labels, mounts, registry, unpack};

/// How long a mounted image is kept from collection.
const MOUNT_TIME: Duration = Duration::from_secs(24 * 3600);

pub async fn execute(context: &Context<'_>, verb: Images) -> Result<()> {
    match verb {
        Images::Check { quiet, snapshotter, filters } => check(context, quiet, &snapshotter, filters).await,
        Images::Export(options) => export(context, &options).await,
        Images::Import(options) => import(context, &options).await,
        Images::Inspect { image } => inspect(context, &image).await,
        Images::List { quiet, filters } => list(context, quiet, filters).await,
        Images::Mount { snapshotter, rw, platform, image, target } => {
            mount(context, snapshotter.name(), rw, platform.as_deref(), &image, &target).await
        }
        Images::Unmount { snapshotter, rm, target } => {
            unmount(context, snapshotter.name(), rm, &target).await
        }
        Images::Pull(options) => pull(context, &options).await,
        Images::Push(options) => push(context, &options).await,
        Images::Delete { sync, images } => delete(context, sync, images).await,
        Images::Tag { force, source, targets } => tag(context, force, &source, targets).await,
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

async fn mount(
    context: &Context<'_>,
    snapshotter: &str,
    rw: bool,
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
    let labels: HashMap<String, String> = [
        ("containerd.io/gc.expire".to_owned(), rfc3339(SystemTime::now() + MOUNT_TIME)),
        (format!("containerd.io/gc.ref.snapshot.{snapshotter}"), key.clone()),
    ]
    .into();
    match client.leases().create(CreateRequest { id: key.clone(), labels }).await {
        Ok(_) => {}
        Err(status) if status.code() == Code::AlreadyExists => {}
        Err(status) => return Err(status.into()),
    }
    let made = mount_leased(context, snapshotter, rw, &key, &chain, target).await;
    if made.is_err() {
        // What went wrong before is what is reported.
        let _ = client.leases().delete(DeleteRequest { id: key.clone(), sync: false }).await;
    }
    made?;
    output::print(&format!("{chain}\n{key}\n"))
}

async fn mount_leased(
    context: &Context<'_>,
    snapshotter: &str,
    rw: bool,
    key: &str,
    chain: &str,
    target: &Path,
) -> Result<()> {
    let mut service = context.client.snapshots();
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

/// The platforms of the options for the wire; none means all.
fn wire_platforms(words: &[String], all: bool) -> Result<Vec<WirePlatform>> {
    if all {
        return Ok(Vec::new());
    }
    if words.is_empty() {
        return Ok(vec![Platform::host().into()]);
    }
    words.iter().map(|word| word.parse::<Platform>().map(WirePlatform::from)).collect()
}

/// The image store as destination, with what to unpack.
fn store(
    name: &str,
    platforms: Vec<WirePlatform>,
    no_unpack: bool,
    snapshotter: &Snapshotter,
    words: &[String],
) -> Result<ImageStore> {
    let wanted = if words.is_empty() {
        vec![Platform::host()]
    } else {
        words.iter().map(|word| word.parse()).collect::<Result<_>>()?
    };
    let unpack = |platform: Platform| UnpackConfiguration {
        platform: Some(platform.into()),
        snapshotter: snapshotter.snapshotter.clone().unwrap_or_default(),
    };
    Ok(ImageStore {
        name: name.to_owned(),
        platforms,
        unpacks: if no_unpack { Vec::new() } else { wanted.into_iter().map(unpack).collect() },
        ..ImageStore::default()
    })
}

pub async fn pull(context: &Context<'_>, options: &Pull) -> Result<()> {
    let platforms = wire_platforms(&options.platform, options.all_platforms)?;
    let destination = ImageStore {
        labels: labels::new(&options.label),
        all_metadata: options.all_metadata,
        ..store(&options.image, platforms, options.no_unpack, &options.snapshotter, &options.platform)?
    };
    let hosts = registry::hosts(&options.registry, &options.image, &context.fifo_directory())?;
    let credentials = registry::credentials(&options.registry)?;
    let mut display = Display::new();
    context
        .client
        .with_lease(async |client| {
            let auth = match &credentials {
                Some(_) => Some(Stream::open(client, "creds").await?),
                None => None,
            };
            let source = registry::endpoint(&options.registry, &options.image, hosts.as_ref(), auth.as_ref());
            let flow = match (auth, &credentials) {
                (Some(stream), Some(credentials)) => Flow::Credentials(stream, credentials),
                _ => Flow::None,
            };
            transfer(client, source, any::pack(&destination), flow, &mut display).await
        })
        .await?;
    display.finish();
    if options.print_chainid {
        let target = image::target(&image::record(context.client, &options.image).await?)?;
        let platform = Platform::wanted(options.platform.first().map(String::as_str))?;
        let found = image::resolve(context.client, &target, &platform).await?;
        output::print(&format!("image chain ID: {}\n", found.chain_id()))?;
    }
    Ok(())
}

async fn push(context: &Context<'_>, options: &Push) -> Result<()> {
    let local = options.local.as_ref().unwrap_or(&options.remote);
    if let Some(digest) = &options.manifest {
        return Err(Error::because(
            Kind::Unimplemented,
            "--manifest",
            digest,
            "the Transfer service pushes images by name: tag the manifest first",
        ));
    }
    let platforms = match options.platform.as_slice() {
        [] => Vec::new(),
        words => wire_platforms(words, false)?,
    };
    let source = ImageStore { name: local.clone(), platforms, ..ImageStore::default() };
    let hosts = registry::hosts(&options.registry, &options.remote, &context.fifo_directory())?;
    let credentials = registry::credentials(&options.registry)?;
    let auth = match &credentials {
        Some(_) => Some(Stream::open(context.client, "creds").await?),
        None => None,
    };
    let destination = registry::endpoint(&options.registry, &options.remote, hosts.as_ref(), auth.as_ref());
    let flow = match (auth, &credentials) {
        (Some(stream), Some(credentials)) => Flow::Credentials(stream, credentials),
        _ => Flow::None,
    };
    let mut display = Display::new();
    transfer(context.client, any::pack(&source), destination, flow, &mut display).await?;
    display.finish();
    Ok(())
}

async fn import(context: &Context<'_>, options: &Import) -> Result<()> {
    let archive: Box<dyn AsyncRead + Unpin> = if options.input == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let shown = options.input.display().to_string();
        Box::new(tokio::fs::File::open(&options.input).await.context("open", shown)?)
    };
    let platforms = wire_platforms(&options.platform, options.all_platforms)?;
    // Without a base name one is made up, which goes before bare tags; a given one filters as well.
    let made_up = || format!("import-{}", &rfc3339(SystemTime::now())[..10]);
    let reference = ImageReference {
        name: options.base_name.clone().unwrap_or_else(made_up),
        is_prefix: true,
        allow_overwrite: options.base_name.is_none(),
        add_digest: options.digests,
        skip_named_digest: options.skip_digest_for_named,
    };
    let destination = ImageStore {
        extra_references: vec![reference],
        ..store(
            options.index_name.as_deref().unwrap_or_default(),
            platforms,
            options.no_unpack,
            &options.snapshotter,
            &options.platform,
        )?
    };
    let mut display = Display::new();
    context
        .client
        .with_lease(async |client| {
            let stream = Stream::open(client, "import").await?;
            let source = ImageImportStream {
                stream: stream.id.clone(),
                media_type: String::new(),
                force_compress: options.compress_blobs,
            };
            let flow = Flow::Upload(stream, archive);
            transfer(client, any::pack(&source), any::pack(&destination), flow, &mut display).await
        })
        .await?;
    display.finish();
    Ok(())
}

async fn export(context: &Context<'_>, options: &Export) -> Result<()> {
    let to_stdout = options.out == Path::new("-");
    let shown = options.out.display().to_string();
    let archive: Box<dyn AsyncWrite + Unpin> = if to_stdout {
        Box::new(tokio::io::stdout())
    } else {
        Box::new(tokio::fs::File::create(&options.out).await.context("create", &shown)?)
    };
    let platforms = match options.platform.as_slice() {
        [] => Vec::new(),
        words => wire_platforms(words, false)?,
    };
    let mut references = options.images.iter();
    let first = references.next().cloned().unwrap_or_default();
    let source = ImageStore {
        name: first,
        extra_references: references
            .map(|name| ImageReference { name: name.clone(), ..ImageReference::default() })
            .collect(),
        ..ImageStore::default()
    };
    let stream = Stream::open(context.client, "export").await?;
    let destination = ImageExportStream {
        stream: stream.id.clone(),
        media_type: String::new(),
        platforms,
        all_platforms: options.all_platforms,
        skip_compatibility_manifest: options.skip_manifest_json,
        skip_non_distributable: options.skip_non_distributable,
    };
    let mut display = Display::new();
    let flow = Flow::Download(stream, archive);
    let outcome =
        transfer(context.client, any::pack(&source), any::pack(&destination), flow, &mut display).await;
    if outcome.is_err() && !to_stdout {
        // Half an archive is worse than none.
        let _ = std::fs::remove_file(&options.out);
    }
    outcome?;
    display.finish();
    Ok(())
}
