//! What `orlopd` does on its root while it does not serve: `fsck` and `du`.

use std::fmt::Write;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use crate::config::Config;
use crate::db::blocking;
use crate::fsck::{Options, Outcome, Problem, Severity};
use crate::space;
use crate::stores::Stores;

/// Checks everything and prints what is wrong; an error where damage remains.
pub async fn fsck(config: Config, options: Options) -> Result<()> {
    let stores = open(&config)?;
    let database = stores.database.clone();
    if !blocking(move || database.verify()).await? {
        println!("database: was not closed cleanly and has been repaired");
    }
    let report = stores.checker().check(options).await?;
    for problem in &report.problems {
        println!("{}", line(problem));
    }
    println!(
        "{} records, {} blobs of {} bytes, {} snapshots of which {} compared with their blobs and {} not known to be on the disk",
        report.records,
        report.blobs,
        report.blob_bytes,
        report.snapshots,
        report.layers_compared,
        report.layers_unsynced
    );
    match report.problems.iter().filter(|problem| problem.is_open_damage()).count() {
        0 => Ok(()),
        count => {
            let hint = if options.repair { "" } else { "; --repair heals what can be brought back" };
            let why = format!("{count} left{hint}");
            Err(Error::because(Kind::DataLoss, "damage", config.root.display().to_string(), why))
        }
    }
}

/// Prints what every byte below the root is for.
pub async fn du(config: Config) -> Result<()> {
    let stores = open(&config)?;
    let explainer = stores.collector.explainer().await?;
    let taken = blocking(move || {
        space::usage(&config.root, &stores.database, &stores.content, &stores.snapshots, &explainer)
    })
    .await?;
    let mut text = String::new();
    for (owner, taken) in &taken {
        let kept_by = owner.kept_by.as_deref().unwrap_or("-");
        // A string takes everything.
        let _ = writeln!(text, "{}\t{}\t{}\t{kept_by}", taken.bytes, owner.kind, owner.name);
    }
    print!("{text}");
    println!("{}\ttotal", taken.values().map(|taken| taken.bytes).sum::<u64>());
    Ok(())
}

/// The stores of a root that is there: what only looks must not make one.
fn open(config: &Config) -> Result<Stores> {
    if !config.root.join("meta.redb").exists() {
        return Err(Error::new(Kind::NotFound, "root of orlopd", config.root.display().to_string()));
    }
    Stores::open(config)
}

fn line(problem: &Problem) -> String {
    let severity = match problem.severity {
        Severity::Damage => "damage",
        Severity::Notice => "notice",
    };
    let outcome = match &problem.outcome {
        Outcome::Untouched => String::new(),
        Outcome::Repaired(how) => format!(" [{how}]"),
        Outcome::Left(why) => format!(" [left: {why}]"),
    };
    let namespace = if problem.namespace.is_empty() { "" } else { &format!("{}/", problem.namespace) };
    format!("{severity}: {} {namespace}{}: {}{outcome}", problem.kind, problem.name, problem.text)
}
