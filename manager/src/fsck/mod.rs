//! Looks whether everything that is stored is as it was stored, and heals what can be brought back.
//!
//! Blobs first, as layers are made again from them; then layers; then what refers to what. It can run while the daemon
//! serves: what is made or removed meanwhile is no problem, so whatever looks wrong is looked at again before it is
//! reported.

mod docker;
mod layers;
mod references;

use std::path::PathBuf;

use orlop_proto::error::Result;

use crate::content::ContentStore;
use crate::content::digest::Digest;
use crate::content::health::{Places, places};
use crate::db::{Database, blocking};
use crate::image::ImageService;
use crate::image::restore::LayerSources;
use crate::snapshot::Snapshots;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something is lost or wrong.
    Damage,
    /// Something is unusual and does no harm.
    Notice,
}

/// What became of a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was tried.
    Untouched,
    /// It is right now, by this.
    Repaired(String),
    /// It is as it was, because of this.
    Left(String),
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What has it: `database`, `content`, `snapshot`, `image`, `container`, `lease`, `network`, `volume`, `index`.
    pub kind: &'static str,
    /// Namespace; of a blob, all that have it.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What is wrong.
    pub text: String,
    /// What became of it.
    pub outcome: Outcome,
}

impl Problem {
    fn damage(kind: &'static str, namespace: &str, name: &str, text: impl Into<String>) -> Problem {
        Problem {
            severity: Severity::Damage,
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            text: text.into(),
            outcome: Outcome::Untouched,
        }
    }

    fn notice(kind: &'static str, namespace: &str, name: &str, text: impl Into<String>) -> Problem {
        Problem { severity: Severity::Notice, ..Problem::damage(kind, namespace, name, text) }
    }

    /// Whether something is still wrong.
    pub fn is_open_damage(&self) -> bool {
        self.severity == Severity::Damage && !matches!(self.outcome, Outcome::Repaired(_))
    }
}

impl Outcome {
    /// That of an attempt to repair.
    fn of(result: Result<()>, repaired: &str) -> Outcome {
        match result {
            Ok(()) => Outcome::Repaired(repaired.to_owned()),
            Err(error) => Outcome::Left(error.to_string()),
        }
    }
}

/// What was looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is not as it should be.
    pub problems: Vec<Problem>,
    /// Number of records.
    pub records: u64,
    /// Number of blobs.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Number of layers compared with what their blobs unpack to.
    pub layers_compared: u64,
    /// Number of layers that are not known to be on the disk yet.
    pub layers_unsynced: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Heal what can be brought back, and remove what is damaged beyond that.
    pub repair: bool,
    /// Leave out what reads every byte.
    pub quick: bool,
}

/// Checks everything; cheap to clone.
#[derive(Clone)]
pub struct Checker {
    /// The records.
    pub db: Database,
    /// The blobs.
    pub content: ContentStore,
    /// The layers.
    pub snapshots: Snapshots,
    /// Brings back what is lost.
    pub images: ImageService,
    /// The directory of the Docker API's files.
    pub docker: PathBuf,
}

impl Checker {
    /// Looks at everything.
    pub async fn check(&self, options: Options) -> Result<Report> {
        let mut report = Report::default();
        let db = self.db.clone();
        let (records, broken) = blocking(move || references::decode_all(&db)).await?;
        report.records = records;
        report.problems.extend(broken);
        self.blobs(options, &mut report).await?;
        let sources = self.images.layer_sources().await?;
        self.layers(options, &sources, &mut report).await?;
        self.references(options, &sources, &mut report).await?;
        Ok(report)
    }

    async fn blobs(&self, options: Options, report: &mut Report) -> Result<()> {
        let db = self.db.clone();
        let known: Places = blocking(move || places(&db)).await?;
        for (digest, places) in &known {
            let size = places.first().map_or(0, |(_, record)| record.size);
            report.blobs += 1;
            report.blob_bytes += size;
            let (content, name) = (self.content.clone(), digest.clone());
            let Some(text) = blocking(move || content.inspect(&name, size, options.quick)).await? else {
                continue;
            };
            let (db, name) = (self.db.clone(), digest.clone());
            if !blocking(move || Ok(crate::content::health::places(&db)?.contains_key(&name))).await? {
                continue;
            }
            let namespaces: Vec<&str> = places.iter().map(|(namespace, _)| namespace.as_str()).collect();
            let mut problem = Problem::damage("content", &namespaces.join(","), digest.as_str(), text);
            if options.repair {
                problem.outcome = self.restore_blob(digest, places).await;
            }
            report.problems.push(problem);
        }
        let content = self.content.clone();
        for stray in blocking(move || content.strays()).await? {
            let mut problem = Problem::damage("content", "", stray.as_str(), "no namespace has it");
            if options.repair {
                let (content, name) = (self.content.clone(), stray.clone());
                let removed = blocking(move || content.sweep([name])).await;
                problem.outcome = Outcome::of(removed, "removed");
            }
            report.problems.push(problem);
        }
        Ok(())
    }

    /// Fetches a damaged blob anew, or lets the next pull do so.
    async fn restore_blob(&self, digest: &Digest, places: &[(String, crate::content::Record)]) -> Outcome {
        let mut failure = String::new();
        for (_, record) in places {
            match self.images.fetch_again(digest, record.size, &record.labels).await {
                Ok(()) => return Outcome::Repaired("fetched again".to_owned()),
                Err(error) => failure = error.to_string(),
            }
        }
        let (content, name) = (self.content.clone(), digest.clone());
        match blocking(move || content.give_up(&name)).await {
            Ok(()) => Outcome::Repaired(format!("removed, so that the next pull fetches it ({failure})")),
            Err(error) => Outcome::Left(error.to_string()),
        }
    }

    async fn references(&self, options: Options, sources: &LayerSources, report: &mut Report) -> Result<()> {
        let (db, sources, root) = (self.db.clone(), sources.clone(), self.docker.clone());
        let found = blocking(move || {
            let mut found = references::check(&db, &sources, options.repair)?;
            found.extend(db.read_now(|tx| docker::check(tx, &root))?);
            Ok(found)
        });
        report.problems.extend(found.await?);
        Ok(())
    }
}
