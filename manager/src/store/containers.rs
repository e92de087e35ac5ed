//! Containers: what is to be run, as the client described it.

use std::collections::BTreeMap;

use orlop_proto::containerd::events::{ContainerCreate, ContainerDelete, ContainerUpdate, container_create};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use super::{Any, Timestamp, label_field, namespaces, now, publish, stored, update_label};
use crate::db::{Database, Query, Table, key, prefix};
use crate::events::Exchange;
use crate::filter::{Filter, text};
use crate::identifier;
use crate::labels::{self, Labels, invalid};
use crate::request::RequestContext;

/// Containers by namespace and name.
pub static CONTAINERS: Table<Container> = Table::new("containers");

/// Which runtime runs a container.
#[derive(Clone, PartialEq, Message)]
pub struct Runtime {
    /// Name as the client gave it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Options, which the runtime understands.
    #[prost(message, optional, tag = "2")]
    pub options: Option<Any>,
}

/// A container. Values that the client typed (spec, options, extensions) are kept byte for byte.
#[derive(Clone, PartialEq, Message)]
pub struct Container {
    /// Name within the namespace.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// Image that it was made from; need not exist.
    #[prost(string, tag = "3")]
    pub image: String,
    /// Runtime; fixed once made.
    #[prost(message, required, tag = "4")]
    pub runtime: Runtime,
    /// OCI runtime specification.
    #[prost(message, optional, tag = "5")]
    pub spec: Option<Any>,
    /// Snapshotter of the root file system; fixed once made.
    #[prost(string, tag = "6")]
    pub snapshotter: String,
    /// Snapshot of the root file system.
    #[prost(string, tag = "7")]
    pub snapshot_key: String,
    /// When it was made.
    #[prost(message, required, tag = "8")]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[prost(message, required, tag = "9")]
    pub updated_at: Timestamp,
    /// Whatever clients want to keep with it.
    #[prost(btree_map = "string, message", tag = "10")]
    pub extensions: BTreeMap<String, Any>,
    /// Sandbox that it belongs to.
    #[prost(string, tag = "11")]
    pub sandbox: String,
}

impl Container {
    /// Checks the parts in containerd's order and words.
    fn validate(&self) -> Result<()> {
        identifier::validate(&self.id)
            .map_err(|error| invalid(format!("container.ID: {}", error.operation())))?;
        if self.extensions.contains_key("") {
            return Err(invalid("container.Extension keys must not be zero-length"));
        }
        labels::validate(&self.labels, "containers.Labels")?;
        if self.runtime.name.is_empty() {
            return Err(invalid("container.Runtime.Name must be set"));
        }
        if self.spec.is_none() {
            return Err(invalid("container.Spec must be set"));
        }
        if !self.snapshot_key.is_empty() && self.snapshotter.is_empty() {
            return Err(invalid("container.Snapshotter must be set if container.SnapshotKey is set"));
        }
        Ok(())
    }

    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["id", ..] => text(&self.id),
            ["runtime", "name", ..] => text(&self.runtime.name),
            ["image", ..] => text(&self.image),
            ["labels", rest @ ..] => label_field(&self.labels, rest),
            _ => None,
        }
    }

    /// Takes over from another container what a field path names.
    fn take(&mut self, from: &Container, path: &str) -> Result<()> {
        if update_label(path, &mut self.labels, &from.labels) {
            return Ok(());
        }
        if let Some(key) = path.strip_prefix("extensions.") {
            let value = from.extensions.get(key).cloned().unwrap_or_default();
            self.extensions.insert(key.to_owned(), value);
            return Ok(());
        }
        match path {
            "labels" => self.labels.clone_from(&from.labels),
            "spec" => self.spec.clone_from(&from.spec),
            "extensions" => self.extensions.clone_from(&from.extensions),
            "image" => self.image.clone_from(&from.image),
            "snapshotkey" => self.snapshot_key.clone_from(&from.snapshot_key),
            _ => return Err(invalid(format!("cannot update {path:?} field on {:?}", self.id))),
        }
        Ok(())
    }
}

/// What an update without field paths replaces.
const REPLACED: [&str; 5] = ["labels", "spec", "extensions", "image", "snapshotkey"];

/// The containers; cheap to clone.
#[derive(Clone)]
pub struct Containers {
    db: Database,
    exchange: Exchange,
}

impl Containers {
    /// How many changes have been committed, of whatever kind: with none, all containers are what they were.
    pub fn changes(&self) -> u64 {
        self.db.changes().commits.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A handle on the stored containers.
    pub fn new(db: Database, exchange: Exchange) -> Containers {
        Containers { db, exchange }
    }

    /// The container of a name.
    pub async fn get(&self, context: &RequestContext, id: &str) -> Result<Container> {
        let (namespace, id) = (context.namespace.clone(), id.to_owned());
        self.db
            .read(move |tx| {
                tx.get(&CONTAINERS, &key(&[namespace.as_str(), &id]))?.ok_or_else(|| {
                    let object = format!("{id:?} in namespace {:?}", namespace.as_str());
                    Error::new(Kind::NotFound, "container", object)
                })
            })
            .await
    }

    /// The containers that the filters choose (`id`, `runtime.name`, `image`, `labels.KEY`), by name.
    pub async fn list(&self, context: &RequestContext, filters: &[String]) -> Result<Vec<Container>> {
        let filter = Filter::parse(filters)?;
        let own = prefix(&[context.namespace.as_str()]);
        let all = self.db.read(move |tx| tx.scan(&CONTAINERS, &own)).await?;
        let containers = all.into_iter().map(|(_, container)| container);
        Ok(containers.filter(|container| filter.matches(&|path: &[&str]| container.field(path))).collect())
    }

    /// Makes a container; the times are set here.
    pub async fn create(&self, context: &RequestContext, mut container: Container) -> Result<Container> {
        container
            .validate()
            .map_err(|error| invalid(format!("create container failed validation: {}", error.operation())))?;
        container.labels = stored(container.labels);
        container.created_at = now();
        container.updated_at = container.created_at;
        let (namespace, record) = (context.namespace.clone(), container.clone());
        self.db
            .write(move |tx| {
                let key = key(&[namespace.as_str(), &record.id]);
                if tx.get(&CONTAINERS, &key)?.is_some() {
                    return Err(Error::new(Kind::AlreadyExists, "container", format!("{:?}", record.id)));
                }
                namespaces::ensure(tx, &namespace)?;
                tx.put(&CONTAINERS, &key, &record)
            })
            .await?;
        let event = ContainerCreate {
            id: container.id.clone(),
            image: container.image.clone(),
            runtime: Some(container_create::Runtime {
                name: container.runtime.name.clone(),
                options: container.runtime.options.clone(),
            }),
        };
        publish(&self.exchange, &context.namespace, "/containers/create", &event)?;
        Ok(container)
    }

    /// Replaces the parts that the field paths name (`labels`, `labels.KEY`, `spec`, `extensions`,
    /// `extensions.KEY`, `image`, `snapshotkey`), or all of these.
    pub async fn update(
        &self,
        context: &RequestContext,
        container: Container,
        fieldpaths: Vec<String>,
    ) -> Result<Container> {
        if container.id.is_empty() {
            return Err(invalid("must specify a container id"));
        }
        let namespace = context.namespace.clone();
        let updated = self
            .db
            .write(move |tx| {
                let key = key(&[namespace.as_str(), &container.id]);
                let mut updated = tx
                    .get(&CONTAINERS, &key)?
                    .ok_or_else(|| Error::new(Kind::NotFound, "container", format!("{:?}", container.id)))?;
                if fieldpaths.is_empty() {
                    if updated.snapshotter != container.snapshotter {
                        return Err(invalid("container.Snapshotter field is immutable"));
                    }
                    if updated.runtime.name != container.runtime.name {
                        return Err(invalid("container.Runtime.Name field is immutable"));
                    }
                    for path in REPLACED {
                        updated.take(&container, path)?;
                    }
                }
                for path in &fieldpaths {
                    updated.take(&container, path)?;
                }
                updated
                    .validate()
                    .map_err(|error| invalid(format!("update failed validation: {}", error.operation())))?;
                updated.labels = stored(updated.labels);
                updated.updated_at = now();
                tx.put(&CONTAINERS, &key, &updated)?;
                Ok(updated)
            })
            .await?;
        let event = ContainerUpdate {
            id: updated.id.clone(),
            image: updated.image.clone(),
            labels: updated.labels.clone().into_iter().collect(),
            snapshot_key: updated.snapshot_key.clone(),
        };
        publish(&self.exchange, &context.namespace, "/containers/update", &event)?;
        Ok(updated)
    }

    /// Removes a container; its snapshot can then be collected.
    pub async fn delete(&self, context: &RequestContext, id: &str) -> Result<()> {
        let (namespace, owned) = (context.namespace.clone(), id.to_owned());
        self.db
            .free(move |tx| match tx.remove(&CONTAINERS, &key(&[namespace.as_str(), &owned]))? {
                true => Ok(()),
                false => Err(Error::new(Kind::NotFound, "container", &*owned)),
            })
            .await?;
        let event = ContainerDelete { id: id.to_owned() };
        publish(&self.exchange, &context.namespace, "/containers/delete", &event)
    }
}
