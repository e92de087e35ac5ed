//! What is recorded of snapshots, and where.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use super::snapshotter::{Layer, SnapshotKind, Snapshotter};
use crate::db::{Blob, META, Query, Table, Write, key, prefix};
use crate::labels::{Labels, invalid};
use crate::request::RequestContext;
use crate::store::{Timestamp, label_field, leases};

/// Snapshots by namespace, snapshotter and name.
pub static SNAPSHOTS: Table<Record> = Table::new("snapshots");
/// Children by namespace, snapshotter, parent and name.
pub static CHILDREN: Table<Child> = Table::new("snapshot_children");
/// Key in the table of facts: the highest number given to a layer.
pub(super) const LAST_LAYER: &str = "last_layer";
/// What is stored of a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    /// Number of the layer that holds its files.
    #[prost(uint64, tag = "1")]
    pub layer: u64,
    /// What it is.
    #[prost(enumeration = "SnapshotKind", tag = "2")]
    pub kind: i32,
    /// Name of the snapshot below, or nothing.
    #[prost(string, tag = "3")]
    pub parent: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: Labels,
    /// When it was made.
    #[prost(message, required, tag = "5")]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[prost(message, required, tag = "6")]
    pub updated_at: Timestamp,
    /// What a committed snapshot takes, in bytes.
    #[prost(uint64, tag = "7")]
    pub size: u64,
    /// What a committed snapshot takes, in inodes.
    #[prost(uint64, tag = "8")]
    pub inodes: u64,
    /// The boot of the machine in which a committed snapshot's files were made, until they are known to be on the disk.
    #[prost(string, tag = "9")]
    pub unsynced: String,
    /// The name that an external snapshotter gave a layer which it had before it was asked.
    #[prost(string, tag = "10")]
    pub adopted: String,
}

/// The record of a child; its key says everything.
#[derive(Clone, PartialEq, Message)]
pub struct Child {}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Name within namespace and snapshotter.
    pub name: String,
    /// Name of the snapshot below, or nothing.
    pub parent: String,
    /// What it is.
    pub kind: SnapshotKind,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Labels.
    pub labels: Labels,
}

impl Info {
    pub(super) fn new(name: String, record: Record) -> Info {
        let kind = record.kind();
        let Record { parent, created_at, updated_at, labels, .. } = record;
        Info { name, parent, kind, created_at, updated_at, labels }
    }

    pub(super) fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["kind", ..] => Some(self.kind.filter_name().to_owned()),
            ["name", ..] => Some(self.name.clone()),
            ["parent", ..] => Some(self.parent.clone()),
            ["labels", rest @ ..] => label_field(&self.labels, rest),
            _ => None,
        }
    }
}

/// A snapshotter and the place of its records.
pub(super) struct Place {
    pub snapshotter: Arc<dyn Snapshotter>,
    pub context: RequestContext,
}

impl Place {
    pub fn key(&self, name: &str) -> String {
        key(&[self.context.namespace.as_str(), self.snapshotter.name(), name])
    }

    pub fn prefix(&self) -> String {
        prefix(&[self.context.namespace.as_str(), self.snapshotter.name()])
    }

    pub fn child_key(&self, parent: &str, name: &str) -> String {
        key(&[self.context.namespace.as_str(), self.snapshotter.name(), parent, name])
    }

    pub fn children(&self, parent: &str) -> String {
        prefix(&[self.context.namespace.as_str(), self.snapshotter.name(), parent])
    }

    /// The type under which leases hold these snapshots.
    pub fn lease_kind(&self) -> String {
        format!("{}/{}", leases::SNAPSHOTS, self.snapshotter.name())
    }

    pub fn get(&self, tx: &impl Query, name: &str) -> Result<Record> {
        tx.get(&SNAPSHOTS, &self.key(name))?.ok_or_else(|| missing(name))
    }

    /// Numbers of the layers below a snapshot with this parent, nearest first.
    pub fn chain(&self, tx: &impl Query, parent: &str) -> Result<Vec<u64>> {
        let mut layers = Vec::new();
        let mut next = parent.to_owned();
        while !next.is_empty() {
            let record = tx.get(&SNAPSHOTS, &self.key(&next))?.ok_or_else(|| missing_parent(&next))?;
            if record.kind() != SnapshotKind::Committed {
                return Err(invalid(format!(
                    "failed to create snapshot: parent {next:?} is not committed snapshot"
                )));
            }
            layers.push(record.layer);
            next = record.parent;
        }
        Ok(layers)
    }

    pub fn layer(&self, tx: &impl Query, record: &Record) -> Result<Layer> {
        Ok(Layer {
            id: record.layer,
            kind: record.kind(),
            parents: self.chain(tx, &record.parent)?,
            labels: record.labels.clone(),
        })
    }
}

/// Puts snapshots, with their keys, behind those below them. The numbers of layers do not say which these are: what is
/// unpacked side by side gets them in any order.
pub fn sort_lowest_first(records: &mut [(String, Record)]) {
    let parent = |(key, record): &(String, Record)| {
        let (place, _) = key.rsplit_once('\0').filter(|_| !record.parent.is_empty())?;
        Some((key.clone(), format!("{place}\0{}", record.parent)))
    };
    let parents: HashMap<String, String> = records.iter().filter_map(parent).collect();
    let depth = |key: &String| {
        let below = std::iter::successors(parents.get(key), |key| parents.get(*key));
        // As many as there are, should damaged records go round in a circle.
        below.take(parents.len()).count()
    };
    records.sort_by_cached_key(|(key, record)| (depth(key), record.layer));
}

/// Removes a snapshot's record and its parent's note of it.
pub fn remove_record(
    tx: &Write,
    namespace: &str,
    snapshotter: &str,
    name: &str,
    record: &Record,
) -> Result<()> {
    if !record.parent.is_empty() {
        tx.remove(&CHILDREN, &key(&[namespace, snapshotter, &record.parent, name]))?;
    }
    tx.remove(&SNAPSHOTS, &key(&[namespace, snapshotter, name]))?;
    Ok(())
}

/// Keeps the number of a recorded layer from being used again.
pub(super) fn note_layer(tx: &Write, id: u64) -> Result<()> {
    let last = tx.get(&META, LAST_LAYER)?.map_or(0, |last| decode_number(&last.value));
    if id <= last {
        return Ok(());
    }
    tx.put(&META, LAST_LAYER, &Blob { value: id.to_be_bytes().to_vec() })
}

pub(super) fn decode_number(bytes: &[u8]) -> u64 {
    bytes.try_into().map(u64::from_be_bytes).unwrap_or(0)
}

/// Names are any text but NUL, which separates the parts of keys.
pub(super) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(invalid("snapshot key must not be empty"));
    }
    if name.contains('\0') {
        return Err(invalid(format!("snapshot key {name:?} must not contain NUL")));
    }
    Ok(())
}

fn missing(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("snapshot {name} does not exist"), "")
}

pub(super) fn missing_parent(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("parent snapshot {name} does not exist"), "")
}
