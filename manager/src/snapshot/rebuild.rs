//! Layers made again beside the old ones, to compare them or to take their place.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::records::{Place, Record, SNAPSHOTS};
use super::snapshotter::{Hold, Layer, LayerMounts, Mount, SnapshotKind, Snapshotter, UnpackPlace};
use super::write_back::Unsynced;
use super::{Shared, Snapshots};
use crate::db::Query;
use crate::request::{Namespace, RequestContext};

/// A layer without a record, on top of the same ones as a committed snapshot. It goes when this is dropped.
pub struct Rebuilt {
    snapshots: Snapshots,
    place: Place,
    name: String,
    layer: u64,
    id: u64,
    /// What must be mounted to fill it.
    pub mounts: Vec<Mount>,
    /// What they need meanwhile.
    hold: Option<Hold>,
    _making: Making,
}

/// Keeps a layer that has no record yet from being taken for a left-over.
pub(super) struct Making {
    shared: Arc<Shared>,
    id: u64,
}

impl Making {
    /// Gives a layer its number.
    pub fn begin(shared: &Arc<Shared>) -> Making {
        // Under the lock, so that whoever sees the number sees that it is being made.
        let mut making = shared.making.lock().unwrap_or_else(PoisonError::into_inner);
        let id = shared.last_layer.fetch_add(1, Ordering::Relaxed) + 1;
        making.insert(id);
        Making { shared: shared.clone(), id }
    }

    /// The number.
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.shared.making.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Snapshots {
    /// An empty layer to be filled like a committed snapshot's. Blocks.
    pub fn rebuild(&self, namespace: &str, snapshotter: &str, name: &str) -> Result<Rebuilt> {
        let context = RequestContext { namespace: Namespace::new(namespace)?, lease: None };
        let place = self.place(&context, snapshotter)?;
        let (layer, labels, parents) = self.shared.db.read_now(|tx| {
            let record = place.get(tx, name)?;
            Ok((record.layer, record.labels.clone(), place.chain(tx, &record.parent)?))
        })?;
        let making = Making::begin(&self.shared);
        let id = making.id();
        let fresh = Layer { id, kind: SnapshotKind::Active, parents, labels };
        let mut rebuilt = Rebuilt {
            snapshots: self.clone(),
            place,
            name: name.to_owned(),
            layer,
            id,
            mounts: Vec::new(),
            hold: None,
            _making: making,
        };
        rebuilt.place.snapshotter.create(&fresh)?;
        let LayerMounts { mounts, hold } = rebuilt.place.snapshotter.mounts(&fresh)?;
        (rebuilt.mounts, rebuilt.hold) = (mounts, hold);
        Ok(rebuilt)
    }

    /// Layers that have files and no record, by snapshotter. Blocks.
    pub fn stray_layers(&self) -> Result<Vec<(String, u64)>> {
        let mut stray = Vec::new();
        for snapshotter in self.snapshotters() {
            let layers = snapshotter.layers()?;
            // Whoever was at it when the files were listed has a record now, or is at it still.
            let making = self.shared.making.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let records = self.shared.db.read_now(|tx| tx.scan(&SNAPSHOTS, ""))?;
            let recorded: BTreeSet<u64> = records.iter().map(|(_, record)| record.layer).collect();
            let is_known = |layer: &u64| making.contains(layer) || recorded.contains(layer);
            let name = snapshotter.name().to_owned();
            stray.extend(
                layers.into_iter().filter(|layer| !is_known(layer)).map(|layer| (name.clone(), layer)),
            );
        }
        Ok(stray)
    }
}

impl Rebuilt {
    /// The file to unpack into, where the layer that it was made like is kept as one file.
    pub fn image_place(&self) -> Option<UnpackPlace> {
        let snapshotter = &self.place.snapshotter;
        snapshotter.image(self.layer)?;
        snapshotter.unpack_place(self.id).filter(|place| matches!(place, UnpackPlace::Image(_)))
    }

    /// Its own file and that of the layer that it was made like, where layers are kept as files.
    pub fn images(&self) -> Option<(PathBuf, PathBuf)> {
        let snapshotter = &self.place.snapshotter;
        snapshotter.image(self.id).zip(snapshotter.image(self.layer))
    }

    /// Where its own files are, and those of the layer that it was made like.
    ///
    /// # Errors
    ///
    /// `Unimplemented` where the snapshotter keeps no files.
    pub fn files(&self) -> Result<(PathBuf, PathBuf)> {
        let files = |id| self.place.snapshotter.files(id);
        files(self.id).zip(files(self.layer)).ok_or_else(|| {
            let name = self.place.snapshotter.name();
            Error::because(Kind::Unimplemented, "compare", name, "the snapshotter keeps no files")
        })
    }

    /// Takes the old layer's place; the old one goes. Blocks.
    pub fn adopt(self) -> Result<()> {
        let shared = &self.snapshots.shared;
        let snapshotter = &self.place.snapshotter;
        // Its files have not been written back: that is known before they have the name.
        let unsynced = match snapshotter.files(self.id) {
            Some(_) => shared.boot.clone(),
            None => String::new(),
        };
        let usage = snapshotter.commit(self.id)?;
        let record = |change: &dyn Fn(&mut Record)| {
            shared.db.write_now(|tx| {
                tx.do_not_count();
                let mut record = self.place.get(tx, &self.name)?;
                change(&mut record);
                tx.put(&SNAPSHOTS, &self.place.key(&self.name), &record)
            })
        };
        // Whoever is killed between here and the end leaves a layer that the next start makes again.
        record(&|record| record.unsynced = "being replaced".to_owned())?;
        snapshotter.exchange(self.id, self.layer)?;
        record(&|record| {
            record.unsynced.clone_from(&unsynced);
            record.size = usage.size;
            record.inodes = usage.inodes;
        })?;
        if !unsynced.is_empty() {
            self.snapshots.write_back(Unsynced {
                namespace: self.place.context.namespace.to_string(),
                snapshotter: snapshotter.name().to_owned(),
                name: self.name.clone(),
                layer: self.layer,
                is_doubtful: false,
            });
        }
        Ok(())
    }
}

impl Drop for Rebuilt {
    fn drop(&mut self) {
        let snapshotter: &Arc<dyn Snapshotter> = &self.place.snapshotter;
        // Ignoring: what is left has no record and goes at the next start.
        let _ = snapshotter.discard(self.id).and_then(|()| snapshotter.clean());
    }
}
