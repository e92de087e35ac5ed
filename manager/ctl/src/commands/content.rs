//! `orlopctl content`.

use std::io::Read;

use orlop_proto::containerd::services::content::v1::*;
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::Context;
use crate::cli::content::Content;
use crate::labels;
use crate::output::{self, Gap, Table};

/// Bytes in one message of an upload.
const PART: usize = 1 << 20;

pub async fn execute(context: &Context<'_>, verb: Content) -> Result<()> {
    let mut service = context.client.content();
    match verb {
        Content::Active { reference } => active(context, reference).await,
        Content::Delete { digests } => {
            for digest in digests {
                service.delete(DeleteContentRequest { digest: digest.clone() }).await?;
                output::print(&format!("{digest}\n"))?;
            }
            Ok(())
        }
        Content::Fetch(mut options) => {
            options.no_unpack = true;
            super::transfers::pull(context, &options).await
        }
        Content::Get { digest } => {
            let request = ReadContentRequest { digest, offset: 0, size: 0 };
            let mut stream = service.read(request).await?.into_inner();
            while let Some(part) = stream.message().await? {
                output::bytes(&part.data)?;
            }
            Ok(())
        }
        Content::Ingest { expected_size, expected_digest, reference } => {
            ingest(context, reference, expected_size, expected_digest).await
        }
        Content::List { quiet, filters } => list(context, quiet, filters).await,
        Content::Label { digest, labels } => {
            let changes = labels::changes(&labels);
            let update_mask = Some(labels::mask(&changes));
            let info = Some(Info { digest, labels: changes, ..Info::default() });
            let info = service.update(UpdateRequest { info, update_mask }).await?.into_inner().info;
            output::print(&format!("{}\n", output::labels(&info.unwrap_or_default().labels)))
        }
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

/// Stores standard input, from where an earlier upload of the name broke off.
async fn ingest(
    context: &Context<'_>,
    reference: String,
    total: u64,
    expected: Option<String>,
) -> Result<()> {
    let (send, outgoing) = mpsc::channel(1);
    let first = WriteContentRequest {
        action: WriteAction::Stat as i32,
        r#ref: reference.clone(),
        total: i64::try_from(total).unwrap_or(i64::MAX),
        expected: expected.clone().unwrap_or_default(),
        ..WriteContentRequest::default()
    };
    // The channel is new and has room.
    let _ = send.send(first).await;
    let mut answers = match context.client.content().write(ReceiverStream::new(outgoing)).await {
        Ok(response) => response.into_inner(),
        Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    let closed = || Error::because(Kind::Unavailable, "upload", &reference, "closed by the server");
    let begun = match answers.message().await {
        Ok(answer) => answer.ok_or_else(closed)?,
        Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    let mut input = std::io::stdin().lock();
    let mut hash = Sha256::new();
    let mut offset = 0i64;
    loop {
        let mut data = Vec::with_capacity(PART);
        (&mut input).take(PART as u64).read_to_end(&mut data).context("read", "standard input")?;
        if data.is_empty() {
            break;
        }
        hash.update(&data);
        let start = offset;
        offset += data.len() as i64;
        if offset <= begun.offset {
            continue;
        }
        let known = usize::try_from(begun.offset - start).unwrap_or(0);
        let request = WriteContentRequest {
            action: WriteAction::Write as i32,
            r#ref: reference.clone(),
            offset: start + known as i64,
            data: data.split_off(known).into(),
            ..WriteContentRequest::default()
        };
        send.send(request).await.map_err(|_| closed())?;
        answers.message().await?.ok_or_else(closed)?;
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let request = WriteContentRequest {
        action: WriteAction::Commit as i32,
        r#ref: reference.clone(),
        offset,
        total: if total == 0 { offset } else { i64::try_from(total).unwrap_or(i64::MAX) },
        expected: expected.unwrap_or_else(|| format!("sha256:{digest}")),
        ..WriteContentRequest::default()
    };
    send.send(request).await.map_err(|_| closed())?;
    match answers.message().await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        Err(status) => Err(status.into()),
    }
}
