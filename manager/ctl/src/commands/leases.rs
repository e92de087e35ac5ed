//! `orlopctl leases`.

use std::time::SystemTime;

use orlop_proto::containerd::services::leases::v1::*;
use orlop_proto::contract::time::rfc3339;
use orlop_proto::error::Result;
use serde_json::json;

use super::Context;
use crate::cli::leases::Leases;
use crate::client::random_id;
use crate::labels;
use crate::output::{self, Gap, Table};

pub async fn execute(context: &Context<'_>, verb: Leases) -> Result<()> {
    let mut service = context.client.leases();
    match verb {
        Leases::List { quiet, filters } => list(context, quiet, filters).await,
        Leases::Create { id, expires, labels } => {
            let mut labels = labels::new(&labels);
            if !expires.is_zero() {
                labels.insert("containerd.io/gc.expire".to_owned(), rfc3339(SystemTime::now() + expires));
            }
            let request = CreateRequest { id: id.unwrap_or_else(random_id), labels };
            let lease = service.create(request).await?.into_inner().lease.unwrap_or_default();
            output::print(&format!("{}\n", lease.id))
        }
        Leases::Delete { sync, ids } => {
            let count = ids.len();
            for (done, id) in ids.into_iter().enumerate() {
                // One collection at the end finds everything.
                let sync = sync && done + 1 == count;
                service.delete(DeleteRequest { id: id.clone(), sync }).await?;
                output::print(&format!("{id}\n"))?;
            }
            Ok(())
        }
    }
}

async fn list(context: &Context<'_>, quiet: bool, filters: Vec<String>) -> Result<()> {
    let leases = context.client.leases().list(ListRequest { filters }).await?.into_inner().leases;
    if quiet {
        let ids: String = leases.iter().map(|lease| format!("{}\n", lease.id)).collect();
        return output::print(&ids);
    }
    if context.json() {
        let rows = leases.iter().map(|lease| {
            json!({ "id": lease.id, "created_at": output::timestamp(&lease.created_at), "labels": lease.labels })
        });
        return output::json(&rows.collect());
    }
    let mut table = Table::new(Gap::Spaces(1), &["ID", "CREATED AT", "LABELS"]);
    for lease in leases {
        let labels = match output::labels(&lease.labels) {
            labels if labels.is_empty() => "-".to_owned(),
            labels => labels,
        };
        table.closed([lease.id.clone(), output::timestamp_seconds(&lease.created_at), labels]);
    }
    table.print()
}

/// Has any server of the API collect garbage: the end of a lease, waited for, is the API's way to ask for it.
pub async fn collect(context: &Context<'_>) -> Result<()> {
    let mut service = context.client.leases();
    let id = format!("gc-{}", random_id());
    service.create(CreateRequest { id: id.clone(), ..CreateRequest::default() }).await?;
    service.delete(DeleteRequest { id, sync: true }).await?;
    Ok(())
}
