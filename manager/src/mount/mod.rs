//! Mounts that the daemon makes for its clients, by name (containerd's mount manager): what a mount of the system cannot do by
//! itself, such as a block device of a file, and whatever it builds on.
//!
//! An activation lives until it is deactivated, or until nothing refers to it and it is collected: a lease, or what its labels
//! `containerd.io/gc.bref.…` name. Its mounts are in `STATE/mounts/ID`. The record is made before the directory and removed
//! before it, so that what a kill leaves has no record and goes at the next start; none outlives the machine.

mod perform;
mod plan;
mod transform;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use crate::content::blobs::{make_directory, names};
use crate::db::{Database, Query, Table, Write, blocking, key, prefix};
use crate::filter::{Filter, text};
use crate::image::flights::Flights;
use crate::labels::{self, Labels, invalid};
use crate::request::RequestContext;
use crate::snapshot::{Mount, boot_id};
use crate::store::{Timestamp, label_field, namespaces, now, stored};
use perform::Links;
pub use plan::LOOP;
use plan::{Plan, Step};

/// Activations by namespace and name.
pub static ACTIVATIONS: Table<Activation> = Table::new("activations");
/// File that says in which boot of the machine the mounts were made.
const BOOT: &str = "boot";

/// A mount that the daemon made.
#[derive(Clone, PartialEq, Message)]
pub struct Active {
    /// File system type.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// What is mounted.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Where below the mount point.
    #[prost(string, tag = "3")]
    pub target: String,
    /// Options.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
    /// Where it is, or a link to the device that it is.
    #[prost(string, tag = "5")]
    pub mount_point: String,
    /// When it was made.
    #[prost(message, optional, tag = "6")]
    pub mounted_at: Option<Timestamp>,
}

impl Active {
    fn new(mount: Mount, mount_point: String, mounted_at: Option<Timestamp>) -> Active {
        let Mount { kind, source, target, options } = mount;
        Active { kind, source, target, options, mount_point, mounted_at }
    }

    /// The mount as it was asked for.
    pub fn mount(&self) -> Mount {
        let Active { kind, source, target, options, .. } = self.clone();
        Mount { kind, source, target, options }
    }
}

/// A set of mounts under one name.
#[derive(Clone, PartialEq, Message)]
pub struct Activation {
    /// Number of its directory.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The lease that it was made under.
    #[prost(string, tag = "2")]
    pub lease: String,
    /// Whether all mounts are made.
    #[prost(bool, tag = "3")]
    pub is_complete: bool,
    /// What the daemon mounted.
    #[prost(message, repeated, tag = "4")]
    pub active: Vec<Active>,
    /// What is left for the caller to mount.
    #[prost(message, repeated, tag = "5")]
    pub system: Vec<Active>,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "6")]
    pub labels: Labels,
}

impl Activation {
    /// What is left for the caller to mount, in order.
    pub fn system(&self) -> Vec<Mount> {
        self.system.iter().map(Active::mount).collect()
    }
}

/// The activations; cheap to clone.
#[derive(Clone)]
pub struct Mounts {
    shared: Arc<Shared>,
}

struct Shared {
    db: Database,
    directory: PathBuf,
    /// Where directories and file systems may be made.
    roots: Vec<PathBuf>,
    last: AtomicU64,
    names: Flights,
    /// Held while mounts are undone: a collection may find what is being undone by its name.
    undoing: Mutex<()>,
}

impl Mounts {
    /// The activations of a database, with mounts below the state directory; directories and file systems are made there and
    /// below the root directory alone. New ones can be made after the [recovery](Mounts::recover).
    pub fn new(root: &Path, state: &Path, db: Database) -> Mounts {
        let directory = state.join("mounts");
        let roots = vec![directory.clone(), root.to_owned()];
        let (last, names, undoing) = (AtomicU64::default(), Flights::default(), Mutex::default());
        Mounts { shared: Arc::new(Shared { db, directory, roots, last, names, undoing }) }
    }

    /// Makes mounts under a name; a temporary caller gets one bind mount of the last of them.
    ///
    /// # Errors
    ///
    /// `Unimplemented` where the caller can make all of them, `AlreadyExists` for a name that is taken. Nothing is left then.
    pub async fn activate(
        &self,
        context: &RequestContext,
        name: &str,
        mounts: Vec<Mount>,
        labels: Labels,
        is_temporary: bool,
    ) -> Result<Activation> {
        if name.is_empty() || name.contains('\0') {
            return Err(invalid("mount name must be provided"));
        }
        labels::validate(&labels, "labels")?;
        let Some(plan) = Plan::new(mounts, is_temporary)? else {
            return Err(Error::exactly(Kind::Unimplemented, Kind::Unimplemented.to_string()));
        };
        let (key, name) = (key(&[context.namespace.as_str(), name]), name.to_owned());
        let turn = self.shared.names.enter(&key).await;
        let (shared, context) = (self.shared.clone(), context.clone());
        blocking(move || {
            let _turn = turn;
            let record = Activation {
                id: shared.last.fetch_add(1, Ordering::Relaxed) + 1,
                lease: context.lease.clone().unwrap_or_default(),
                labels: stored(labels),
                ..Activation::default()
            };
            shared.db.write_now(|tx| {
                if tx.get(&ACTIVATIONS, &key)?.is_some() {
                    return Err(Error::new(Kind::AlreadyExists, "mount", format!("{name:?}")));
                }
                namespaces::ensure(tx, &context.namespace)?;
                tx.put(&ACTIVATIONS, &key, &record)
            })?;
            let made = shared.make(record.clone(), plan).and_then(|record| {
                shared.db.write_now(|tx| tx.put(&ACTIVATIONS, &key, &record))?;
                Ok(record)
            });
            if made.is_err() {
                // Ignoring: the first error is the one to tell, and what is left goes with the next collection.
                let _ = shared.db.free_now(|tx| tx.remove(&ACTIVATIONS, &key));
                let _ = shared.undo(record.id, Links::Valid);
            }
            made
        })
        .await
    }

    /// Unmounts what an activation mounted.
    ///
    /// # Errors
    ///
    /// `NotFound`; the kernel's, after which the next collection tries again.
    pub async fn deactivate(&self, context: &RequestContext, name: &str) -> Result<()> {
        let key = key(&[context.namespace.as_str(), name]);
        let turn = self.shared.names.enter(&key).await;
        let (shared, name) = (self.shared.clone(), name.to_owned());
        blocking(move || {
            let _turn = turn;
            // Most containers have none, which needs no turn among the writers.
            let missing = || Error::new(Kind::NotFound, format!("missing mount {name:?} bucket"), "");
            shared.db.read_now(|tx| tx.get(&ACTIVATIONS, &key))?.ok_or_else(missing)?;
            let record = shared.db.free_now(|tx| {
                let record = tx.get(&ACTIVATIONS, &key)?.ok_or_else(missing)?;
                tx.remove(&ACTIVATIONS, &key)?;
                Ok(record)
            })?;
            shared.undo(record.id, Links::Valid)
        })
        .await
    }

    /// The activation of a name.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn info(&self, context: &RequestContext, name: &str) -> Result<Activation> {
        let (key, name) = (key(&[context.namespace.as_str(), name]), name.to_owned());
        let missing = move || Error::new(Kind::NotFound, "mount", format!("{name:?}"));
        self.shared.db.read(move |tx| tx.get(&ACTIVATIONS, &key)?.ok_or_else(missing)).await
    }

    /// The activations that the filters choose (`name`, `labels.KEY`), each with its name, by name.
    pub async fn list(
        &self,
        context: &RequestContext,
        filters: &[String],
    ) -> Result<Vec<(String, Activation)>> {
        let filter = Filter::parse(filters)?;
        let own = prefix(&[context.namespace.as_str()]);
        let all = self.shared.db.read(move |tx| tx.scan(&ACTIVATIONS, &own)).await?;
        let chosen = |(name, record): &(String, Activation)| {
            filter.matches(&|path: &[&str]| match path {
                ["name", ..] => text(name),
                ["labels", rest @ ..] => label_field(&record.labels, rest),
                _ => None,
            })
        };
        Ok(all.into_iter().filter(chosen).collect())
    }

    /// Brings mounts and records in line after a stop of any kind. Blocks.
    ///
    /// # Errors
    ///
    /// When records cannot be read or removed, or something is left of another boot of the machine.
    pub fn recover(&self) -> Result<()> {
        let Shared { db, directory, last, .. } = self.shared.as_ref();
        make_directory(directory)?;
        let (path, boot) = (directory.join(BOOT), boot_id()?);
        let is_same = std::fs::read_to_string(&path).is_ok_and(|known| known == boot);
        let records = db.read_now(|tx| tx.scan(&ACTIVATIONS, ""))?;
        let mut lost = records.iter().filter(|(_, record)| !is_same || !record.is_complete).peekable();
        if lost.peek().is_some() {
            let lost: Vec<&String> = lost.map(|(key, _)| key).collect();
            db.free_now(|tx| {
                tx.do_not_count();
                lost.iter().try_for_each(|key| tx.remove(&ACTIVATIONS, key).map(drop))
            })?;
        }
        let found = self.shared.directories()?;
        let ids = records.iter().map(|(_, record)| record.id).chain(found.iter().copied());
        last.fetch_max(ids.max().unwrap_or(0), Ordering::Relaxed);
        if !is_same {
            // Links mean devices of somebody else's by now.
            found.iter().try_for_each(|id| self.shared.undo(*id, Links::Stale))?;
            std::fs::write(&path, boot).context("write", path.display().to_string())?;
        } else if let Err(error) = self.clean() {
            tracing::warn!(%error, "mounts that nobody names are left for the next collection");
        }
        Ok(())
    }

    /// Undoes mounts that have no record any more. Blocks.
    pub fn clean(&self) -> Result<()> {
        // In this order: a directory is made after its record.
        let found = self.shared.directories()?;
        if found.is_empty() {
            return Ok(());
        }
        let records = self.shared.db.read_now(|tx| tx.scan(&ACTIVATIONS, ""))?;
        let known: BTreeSet<u64> = records.iter().map(|(_, record)| record.id).collect();
        let stray = found.into_iter().filter(|id| !known.contains(id));
        stray.map(|id| self.shared.undo(id, Links::Valid)).fold(Ok(()), Result::and)
    }
}

impl Shared {
    fn path(&self, id: u64) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// The activations that have a directory.
    fn directories(&self) -> Result<Vec<u64>> {
        if !self.directory.exists() {
            return Ok(Vec::new());
        }
        Ok(names(&self.directory)?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn undo(&self, id: u64, links: Links) -> Result<()> {
        let _turn = self.undoing.lock().unwrap_or_else(PoisonError::into_inner);
        perform::undo(&self.path(id), links)
    }

    /// Carries a plan out; whatever is made by a failure is in the activation's directory.
    fn make(&self, mut record: Activation, plan: Plan) -> Result<Activation> {
        let directory = self.path(record.id);
        make_directory(&directory)?;
        let prepare = |Step { transforms, mount }: Step, active: &[Active]| {
            transforms.into_iter().try_fold(mount, |mount, one| one.apply(mount, active, &self.roots))
        };
        for (index, step) in plan.own.into_iter().enumerate() {
            let mount = prepare(step, &record.active)?;
            let point = directory.join(index.to_string());
            let failed = |error: Error| Error::because(error.kind(), "mount failed", "", error);
            perform::perform(&mount, &point).map_err(failed)?;
            record.active.push(Active::new(mount, point.display().to_string(), Some(now())));
        }
        for step in plan.system {
            let mount = prepare(step, &record.active)?;
            record.system.push(Active::new(mount, String::new(), None));
        }
        if let (true, Some(last)) = (plan.is_temporary, record.active.last()) {
            let (kind, source) = ("bind".to_owned(), last.mount_point.clone());
            let bind = Mount { kind, source, options: vec!["rbind".to_owned()], ..Mount::default() };
            record.system.push(Active::new(bind, String::new(), None));
        }
        record.is_complete = true;
        Ok(record)
    }
}

/// Forgets an activation in a collection; its mounts go with the next [`Mounts::clean`].
pub fn remove_record(tx: &Write, namespace: &str, name: &str) -> Result<bool> {
    tx.remove(&ACTIVATIONS, &key(&[namespace, name]))
}
