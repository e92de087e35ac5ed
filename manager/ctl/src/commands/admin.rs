//! `orlopctl fsck`, `du`, `gc` and `metrics`: what an administrator asks orlopd.

use std::collections::BTreeMap;

use orlop_proto::error::Result;
use orlop_proto::orlop::admin::v1::problem::Severity;
use orlop_proto::orlop::admin::v1::*;
use serde_json::{Value, json};
use tonic::Code;

use super::{Context, leases};
use crate::output::{self, Gap, Table};

/// Checks what is stored; 1 where damage remains.
pub async fn check(context: &Context<'_>, repair: bool, quick: bool) -> Result<u32> {
    let report = context.client.admin().check(CheckRequest { repair, quick }).await?.into_inner();
    let is_open = |problem: &Problem| problem.severity() == Severity::Damage && !problem.repaired;
    let left = report.problems.iter().filter(|problem| is_open(problem)).count();
    let code = u32::from(left > 0);
    if context.json() {
        output::json(&json!({
            "problems": report.problems.iter().map(problem_json).collect::<Vec<_>>(),
            "damaged": left,
            "records": report.records,
            "blobs": report.blobs,
            "blobBytes": report.blob_bytes,
            "snapshots": report.snapshots,
            "layersCompared": report.layers_compared,
            "layersUnsynced": report.layers_unsynced,
        }))?;
        return Ok(code);
    }
    if !report.problems.is_empty() {
        let mut table = Table::new(Gap::Spaces(2), &["SEVERITY", "KIND", "NAME", "PROBLEM", "OUTCOME"]);
        for problem in &report.problems {
            let name = match problem.namespace.as_str() {
                "" => problem.name.clone(),
                namespace => format!("{namespace}: {}", problem.name),
            };
            let outcome = if problem.outcome.is_empty() { "-" } else { &problem.outcome };
            let cells = [severity(problem), &problem.kind, &name, &problem.text, outcome];
            table.open(cells.map(str::to_owned));
        }
        table.print()?;
    }
    let unsynced = match report.layers_unsynced {
        0 => String::new(),
        count => format!(", {count} on their way to the disk"),
    };
    output::print(&format!(
        "{} records, {} blobs ({}), {} snapshots ({} compared with their blobs{unsynced}): {}\n",
        report.records,
        report.blobs,
        output::binary_size(report.blob_bytes.cast_signed()),
        report.snapshots,
        report.layers_compared,
        match (left, repair) {
            (0, _) => "clean".to_owned(),
            (count, false) => format!("{count} damaged; --repair heals what can be brought back"),
            (count, true) => format!("{count} damaged beyond repair"),
        }
    ))?;
    Ok(code)
}

fn severity(problem: &Problem) -> &'static str {
    match (problem.severity(), problem.repaired) {
        (Severity::Notice, _) => "notice",
        (Severity::Damage, false) => "damage",
        (Severity::Damage, true) => "repaired",
    }
}

fn problem_json(problem: &Problem) -> Value {
    json!({
        "severity": severity(problem),
        "kind": problem.kind,
        "namespace": problem.namespace,
        "name": problem.name,
        "problem": problem.text,
        "outcome": problem.outcome,
    })
}

/// Shows what every byte below the root is for, the largest first.
pub async fn usage(context: &Context<'_>, summarize: bool) -> Result<()> {
    let mut usage = context.client.admin().usage(UsageRequest {}).await?.into_inner();
    usage.owners.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for owner in &usage.owners {
        let sum = sums.entry(&owner.kind).or_default();
        sum.0 += owner.bytes;
        sum.1 += owner.inodes;
    }
    if context.json() {
        let owners = usage.owners.iter().filter(|_| !summarize).map(|owner| {
            json!({
                "kind": owner.kind,
                "name": owner.name,
                "namespaces": owner.namespaces,
                "keptBy": owner.kept_by,
                "bytes": owner.bytes,
                "inodes": owner.inodes,
            })
        });
        let sum = |(kind, (bytes, inodes)): (&&str, &(u64, u64))| {
            ((*kind).to_owned(), json!({ "bytes": bytes, "inodes": inodes }))
        };
        return output::json(&json!({
            "owners": owners.collect::<Vec<_>>(),
            "kinds": sums.iter().map(sum).collect::<serde_json::Map<_, _>>(),
            "bytes": usage.bytes,
            "inodes": usage.inodes,
        }));
    }
    let size = |bytes: u64| output::binary_size(bytes.cast_signed());
    if !summarize {
        let mut table = Table::new(Gap::Spaces(2), &["SIZE", "KIND", "NAMESPACES", "NAME", "KEPT BY"]);
        for owner in &usage.owners {
            let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
            let (namespaces, kept_by) = (or_none(&owner.namespaces.join(",")), or_none(&owner.kept_by));
            table.open([size(owner.bytes), owner.kind.clone(), namespaces, owner.name.clone(), kept_by]);
        }
        table.print()?;
        output::print("\n")?;
    }
    let mut table = Table::new(Gap::Spaces(2), &["KIND", "SIZE", "INODES"]);
    for (kind, (bytes, inodes)) in &sums {
        table.open([(*kind).to_owned(), size(*bytes), inodes.to_string()]);
    }
    table.open(["total".to_owned(), size(usage.bytes), usage.inodes.to_string()]);
    table.print()
}

/// Prints the server's metrics.
pub async fn metrics(context: &Context<'_>) -> Result<()> {
    let text = context.client.admin().metrics(MetricsRequest {}).await?.into_inner().text;
    if context.json() {
        return output::json(&json!({ "text": text }));
    }
    output::print(&text)
}

/// Has the server collect garbage, and says what went.
pub async fn collect(context: &Context<'_>) -> Result<()> {
    let removed = match context.client.admin().collect(CollectRequest {}).await {
        Ok(removed) => removed.into_inner(),
        // Another server of the same API.
        Err(status) if status.code() == Code::Unimplemented => return leases::collect(context).await,
        Err(status) => return Err(status.into()),
    };
    let CollectResponse { content, snapshots, ingests, leases } = removed;
    if context.json() {
        return output::json(
            &json!({ "content": content, "snapshots": snapshots, "ingests": ingests, "leases": leases }),
        );
    }
    let mut table = Table::new(Gap::Spaces(2), &["KIND", "REMOVED"]);
    for (kind, count) in
        [("content", content), ("snapshots", snapshots), ("ingests", ingests), ("leases", leases)]
    {
        table.open([kind.to_owned(), count.to_string()]);
    }
    table.print()
}

/// Shows why something is kept, or that nothing keeps it.
pub async fn explain(context: &Context<'_>, name: String) -> Result<()> {
    let answer = context.client.admin().explain(ExplainRequest { name }).await?.into_inner();
    if context.json() {
        let step = |step: &Step| json!({ "kind": step.kind, "name": step.name, "because": step.because });
        let explained = answer.explanations.iter().map(|one| {
            json!({
                "kind": one.kind,
                "name": one.name,
                "kept": !one.path.is_empty(),
                "path": one.path.iter().map(step).collect::<Vec<_>>(),
            })
        });
        return output::json(&explained.collect());
    }
    for one in &answer.explanations {
        let verdict =
            if one.path.is_empty() { "nothing keeps it, the next collection removes it" } else { "kept" };
        output::print(&format!("{} {}: {verdict}\n", one.kind, one.name))?;
        let mut table = Table::headless(Gap::Spaces(2));
        for (depth, step) in one.path.iter().enumerate() {
            let place = format!("{}{} {}", "  ".repeat(depth + 1), step.kind, step.name);
            table.open([place, step.because.clone()]);
        }
        table.print()?;
    }
    Ok(())
}
