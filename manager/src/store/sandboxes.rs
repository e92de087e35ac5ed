//! Sandboxes: what groups of containers are to share, as the client described it.

use std::collections::BTreeMap;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use super::containers::Runtime;
use super::{Any, Timestamp, label_field, namespaces, now, stored, update_label};
use crate::db::{Database, Query, Table, key, prefix};
use crate::filter::{Filter, text};
use crate::identifier;
use crate::labels::{self, Labels, invalid};
use crate::request::RequestContext;

/// Sandboxes by namespace and name.
pub static SANDBOXES: Table<Sandbox> = Table::new("sandboxes");

/// A sandbox. Values that the client typed are kept byte for byte.
#[derive(Clone, PartialEq, Message)]
pub struct Sandbox {
    /// Name within the namespace.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Runtime whose shim serves it.
    #[prost(message, required, tag = "2")]
    pub runtime: Runtime,
    /// What the runtime is to make of it.
    #[prost(message, optional, tag = "3")]
    pub spec: Option<Any>,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: Labels,
    /// When it was made.
    #[prost(message, required, tag = "5")]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[prost(message, required, tag = "6")]
    pub updated_at: Timestamp,
    /// Whatever clients want to keep with it.
    #[prost(btree_map = "string, message", tag = "7")]
    pub extensions: BTreeMap<String, Any>,
    /// Name of the controller that runs it.
    #[prost(string, tag = "8")]
    pub sandboxer: String,
}

impl Sandbox {
    fn validate(&self) -> Result<()> {
        identifier::validate(&self.id)
            .map_err(|error| invalid(format!("invalid sandbox ID: {}", error.operation())))?;
        labels::validate(&self.labels, "sandboxes.Labels")
    }

    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["id", ..] => text(&self.id),
            ["labels", rest @ ..] => label_field(&self.labels, rest),
            _ => None,
        }
    }

    /// Takes over from another sandbox what a field path names.
    fn take(&mut self, from: &Sandbox, path: &str) -> Result<()> {
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
            "extensions" => self.extensions.clone_from(&from.extensions),
            "spec" => self.spec.clone_from(&from.spec),
            "runtime" => self.runtime.clone_from(&from.runtime),
            _ => return Err(invalid(format!("cannot update {path:?} field on sandbox {:?}", self.id))),
        }
        Ok(())
    }
}

/// What an update without field paths replaces.
const REPLACED: [&str; 4] = ["labels", "extensions", "spec", "runtime"];

/// The sandboxes; cheap to clone.
#[derive(Clone)]
pub struct Sandboxes {
    db: Database,
}

impl Sandboxes {
    /// A handle on the stored sandboxes.
    pub fn new(db: Database) -> Sandboxes {
        Sandboxes { db }
    }

    /// The sandbox of a name.
    pub async fn get(&self, context: &RequestContext, id: &str) -> Result<Sandbox> {
        let (namespace, id) = (context.namespace.clone(), id.to_owned());
        self.db
            .read(move |tx| tx.get(&SANDBOXES, &key(&[namespace.as_str(), &id]))?.ok_or_else(|| missing(&id)))
            .await
    }

    /// The sandboxes that the filters choose (`id`, `labels.KEY`), by name.
    pub async fn list(&self, context: &RequestContext, filters: &[String]) -> Result<Vec<Sandbox>> {
        let filter = Filter::parse(filters)?;
        let own = prefix(&[context.namespace.as_str()]);
        let all = self.db.read(move |tx| tx.scan(&SANDBOXES, &own)).await?;
        let sandboxes = all.into_iter().map(|(_, sandbox)| sandbox);
        Ok(sandboxes.filter(|sandbox| filter.matches(&|path: &[&str]| sandbox.field(path))).collect())
    }

    /// Makes a sandbox; the times are set here.
    pub async fn create(&self, context: &RequestContext, mut sandbox: Sandbox) -> Result<Sandbox> {
        sandbox
            .validate()
            .map_err(|error| invalid(format!("failed to validate sandbox: {}", error.operation())))?;
        sandbox.labels = stored(sandbox.labels);
        sandbox.created_at = now();
        sandbox.updated_at = sandbox.created_at;
        let namespace = context.namespace.clone();
        self.db
            .write(move |tx| {
                let key = key(&[namespace.as_str(), &sandbox.id]);
                if tx.get(&SANDBOXES, &key)?.is_some() {
                    let text = format!(
                        "write error: sandbox bucket {:?} already exists: already exists",
                        sandbox.id
                    );
                    return Err(Error::exactly(Kind::AlreadyExists, text));
                }
                namespaces::ensure(tx, &namespace)?;
                tx.put(&SANDBOXES, &key, &sandbox)?;
                Ok(sandbox)
            })
            .await
    }

    /// Replaces the parts that the field paths name (`labels`, `labels.KEY`, `extensions`, `extensions.KEY`, `spec`,
    /// `runtime`), or all of these.
    pub async fn update(
        &self,
        context: &RequestContext,
        sandbox: Sandbox,
        fieldpaths: Vec<String>,
    ) -> Result<Sandbox> {
        let namespace = context.namespace.clone();
        self.db
            .write(move |tx| {
                let key = key(&[namespace.as_str(), &sandbox.id]);
                let mut updated = tx.get(&SANDBOXES, &key)?.ok_or_else(|| missing(&sandbox.id))?;
                if fieldpaths.is_empty() {
                    if updated.runtime.name != sandbox.runtime.name {
                        return Err(invalid("sandbox.Runtime.Name field is immutable"));
                    }
                    for path in REPLACED {
                        updated.take(&sandbox, path)?;
                    }
                }
                for path in &fieldpaths {
                    updated.take(&sandbox, path)?;
                }
                updated.validate()?;
                updated.labels = stored(updated.labels);
                updated.updated_at = now();
                tx.put(&SANDBOXES, &key, &updated)?;
                Ok(updated)
            })
            .await
    }

    /// Removes a sandbox's record; what runs is not touched.
    pub async fn delete(&self, context: &RequestContext, id: &str) -> Result<()> {
        let (namespace, id) = (context.namespace.clone(), id.to_owned());
        self.db
            .free(move |tx| match tx.remove(&SANDBOXES, &key(&[namespace.as_str(), &id]))? {
                true => Ok(()),
                false => Err(Error::new(Kind::NotFound, format!("failed to delete sandbox {id:?}"), "")),
            })
            .await
    }
}

fn missing(id: &str) -> Error {
    Error::exactly(Kind::NotFound, format!("bucket {id:?} not found: not found"))
}
