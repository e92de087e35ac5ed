//! Snapshots: file systems that layers are unpacked into and containers run on.
//!
//! The metadata (names, parents, labels, kinds) is kept here, per namespace and snapshotter; a [`Snapshotter`]
//! only keeps the files of numbered layers. Files are made before their record and taken away after it, so
//! whatever a kill leaves behind has no record and goes at the next start.

pub mod copy;
mod erofs;
pub mod image_mounts;
mod native;
mod overlay;
mod proxy;
pub mod quota;
mod rebuild;
mod records;
mod snapshotter;
#[cfg(test)]
mod tests;
pub mod usage;
mod write_back;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use orlop_proto::containerd::events::{SnapshotCommit, SnapshotPrepare, SnapshotRemove};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::config::{ProxyKind, ProxyPlugin};
use crate::db::{Database, META, Query, Write, blocking};
use crate::events::Exchange;
use crate::filter::Filter;
use crate::labels::{self, Labels, invalid};
use crate::request::{Namespace, RequestContext};
use crate::store::{leases, namespaces, now, publish, stored, update_label};
pub use overlay::is_user_namespace;
use rebuild::Making;
pub use rebuild::Rebuilt;
pub use records::{CHILDREN, Child, Info, Record, SNAPSHOTS, remove_record, sort_lowest_first};
use records::{LAST_LAYER, Place, check_name, decode_number, missing_parent, note_layer};
pub use snapshotter::{Hold, Layer, LayerMounts, Mount, SnapshotKind, Snapshotter, UnpackPlace, Usage};

pub use write_back::{Unsynced, boot_id};

/// Label of a snapshot being unpacked that names what it will be committed as.
const TARGET_LABEL: &str = "containerd.io/snapshot.ref";

/// All snapshots; cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    shared: Arc<Shared>,
}

struct Shared {
    db: Database,
    exchange: Exchange,
    snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    last_layer: AtomicU64,
    /// Layers that have a number and no record yet.
    making: Mutex<BTreeSet<u64>>,
    /// Which boot of the machine this is.
    boot: String,
    write_back: write_back::Queue,
    /// What the mounts of a layer need for as long as the layer is in use.
    held: Mutex<HashMap<u64, Hold>>,
}

impl Snapshots {
    /// Opens the snapshotters below the root directory, which make their own directories there, and the external
    /// ones; what they mount is below the state directory.
    pub fn open(
        root: &Path,
        state: &Path,
        external: &BTreeMap<String, ProxyPlugin>,
        db: Database,
        exchange: Exchange,
    ) -> Result<Snapshots> {
        let mut snapshotters: Vec<Arc<dyn Snapshotter>> = vec![
            Arc::new(erofs::Erofs::open(&root.join("erofs"), &state.join("erofs"))?),
            Arc::new(overlay::Overlay::open(&root.join("overlayfs"))?),
            Arc::new(native::Native::open(&root.join("native"))?),
        ];
        for (name, plugin) in external.iter().filter(|(_, plugin)| plugin.kind == ProxyKind::Snapshot) {
            if snapshotters.iter().any(|own| own.name() == name) {
                return Err(Error::because(
                    Kind::AlreadyExists,
                    "configure proxy plugin",
                    name.as_str(),
                    "a snapshotter of that name is built in",
                ));
            }
            snapshotters.push(Arc::new(proxy::Proxy::new(name, plugin)?));
        }
        Snapshots::with(snapshotters, db, exchange)
    }

    fn with(
        snapshotters: impl IntoIterator<Item = Arc<dyn Snapshotter>>,
        db: Database,
        exchange: Exchange,
    ) -> Result<Snapshots> {
        let last = db.read_now(|tx| tx.get(&META, LAST_LAYER))?.map_or(0, |last| decode_number(&last.value));
        let snapshots = Snapshots {
            shared: Arc::new(Shared {
                db,
                exchange,
                snapshotters: snapshotters.into_iter().map(|one| (one.name().to_owned(), one)).collect(),
                last_layer: AtomicU64::new(last),
                making: Mutex::default(),
                boot: write_back::boot_id()?,
                write_back: write_back::Queue::default(),
                held: Mutex::default(),
            }),
        };
        if snapshots.snapshotters().any(|one| one.is_remote()) {
            snapshots.adopt_all()?;
        }
        Ok(snapshots)
    }

    /// Tells external snapshotters which layers have names of their own.
    fn adopt_all(&self) -> Result<()> {
        for (key, record) in self.shared.db.read_now(|tx| tx.scan(&SNAPSHOTS, ""))? {
            let snapshotter = key.split('\0').nth(1).and_then(|name| self.shared.snapshotters.get(name));
            if let (Some(snapshotter), false) = (snapshotter, record.adopted.is_empty()) {
                snapshotter.adopt(record.layer, &record.adopted);
            }
        }
        Ok(())
    }

    /// The snapshotters, by name.
    pub fn snapshotters(&self) -> impl Iterator<Item = &Arc<dyn Snapshotter>> {
        self.shared.snapshotters.values()
    }

    /// The snapshotter of a name.
    pub fn snapshotter(&self, name: &str) -> Result<&Arc<dyn Snapshotter>> {
        if name.is_empty() {
            return Err(invalid("snapshotter argument missing"));
        }
        self.shared.snapshotters.get(name).ok_or_else(|| invalid(format!("snapshotter not loaded: {name}")))
    }

    fn place(&self, context: &RequestContext, snapshotter: &str) -> Result<Place> {
        Ok(Place { snapshotter: self.snapshotter(snapshotter)?.clone(), context: context.clone() })
    }

    /// Makes a snapshot that can be written; returns what must be mounted to do so.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` when the key exists, or the snapshot that the label `containerd.io/snapshot.ref` names.
    pub async fn prepare(
        &self,
        context: &RequestContext,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let mounts = self.create(context, snapshotter, SnapshotKind::Active, key, parent, labels).await?;
        let event = SnapshotPrepare {
            key: key.to_owned(),
            parent: parent.to_owned(),
            snapshotter: snapshotter.to_owned(),
        };
        publish(&self.shared.exchange, &context.namespace, "/snapshot/prepare", &event)?;
        Ok(mounts)
    }

    /// Makes a snapshot that can only be read.
    pub async fn view(
        &self,
        context: &RequestContext,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.create(context, snapshotter, SnapshotKind::View, key, parent, labels).await
    }

    async fn create(
        &self,
        context: &RequestContext,
        snapshotter: &str,
        kind: SnapshotKind,
        name: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let place = self.place(context, snapshotter)?;
        labels::validate(&labels, "info.Labels")?;
        check_name(name)?;
        let (shared, name, parent) = (self.shared.clone(), name.to_owned(), parent.to_owned());
        blocking(move || {
            let target = labels.get(TARGET_LABEL).cloned().unwrap_or_default();
            let check = |tx: &dyn Fn(&str) -> Result<bool>| -> Result<()> {
                if !target.is_empty() && tx(&target)? {
                    return Err(Error::new(Kind::AlreadyExists, "target snapshot", format!("{target:?}")));
                }
                if tx(&name)? {
                    return Err(Error::new(Kind::AlreadyExists, "snapshot", format!("{name:?}")));
                }
                Ok(())
            };
            let parents = shared.db.read_now(|tx| {
                check(&|name| Ok(tx.get(&SNAPSHOTS, &place.key(name))?.is_some()))?;
                place.chain(tx, &parent)
            })?;
            let making = Making::begin(&shared);
            let id = making.id();
            let layer = Layer { id, kind, parents, labels: labels.clone() };
            let made = shared.make(&place, &layer, |tx| {
                check(&|name| Ok(tx.get(&SNAPSHOTS, &place.key(name))?.is_some()))?;
                if place.chain(tx, &parent)? != layer.parents {
                    return Err(missing_parent(&parent));
                }
                leases::hold(tx, &place.context, &place.lease_kind(), &name)?;
                namespaces::ensure(tx, &place.context.namespace)?;
                let time = now();
                let record = Record {
                    layer: id,
                    kind: kind.into(),
                    parent: parent.clone(),
                    labels: stored(labels.clone()),
                    created_at: time,
                    updated_at: time,
                    ..Record::default()
                };
                tx.put(&SNAPSHOTS, &place.key(&name), &record)?;
                if !parent.is_empty() {
                    tx.put(&CHILDREN, &place.child_key(&parent, &name), &Child {})?;
                }
                note_layer(tx, id)
            });
            if let Err(error) = &made
                && error.kind() == Kind::AlreadyExists
                && !target.is_empty()
                && let Some(theirs) = place.snapshotter.find(&target, &layer.parents)?
            {
                shared.adopt(&place, &layer, &target, &parent, &theirs)?;
                let why = "the snapshotter has it";
                return Err(Error::because(
                    Kind::AlreadyExists,
                    "target snapshot",
                    format!("{target:?}"),
                    why,
                ));
            }
            if made.is_err() {
                // Ignoring: the first error is the one to tell, and what is left goes at the next start.
                let _ = place.snapshotter.discard(id).and_then(|()| place.snapshotter.clean());
            }
            made
        })
        .await
    }

    /// What must be mounted to use a snapshot that is not committed.
    pub async fn mounts(&self, context: &RequestContext, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        let place = self.place(context, snapshotter)?;
        let (shared, key) = (self.shared.clone(), key.to_owned());
        blocking(move || {
            let layer = shared.db.read_now(|tx| {
                let record = place.get(tx, &key)?;
                if record.kind() == SnapshotKind::Committed {
                    let text =
                        format!("failed to get active mount: requested snapshot {key} not active or view");
                    return Err(Error::new(Kind::FailedPrecondition, text, ""));
                }
                place.layer(tx, &record)
            })?;
            shared.mounts(&place, &layer)
        })
        .await
    }

    /// Where an active snapshot without a parent is unpacked on its own; `None` where the snapshotter needs the parent.
    pub async fn unpack_place(
        &self,
        context: &RequestContext,
        snapshotter: &str,
        key: &str,
    ) -> Result<Option<UnpackPlace>> {
        let place = self.place(context, snapshotter)?;
        let key = key.to_owned();
        let record = self.shared.db.read(move |tx| Ok((place.get(tx, &key)?, place.snapshotter.clone())));
        let (record, snapshotter) = record.await?;
        Ok(snapshotter.unpack_place(record.layer))
    }

    /// Whether a snapshot's layer was with an external snapshotter before it was asked for.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn is_adopted(&self, context: &RequestContext, snapshotter: &str, key: &str) -> Result<bool> {
        let place = self.place(context, snapshotter)?;
        let key = key.to_owned();
        self.shared.db.read(move |tx| Ok(!place.get(tx, &key)?.adopted.is_empty())).await
    }

    /// The roots of a committed snapshot and of those below it, nearest first; nothing for no name.
    pub async fn roots(
        &self,
        context: &RequestContext,
        snapshotter: &str,
        name: &str,
    ) -> Result<Vec<OwnedFd>> {
        let place = self.place(context, snapshotter)?;
        let (shared, name) = (self.shared.clone(), name.to_owned());
        blocking(move || {
            let layers = shared.db.read_now(|tx| place.chain(tx, &name))?;
            place.snapshotter.roots(&layers)
        })
        .await
    }

    /// The file that a committed snapshot's own layer is kept as, opened for reading.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown snapshot, `FailedPrecondition` for one that is kept otherwise.
    pub async fn image(&self, context: &RequestContext, snapshotter: &str, name: &str) -> Result<File> {
        let place = self.place(context, snapshotter)?;
        let (shared, name) = (self.shared.clone(), name.to_owned());
        blocking(move || {
            let record = shared.db.read_now(|tx| place.get(tx, &name))?;
            let is_committed = record.kind() == SnapshotKind::Committed;
            let path = place.snapshotter.image(record.layer).filter(|_| is_committed).ok_or_else(|| {
                Error::because(Kind::FailedPrecondition, "use snapshot", name, "it is not kept as an image")
            })?;
            File::open(&path).context("open", path.display().to_string())
        })
        .await
    }

    /// Turns an active snapshot into a committed one under its final name.
    pub async fn commit(
        &self,
        context: &RequestContext,
        snapshotter: &str,
        name: &str,
        key: &str,
        labels: Labels,
    ) -> Result<()> {
        self.commit_on(context, snapshotter, name, key, "", labels).await
    }

    /// The same, on top of a parent that an active snapshot without one gets by it.
    pub async fn commit_on(
        &self,
        context: &RequestContext,
        snapshotter: &str,
        name: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<()> {
        let place = self.place(context, snapshotter)?;
        labels::validate(&labels, "info.Labels")?;
        check_name(name)?;
        let event = SnapshotCommit {
            key: key.to_owned(),
            name: name.to_owned(),
            snapshotter: snapshotter.to_owned(),
        };
        let (snapshots, name, key) = (self.clone(), name.to_owned(), key.to_owned());
        let new_parent = parent.to_owned();
        blocking(move || {
            let shared = &snapshots.shared;
            let check = |found: Option<Record>, tx_record: Result<Record>| -> Result<Record> {
                if found.is_some() {
                    return Err(Error::new(Kind::AlreadyExists, "snapshot", format!("{name:?}")));
                }
                let record = tx_record?;
                if record.kind() != SnapshotKind::Active {
                    let text = format!("failed to commit snapshot: snapshot {key:?} is not active");
                    return Err(Error::new(Kind::FailedPrecondition, text, ""));
                }
                Ok(record)
            };
            let record = shared
                .db
                .read_now(|tx| check(tx.get(&SNAPSHOTS, &place.key(&name))?, place.get(tx, &key)))?;
            let usage = place.snapshotter.commit(record.layer)?;
            let unsynced = match place.snapshotter.files(record.layer) {
                Some(_) => shared.boot.clone(),
                None => String::new(),
            };
            shared.db.write_now(|tx| {
                let mut record = check(tx.get(&SNAPSHOTS, &place.key(&name))?, place.get(tx, &key))?;
                leases::hold(tx, &place.context, &place.lease_kind(), &name)?;
                leases::release(tx, &place.context, &place.lease_kind(), &key)?;
                tx.remove(&SNAPSHOTS, &place.key(&key))?;
                if !record.parent.is_empty() {
                    tx.remove(&CHILDREN, &place.child_key(&record.parent, &key))?;
                } else if !new_parent.is_empty() {
                    place.chain(tx, &new_parent)?;
                    record.parent.clone_from(&new_parent);
                }
                if !record.parent.is_empty() {
                    tx.put(&CHILDREN, &place.child_key(&record.parent, &name), &Child {})?;
                }
                record.set_kind(SnapshotKind::Committed);
                record.labels = stored(labels.clone());
                record.created_at = now();
                record.updated_at = record.created_at;
                record.size = usage.size;
                record.inodes = usage.inodes;
                record.unsynced.clone_from(&unsynced);
                tx.put(&SNAPSHOTS, &place.key(&name), &record)
            })?;
            shared.release(record.layer);
            if !unsynced.is_empty() {
                snapshots.write_back(Unsynced {
                    namespace: place.context.namespace.to_string(),
                    snapshotter: place.snapshotter.name().to_owned(),
                    name,
                    layer: record.layer,
                    is_doubtful: false,
                });
            }
            Ok(())
        })
        .await?;
        publish(&self.shared.exchange, &context.namespace, "/snapshot/commit", &event)
    }

    /// Removes a snapshot without children.
    pub async fn remove(&self, context: &RequestContext, snapshotter: &str, key: &str) -> Result<()> {
        let place = self.place(context, snapshotter)?;
        let event = SnapshotRemove { key: key.to_owned(), snapshotter: snapshotter.to_owned() };
        let (shared, key) = (self.shared.clone(), key.to_owned());
        let snapshotter = place.snapshotter.clone();
        blocking(move || {
            let layer = shared.db.free_now(|tx| {
                let record = place.get(tx, &key)?;
                if tx.any(&CHILDREN, &place.children(&key))? {
                    let text = "cannot remove snapshot with child";
                    return Err(Error::new(Kind::FailedPrecondition, text, ""));
                }
                leases::release(tx, &place.context, &place.lease_kind(), &key)?;
                remove_record(tx, place.context.namespace.as_str(), place.snapshotter.name(), &key, &record)?;
                Ok(record.layer)
            })?;
            shared.release(layer);
            place.snapshotter.discard(layer)
        })
        .await?;
        clean_in_background(snapshotter);
        publish(&self.shared.exchange, &context.namespace, "/snapshot/remove", &event)
    }

    /// What is known of a snapshot.
    pub async fn stat(&self, context: &RequestContext, snapshotter: &str, key: &str) -> Result<Info> {
        let place = self.place(context, snapshotter)?;
        let key = key.to_owned();
        self.shared.db.read(move |tx| Ok(Info::new(key.clone(), place.get(tx, &key)?))).await
    }

    /// Replaces the labels that the field paths name (`labels`, `labels.KEY`), or all.
    pub async fn update(
        &self,
        context: &RequestContext,
        snapshotter: &str,
        key: &str,
        labels: Labels,
        fieldpaths: Vec<String>,
    ) -> Result<Info> {
        let place = self.place(context, snapshotter)?;
        if key.is_empty() {
            return Err(Error::exactly(Kind::InvalidArgument, Kind::InvalidArgument.to_string()));
        }
        let key = key.to_owned();
        self.shared
            .db
            .write(move |tx| {
                let mut record = place.get(tx, &key)?;
                if fieldpaths.is_empty() {
                    record.labels.clone_from(&labels);
                }
                for path in &fieldpaths {
                    if path == "labels" {
                        record.labels.clone_from(&labels);
                    } else if !update_label(path, &mut record.labels, &labels) {
                        return Err(invalid(format!("cannot update {path:?} field on snapshot {key:?}")));
                    }
                }
                labels::validate(&record.labels, "info.Labels")?;
                record.labels = stored(record.labels);
                record.updated_at = now();
                tx.put(&SNAPSHOTS, &place.key(&key), &record)?;
                Ok(Info::new(key, record))
            })
            .await
    }

    /// The snapshots that the filters choose (`kind`, `name`, `parent`, `labels.KEY`), by name.
    pub async fn list(
        &self,
        context: &RequestContext,
        snapshotter: &str,
        filters: &[String],
    ) -> Result<Vec<Info>> {
        let place = self.place(context, snapshotter)?;
        let filter = Filter::parse(filters)?;
        let all = self.shared.db.read(move |tx| tx.scan(&SNAPSHOTS, &place.prefix())).await?;
        let infos = all.into_iter().map(|(name, record)| Info::new(name, record));
        Ok(infos.filter(|info| filter.matches(&|path: &[&str]| info.field(path))).collect())
    }

    /// What a snapshot itself takes, without those below it; nothing for a view.
    pub async fn usage(&self, context: &RequestContext, snapshotter: &str, key: &str) -> Result<Usage> {
        let place = self.place(context, snapshotter)?;
        let (shared, key) = (self.shared.clone(), key.to_owned());
        blocking(move || {
            let record = shared.db.read_now(|tx| place.get(tx, &key))?;
            match record.kind() {
                SnapshotKind::Active => place.snapshotter.usage(record.layer),
                SnapshotKind::View => Ok(Usage::default()),
                SnapshotKind::Committed => Ok(Usage { size: record.size, inodes: record.inodes }),
            }
        })
        .await
    }

    /// Deletes the files of removed snapshots now.
    pub async fn cleanup(&self, snapshotter: &str) -> Result<()> {
        let snapshotter = self.snapshotter(snapshotter)?.clone();
        blocking(move || snapshotter.clean()).await
    }

    /// Lets the snapshotters forget layers whose records are gone. Blocks shortly; the files go later.
    pub fn forget(&self, layers: &[(String, u64)]) -> Result<()> {
        for (name, layer) in layers {
            self.shared.release(*layer);
            if let Some(snapshotter) = self.shared.snapshotters.get(name.as_str()) {
                snapshotter.discard(*layer)?;
            }
        }
        Ok(())
    }

    /// Deletes the files of everything forgotten. Blocks for as long as that takes.
    pub fn clean(&self) -> Result<()> {
        self.snapshotters().try_for_each(|snapshotter| snapshotter.clean())
    }

    /// Brings files and mounts in line with the records after a stop of any kind. Blocks shortly.
    pub fn recover(&self) -> Result<()> {
        let records = self.shared.db.read_now(|tx| tx.scan(&SNAPSHOTS, ""))?;
        let known: BTreeSet<u64> = records.iter().map(|(_, record)| record.layer).collect();
        for snapshotter in self.snapshotters() {
            for layer in snapshotter.layers()? {
                // A number that was used and never recorded must not meet its old files.
                self.shared.last_layer.fetch_max(layer, Ordering::Relaxed);
                if !known.contains(&layer) {
                    snapshotter.discard(layer)?;
                }
            }
        }
        Ok(())
    }

    /// Makes again what the mounts need that were handed out before a restart, and takes away what none of them needs.
    pub fn recover_mounts(&self) -> Result<()> {
        let records = self.shared.db.read_now(|tx| tx.scan(&SNAPSHOTS, ""))?;
        for (key, record) in records.iter().filter(|(_, record)| record.kind() != SnapshotKind::Committed) {
            if let Err(error) = self.make_again(key, record) {
                tracing::warn!(layer = record.layer, %error, "the files of an active snapshot are missing");
            }
            // Ignoring: one layer that cannot be had must not keep all others from their users, and whoever asks for
            // its mounts is told why.
            let _ = self.hold_again(key, record);
        }
        self.snapshotters().try_for_each(|snapshotter| snapshotter.settle())
    }

    /// Makes the directories of an active layer again. Its record is on the disk before they are, and whoever writes to it decides
    /// what of it must be: where not even the directories got there before a power cut, nothing did.
    fn make_again(&self, key: &str, record: &Record) -> Result<()> {
        let Some((place, layer)) = self.recorded(key, record)? else { return Ok(()) };
        let is_missing = |path: std::path::PathBuf| !path.exists();
        if layer.kind != SnapshotKind::Active || !place.snapshotter.files(layer.id).is_some_and(is_missing) {
            return Ok(());
        }
        place.snapshotter.discard(layer.id)?;
        place.snapshotter.create(&layer)?;
        tracing::info!(layer = layer.id, "an active snapshot of which nothing was on the disk is empty");
        Ok(())
    }

    /// Holds what the mounts of a layer need that were handed out before a restart.
    fn hold_again(&self, key: &str, record: &Record) -> Result<()> {
        let Some((place, layer)) = self.recorded(key, record)? else { return Ok(()) };
        self.shared.mounts(&place, &layer).map(drop)
    }

    /// The layer of a record, and where it belongs.
    fn recorded(&self, key: &str, record: &Record) -> Result<Option<(Place, Layer)>> {
        let mut parts = key.split('\0');
        let (Some(namespace), Some(snapshotter)) = (parts.next(), parts.next()) else { return Ok(None) };
        let context = RequestContext { namespace: Namespace::new(namespace)?, lease: None };
        let place = self.place(&context, snapshotter)?;
        let layer = self.shared.db.read_now(|tx| place.layer(tx, record))?;
        Ok(Some((place, layer)))
    }

    /// The unpack place of the active layer whose upper directory this is, as long as nothing was written to it.
    pub fn place_of(&self, upper: &Path) -> Option<UnpackPlace> {
        let layer = upper.parent()?;
        let id = layer.file_name()?.to_str()?.parse().ok()?;
        let own = self.snapshotters().find(|snapshotter| layer.parent() == Some(snapshotter.root()))?;
        let is_empty = std::fs::read_dir(upper).ok()?.next().is_none();
        own.unpack_place(id).filter(|_| is_empty)
    }
}

impl Shared {
    /// Makes a layer's files, records them, and says what to mount.
    fn make(
        &self,
        place: &Place,
        layer: &Layer,
        record: impl FnOnce(&Write) -> Result<()>,
    ) -> Result<Vec<Mount>> {
        place.snapshotter.create(layer)?;
        self.db.write_now(record)?;
        self.mounts(place, layer)
    }

    /// Records a layer that an external snapshotter has already, under the name that a snapshot was to get.
    fn adopt(&self, place: &Place, layer: &Layer, name: &str, parent: &str, theirs: &str) -> Result<()> {
        place.snapshotter.adopt(layer.id, theirs);
        // What it takes is theirs to know; not to be told is no reason to unpack it.
        let usage = place.snapshotter.usage(layer.id).unwrap_or_default();
        self.db.write_now(|tx| {
            if tx.get(&SNAPSHOTS, &place.key(name))?.is_some() {
                return Err(Error::new(Kind::AlreadyExists, "target snapshot", format!("{name:?}")));
            }
            if place.chain(tx, parent)? != layer.parents {
                return Err(missing_parent(parent));
            }
            leases::hold(tx, &place.context, &place.lease_kind(), name)?;
            namespaces::ensure(tx, &place.context.namespace)?;
            let time = now();
            let record = Record {
                layer: layer.id,
                kind: SnapshotKind::Committed.into(),
                parent: parent.to_owned(),
                labels: stored(layer.labels.clone()),
                created_at: time,
                updated_at: time,
                size: usage.size,
                inodes: usage.inodes,
                adopted: theirs.to_owned(),
                ..Record::default()
            };
            tx.put(&SNAPSHOTS, &place.key(name), &record)?;
            if !parent.is_empty() {
                tx.put(&CHILDREN, &place.child_key(parent, name), &Child {})?;
            }
            note_layer(tx, layer.id)
        })
    }

    fn mounts(&self, place: &Place, layer: &Layer) -> Result<Vec<Mount>> {
        let LayerMounts { mounts, hold } = place.snapshotter.mounts(layer)?;
        if let Some(hold) = hold {
            self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.id, hold);
        }
        Ok(mounts)
    }

    /// Lets go of what a layer's mounts needed.
    fn release(&self, layer: u64) {
        let hold = self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&layer);
        drop(hold);
    }
}

/// Deletes what was discarded without keeping a caller waiting.
fn clean_in_background(snapshotter: Arc<dyn Snapshotter>) {
    tokio::spawn(async move {
        let name = snapshotter.name().to_owned();
        if let Err(error) = blocking(move || snapshotter.clean()).await {
            tracing::warn!(%error, snapshotter = name, "removed snapshots still take space");
        }
    });
}
