//! `orlopctl images pull`, `push`, `import` and `export`: what goes through the Transfer service.

use std::path::Path;
use std::time::SystemTime;

use orlop_proto::any;
use orlop_proto::containerd::types::Platform as WirePlatform;
use orlop_proto::containerd::types::transfer::*;
use orlop_proto::contract::time::rfc3339;
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::orlop::admin::v1::ReferrersRequest;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Context, referrers};
use crate::cli::images::{Export, Import, Pull, Push, Snapshotter};
use crate::platform::Platform;
use crate::progress::Display;
use crate::transfer::{Flow, Stream, transfer};
use crate::{directory, image, labels, output, registry};

/// A platform that no image is for, so that no layers are wanted.
const NO_PLATFORM: &str = "none/none";

/// The platforms of the options for the wire; none means all.
pub fn wire_platforms(words: &[String], all: bool) -> Result<Vec<WirePlatform>> {
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

/// Fetches indexes, manifests and configurations of all platforms.
pub async fn pull_metadata(context: &Context<'_>, options: &mut Pull) -> Result<()> {
    options.all_metadata = true;
    options.platform = vec![NO_PLATFORM.to_owned()];
    pull(context, options).await
}

pub async fn pull(context: &Context<'_>, options: &Pull) -> Result<()> {
    let platforms = wire_platforms(&options.platform, options.all_platforms)?;
    let destination = ImageStore {
        labels: labels::new(&options.label),
        all_metadata: options.all_metadata,
        ..store(
            &options.image,
            platforms.clone(),
            options.no_unpack,
            &options.snapshotter,
            &options.platform,
        )?
    };
    let hosts = registry::hosts(&options.registry, &options.image, &context.fifo_directory())?;
    let credentials = registry::credentials(&options.registry)?;
    let mut display = Display::new();
    context
        .client
        .with_lease(async |client| {
            let auth = Stream::open(client, "creds").await?;
            let source =
                any::pack(&registry::endpoint(&options.registry, &options.image, hosts.as_ref(), &auth));
            let flow = Flow::Credentials(auth, &credentials);
            transfer(client, source, any::pack(&destination), flow, &mut display).await?;
            if !options.referrers {
                return Ok(());
            }
            let wanted = ReferrersRequest { platforms, fetch: true, ..ReferrersRequest::default() };
            referrers::ask(client, &options.registry, &options.image, hosts.as_ref(), wanted, &credentials)
                .await
                .map(drop)
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

pub async fn push(context: &Context<'_>, options: &Push) -> Result<()> {
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
    let auth = Stream::open(context.client, "creds").await?;
    let destination =
        any::pack(&registry::endpoint(&options.registry, &options.remote, hosts.as_ref(), &auth));
    let flow = Flow::Credentials(auth, &credentials);
    let mut display = Display::new();
    transfer(context.client, any::pack(&source), destination, flow, &mut display).await?;
    display.finish();
    Ok(())
}

pub async fn import(context: &Context<'_>, options: &Import) -> Result<()> {
    let mut directory_work = None;
    let archive: Box<dyn AsyncRead + Unpin> = if options.input == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else if options.input.is_dir() {
        let (stream, work) = directory::read(&options.input)?;
        directory_work = Some(work);
        Box::new(stream)
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
        labels: labels::new(&options.label),
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
    let outcome = context
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
        .await;
    match directory_work {
        Some(work) => work.end(outcome).await?,
        None => outcome?,
    }
    display.finish();
    Ok(())
}

pub async fn export(context: &Context<'_>, options: &Export) -> Result<()> {
    let to_stdout = options.out == Path::new("-");
    let shown = options.out.display().to_string();
    let to_directory = options.out.is_dir() || shown.ends_with('/');
    let mut directory_work = None;
    let archive: Box<dyn AsyncWrite + Unpin> = if to_stdout {
        Box::new(tokio::io::stdout())
    } else if to_directory {
        let (stream, work) = directory::write(&options.out)?;
        directory_work = Some(work);
        Box::new(stream)
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
    let outcome = match directory_work {
        Some(work) => work.end(outcome).await,
        None => outcome,
    };
    // Half an archive is worse than none.
    if outcome.is_err() && to_directory {
        let _ = directory::clear(&options.out);
    } else if outcome.is_err() && !to_stdout {
        let _ = std::fs::remove_file(&options.out);
    }
    outcome?;
    display.finish();
    Ok(())
}
