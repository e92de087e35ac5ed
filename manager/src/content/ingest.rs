//! Unfinished writes: one directory per namespace and reference, locked while a writer is open.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use super::blobs::{make_directory, names};
use super::digest::Digest;
use crate::request::Namespace;
use crate::store::Timestamp;

/// What is kept of an unfinished write beside its data.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    /// Namespace of the writer.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Reference that the client gave.
    #[prost(string, tag = "2")]
    pub reference: String,
    /// Expected number of bytes, or 0.
    #[prost(uint64, tag = "3")]
    pub total: u64,
    /// Expected digest, or nothing.
    #[prost(string, tag = "4")]
    pub expected: String,
    /// When the write began.
    #[prost(message, required, tag = "5")]
    pub started_at: Timestamp,
    /// Lease that keeps it, or nothing.
    #[prost(string, tag = "6")]
    pub lease: String,
}

/// How far an unfinished write has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Reference that the client gave.
    pub reference: String,
    /// Number of bytes that are there.
    pub offset: u64,
    /// Expected number of bytes, or 0.
    pub total: u64,
    /// Expected digest.
    pub expected: Option<Digest>,
    /// When the write began.
    pub started_at: Timestamp,
    /// When the last bytes came.
    pub updated_at: Timestamp,
}

/// An unfinished write as it lies on disk.
#[derive(Clone, Debug)]
pub struct Ingest {
    /// What is kept beside the data.
    pub record: Record,
    /// Number of bytes that are there.
    pub offset: u64,
    /// When the last bytes came.
    pub updated: SystemTime,
}

impl Ingest {
    /// How far it has come.
    pub fn status(&self) -> Status {
        Status {
            reference: self.record.reference.clone(),
            offset: self.offset,
            total: self.record.total,
            expected: Digest::parse(&self.record.expected).ok(),
            started_at: self.record.started_at,
            updated_at: self.updated.into(),
        }
    }

    /// Whether nothing was written for longer than this.
    pub fn is_older_than(&self, age: Duration) -> bool {
        self.updated.elapsed().is_ok_and(|idle| idle > age)
    }
}

/// The directory of unfinished writes.
pub struct Ingests {
    directory: PathBuf,
    locks: Arc<Mutex<HashMap<String, Locked>>>,
}

struct Locked {
    since: SystemTime,
    aborted: Arc<AtomicBool>,
}

/// A locked reference; no other writer opens it while this lives.
pub struct Lock {
    name: String,
    locks: Arc<Mutex<HashMap<String, Locked>>>,
    aborted: Arc<AtomicBool>,
}

impl Lock {
    /// Whether a client gave the write up meanwhile.
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

impl Ingests {
    /// Opens the directory, which is made if need be.
    pub fn open(directory: &Path) -> Result<Ingests> {
        make_directory(directory)?;
        Ok(Ingests { directory: directory.to_owned(), locks: Arc::default() })
    }

    /// The directory of them all.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Directory of a write: a name of fixed length, whatever the reference.
    pub fn path(&self, namespace: &Namespace, reference: &str) -> PathBuf {
        self.directory.join(name(namespace, reference))
    }

    /// Locks a reference.
    ///
    /// # Errors
    ///
    /// `Unavailable` while another writer has it.
    pub fn lock(&self, namespace: &Namespace, reference: &str) -> Result<Lock> {
        let name = name(namespace, reference);
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = locks.get(&name) {
            let age = held.since.elapsed().unwrap_or_default();
            return Err(Error::new(
                Kind::Unavailable,
                format!("ref {namespace}/{reference} locked for {age:?}"),
                "",
            ));
        }
        let aborted = Arc::new(AtomicBool::new(false));
        locks.insert(name.clone(), Locked { since: SystemTime::now(), aborted: aborted.clone() });
        Ok(Lock { name, locks: self.locks.clone(), aborted })
    }

    /// How far a write has come, if there is one.
    pub fn status(&self, namespace: &Namespace, reference: &str) -> Result<Option<Status>> {
        Ok(self.read(&name(namespace, reference))?.map(|ingest| ingest.status()))
    }

    /// Removes a write, locked or not; says whether there was one.
    pub fn abort(&self, namespace: &Namespace, reference: &str) -> Result<bool> {
        let name = name(namespace, reference);
        if let Some(held) = self.locks.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            held.aborted.store(true, Ordering::Release);
        }
        self.remove(&name)
    }

    /// Removes a write that nobody has open; says whether it did.
    pub fn expire(&self, ingest: &Ingest) -> Result<bool> {
        let Ok(namespace) = Namespace::new(ingest.record.namespace.as_str()) else { return Ok(false) };
        match self.lock(&namespace, &ingest.record.reference) {
            Ok(lock) => self.remove(&lock.name),
            Err(_) => Ok(false),
        }
    }

    /// Every unfinished write.
    pub fn all(&self) -> Result<Vec<Ingest>> {
        let mut all = Vec::new();
        for name in names(&self.directory)? {
            all.extend(self.read(&name)?);
        }
        all.sort_by(|a, b| a.record.reference.cmp(&b.record.reference));
        Ok(all)
    }

    /// Removes what is no write that can be resumed.
    pub fn recover(&self) -> Result<()> {
        for name in names(&self.directory)? {
            if self.read(&name)?.is_none() {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Option<Ingest>> {
        let directory = self.directory.join(name);
        let (Ok(bytes), Ok(data)) =
            (fs::read(directory.join("record")), fs::symlink_metadata(directory.join("data")))
        else {
            return Ok(None);
        };
        let Ok(record) = Record::decode(bytes.as_slice()) else { return Ok(None) };
        if record.reference.is_empty() {
            return Ok(None);
        }
        let updated = data.modified().context("inspect", directory.display().to_string())?;
        Ok(Some(Ingest { record, offset: data.len(), updated }))
    }

    fn remove(&self, name: &str) -> Result<bool> {
        let path = self.directory.join(name);
        match fs::remove_dir_all(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context("remove", path.display().to_string()),
        }
    }
}

fn name(namespace: &Namespace, reference: &str) -> String {
    Digest::of_bytes(format!("{namespace}\0{reference}").as_bytes()).hex().to_owned()
}
