//! `orlopctl images referrers`: what refers to an image at its registry.

use orlop_proto::error::Result;
use orlop_proto::orlop::admin::v1::{Referrer, ReferrersRequest};
use serde_json::{Value, json};

use super::Context;
use super::transfers::wire_platforms;
use crate::cli::images::{Referrers, Registry};
use crate::client::Client;
use crate::output::{self, Gap, Table};
use crate::registry::{self, Hosts};
use crate::transfer::{Credentials, Stream};

/// Asks the server, which asks the registry. The image and how to reach its registry are added to `wanted`.
///
/// # Errors
///
/// What the server says.
pub async fn ask(
    client: &Client,
    options: &Registry,
    image: &str,
    hosts: Option<&Hosts>,
    wanted: ReferrersRequest,
    credentials: &Credentials,
) -> Result<Vec<Referrer>> {
    let auth = Stream::open(client, "creds").await?;
    let request =
        ReferrersRequest { image: Some(registry::endpoint(options, image, hosts, &auth)), ..wanted };
    let mut service = client.admin();
    let call = async { Ok(service.referrers(request).await?.into_inner()) };
    auth.authenticate_during(credentials, call).await.map(|answer| answer.referrers)
}

/// Lists them.
pub async fn list(context: &Context<'_>, options: &Referrers) -> Result<()> {
    let wanted = ReferrersRequest {
        platforms: wire_platforms(&options.platform, options.all_platforms)?,
        artifact_type: options.artifact_type.clone().unwrap_or_default(),
        ..ReferrersRequest::default()
    };
    let hosts = registry::hosts(&options.registry, &options.image, &context.fifo_directory())?;
    let credentials = registry::credentials(&options.registry)?;
    let image = &options.image;
    let found = ask(context.client, &options.registry, image, hosts.as_ref(), wanted, &credentials).await?;
    if context.json() {
        return output::json(&found.iter().map(shown).collect::<Vec<_>>().into());
    }
    let mut table = Table::new(Gap::Spaces(1), &["DIGEST", "ARTIFACT TYPE", "SIZE", "SUBJECT"]);
    for Referrer { subject, descriptor, artifact_type } in found {
        let descriptor = descriptor.unwrap_or_default();
        let artifact_type = if artifact_type.is_empty() { descriptor.media_type } else { artifact_type };
        table.closed([descriptor.digest, artifact_type, output::binary_size(descriptor.size), subject]);
    }
    table.print()
}

fn shown(referrer: &Referrer) -> Value {
    let descriptor = referrer.descriptor.clone().unwrap_or_default();
    json!({
        "subject": referrer.subject,
        "media_type": descriptor.media_type,
        "artifact_type": referrer.artifact_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
        "annotations": descriptor.annotations,
    })
}
