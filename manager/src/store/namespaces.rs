//! Namespaces: made explicitly, or by the first object that is put into one.

use orlop_proto::containerd::events::{NamespaceCreate, NamespaceDelete, NamespaceUpdate};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use super::{publish, stored, update_label};
use crate::db::{Blob, Database, Query, Table, Write, prefix};
use crate::events::Exchange;
use crate::identifier;
use crate::labels::{self, Labels, invalid};
use crate::request::Namespace;

/// Namespaces by name.
pub static NAMESPACES: Table<Record> = Table::new("namespaces");

/// What is stored of a namespace.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    /// Labels.
    #[prost(btree_map = "string, string", tag = "1")]
    pub labels: Labels,
}

/// Makes the namespace of an object that is being written, unless it is there.
pub fn ensure(tx: &Write, namespace: &Namespace) -> Result<()> {
    if tx.get(&NAMESPACES, namespace.as_str())?.is_none() {
        tx.put(&NAMESPACES, namespace.as_str(), &Record::default())?;
    }
    Ok(())
}

/// The namespaces; cheap to clone.
#[derive(Clone)]
pub struct Namespaces {
    db: Database,
    exchange: Exchange,
}

impl Namespaces {
    /// A handle on the stored namespaces.
    pub fn new(db: Database, exchange: Exchange) -> Namespaces {
        Namespaces { db, exchange }
    }

    /// The labels of a namespace; none for one that does not exist, as in containerd.
    pub async fn labels(&self, name: &str) -> Result<Labels> {
        let name = name.to_owned();
        let record = self.db.read(move |tx| tx.get(&NAMESPACES, &name)).await?;
        Ok(record.unwrap_or_default().labels)
    }

    /// All namespaces with their labels, by name.
    pub async fn list(&self) -> Result<Vec<(String, Labels)>> {
        let all = self.db.read(|tx| tx.scan(&NAMESPACES, "")).await?;
        Ok(all.into_iter().map(|(name, record)| (name, record.labels)).collect())
    }

    /// Makes a namespace; the event goes to the caller's own, if it has one.
    pub async fn create(&self, caller: Option<Namespace>, name: &str, labels: Labels) -> Result<()> {
        identifier::validate(name)?;
        labels::validate(&labels, "namespace.Labels")?;
        let namespace = Namespace::new(name)?;
        let (key, record) = (name.to_owned(), Record { labels: stored(labels) });
        let event =
            NamespaceCreate { name: name.to_owned(), labels: record.labels.clone().into_iter().collect() };
        self.db
            .write(move |tx| {
                if tx.get(&NAMESPACES, &key)?.is_some() {
                    return Err(Error::new(Kind::AlreadyExists, "namespace", format!("{key:?}")));
                }
                tx.put(&NAMESPACES, &key, &record)
            })
            .await?;
        publish(&self.exchange, &caller.unwrap_or(namespace), "/namespaces/create", &event)
    }

    /// Changes labels: those that the field paths name, or all; the event goes as for [`Namespaces::create`].
    pub async fn update(
        &self,
        caller: Option<Namespace>,
        name: &str,
        labels: Labels,
        fieldpaths: Vec<String>,
    ) -> Result<Labels> {
        let namespace = Namespace::new(name)?;
        labels::validate(&labels, "namespace.Labels")?;
        let event = NamespaceUpdate { name: name.to_owned(), labels: labels.clone().into_iter().collect() };
        let key = name.to_owned();
        let updated = self
            .db
            .write(move |tx| {
                let mut record = tx.get(&NAMESPACES, &key)?.unwrap_or_default();
                if fieldpaths.is_empty() {
                    record.labels.clone_from(&labels);
                }
                for path in &fieldpaths {
                    if !update_label(path, &mut record.labels, &labels) {
                        return Err(Error::because(
                            Kind::InvalidArgument,
                            "",
                            "",
                            format!("cannot update {path:?} field"),
                        ));
                    }
                }
                record.labels = stored(record.labels);
                tx.put(&NAMESPACES, &key, &record)?;
                Ok(record.labels)
            })
            .await?;
        publish(&self.exchange, &caller.unwrap_or(namespace), "/namespaces/update", &event)?;
        Ok(updated)
    }

    /// Deletes an empty namespace.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let key = name.to_owned();
        self.db
            .free(move |tx| {
                let left = remains(tx, &key)?;
                if !left.is_empty() {
                    return Err(Error::new(
                        Kind::FailedPrecondition,
                        format!("namespace {key:?} must be empty, but it still has {}", left.join(", ")),
                        "",
                    ));
                }
                if !tx.remove(&NAMESPACES, &key)? {
                    return Err(Error::new(Kind::NotFound, "namespace", format!("{key:?}")));
                }
                for (lease, _) in tx.scan(&super::leases::LEASES, &prefix(&[&key]))? {
                    super::leases::remove(tx, &key, &lease)?;
                }
                Ok(())
            })
            .await?;
        let namespace = Namespace::new(name).map_err(|error| invalid(error.to_string()))?;
        publish(&self.exchange, &namespace, "/namespaces/delete", &NamespaceDelete { name: name.to_owned() })
    }
}

/// What keeps a namespace from being deleted, in containerd's words.
fn remains(tx: &Write, name: &str) -> Result<Vec<String>> {
    let own = prefix(&[name]);
    let mut left = Vec::new();
    if tx.any(&super::images::IMAGES, &own)? {
        left.push("images".to_owned());
    }
    if tx.any(&crate::content::CONTENT, &own)? {
        left.push("blobs".to_owned());
    }
    if tx.any(&super::containers::CONTAINERS, &own)? {
        left.push("containers".to_owned());
    }
    let mut snapshotters: Vec<String> = Vec::new();
    for (key, _) in tx.scan(&crate::snapshot::SNAPSHOTS, &own)? {
        let snapshotter = key.split('\0').next().unwrap_or_default();
        if snapshotters.last().is_none_or(|last| last != snapshotter) {
            snapshotters.push(snapshotter.to_owned());
        }
    }
    left.extend(snapshotters.iter().map(|name| format!("snapshots on {name:?} snapshotter")));
    Ok(left)
}

/// The identity of this installation, made once.
pub fn installation(db: &Database) -> Result<String> {
    if let Some(known) = db.read_now(|tx| tx.get(&crate::db::META, "uuid"))? {
        return Ok(String::from_utf8_lossy(&known.value).into_owned());
    }
    db.write_now(|tx| {
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
            .map_err(|error| Error::io("read", "/proc/sys/kernel/random/uuid", error))?;
        let uuid = uuid.trim().to_owned();
        tx.put(&crate::db::META, "uuid", &Blob { value: uuid.clone().into_bytes() })?;
        Ok(uuid)
    })
}
