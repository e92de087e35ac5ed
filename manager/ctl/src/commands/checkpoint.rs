//! `orlopctl tasks checkpoint`, to a directory or to an image that a container can be restored from, and `orlopctl containers checkpoint`;
//! the images are laid out as containerd's Go client does it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::CheckpointOptions;
use orlop_proto::containerd::services::diff::v1::DiffRequest;
use orlop_proto::containerd::services::images::v1::{CreateImageRequest, Image};
use orlop_proto::containerd::services::tasks::v1::*;
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::contract::time::rfc3339;
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use prost_types::Any;
use serde_json::{Value, json};

use super::commit::while_paused;
use super::{Context, containers, snapshots};
use crate::blob::{write_blob, write_document};
use crate::cli::container::Checkpoint;
use crate::client::Client;
use crate::image::{self, Descriptor};
use crate::output;
use crate::platform::Platform;

/// Media type of what CRIU saved.
pub const CRIU: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
/// Media type of the OCI configuration, in its envelope.
pub const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";
/// Media type of the options that a task was saved with, in their envelope.
const OPTIONS: &str = "application/vnd.containerd.container.checkpoint.options.v1+proto";
/// Media type of the container's options for its runtime, in their envelope.
pub const RUNTIME_OPTIONS: &str = "application/vnd.containerd.container.checkpoint.runtime.options+proto";
/// Annotation that names the image of a saved container.
pub const IMAGE_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation that names its runtime.
pub const RUNTIME: &str = "io.containerd.checkpoint.runtime";
/// Annotation that names its snapshotter.
pub const SNAPSHOTTER: &str = "io.containerd.checkpoint.snapshotter";

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
    let mut index = Index::default();
    parts.iter().for_each(|part| index.add(part.into()));
    if !container.image.is_empty() {
        index.manifests.push(image::target(&image::record(client, &container.image).await?)?);
        index.annotations["image.name"] = container.image.clone().into();
    }
    if !container.snapshot_key.is_empty() {
        index.add(changes(client, &container.snapshotter, &container.snapshot_key).await?);
    }
    let name = format!("containerd.io/checkpoint/{id}:{}", date(&rfc3339(SystemTime::now())));
    let labels = [("containerd.io/checkpoint".to_owned(), "true".to_owned())];
    index.name(client, &name, labels.into()).await?;
    Ok(Some(name))
}

/// Saves a container into an image: what it runs in, and whatever else is wanted.
pub async fn container(context: &Context<'_>, options: &Checkpoint) -> Result<()> {
    let container = containers::get(context, &options.container).await?;
    let saving = context.client.with_lease(async |client| {
        let target = image::target(&image::record(client, &container.image).await?)?;
        let runtime = container.runtime.clone().unwrap_or_default();
        let annotations = json!({
            IMAGE_NAME: container.image,
            RUNTIME: runtime.name,
            SNAPSHOTTER: container.snapshotter,
        });
        let mut index = Index { annotations, ..Index::default() };
        if let Some(given) = runtime.options.filter(|given| !given.value.is_empty()) {
            index.add(write_blob(client, given.encode_to_vec(), RUNTIME_OPTIONS).await?);
        }
        if options.image {
            index.manifests.push(target);
        }
        if options.rw {
            index.add(changes(client, &container.snapshotter, &container.snapshot_key).await?);
        }
        if options.task {
            let wanted: Any =
                any::pack(&CheckpointOptions { file_locks: true, ..CheckpointOptions::default() });
            let request = CheckpointTaskRequest {
                container_id: container.id.clone(),
                options: Some(wanted.clone()),
                ..CheckpointTaskRequest::default()
            };
            let parts = client.tasks().checkpoint(request).await?.into_inner().descriptors;
            parts.iter().for_each(|part| index.add(part.into()));
            index.add(write_blob(client, wanted.encode_to_vec(), OPTIONS).await?);
        }
        index.name(client, &options.image_name, HashMap::new()).await
    });
    while_paused(context.client, &container.id, saving).await
}

/// The layer of what a container has changed.
async fn changes(client: &Client, snapshotter: &str, key: &str) -> Result<Descriptor> {
    let request = DiffRequest { r#ref: format!("checkpoint-rw-{key}"), ..DiffRequest::default() };
    Ok((&snapshots::diff(client, snapshotter, request, key, None).await?).into())
}

/// The index of an image that a container is restored from.
struct Index {
    manifests: Vec<Descriptor>,
    annotations: Value,
}

impl Default for Index {
    fn default() -> Index {
        Index { manifests: Vec::new(), annotations: json!({}) }
    }
}

impl Index {
    /// Adds a part that is this host's.
    fn add(&mut self, part: Descriptor) {
        self.manifests.push(Descriptor { platform: Some(Platform::host()), ..part });
    }

    /// Stores the index under a name; it keeps its parts.
    async fn name(self, client: &Client, name: &str, labels: HashMap<String, String>) -> Result<()> {
        let kept = self.manifests.iter().enumerate();
        let kept = kept.map(|(at, part)| (format!("containerd.io/gc.ref.content.{at}"), part.digest.clone()));
        let index =
            json!({ "schemaVersion": 2, "manifests": self.manifests, "annotations": self.annotations });
        let like = Descriptor { media_type: image::OCI_INDEX.to_owned(), ..Default::default() };
        let target = write_document(client, &index, kept.collect(), &like).await?;
        let target = Some((&target).into());
        let image = Some(Image { name: name.to_owned(), labels, target, ..Image::default() });
        client.images().create(CreateImageRequest { image, ..CreateImageRequest::default() }).await?;
        Ok(())
    }
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
