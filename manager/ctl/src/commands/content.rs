//! `orlopctl content`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use orlop_proto::containerd::services::content::v1::*;
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::json;

use super::Context;
use crate::blob::{PART, Upload};
use crate::cli::content::{Content, Fetch, Prune};
use crate::client::{Client, random_id};
use crate::labels;
use crate::output::{self, Gap, Table};

pub async fn execute(context: &Context<'_>, verb: Content) -> Result<()> {
    let mut service = context.client.content();
    match verb {
        Content::Active { reference, .. } => active(context, reference).await,
        Content::Delete { digests } => {
            for digest in digests {
                service.delete(DeleteContentRequest { digest: digest.clone() }).await?;
                output::print(&format!("{digest}\n"))?;
            }
            Ok(())
        }
        Content::Edit { editor, digest, .. } => edit(context, editor, digest).await,
        Content::Fetch(options) => {
            let Fetch { metadata_only, mut pull } = *options;
            pull.no_unpack = true;
            if metadata_only {
                super::transfers::pull_metadata(context, &mut pull).await
            } else {
                super::transfers::pull(context, &pull).await
            }
        }
        Content::FetchBlob(options) => super::objects::fetch_blobs(context, &options).await,
        Content::FetchObject(options) => super::objects::fetch(context, &options).await,
        Content::Get { digest } => print_blob(context.client, digest).await,
        Content::Ingest { expected_size, expected_digest, reference } => {
            let input = std::io::stdin().lock();
            ingest(context, input, reference, expected_size, expected_digest).await.map(drop)
        }
        Content::List { quiet, filters } => list(context, quiet, filters).await,
        Content::Label { digest, labels } => {
            let changes = labels::changes(&labels);
            let update_mask = Some(labels::mask(&changes));
            let info = Some(Info { digest, labels: changes, ..Info::default() });
            let info = service.update(UpdateRequest { info, update_mask }).await?.into_inner().info;
            output::print(&format!("{}\n", output::labels(&info.unwrap_or_default().labels)))
        }
        Content::Prune(Prune::References { is_async, dry }) => prune(context, is_async, dry).await,
        Content::PushObject(options) => super::objects::push(context, &options).await,
    }
}

async fn list(context: &Context<'_>, quiet: bool, filters: Vec<String>) -> Result<()> {
    let mut stream = context.client.content().list(ListContentRequest { filters }).await?.into_inner();
    let mut found = Vec::new();
    while let Some(part) = stream.message().await? {
        found.extend(part.info);
    }
    if quiet {
        let digests: String = found.iter().map(|info| format!("{}\n", info.digest)).collect();
        return output::print(&digests);
    }
    if context.json() {
        let rows = found.iter().map(|info| {
            json!({
                "digest": info.digest,
                "size": info.size,
                "created_at": output::timestamp(&info.created_at),
                "updated_at": output::timestamp(&info.updated_at),
                "labels": info.labels,
            })
        });
        return output::json(&rows.collect());
    }
    let mut table = Table::headless(Gap::Tabs);
    table.open(["DIGEST", "SIZE", "AGE", "LABELS"].map(str::to_owned));
    for info in found {
        let labels = match output::labels(&info.labels) {
            labels if labels.is_empty() => "-".to_owned(),
            labels => labels,
        };
        let size = output::decimal_size(info.size);
        table.open([info.digest.clone(), size, output::since(&info.created_at), labels]);
    }
    table.print()
}

async fn active(context: &Context<'_>, reference: Option<String>) -> Result<()> {
    let request = ListStatusesRequest::default();
    let mut statuses = context.client.content().list_statuses(request).await?.into_inner().statuses;
    statuses.retain(|status| reference.as_ref().is_none_or(|part| status.r#ref.contains(part)));
    if context.json() {
        let rows = statuses.iter().map(|status| {
            json!({
                "ref": status.r#ref,
                "offset": status.offset,
                "total": status.total,
                "expected": status.expected,
                "started_at": output::timestamp(&status.started_at),
                "updated_at": output::timestamp(&status.updated_at),
            })
        });
        return output::json(&rows.collect());
    }
    let mut table = Table::new(Gap::Tabs, &["REF", "SIZE", "AGE"]);
    for status in statuses {
        let size = output::decimal_size(status.offset);
        table.closed([status.r#ref.clone(), size, output::since(&status.started_at)]);
    }
    table.print()
}

/// Writes a blob to standard output.
pub async fn print_blob(client: &Client, digest: String) -> Result<()> {
    let request = ReadContentRequest { digest, offset: 0, size: 0 };
    let mut stream = client.content().read(request).await?.into_inner();
    while let Some(part) = stream.message().await? {
        output::bytes(&part.data)?;
    }
    Ok(())
}

/// Lets an editor change a copy of a blob, and stores that.
async fn edit(context: &Context<'_>, editor: Option<String>, digest: String) -> Result<()> {
    let editor = editor.filter(|editor| !editor.is_empty()).ok_or_else(|| {
        Error::because(
            Kind::InvalidArgument,
            "edit",
            digest.clone(),
            "no editor is given: --editor or EDITOR",
        )
    })?;
    let path = std::env::temp_dir().join(format!("orlopctl-edit-{}", random_id()));
    let shown = path.display().to_string();
    let mut file =
        File::options().write(true).create_new(true).mode(0o600).open(&path).context("create", &shown)?;
    let request = ReadContentRequest { digest: digest.clone(), offset: 0, size: 0 };
    let edited = async {
        let mut stream = context.client.content().read(request).await?.into_inner();
        while let Some(part) = stream.message().await? {
            file.write_all(&part.data).context("write", &shown)?;
        }
        drop(file);
        // EDITOR may have arguments.
        let command = format!("{editor} \"$0\"");
        let status = Command::new("sh").args(["-c", &command]).arg(&path).status().context("run", &editor)?;
        if !status.success() {
            return Err(Error::because(Kind::Aborted, "run", editor, status.to_string()));
        }
        let file = File::open(&path).context("open", &shown)?;
        ingest(context, file, format!("edit-{digest}"), 0, None).await
    }
    .await;
    // What was edited must not stay behind; the first error is the one to tell.
    let removed = std::fs::remove_file(&path).context("remove", &shown);
    let made = edited?;
    removed?;
    output::print(&format!("{made}\n"))
}

/// Whether a label keeps a layer: by containerd's names, and by those of its old versions, where 0 is the configuration.
fn keeps_layer(label: &str) -> bool {
    let Some(rest) = label.strip_prefix("containerd.io/gc.ref.content.") else { return false };
    let is_number = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    rest.starts_with("l.") || (is_number && rest != "0")
}

async fn prune(context: &Context<'_>, is_async: bool, dry: bool) -> Result<()> {
    let mut service = context.client.content();
    let mut stream = service.list(ListContentRequest::default()).await?.into_inner();
    let mut found = Vec::new();
    while let Some(part) = stream.message().await? {
        found.extend(part.info);
    }
    for mut info in found {
        let labels: Vec<String> = info.labels.keys().filter(|label| keeps_layer(label)).cloned().collect();
        if dry {
            let lines = labels.iter().map(|label| format!("{} {label}\n", info.digest));
            output::print(&lines.collect::<String>())?;
            continue;
        }
        if !labels.is_empty() {
            info.labels.retain(|label, _| !labels.contains(label));
            let paths = labels.iter().map(|label| format!("labels.{label}")).collect();
            let update_mask = Some(prost_types::FieldMask { paths });
            service.update(UpdateRequest { info: Some(info), update_mask }).await?;
        }
    }
    if dry {
        return Ok(());
    }
    context.client.collect(!is_async).await
}

/// Stores what is read, from where an earlier upload of the name broke off; returns its digest.
async fn ingest(
    context: &Context<'_>,
    mut input: impl Read,
    reference: String,
    total: u64,
    expected: Option<String>,
) -> Result<String> {
    let known = expected.clone().unwrap_or_default();
    let total = i64::try_from(total).unwrap_or(i64::MAX);
    let begun = Upload::begin(context.client, &reference, total, &known).await?;
    let Some(mut upload) = begun else { return Ok(known) };
    loop {
        let mut data = Vec::with_capacity(PART);
        (&mut input).take(PART as u64).read_to_end(&mut data).context("read", &reference)?;
        if data.is_empty() {
            break;
        }
        upload.write(data).await?;
    }
    upload.finish((total > 0).then_some(total), expected, HashMap::new()).await.map(|(digest, _)| digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_layers_are_told_from_others() {
        for label in ["l.0", "l.12", "1", "27"] {
            assert!(keeps_layer(&format!("containerd.io/gc.ref.content.{label}")), "{label}");
        }
        for label in ["0", "config", "m.0", "", "1x"] {
            assert!(!keeps_layer(&format!("containerd.io/gc.ref.content.{label}")), "{label}");
        }
        assert!(!keeps_layer("containerd.io/gc.ref.snapshot.overlayfs"));
    }
}
