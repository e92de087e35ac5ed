//! Garbage collection: what no root reaches is removed, first its records in one transaction, then its files.
//!
//! Roots are images, the snapshots of containers, living leases with what they hold, and whatever has the label
//! `containerd.io/gc.root`; references are parents and the labels `containerd.io/gc.ref.…`. Follows containerd's
//! package `metadata` (docs/garbage-collection.md there).

pub mod explain;
mod mark;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tracing::Instrument;

use crate::config;
use crate::content::digest::Digest;
use crate::content::ingest::Ingest;
use crate::content::{CONTENT, ContentStore};
use crate::db::{Database, Query, Write, blocking, key};
use crate::metrics::METRICS;
use crate::mount::{self, Mounts};
use crate::snapshot::{self, SNAPSHOTS, Snapshots};
use crate::store::leases;
use mark::{Marked, Survey};

/// How long after a change the collector looks for what expires next.
const LOOK: Duration = Duration::from_secs(60);

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Number of blobs, counted per namespace.
    pub content: usize,
    /// Number of snapshots.
    pub snapshots: usize,
    /// Number of mounts made for clients.
    pub mounts: usize,
    /// Number of unfinished writes.
    pub ingests: usize,
    /// Number of expired leases.
    pub leases: usize,
}

/// Collects garbage; cheap to clone.
#[derive(Clone)]
pub struct Collector {
    shared: Arc<Shared>,
}

struct Shared {
    db: Database,
    content: ContentStore,
    snapshots: Snapshots,
    mounts: Mounts,
    config: RwLock<config::Gc>,
    /// One collection at a time; who waits here gets one that began after it asked. Holds when something
    /// expires next.
    turn: tokio::sync::Mutex<Option<SystemTime>>,
    /// How many changes, and how many of them that may have freed something, there had been when the last collection began.
    commits: AtomicU64,
    deletions: AtomicU64,
}

impl Collector {
    /// A collector over these stores.
    pub fn new(
        db: Database,
        content: ContentStore,
        snapshots: Snapshots,
        mounts: Mounts,
        config: config::Gc,
    ) -> Collector {
        let shared = Shared {
            db,
            content,
            snapshots,
            mounts,
            config: RwLock::new(config),
            turn: tokio::sync::Mutex::default(),
            commits: AtomicU64::default(),
            deletions: AtomicU64::default(),
        };
        Collector { shared: Arc::new(shared) }
    }

    /// Goes by another configuration from now on.
    pub fn configure(&self, config: config::Gc) {
        *self.shared.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        // It waits by the old one.
        self.shared.db.changes().committed.notify_one();
    }

    /// Collects now; returns when records and files are gone.
    pub async fn collect(&self) -> Result<Removed> {
        let mut turn = self.shared.turn.lock().await;
        let shared = self.shared.clone();
        let begin = Instant::now();
        let span = tracing::debug_span!("collect");
        let collected = blocking(move || shared.collect()).instrument(span).await;
        METRICS.work("collect", &collected, begin.elapsed());
        let (removed, expiry) = collected?;
        *turn = expiry;
        METRICS.collected("content", removed.content);
        METRICS.collected("snapshot", removed.snapshots);
        METRICS.collected("mount", removed.mounts);
        METRICS.collected("ingest", removed.ingests);
        METRICS.collected("lease", removed.leases);
        tracing::debug!(
            content = removed.content,
            snapshots = removed.snapshots,
            mounts = removed.mounts,
            ingests = removed.ingests,
            leases = removed.leases,
            "collected garbage"
        );
        Ok(removed)
    }

    /// What is kept at this moment, and why.
    pub async fn explainer(&self) -> Result<explain::Explainer> {
        let shared = self.shared.clone();
        blocking(move || {
            let ingests = shared.content.ingests().all()?;
            let age = Duration::from_secs(shared.config().ingest_expiry);
            let survey = shared.db.read_now(|tx| Survey::take(tx, &ingests, age))?;
            Ok(explain::Explainer::new(survey, &ingests))
        })
        .await
    }

    /// Collects for ever: soon after deletions, after many changes, when something expires, and once it is quiet
    /// after fewer changes.
    pub async fn run(self) {
        loop {
            if let Err(error) = self.collect().await {
                tracing::warn!(%error, "garbage is left for the next collection");
            }
            self.wait().await;
        }
    }

    /// Waits until there is a reason to collect.
    async fn wait(&self) {
        let Shared { db, turn, .. } = self.shared.as_ref();
        let mut expiry = *turn.lock().await;
        let changes = db.changes();
        let mut looked = 0;
        loop {
            let config = self.shared.config();
            let idle = Duration::from_secs(config.idle_delay);
            let (mutations, deletions) = self.shared.uncollected();
            if deletions > 0 || (config.mutation_threshold > 0 && mutations >= config.mutation_threshold) {
                return tokio::time::sleep(Duration::from_millis(config.schedule_delay)).await;
            }
            let expired = async {
                match expiry {
                    Some(expiry) => {
                        let left = expiry.duration_since(SystemTime::now()).unwrap_or_default();
                        tokio::time::sleep(left + Duration::from_millis(10)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changes.committed.notified() => {}
                () = expired => return,
                () = tokio::time::sleep(idle), if mutations > 0 && config.idle_delay > 0 => return,
                () = tokio::time::sleep(LOOK), if mutations != looked => {
                    looked = mutations;
                    let shared = self.shared.clone();
                    // Ignoring: what cannot be read now will be told by the collection that needs it.
                    if let Ok(next) = blocking(move || shared.next_expiry()).await {
                        expiry = next;
                    }
                }
            }
        }
    }
}

impl Shared {
    fn config(&self) -> config::Gc {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many changes there were since the last collection began, and how many of them that may have freed something.
    fn uncollected(&self) -> (u64, u64) {
        let changes = self.db.changes();
        let since = |now: &AtomicU64, then: &AtomicU64| {
            now.load(Ordering::Relaxed).saturating_sub(then.load(Ordering::Relaxed))
        };
        (since(&changes.commits, &self.commits), since(&changes.deletions, &self.deletions))
    }

    /// When something expires next.
    fn next_expiry(&self) -> Result<Option<SystemTime>> {
        let age = Duration::from_secs(self.config().ingest_expiry);
        let ingests = self.content.ingests().all()?;
        self.db.read_now(|tx| Ok(Survey::take(tx, &ingests, age)?.expiry))
    }

    /// One collection; returns what it removed and when something expires next.
    fn collect(&self) -> Result<(Removed, Option<SystemTime>)> {
        let changes = self.db.changes();
        self.commits.store(changes.commits.load(Ordering::Relaxed), Ordering::Relaxed);
        self.deletions.store(changes.deletions.load(Ordering::Relaxed), Ordering::Relaxed);
        let age = Duration::from_secs(self.config().ingest_expiry);
        let ingests = self.content.ingests().all()?;
        // Most collections find nothing; these need no turn among the writers.
        let survey = self.db.read_now(|tx| Survey::take(tx, &ingests, age))?;
        let expiry = survey.expiry;
        let marked = survey.mark();
        let found = if survey.is_clean(&marked) {
            Garbage::default()
        } else {
            self.db.free_now(|tx| {
                tx.do_not_count();
                let survey = Survey::take(tx, &ingests, age)?;
                remove_records(tx, &survey, &survey.mark())
            })?
        };
        self.snapshots.forget(&found.layers)?;
        self.content.sweep(found.content.iter().cloned())?;
        let mut removed = Removed {
            content: found.content.len(),
            snapshots: found.layers.len(),
            mounts: found.mounts,
            ingests: 0,
            leases: found.leases,
        };
        for ingest in ingests.iter().filter(|ingest| !marked.keeps_ingest(ingest)) {
            removed.ingests += usize::from(self.content.ingests().expire(ingest)?);
        }
        // Both: mounts that cannot be undone must keep no files of snapshots.
        self.mounts.clean().and(self.snapshots.clean())?;
        Ok((removed, expiry))
    }
}

/// What was removed from the records and still has files.
#[derive(Default)]
struct Garbage {
    content: Vec<Digest>,
    layers: Vec<(String, u64)>,
    mounts: usize,
    leases: usize,
}

/// Removes every record that is not marked.
fn remove_records(tx: &Write, survey: &Survey, marked: &Marked) -> Result<Garbage> {
    let mut garbage = Garbage::default();
    for (namespace, lease) in &survey.expired_leases {
        leases::remove(tx, namespace, lease)?;
        garbage.leases += 1;
    }
    for (namespace, digest) in
        survey.content.iter().filter(|(namespace, digest)| !marked.keeps_content(namespace, digest))
    {
        tx.remove(&CONTENT, &key(&[namespace, digest]))?;
        garbage.content.push(Digest::parse(digest)?);
    }
    for (namespace, name) in &survey.mounts {
        if !marked.keeps_mount(namespace, name) && mount::remove_record(tx, namespace, name)? {
            garbage.mounts += 1;
        }
    }
    let mut layers = HashSet::new();
    for (namespace, snapshotter, name) in &survey.snapshots {
        if marked.keeps_snapshot(namespace, snapshotter, name) {
            continue;
        }
        let key = key(&[namespace, snapshotter, name]);
        let record = tx
            .get(&SNAPSHOTS, &key)?
            .ok_or_else(|| Error::new(Kind::Internal, "collect snapshot", key.replace('\0', "/")))?;
        snapshot::remove_record(tx, namespace, snapshotter, name, &record)?;
        layers.insert((snapshotter.clone(), record.layer));
    }
    garbage.layers.extend(layers);
    Ok(garbage)
}

/// Whether an unfinished write has been left alone for too long.
fn is_stale(ingest: &Ingest, age: Duration) -> bool {
    ingest.is_older_than(age)
}
