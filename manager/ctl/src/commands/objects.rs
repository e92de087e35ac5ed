//! `orlopctl content fetch-object`, `fetch-blob` and `push-object`: single objects of a registry, through the server.

use orlop_proto::containerd::types::transfer::OciRegistry;
use orlop_proto::error::Result;
use orlop_proto::orlop::admin::v1::{FetchObjectRequest, PushObjectRequest};

use super::Context;
use crate::cli::content::{FetchBlob, FetchObject, PushObject};
use crate::cli::images::Registry;
use crate::output;
use crate::registry;
use crate::transfer::{Credentials, Stream};

pub async fn fetch(context: &Context<'_>, options: &FetchObject) -> Result<()> {
    let credentials = registry::credentials(&options.registry)?;
    let remote = options.words.first().map(String::as_str).unwrap_or_default();
    print(context, &options.registry, remote, &credentials).await
}

pub async fn fetch_blobs(context: &Context<'_>, options: &FetchBlob) -> Result<()> {
    let credentials = registry::credentials(&options.registry)?;
    let repository = options.remote.split('@').next().unwrap_or_default();
    for digest in &options.digests {
        print(context, &options.registry, &format!("{repository}@{digest}"), &credentials).await?;
    }
    Ok(())
}

/// Writes what a reference means at its registry to standard output.
async fn print(
    context: &Context<'_>,
    options: &Registry,
    reference: &str,
    credentials: &Credentials,
) -> Result<()> {
    let mut service = context.client.admin();
    with_registry(context, options, reference, credentials, async |object| {
        let mut parts = service.fetch_object(FetchObjectRequest { object: Some(object) }).await?.into_inner();
        while let Some(part) = parts.message().await? {
            output::bytes(&part.data)?;
        }
        Ok(())
    })
    .await
}

pub async fn push(context: &Context<'_>, options: &PushObject) -> Result<()> {
    let PushObject { registry, remote, object, media_type } = options;
    let credentials = registry::credentials(registry)?;
    let mut service = context.client.admin();
    with_registry(context, registry, remote, &credentials, async |destination| {
        let (destination, digest, media_type) = (Some(destination), object.clone(), media_type.clone());
        service.push_object(PushObjectRequest { destination, digest, media_type }).await?;
        Ok(())
    })
    .await?;
    output::print(&format!("Pushed {object} {media_type}\n"))
}

/// Asks the server about something at a registry, and says who we are whenever it wants to know.
async fn with_registry(
    context: &Context<'_>,
    options: &Registry,
    reference: &str,
    credentials: &Credentials,
    call: impl AsyncFnOnce(OciRegistry) -> Result<()>,
) -> Result<()> {
    let hosts = registry::hosts(options, reference, &context.fifo_directory())?;
    let auth = Stream::open(context.client, "creds").await?;
    let endpoint = registry::endpoint(options, reference, hosts.as_ref(), &auth);
    auth.authenticate_during(credentials, call(endpoint)).await
}
