//! `orlopctl sandboxes`.

use std::path::Path;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_proto::any::SPEC_URL;
use orlop_proto::containerd::services::sandbox::v1::*;
use orlop_proto::containerd::types::Sandbox;
use orlop_proto::containerd::types::sandbox::Runtime;
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec::Spec;
use prost_types::Any;
use serde_json::{Map, Value, json};
use tonic::Code;

use super::Context;
use crate::cli::sandboxes::Sandboxes;
use crate::output::{self, Gap, Table};

/// The controller of sandboxes that containerd's clients ask for by default.
const SANDBOXER: &str = "shim";

pub async fn execute(context: &Context<'_>, verb: Sandboxes) -> Result<()> {
    match verb {
        Sandboxes::Run { runtime, config, id } => run(context, runtime, &config, id).await,
        Sandboxes::List { filters } => list(context, filters).await,
        Sandboxes::Remove { force, ids } => {
            for id in ids {
                // The others are removed all the same, as by ctr.
                if let Err(error) = remove(context, &id, force).await {
                    eprintln!("orlopctl: {error}");
                }
            }
            Ok(())
        }
        Sandboxes::Info { id } => output::json(&described(&get(context, &id).await?)),
    }
}

async fn run(context: &Context<'_>, runtime: String, config: &Path, id: String) -> Result<()> {
    let shown = config.display().to_string();
    let text = std::fs::read(config).context("read sandbox configuration", &shown)?;
    // What an OCI configuration does not know is left out.
    let spec: Spec = serde_json::from_slice(&text).map_err(|error| {
        Error::because(Kind::InvalidArgument, "parse sandbox configuration", &shown, error)
    })?;
    let value = serde_json::to_vec(&spec)
        .map_err(|error| Error::because(Kind::Internal, "encode", "configuration", error))?;
    let now = Some(SystemTime::now().into());
    let options = Some(Any { type_url: "google.protobuf.Empty".to_owned(), value: Vec::new() });
    let sandbox = Sandbox {
        sandbox_id: id.clone(),
        runtime: Some(Runtime { name: runtime, options }),
        spec: Some(Any { type_url: SPEC_URL.to_owned(), value }),
        created_at: now,
        updated_at: now,
        sandboxer: SANDBOXER.to_owned(),
        ..Sandbox::default()
    };
    let request = StoreCreateRequest { sandbox: Some(sandbox.clone()) };
    context.client.sandbox_store().create(request).await?;
    let started = async {
        let mut controller = context.client.sandbox_controller();
        let request = ControllerCreateRequest {
            sandbox_id: id.clone(),
            sandbox: Some(sandbox),
            sandboxer: SANDBOXER.to_owned(),
            ..ControllerCreateRequest::default()
        };
        controller.create(request).await?;
        let request = ControllerStartRequest { sandbox_id: id.clone(), sandboxer: SANDBOXER.to_owned() };
        controller.start(request).await
    }
    .await;
    if let Err(status) = started {
        // What went wrong before is what is reported; ctr leaves it behind.
        let _ = shut_down(context, &id, SANDBOXER).await;
        return Err(status.into());
    }
    output::print(&format!("{id}\n"))
}

async fn list(context: &Context<'_>, filters: Vec<String>) -> Result<()> {
    let found = context.client.sandbox_store().list(StoreListRequest { filters }).await?.into_inner().list;
    if context.json() {
        return output::json(&found.iter().map(described).collect());
    }
    let mut table = Table::new(Gap::Spaces(1), &["ID", "CREATED", "RUNTIME"]);
    for sandbox in found {
        let runtime = sandbox.runtime.unwrap_or_default().name;
        table.closed([sandbox.sandbox_id, output::go_time(&sandbox.created_at), runtime]);
    }
    table.print()
}

async fn get(context: &Context<'_>, id: &str) -> Result<Sandbox> {
    let request = StoreGetRequest { sandbox_id: id.to_owned() };
    Ok(context.client.sandbox_store().get(request).await?.into_inner().sandbox.unwrap_or_default())
}

async fn remove(context: &Context<'_>, id: &str, force: bool) -> Result<()> {
    let sandboxer = get(context, id).await?.sandboxer;
    let request = ControllerStopRequest {
        sandbox_id: id.to_owned(),
        sandboxer: sandboxer.clone(),
        ..ControllerStopRequest::default()
    };
    if let Err(status) = context.client.sandbox_controller().stop(request).await {
        if !force {
            return Err(status.into());
        }
        eprintln!("orlopctl: failed to stop sandbox {id}: {}", status.message());
    }
    shut_down(context, id, &sandboxer).await
}

/// Ends a sandbox's shim and removes its record, as far as they are there.
async fn shut_down(context: &Context<'_>, id: &str, sandboxer: &str) -> Result<()> {
    let request = ControllerShutdownRequest { sandbox_id: id.to_owned(), sandboxer: sandboxer.to_owned() };
    match context.client.sandbox_controller().shutdown(request).await {
        Err(status) if status.code() != Code::NotFound => return Err(status.into()),
        _ => {}
    }
    match context.client.sandbox_store().delete(StoreDeleteRequest { sandbox_id: id.to_owned() }).await {
        Err(status) if status.code() != Code::NotFound => Err(status.into()),
        _ => Ok(()),
    }
}

/// A sandbox as Go prints containerd's type.
fn described(sandbox: &Sandbox) -> Value {
    let any = |any: &Any| match any.value.as_slice() {
        [] => json!({ "type_url": any.type_url }),
        value => json!({ "type_url": any.type_url, "value": STANDARD.encode(value) }),
    };
    let labels = (!sandbox.labels.is_empty()).then_some(&sandbox.labels);
    let runtime = sandbox.runtime.clone().unwrap_or_default();
    let extensions: Map<String, Value> =
        sandbox.extensions.iter().map(|(name, value)| (name.clone(), any(value))).collect();
    json!({
        "ID": sandbox.sandbox_id,
        "Labels": labels,
        "Runtime": { "Name": runtime.name, "Options": runtime.options.as_ref().map(any) },
        "Spec": sandbox.spec.as_ref().map(any),
        "Sandboxer": sandbox.sandboxer,
        "CreatedAt": output::timestamp(&sandbox.created_at),
        "UpdatedAt": output::timestamp(&sandbox.updated_at),
        "Extensions": extensions,
    })
}
