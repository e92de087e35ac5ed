//! `orlopctl snapshots`.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use orlop_proto::containerd::services::diff::v1::DiffRequest;
use orlop_proto::containerd::services::snapshots::v1::*;
use orlop_proto::containerd::types::{Descriptor, Mount};
use orlop_proto::contract::time::rfc3339;
use orlop_proto::error::Result;
use serde_json::{Value, json};

use super::Context;
use super::content::print_blob;
use crate::cli::snapshots::{New, Snapshots, Verb};
use crate::client::{Client, random_id};
use crate::image;
use crate::output::{self, Gap, Table};
use crate::platform::Platform;
use crate::{labels, unpack};

pub async fn execute(context: &Context<'_>, group: Snapshots) -> Result<()> {
    let mut service = context.client.snapshots();
    let snapshotter = group.snapshotter.name().to_owned();
    match group.verb {
        Verb::Commit { name, key } => {
            let labels = rooted();
            service.commit(CommitSnapshotRequest { snapshotter, name, key, labels }).await?;
            Ok(())
        }
        Verb::Diff { media_type, reference, keep, label, key, other } => {
            let mut labels = labels::new(&label);
            if keep {
                labels.extend(rooted());
            }
            let request = DiffRequest {
                media_type,
                r#ref: reference.unwrap_or_default(),
                labels,
                ..DiffRequest::default()
            };
            context
                .client
                .with_lease(async |client| {
                    let made = diff(client, &snapshotter, request, &key, other.as_deref()).await?;
                    print_blob(client, made.digest).await
                })
                .await
        }
        Verb::Info { key } => {
            let info = service.stat(StatSnapshotRequest { snapshotter, key }).await?.into_inner().info;
            output::json(&info_json(&info.unwrap_or_default()))
        }
        Verb::List { filters } => print_list(context, list(context, snapshotter, filters).await?),
        Verb::Mounts { target, key } => {
            let mounts = service.mounts(MountsRequest { snapshotter, key }).await?.into_inner().mounts;
            print_mounts(context, &mounts, &target)
        }
        Verb::Prepare(new) => {
            let (key, parent) = (new.key.clone(), new.parent.clone().unwrap_or_default());
            let labels = rooted();
            let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
            print_new(context, &new, service.prepare(request).await?.into_inner().mounts)
        }
        Verb::View(new) => {
            let (key, parent) = (new.key.clone(), new.parent.clone().unwrap_or_default());
            let request = ViewSnapshotRequest { snapshotter, key, parent, ..Default::default() };
            print_new(context, &new, service.view(request).await?.into_inner().mounts)
        }
        Verb::Delete { keys } => {
            for key in keys {
                service.remove(RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key }).await?;
            }
            Ok(())
        }
        Verb::Label { key, labels } => {
            let changes = labels::changes(&labels);
            let update_mask = Some(labels::mask(&changes));
            let info = Some(Info { name: key, labels: changes, ..Info::default() });
            let request = UpdateSnapshotRequest { snapshotter, info, update_mask };
            let info = service.update(request).await?.into_inner().info.unwrap_or_default();
            output::print(&format!("{}\n", output::labels(&info.labels)))
        }
        Verb::Tree => {
            let infos = list(context, snapshotter, Vec::new()).await?;
            let pairs = infos.into_iter().map(|info| (info.name, info.parent));
            output::print(&tree(&pairs.collect()))
        }
        Verb::Unpack { snapshotter: own, digest, .. } => {
            let snapshotter = own.snapshotter.as_deref().unwrap_or(&snapshotter);
            unpack_manifest(context, snapshotter, &digest).await
        }
        Verb::Usage { bytes, keys } => usage(context, &snapshotter, bytes, keys).await,
    }
}

/// The label that keeps something from being collected, with the time as `ctr` has it.
fn rooted() -> HashMap<String, String> {
    [("containerd.io/gc.root".to_owned(), rfc3339(SystemTime::now()))].into()
}

/// Makes the layer of what differs: from one snapshot (from nothing, without a name) to the other, or from the parent to the one.
pub async fn diff(
    client: &Client,
    snapshotter: &str,
    mut request: DiffRequest,
    key: &str,
    other: Option<&str>,
) -> Result<Descriptor> {
    let (before, after) = match other {
        Some(other) => (key.to_owned(), other),
        None => (stat(client, snapshotter, key).await?.parent, key),
    };
    let mut views = Vec::new();
    let made = async {
        if !before.is_empty() {
            request.left = visible(client, snapshotter, &before, &mut views).await?;
        }
        request.right = visible(client, snapshotter, after, &mut views).await?;
        let answer = client.diff().diff(request).await?.into_inner();
        Ok(answer.diff.unwrap_or_default())
    }
    .await;
    for key in views {
        let snapshotter = snapshotter.to_owned();
        let removed = client.snapshots().remove(RemoveSnapshotRequest { snapshotter, key }).await;
        if made.is_ok() {
            removed?;
        }
    }
    made
}

/// What there is to say of a snapshot.
pub async fn stat(client: &Client, snapshotter: &str, key: &str) -> Result<Info> {
    let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    Ok(client.snapshots().stat(request).await?.into_inner().info.unwrap_or_default())
}

/// The mounts of a snapshot: its own, or those of a view of a committed one, whose name is noted.
async fn visible(
    client: &Client,
    snapshotter: &str,
    key: &str,
    views: &mut Vec<String>,
) -> Result<Vec<Mount>> {
    let (owner, mut service) = (snapshotter.to_owned(), client.snapshots());
    if stat(client, snapshotter, key).await?.kind() != Kind::Committed {
        let request = MountsRequest { snapshotter: owner, key: key.to_owned() };
        return Ok(service.mounts(request).await?.into_inner().mounts);
    }
    let view = format!("{key}-view-{}", random_id());
    let request = ViewSnapshotRequest {
        snapshotter: owner,
        key: view.clone(),
        parent: key.to_owned(),
        ..ViewSnapshotRequest::default()
    };
    let mounts = service.view(request).await?.into_inner().mounts;
    views.push(view);
    Ok(mounts)
}

async fn list(context: &Context<'_>, snapshotter: String, filters: Vec<String>) -> Result<Vec<Info>> {
    let request = ListSnapshotsRequest { snapshotter, filters };
    let mut stream = context.client.snapshots().list(request).await?.into_inner();
    let mut infos = Vec::new();
    while let Some(part) = stream.message().await? {
        infos.extend(part.info);
    }
    Ok(infos)
}

fn print_list(context: &Context<'_>, infos: Vec<Info>) -> Result<()> {
    if context.json() {
        return output::json(&infos.iter().map(info_json).collect());
    }
    let mut table = Table::new(Gap::Spaces(1), &["KEY", "PARENT", "KIND"]);
    for info in infos {
        let kind = kind_name(&info).to_owned();
        table.closed([info.name, info.parent, kind]);
    }
    table.print()
}

fn kind_name(info: &Info) -> &'static str {
    match Kind::try_from(info.kind) {
        Ok(Kind::View) => "View",
        Ok(Kind::Active) => "Active",
        Ok(Kind::Committed) => "Committed",
        Ok(Kind::Unknown) | Err(_) => "Unknown",
    }
}

fn info_json(info: &Info) -> Value {
    let mut json = json!({
        "Kind": kind_name(info),
        "Name": info.name,
        "Created": output::timestamp(&info.created_at),
        "Updated": output::timestamp(&info.updated_at),
    });
    if !info.parent.is_empty() {
        json["Parent"] = info.parent.clone().into();
    }
    if !info.labels.is_empty() {
        json["Labels"] = json!(info.labels);
    }
    json
}

fn mounts_json(mounts: &[Mount]) -> Value {
    let one =
        |mount: &Mount| json!({ "Type": mount.r#type, "Source": mount.source, "Options": mount.options });
    mounts.iter().map(one).collect()
}

fn print_mounts(context: &Context<'_>, mounts: &[Mount], target: &str) -> Result<()> {
    if context.json() {
        return output::json(&mounts_json(mounts));
    }
    let command = |mount: &Mount| {
        format!("mount -t {} {} {target} -o {}\n", mount.r#type, mount.source, mount.options.join(","))
    };
    output::print(&mounts.iter().map(command).collect::<String>())
}

fn print_new(context: &Context<'_>, new: &New, mounts: Vec<Mount>) -> Result<()> {
    if new.mounts {
        output::json(&mounts_json(&mounts))?;
    }
    match &new.target {
        Some(target) => print_mounts(context, &mounts, target),
        None => Ok(()),
    }
}

/// Snapshots below their parents, as `ctr` draws them.
fn tree(parents: &BTreeMap<String, String>) -> String {
    fn grow(text: &mut String, parents: &BTreeMap<String, String>, name: &str, depth: usize) {
        let branch = if depth == 0 { " ".to_owned() } else { format!("{}\\_ ", "  ".repeat(depth)) };
        text.push_str(&format!("{branch}{name}\n"));
        for (child, _) in parents.iter().filter(|(_, parent)| *parent == name) {
            grow(text, parents, child, depth + 1);
        }
    }
    let mut text = String::new();
    // A parent that is not listed does not hide its children.
    for (root, _) in parents.iter().filter(|(_, parent)| !parents.contains_key(*parent)) {
        grow(&mut text, parents, root, 0);
    }
    text
}

async fn usage(context: &Context<'_>, snapshotter: &str, bytes: bool, mut keys: Vec<String>) -> Result<()> {
    if keys.is_empty() {
        let infos = list(context, snapshotter.to_owned(), Vec::new()).await?;
        keys.extend(infos.into_iter().map(|info| info.name));
    }
    let mut table = Table::new(Gap::Spaces(1), &["KEY", "SIZE", "INODES"]);
    let mut rows = Vec::new();
    for key in keys {
        let request = UsageRequest { snapshotter: snapshotter.to_owned(), key: key.clone() };
        let usage = context.client.snapshots().usage(request).await?.into_inner();
        rows.push(json!({ "key": key, "size": usage.size, "inodes": usage.inodes }));
        let size = if bytes { usage.size.to_string() } else { output::binary_size(usage.size) };
        table.closed([key, size, usage.inodes.to_string()]);
    }
    if context.json() { output::json(&rows.into()) } else { table.print() }
}

async fn unpack_manifest(context: &Context<'_>, snapshotter: &str, digest: &str) -> Result<()> {
    let document: Value = image::document(context.client, digest).await?;
    let media_type = if document.get("manifests").is_some() { image::OCI_INDEX } else { "" };
    let target = image::Descriptor {
        digest: digest.to_owned(),
        media_type: media_type.to_owned(),
        ..Default::default()
    };
    let image = image::resolve(context.client, &target, &Platform::host()).await?;
    output::print(&format!("unpacking {digest}..."))?;
    context.client.with_lease(async |client| unpack::unpack(client, snapshotter, &image).await).await?;
    output::print("done\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_stand_below_their_parents() {
        let pairs = [("a", ""), ("b", "a"), ("c", "b"), ("d", "a"), ("e", "")];
        let parents = pairs.map(|(name, parent)| (name.to_owned(), parent.to_owned())).into();
        assert_eq!(tree(&parents), " a\n  \\_ b\n    \\_ c\n  \\_ d\n e\n");
    }
}
