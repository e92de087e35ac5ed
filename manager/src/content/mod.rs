//! Content: blobs addressed by their digest, written through resumable ingests.
//!
//! Blobs are shared between namespaces, their labels are not: a blob is visible in the namespaces that wrote it
//! or proved to know it (containerd's policy `shared`). The files:
//!
//! ```text
//! blobs/sha256/HEX        verified, read only, durable before any record names them
//! ingest/ID/{record,data} unfinished writes, kept for resume until they expire or are aborted
//! ```

pub mod at_hand;
pub mod blobs;
pub mod digest;
pub mod health;
pub mod ingest;
pub mod session;
#[cfg(test)]
mod tests;
pub mod writer;

use std::path::Path;
use std::sync::Arc;

use orlop_proto::containerd::events::ContentDelete;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use crate::db::{Database, Query, Read, Table, Write, blocking, key, prefix};
use crate::events::Exchange;
use crate::filter::{Filter, text};
use crate::labels::{self, Labels, invalid};
use crate::request::RequestContext;
use crate::store::{Timestamp, label_field, leases, namespaces, now, publish, stored, update_label};
use at_hand::Recent;
use blobs::Blobs;
use digest::Digest;
use ingest::{Ingests, Status};
pub use writer::Writer;

/// Blobs by namespace and digest.
pub static CONTENT: Table<Record> = Table::new("content");

/// What is stored of a blob in a namespace.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    /// Size in bytes.
    #[prost(uint64, tag = "1")]
    pub size: u64,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// When the namespace got the blob.
    #[prost(message, required, tag = "3")]
    pub created_at: Timestamp,
    /// When its labels last changed.
    #[prost(message, required, tag = "4")]
    pub updated_at: Timestamp,
}

/// What is known of a blob.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Number of bytes.
    pub size: u64,
    /// When the namespace got the blob.
    pub created_at: Timestamp,
    /// When its labels last changed.
    pub updated_at: Timestamp,
    /// Labels.
    pub labels: Labels,
}

impl Info {
    fn new(digest: Digest, record: Record) -> Info {
        let Record { size, labels, created_at, updated_at } = record;
        Info { digest, size, created_at, updated_at, labels }
    }

    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["digest", ..] => text(self.digest.as_str()),
            ["labels", rest @ ..] => label_field(&self.labels, rest),
            _ => None,
        }
    }
}

/// An open blob; it stays readable after its name is gone.
#[derive(Debug)]
pub struct Blob {
    /// The bytes; opened for reading.
    pub file: std::fs::File,
    /// Their number.
    pub size: u64,
}

/// The content store; cheap to clone.
#[derive(Clone)]
pub struct ContentStore {
    db: Database,
    exchange: Exchange,
    blobs: Arc<Blobs>,
    ingests: Arc<Ingests>,
    recent: Arc<Recent>,
}

impl ContentStore {
    /// Opens the store below a directory, which is made if need be.
    pub fn open(directory: &Path, db: Database, exchange: Exchange) -> Result<ContentStore> {
        let blobs = Arc::new(Blobs::open(&directory.join("blobs"))?);
        let ingests = Arc::new(Ingests::open(&directory.join("ingest"))?);
        Ok(ContentStore { db, exchange, blobs, ingests, recent: Arc::default() })
    }

    /// What is known of a blob.
    ///
    /// # Errors
    ///
    /// `NotFound` when the namespace does not have it.
    pub async fn info(&self, context: &RequestContext, digest: &Digest) -> Result<Info> {
        let (key, digest) = (key(&[context.namespace.as_str(), digest.as_str()]), digest.clone());
        let record = self.db.read(move |tx| tx.get(&CONTENT, &key)).await?;
        match record {
            Some(record) => Ok(Info::new(digest, record)),
            None => Err(unknown(&digest)),
        }
    }

    /// The blobs that the filters choose (`digest`, `labels.KEY`), by digest.
    pub async fn list(&self, context: &RequestContext, filters: &[String]) -> Result<Vec<Info>> {
        let filter = Filter::parse(filters)?;
        let own = prefix(&[context.namespace.as_str()]);
        let all = self.db.read(move |tx| tx.scan(&CONTENT, &own)).await?;
        let mut chosen = Vec::new();
        for (digest, record) in all {
            let info = Info::new(Digest::parse(&digest)?, record);
            if filter.matches(&|path: &[&str]| info.field(path)) {
                chosen.push(info);
            }
        }
        Ok(chosen)
    }

    /// Replaces the labels that the field paths name (`labels`, `labels.KEY`), or all.
    pub async fn update(
        &self,
        context: &RequestContext,
        digest: &Digest,
        labels: Labels,
        fieldpaths: Vec<String>,
    ) -> Result<Info> {
        let (namespace, digest) = (context.namespace.clone(), digest.clone());
        self.db
            .write(move |tx| {
                let key = key(&[namespace.as_str(), digest.as_str()]);
                let mut record = tx.get(&CONTENT, &key)?.ok_or_else(|| unknown(&digest))?;
                if fieldpaths.is_empty() {
                    record.labels.clone_from(&labels);
                }
                for path in &fieldpaths {
                    if path == "labels" {
                        record.labels.clone_from(&labels);
                    } else if !update_label(path, &mut record.labels, &labels) {
                        let text = format!("cannot update {path:?} field on content info \"{digest}\"");
                        return Err(invalid(text));
                    }
                }
                labels::validate(&record.labels, "info.Labels")?;
                record.labels = stored(record.labels);
                record.updated_at = now();
                tx.put(&CONTENT, &key, &record)?;
                Ok(Info::new(digest, record))
            })
            .await
    }

    /// Takes a blob from the namespace; the bytes go with the next collection, if no other namespace has it.
    pub async fn delete(&self, context: &RequestContext, digest: &Digest) -> Result<()> {
        let (key, owned) = (key(&[context.namespace.as_str(), digest.as_str()]), digest.clone());
        self.db
            .free(move |tx| match tx.remove(&CONTENT, &key)? {
                true => Ok(()),
                false => Err(unknown(&owned)),
            })
            .await?;
        self.blobs.suspect(digest.clone());
        let event = ContentDelete { digest: digest.to_string() };
        publish(&self.exchange, &context.namespace, "/content/delete", &event)
    }

    /// Opens a blob for reading.
    pub async fn open_blob(&self, context: &RequestContext, digest: &Digest) -> Result<Blob> {
        match self.blob_at_hand(context, digest) {
            Some(blob) => Ok(blob),
            None => self.with_blob(context, digest, Ok).await,
        }
    }

    /// Opens a blob that was opened of late, without waiting for anything. Whether there is another one is not said.
    fn blob_at_hand(&self, context: &RequestContext, digest: &Digest) -> Option<Blob> {
        let key = key(&[context.namespace.as_str(), digest.as_str()]);
        let size = self.recent.size(&key, self.db.state())?;
        let file = at_hand::open(&self.blobs.path(digest))?;
        Some(Blob { file, size })
    }

    /// Opens a blob for something that blocks and follows at once.
    async fn with_blob<T: Send + 'static>(
        &self,
        context: &RequestContext,
        digest: &Digest,
        work: impl FnOnce(Blob) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (key, digest) = (key(&[context.namespace.as_str(), digest.as_str()]), digest.clone());
        let (db, blobs, recent) = (self.db.clone(), self.blobs.clone(), self.recent.clone());
        blocking(move || {
            let state = db.state();
            let record = db.read_now(|tx| tx.get(&CONTENT, &key))?.ok_or_else(|| unknown(&digest))?;
            recent.keep(key, record.size, state);
            work(Blob { file: blobs.file(&digest)?, size: record.size })
        })
        .await
    }

    /// The whole of a small blob (an index, manifest or configuration), whatever it holds.
    ///
    /// # Errors
    ///
    /// `ResourceExhausted` when it is larger than `limit` bytes.
    pub async fn read_all(&self, context: &RequestContext, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let name = digest.to_string();
        let read = move |Blob { mut file, size }| {
            if size > limit {
                let text = format!("{size} bytes, more than the {limit} allowed");
                return Err(Error::because(Kind::ResourceExhausted, "read content", name, text));
            }
            let mut bytes = Vec::with_capacity(size as usize);
            std::io::Read::read_to_end(&mut file, &mut bytes)
                .map_err(|error| Error::io("read content", name, error))?;
            Ok(bytes)
        };
        self.with_blob(context, digest, read).await
    }

    /// Opens a write under a reference, which it locks; an unfinished write of that reference is resumed.
    ///
    /// `total` is the expected number of bytes, or 0; `expected` the digest that the bytes will have.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` when the namespace has the blob, `Unavailable` while the reference is locked.
    pub async fn writer(
        &self,
        context: &RequestContext,
        reference: &str,
        total: u64,
        expected: Option<&Digest>,
    ) -> Result<Writer> {
        if reference.is_empty() {
            return Err(invalid("ref must not be empty"));
        }
        let request = writer::Request {
            context: context.clone(),
            reference: reference.to_owned(),
            total,
            expected: expected.cloned(),
        };
        let store = self.clone();
        blocking(move || Writer::open(store, request)).await
    }

    /// How far an unfinished write has come.
    pub async fn status(&self, context: &RequestContext, reference: &str) -> Result<Status> {
        let (ingests, context, reference) = (self.ingests.clone(), context.clone(), reference.to_owned());
        blocking(move || {
            ingests.status(&context.namespace, &reference)?.ok_or_else(|| unknown_reference(&reference))
        })
        .await
    }

    /// The unfinished writes that the filters choose (`ref`).
    pub async fn statuses(&self, context: &RequestContext, filters: &[String]) -> Result<Vec<Status>> {
        let filter = Filter::parse(filters)?;
        let (ingests, namespace) = (self.ingests.clone(), context.namespace.clone());
        let all = blocking(move || ingests.all()).await?;
        let own = all.into_iter().filter(|ingest| ingest.record.namespace == namespace.as_str());
        Ok(own
            .map(|ingest| ingest.status())
            .filter(|status| {
                filter.matches(&|path: &[&str]| match path {
                    ["ref", ..] => Some(status.reference.clone()),
                    _ => None,
                })
            })
            .collect())
    }

    /// Gives up an unfinished write.
    pub async fn abort(&self, context: &RequestContext, reference: &str) -> Result<()> {
        let (ingests, context, reference) = (self.ingests.clone(), context.clone(), reference.to_owned());
        blocking(move || match ingests.abort(&context.namespace, &reference)? {
            true => Ok(()),
            false => Err(unknown_reference(&reference)),
        })
        .await
    }

    /// The unfinished writes of all namespaces, for the collector.
    pub fn ingests(&self) -> &Arc<Ingests> {
        &self.ingests
    }

    /// Deletes the files of blobs that no namespace has: those given and those suspected meanwhile.
    ///
    /// A write that is being committed is left alone. Blocks.
    pub fn sweep(&self, candidates: impl IntoIterator<Item = Digest>) -> Result<()> {
        let mut candidates: Vec<Digest> = candidates.into_iter().collect();
        candidates.extend(self.blobs.take_suspects());
        candidates.sort_unstable();
        candidates.dedup();
        // Whoever removes a record of one meanwhile sweeps it: until that is synced, a power cut brings the record back.
        let gone = self.db.read_synced_now(|tx| {
            let mut gone = Vec::new();
            for digest in candidates {
                if !is_recorded(tx, &digest)? {
                    gone.push(digest);
                }
            }
            Ok(gone)
        })?;
        let trash: Result<Vec<_>> = gone
            .iter()
            .map(|digest| self.blobs.take_away(digest, || Ok(!is_known(&self.db, digest)?)))
            .collect();
        trash?.into_iter().flatten().try_for_each(|path| self.blobs.discard(&path))
    }

    /// Brings the files in line with the records after a stop of any kind. Blocks.
    pub fn recover(&self) -> Result<()> {
        self.ingests.recover()?;
        self.blobs.empty_trash()?;
        let all = self.blobs.all()?;
        self.sweep(all)
    }

    /// Records a verified blob in a namespace; refuses one that it has, after holding it by the lease.
    fn record(&self, context: &RequestContext, digest: &Digest, size: u64, labels: Labels) -> Result<()> {
        let key = key(&[context.namespace.as_str(), digest.as_str()]);
        let known = self.db.write_now(|tx: &Write| {
            leases::hold(tx, context, leases::CONTENT, digest.as_str())?;
            if tx.get(&CONTENT, &key)?.is_some() {
                return Ok(true);
            }
            let time = now();
            let record = Record { size, labels: stored(labels), created_at: time, updated_at: time };
            namespaces::ensure(tx, &context.namespace)?;
            tx.put(&CONTENT, &key, &record)?;
            Ok(false)
        })?;
        if known { Err(exists(digest)) } else { Ok(()) }
    }
}

/// Whether any namespace has a blob.
fn is_known(db: &Database, digest: &Digest) -> Result<bool> {
    db.read_now(|tx| is_recorded(tx, digest))
}

fn is_recorded(tx: &Read, digest: &Digest) -> Result<bool> {
    for (namespace, _) in tx.scan(&namespaces::NAMESPACES, "")? {
        if tx.get(&CONTENT, &key(&[&namespace, digest.as_str()]))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn unknown(digest: &Digest) -> Error {
    Error::new(Kind::NotFound, "content digest", digest.to_string())
}

fn exists(digest: &Digest) -> Error {
    Error::new(Kind::AlreadyExists, "content", digest.to_string())
}

fn unknown_reference(reference: &str) -> Error {
    Error::new(Kind::NotFound, "reference", reference)
}
