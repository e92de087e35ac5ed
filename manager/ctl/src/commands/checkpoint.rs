//! `orlopctl tasks checkpoint`: to a directory, or to an image that a container can be restored from, laid out as containerd's Go
//! client does it.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::CheckpointOptions;
use orlop_proto::containerd::services::diff::v1::DiffRequest;
use orlop_proto::containerd::services::images::v1::{CreateImageRequest, Image};
use orlop_proto::containerd::services::tasks::v1::*;
use orlop_proto::containerd::types::Descriptor;
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::contract::time::rfc3339;
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::{Value, json};

use super::{Context, containers, snapshots};
use crate::blob::write_document;
use crate::client::Client;
use crate::image;
use crate::output;
use crate::platform::Platform;

/// Where a task is saved to, and what becomes of it.
pub struct Options {
    /// Whether it ends.
    pub exit: bool,
    /// A directory instead of an image.
    pub image_path: Option<PathBuf>,
    /// CRIU's work files.
    pub work_path: Option<PathBuf>,
}

/// Saves a container's task.
pub async fn task(context: &Context<'_>, id: &str, options: Options) -> Result<()> {
    let absolute = |path: &Option<PathBuf>| match path {
        Some(path) => shown(&std::path::absolute(path).context("resolve", path.display().to_string())?),
        None => Ok(String::new()),
    };
    let (image_path, work_path) = (absolute(&options.image_path)?, absolute(&options.work_path)?);
    let wanted =
        CheckpointOptions { exit: options.exit, image_path, work_path, ..CheckpointOptions::default() };
    let request = CheckpointTaskRequest {
        container_id: id.to_owned(),
        options: Some(any::pack(&wanted)),
        ..CheckpointTaskRequest::default()
    };
    let mut tasks = context.client.tasks();
    let process = tasks.get(GetRequest { container_id: id.to_owned(), ..GetRequest::default() }).await?;
    let is_paused = process.into_inner().process.is_some_and(|process| process.status() == Status::Paused);
    if !is_paused {
        tasks.pause(PauseTaskRequest { container_id: id.to_owned() }).await?;
    }
    let saved = context.client.with_lease(async |client| save(context, client, id, request).await).await;
    if !is_paused {
        let resumed = tasks.resume(ResumeTaskRequest { container_id: id.to_owned() }).await;
        // One that was to end has nothing to go on with.
        if saved.is_ok() && !wanted.exit {
            resumed?;
        }
    }
    match saved? {
        Some(name) => output::print(&format!("{name}\n")),
        None => Ok(()),
    }
}

fn shown(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| {
        Error::because(Kind::InvalidArgument, "use", path.display().to_string(), "it is not UTF-8")
    })?;
    Ok(text.to_owned())
}

/// Saves what is frozen; returns the image's name, if it became one.
async fn save(
    context: &Context<'_>,
    client: &Client,
    id: &str,
    request: CheckpointTaskRequest,
) -> Result<Option<String>> {
    let parts = client.tasks().checkpoint(request).await?.into_inner().descriptors;
    if parts.is_empty() {
        return Ok(None);
    }
    let container = containers::get(context, id).await?;
    let host = Platform::host();
    let platform = json!({ "os": host.os, "architecture": host.architecture });
    let entry = |part: &Descriptor| json!({ "mediaType": part.media_type, "digest": part.digest, "size": part.size, "platform": platform });
    let mut manifests: Vec<Value> = parts.iter().map(entry).collect();
    let mut annotations = json!({});
    if !container.image.is_empty() {
        let target = image::target(&image::record(client, &container.image).await?)?;
        manifests
            .push(json!({ "mediaType": target.media_type, "digest": target.digest, "size": target.size }));
        annotations["image.name"] = container.image.clone().into();
    }
    if !container.snapshot_key.is_empty() {
        let request = DiffRequest {
            r#ref: format!("checkpoint-rw-{}", container.snapshot_key),
            ..DiffRequest::default()
        };
        let made =
            snapshots::diff(client, &container.snapshotter, request, &container.snapshot_key, None).await?;
        manifests.push(entry(&made));
    }
    let labels = manifests.iter().enumerate().map(|(index, manifest)| {
        let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
        (format!("containerd.io/gc.ref.content.{index}"), digest)
    });
    let labels = labels.collect();
    let index = json!({ "schemaVersion": 2, "manifests": manifests, "annotations": annotations });
    let like = image::Descriptor { media_type: image::OCI_INDEX.to_owned(), ..Default::default() };
    let target = write_document(client, &index, labels, &like).await?;
    let name = format!("containerd.io/checkpoint/{id}:{}", date(&rfc3339(SystemTime::now())));
    let record = Image {
        name: name.clone(),
        labels: [("containerd.io/checkpoint".to_owned(), "true".to_owned())].into(),
        target: Some((&target).into()),
        ..Image::default()
    };
    client
        .images()
        .create(CreateImageRequest { image: Some(record), ..CreateImageRequest::default() })
        .await?;
    Ok(Some(name))
}

/// A time as a tag: `01-02-2006-15:04:05`, as Go writes it.
fn date(rfc3339: &str) -> String {
    let digits: Vec<&str> = rfc3339.split(['-', 'T', ':', '.', 'Z']).collect();
    match digits[..] {
        [year, month, day, hour, minute, second, ..] => {
            format!("{month}-{day}-{year}-{hour}:{minute}:{second}")
        }
        _ => rfc3339.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_go_writes_them() {
        assert_eq!(date("2026-11-26T02:16:25.123Z"), "11-26-2026-02:16:25");
    }
}
