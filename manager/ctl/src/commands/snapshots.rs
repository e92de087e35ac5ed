//! `orlopctl snapshots`.

use std::collections::BTreeMap;

use orlop_proto::containerd::services::snapshots::v1::*;
use orlop_proto::containerd::types::Mount;
use orlop_proto::error::Result;
use serde_json::{Value, json};

use super::Context;
use crate::cli::snapshots::{New, Snapshots, Verb};
use crate::image::{self, Descriptor};
use crate::output::{self, Gap, Table};
use crate::platform::Platform;
use crate::{labels, unpack};

pub async fn execute(context: &Context<'_>, group: Snapshots) -> Result<()> {
    let mut service = context.client.snapshots();
    let snapshotter = group.snapshotter.name().to_owned();
    match group.verb {
        Verb::Commit { name, key } => {
            service.commit(CommitSnapshotRequest { snapshotter, name, key, ..Default::default() }).await?;
            Ok(())
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
            let request = PrepareSnapshotRequest { snapshotter, key, parent, ..Default::default() };
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
        Verb::Unpack { digest } => unpack_manifest(context, &snapshotter, &digest).await,
        Verb::Usage { bytes, keys } => usage(context, &snapshotter, bytes, keys).await,
    }
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
    let target =
        Descriptor { digest: digest.to_owned(), media_type: media_type.to_owned(), ..Descriptor::default() };
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
