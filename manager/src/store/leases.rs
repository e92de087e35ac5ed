//! Leases: while one lives, nothing that it holds is collected.

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use super::{Timestamp, label_field, namespaces, now, stored};
use crate::content::digest::Digest;
use crate::db::{Database, Query, Table, Write, key, prefix};
use crate::filter::Filter;
use crate::labels::{self, Labels, invalid};
use crate::request::RequestContext;

/// Leases by namespace and name.
pub static LEASES: Table<Lease> = Table::new("leases");
/// What leases hold, by namespace, lease, type and name.
pub static RESOURCES: Table<Held> = Table::new("lease_resources");

/// Label whose RFC 3339 time ends a lease.
pub const EXPIRE_LABEL: &str = "containerd.io/gc.expire";
/// Label of a lease whose content and snapshots keep nothing but themselves and their parents.
pub const FLAT_LABEL: &str = "containerd.io/gc.flat";

/// Resource type of blobs.
pub const CONTENT: &str = "content";
/// Resource type of unfinished writes.
pub const INGESTS: &str = "ingests";
/// First part of the resource type of snapshots: `snapshots/overlayfs`.
pub const SNAPSHOTS: &str = "snapshots";

/// A lease.
#[derive(Clone, PartialEq, Message)]
pub struct Lease {
    /// Name within the namespace.
    #[prost(string, tag = "1")]
    pub id: String,
    /// When it was made.
    #[prost(message, required, tag = "2")]
    pub created_at: Timestamp,
    /// Labels, of which some say when it ends and how it holds.
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: Labels,
}

/// The record of a held resource; its key says everything.
#[derive(Clone, PartialEq, Message)]
pub struct Held {}

/// Something that a lease holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Digest, reference of a write, or key of a snapshot.
    pub id: String,
    /// `content`, `ingests` or `snapshots/NAME`.
    pub kind: String,
}

/// Holds a resource by the request's lease, if it came with one.
///
/// # Errors
///
/// `NotFound` when the lease does not exist.
pub fn hold(tx: &Write, context: &RequestContext, kind: &str, id: &str) -> Result<()> {
    let Some(lease) = &context.lease else { return Ok(()) };
    let namespace = context.namespace.as_str();
    if tx.get(&LEASES, &key(&[namespace, lease]))?.is_none() {
        return Err(missing());
    }
    tx.put(&RESOURCES, &key(&[namespace, lease, kind, id]), &Held {})
}

/// Lets go of a resource that the request's lease holds under a name which is gone.
pub fn release(tx: &Write, context: &RequestContext, kind: &str, id: &str) -> Result<()> {
    if let Some(lease) = &context.lease {
        tx.remove(&RESOURCES, &key(&[context.namespace.as_str(), lease, kind, id]))?;
    }
    Ok(())
}

/// The error of a request whose lease does not exist.
pub fn missing() -> Error {
    Error::new(Kind::NotFound, "lease does not exist", "")
}

/// Removes a lease and what it holds; says whether it was there.
pub fn remove(tx: &Write, namespace: &str, lease: &str) -> Result<bool> {
    for (rest, _) in tx.scan(&RESOURCES, &prefix(&[namespace, lease]))? {
        tx.remove(&RESOURCES, &key(&[namespace, lease, &rest]))?;
    }
    tx.remove(&LEASES, &key(&[namespace, lease]))
}

/// The leases; cheap to clone.
#[derive(Clone)]
pub struct Leases {
    db: Database,
}

impl Leases {
    /// A handle on the stored leases.
    pub fn new(db: Database) -> Leases {
        Leases { db }
    }

    /// Makes a lease.
    pub async fn create(&self, context: &RequestContext, id: &str, labels: Labels) -> Result<Lease> {
        if id.is_empty() || id.contains('\0') {
            return Err(invalid("lease id must be provided"));
        }
        labels::validate(&labels, "lease.Labels")?;
        let lease = Lease { id: id.to_owned(), created_at: now(), labels: stored(labels) };
        let (namespace, record) = (context.namespace.clone(), lease.clone());
        self.db
            .write(move |tx| {
                let key = key(&[namespace.as_str(), &record.id]);
                if tx.get(&LEASES, &key)?.is_some() {
                    return Err(Error::new(Kind::AlreadyExists, "lease", format!("{:?}", record.id)));
                }
                namespaces::ensure(tx, &namespace)?;
                tx.put(&LEASES, &key, &record)
            })
            .await?;
        Ok(lease)
    }

    /// Ends a lease; what only it held can then be collected.
    pub async fn delete(&self, context: &RequestContext, id: &str) -> Result<()> {
        let (namespace, id) = (context.namespace.clone(), id.to_owned());
        self.db
            .free(move |tx| match remove(tx, namespace.as_str(), &id)? {
                true => Ok(()),
                false => Err(unknown(&id)),
            })
            .await
    }

    /// The leases that the filters choose (`id`, `labels.KEY`).
    pub async fn list(&self, context: &RequestContext, filters: &[String]) -> Result<Vec<Lease>> {
        let filter = Filter::parse(filters)?;
        let own = prefix(&[context.namespace.as_str()]);
        let all = self.db.read(move |tx| tx.scan(&LEASES, &own)).await?;
        let chosen = |lease: &Lease| {
            filter.matches(&|path: &[&str]| match path {
                ["id", ..] => crate::filter::text(&lease.id),
                ["labels", rest @ ..] => label_field(&lease.labels, rest),
                _ => None,
            })
        };
        Ok(all.into_iter().map(|(_, lease)| lease).filter(chosen).collect())
    }

    /// Makes a lease hold a resource, whether or not that exists.
    pub async fn add_resource(&self, context: &RequestContext, id: &str, resource: Resource) -> Result<()> {
        let (namespace, id) = (context.namespace.clone(), id.to_owned());
        self.db
            .write(move |tx| {
                let resource_key = resource_key(tx, namespace.as_str(), &id, &resource)?;
                tx.put(&RESOURCES, &resource_key, &Held {})
            })
            .await
    }

    /// Makes a lease let go of a resource.
    pub async fn delete_resource(
        &self,
        context: &RequestContext,
        id: &str,
        resource: Resource,
    ) -> Result<()> {
        let (namespace, id) = (context.namespace.clone(), id.to_owned());
        self.db
            .free(move |tx| {
                let resource_key = resource_key(tx, namespace.as_str(), &id, &resource)?;
                tx.remove(&RESOURCES, &resource_key)?;
                Ok(())
            })
            .await
    }

    /// What a lease holds: blobs, then unfinished writes, then snapshots.
    pub async fn resources(&self, context: &RequestContext, id: &str) -> Result<Vec<Resource>> {
        let (namespace, id) = (context.namespace.clone(), id.to_owned());
        self.db
            .read(move |tx| {
                if tx.get(&LEASES, &key(&[namespace.as_str(), &id]))?.is_none() {
                    return Err(unknown(&id));
                }
                let held = tx.scan(&RESOURCES, &prefix(&[namespace.as_str(), &id]))?;
                Ok(held.into_iter().filter_map(|(rest, _)| parse_held(&rest)).collect())
            })
            .await
    }
}

/// The resource that the rest of a key, type and name, stands for.
pub fn parse_held(rest: &str) -> Option<Resource> {
    let (kind, id) = rest.split_once('\0')?;
    Some(Resource { id: id.to_owned(), kind: kind.to_owned() })
}

fn unknown(id: &str) -> Error {
    Error::new(Kind::NotFound, "lease", format!("{id:?}"))
}

/// Checks lease and resource; returns the key under which the resource is held.
fn resource_key(tx: &Write, namespace: &str, lease: &str, resource: &Resource) -> Result<String> {
    if tx.get(&LEASES, &key(&[namespace, lease]))?.is_none() {
        return Err(unknown(lease));
    }
    let Resource { id, kind } = resource;
    match kind.split('/').collect::<Vec<_>>()[..] {
        [CONTENT] => {
            Digest::check(id).map_err(|why| invalid(format!("invalid content resource id {id}: {why}")))?;
        }
        [INGESTS] | [SNAPSHOTS, _] => {}
        [CONTENT | INGESTS, ..] => return Err(invalid(format!("invalid resource type {kind}"))),
        [SNAPSHOTS, ..] => return Err(invalid(format!("invalid snapshot resource type {kind}"))),
        _ => {
            return Err(Error::new(
                Kind::Unimplemented,
                format!("resource type {kind} not supported yet"),
                "",
            ));
        }
    }
    Ok(key(&[namespace, lease, kind, id]))
}
