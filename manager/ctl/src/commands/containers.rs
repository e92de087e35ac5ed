//! `orlopctl containers`.

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options as RuncOptions;
use orlop_proto::containerd::services::containers::v1::*;
use orlop_proto::containerd::services::snapshots::v1::RemoveSnapshotRequest;
use orlop_proto::containerd::services::tasks::v1::{DeleteTaskRequest, GetRequest};
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost_types::Any;
use serde_json::{Value, json};
use tonic::Code;

use super::{Context, checkpoint, commit, network, restore};
use crate::cli::container::Containers;
use crate::create;
use crate::labels;
use crate::output::{self, Gap, Table};

pub async fn execute(context: &Context<'_>, verb: Containers) -> Result<u32> {
    let done = match verb {
        Containers::Checkpoint(options) => checkpoint::container(context, &options).await,
        Containers::Restore(options) => return restore::restore(context, &options).await,
        Containers::Commit(options) => commit::commit(context, &options).await,
        Containers::Create(options) => {
            create::create(context.client, context.global, &options, None).await?;
            Ok(())
        }
        Containers::Delete { keep_snapshot, containers } => {
            let mut failed = None;
            for id in containers {
                if let Err(error) = delete(context, &id, keep_snapshot).await {
                    // Every container is tried; what went wrong before the last failure is said here.
                    if let Some(earlier) = failed.replace(error) {
                        eprintln!("orlopctl: {earlier}");
                    }
                }
            }
            failed.map_or(Ok(()), Err)
        }
        Containers::Info { spec, container } => {
            let container = get(context, &container).await?;
            output::json(&if spec { spec_json(&container)? } else { info_json(&container)? })
        }
        Containers::List { quiet, filters } => list(context, quiet, filters).await,
        Containers::Label { container, labels } => {
            let changes = labels::changes(&labels);
            let update_mask = Some(labels::mask(&changes));
            let changed = Container { id: container, labels: changes, ..Container::default() };
            let request = UpdateContainerRequest { container: Some(changed), update_mask };
            let updated = context.client.containers().update(request).await?.into_inner().container;
            output::print(&format!("{}\n", output::labels(&updated.unwrap_or_default().labels)))
        }
    };
    done.map(|()| 0)
}

/// A container's record.
pub async fn get(context: &Context<'_>, id: &str) -> Result<Container> {
    let response = context.client.containers().get(GetContainerRequest { id: id.to_owned() }).await?;
    response.into_inner().container.ok_or_else(|| Error::new(Kind::NotFound, "container", format!("{id:?}")))
}

/// Removes a container that does not run, its task and, unless kept, its snapshot.
pub async fn delete(context: &Context<'_>, id: &str, keep_snapshot: bool) -> Result<()> {
    let container = get(context, id).await?;
    let mut tasks = context.client.tasks();
    let request = GetRequest { container_id: id.to_owned(), ..GetRequest::default() };
    match tasks.get(request).await {
        Ok(response) => {
            let process = response.into_inner().process.unwrap_or_default();
            let status = Status::try_from(process.status).unwrap_or(Status::Unknown);
            if !matches!(status, Status::Stopped | Status::Created) {
                let reason =
                    format!("cannot delete a non stopped container: {}", status.as_str_name().to_lowercase());
                return Err(Error::because(Kind::FailedPrecondition, "container", format!("{id:?}"), reason));
            }
            let former = crate::stdio::Paths {
                stdin: process.stdin,
                stdout: process.stdout,
                stderr: process.stderr,
                terminal: process.terminal,
            };
            tasks.delete(DeleteTaskRequest { container_id: id.to_owned() }).await?;
            crate::stdio::remove_below(&context.fifo_directory(), &former);
        }
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(status.into()),
    }
    network::leave(context, id, None).await?;
    if !keep_snapshot && !container.snapshot_key.is_empty() {
        let request = RemoveSnapshotRequest {
            snapshotter: container.snapshotter.clone(),
            key: container.snapshot_key.clone(),
        };
        match context.client.snapshots().remove(request).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(status.into()),
        }
    }
    context.client.containers().delete(DeleteContainerRequest { id: id.to_owned() }).await?;
    Ok(())
}

async fn list(context: &Context<'_>, quiet: bool, filters: Vec<String>) -> Result<()> {
    let request = ListContainersRequest { filters };
    let containers = context.client.containers().list(request).await?.into_inner().containers;
    if quiet {
        let ids: String = containers.iter().map(|container| format!("{}\n", container.id)).collect();
        return output::print(&ids);
    }
    if context.json() {
        let rows = containers.iter().map(|container| {
            json!({
                "id": container.id,
                "image": container.image,
                "runtime": container.runtime.as_ref().map(|runtime| &runtime.name),
                "snapshotter": container.snapshotter,
                "snapshot_key": container.snapshot_key,
                "labels": container.labels,
                "created_at": output::timestamp(&container.created_at),
            })
        });
        return output::json(&rows.collect());
    }
    let mut table = Table::new(Gap::Spaces(4), &["CONTAINER", "IMAGE", "RUNTIME"]);
    for container in containers {
        let image = if container.image.is_empty() { "-".to_owned() } else { container.image };
        table.closed([container.id, image, container.runtime.unwrap_or_default().name]);
    }
    table.print()
}

/// The OCI configuration of a container.
pub fn spec_json(container: &Container) -> Result<Value> {
    let spec = container.spec.clone().unwrap_or_default();
    serde_json::from_slice(&spec.value)
        .map_err(|error| Error::because(Kind::DataLoss, "parse configuration of", &container.id, error))
}

/// A container as `ctr` shows it, under Go's names.
fn info_json(container: &Container) -> Result<Value> {
    let runtime = container.runtime.clone().unwrap_or_default();
    let extensions: Value = container
        .extensions
        .iter()
        .map(|(key, value)| (key.clone(), json!({ "type_url": value.type_url })))
        .collect();
    Ok(json!({
        "ID": container.id,
        "Labels": container.labels,
        "Image": container.image,
        "Runtime": { "Name": runtime.name, "Options": runtime.options.as_ref().map(options_json) },
        "SnapshotKey": container.snapshot_key,
        "Snapshotter": container.snapshotter,
        "CreatedAt": output::timestamp(&container.created_at),
        "UpdatedAt": output::timestamp(&container.updated_at),
        "Extensions": if container.extensions.is_empty() { Value::Null } else { extensions },
        "Spec": spec_json(container)?,
    }))
}

fn options_json(options: &Any) -> Value {
    let mut json = json!({ "type_url": options.type_url });
    if let Ok(runc) = any::unpack::<RuncOptions>(options) {
        for (key, value) in [("binary_name", runc.binary_name), ("root", runc.root)] {
            if !value.is_empty() {
                json[key] = value.into();
            }
        }
        for (key, set) in [("systemd_cgroup", runc.systemd_cgroup), ("no_pivot_root", runc.no_pivot_root)] {
            if set {
                json[key] = true.into();
            }
        }
    }
    json
}
