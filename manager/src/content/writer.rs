//! One open write: bytes are appended and hashed, then verified, made durable and named.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use super::blobs::{Pin, make_directory};
use super::digest::{Algorithm, Digest, Hasher};
use super::ingest::{Lock, Record, Status};
use super::{CONTENT, ContentStore, exists};
use crate::db::{Query, blocking, key};
use crate::labels::{self, Labels};
use crate::request::RequestContext;
use crate::store::leases;
use crate::store::now;

/// After how many bytes the disk is asked to begin with them: what is on its way is not waited for at the commit.
const WRITE_BACK: u64 = 8 << 20;

/// What a caller asked to write.
pub(super) struct Request {
    pub context: RequestContext,
    pub reference: String,
    pub total: u64,
    pub expected: Option<Digest>,
}

/// An open write. Dropping it keeps the bytes for a later writer of the same reference.
pub struct Writer {
    store: ContentStore,
    request: Request,
    started_at: prost_types::Timestamp,
    /// Nothing while a blocking call has it, and after one that was given up: the write is then closed.
    sink: Option<Box<Sink>>,
}

/// Where the bytes go.
enum Sink {
    /// The blob is there, written by another namespace: nothing needs to be written.
    Shared { digest: Digest, size: u64, lock: Lock, pin: Pin },
    /// Into a file.
    File(Data),
}

/// A data file and what is known of its bytes.
struct Data {
    file: File,
    directory: PathBuf,
    offset: u64,
    hasher: Hasher,
    updated: SystemTime,
    lock: Lock,
}

impl Writer {
    /// Opens a write; blocks.
    pub(super) fn open(store: ContentStore, request: Request) -> Result<Writer> {
        let context = &request.context;
        check(&store, &request)?;
        let lock = store.ingests.lock(&context.namespace, &request.reference)?;
        if let Some(digest) = &request.expected {
            let pin = store.blobs.pin(digest);
            let size = store.blobs.size(digest)?;
            if let Some(size) = size.filter(|size| request.total == 0 || request.total == *size) {
                let sink = Sink::Shared { digest: digest.clone(), size, lock, pin };
                return Ok(Writer { store, started_at: now(), request, sink: Some(Box::new(sink)) });
            }
        }
        let (data, started_at) = Data::open(&store, &request, lock)?;
        Ok(Writer { store, started_at, request, sink: Some(Box::new(Sink::File(data))) })
    }

    /// How far the write has come.
    pub fn status(&self) -> Status {
        let (offset, updated_at) = match self.sink.as_deref() {
            Some(Sink::Shared { size, .. }) => (*size, self.started_at),
            Some(Sink::File(data)) => (data.offset, data.updated.into()),
            None => (0, self.started_at),
        };
        Status {
            reference: self.request.reference.clone(),
            offset,
            total: self.request.total,
            expected: self.request.expected.clone(),
            started_at: self.started_at,
            updated_at,
        }
    }

    /// Digest of the bytes so far; nothing for a closed write.
    pub fn digest(&self) -> Option<Digest> {
        match self.sink.as_deref()? {
            Sink::Shared { digest, .. } => Some(digest.clone()),
            Sink::File(data) => Some(data.hasher.clone().finish()),
        }
    }

    /// The file that the bytes go to, for reading along; nothing where the blob is there already.
    pub fn file(&self) -> Result<Option<File>> {
        match self.sink.as_deref().ok_or_else(closed)? {
            Sink::Shared { .. } => Ok(None),
            Sink::File(data) => data.file.try_clone().map(Some).context("open", &self.request.reference),
        }
    }

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// `ResourceExhausted` when the disk is full; the bytes before remain, and the write can go on.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.with_data(move |data| data.append(&bytes)).await
    }

    /// Starts over; only `size` 0 is known, as in containerd.
    pub async fn truncate(&mut self, size: u64) -> Result<()> {
        if size != 0 {
            return Err(Error::because(Kind::Unknown, "", "", "Truncate: unsupported size"));
        }
        let algorithm = algorithm(self.request.expected.as_ref());
        self.with_data(move |data| data.reset(algorithm)).await
    }

    /// Verifies the bytes, makes them durable and records them in the namespace under their digest.
    ///
    /// `size` 0 and `expected` nothing are not verified. After an error the bytes remain for resume.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` for another size or digest, `AlreadyExists` when the namespace has the blob (the
    /// write is finished then too).
    pub async fn commit(mut self, size: u64, expected: Option<&Digest>, labels: Labels) -> Result<Digest> {
        labels::validate(&labels, "info.Labels")?;
        let sink = self.sink.take().ok_or_else(closed)?;
        let expected = expected.cloned();
        blocking(move || {
            let Writer { store, request, .. } = self;
            match *sink {
                Sink::Shared { digest, size: found, pin, lock } => {
                    check_size(&request.reference, found, size)?;
                    if expected.is_some_and(|expected| expected != digest) {
                        let text = format!("{:?} unexpected digest", request.reference);
                        return Err(Error::new(Kind::FailedPrecondition, text, ""));
                    }
                    if store.blobs.size(&digest)?.is_none() {
                        return Err(Error::new(Kind::NotFound, "content", digest.to_string()));
                    }
                    store.record(&request.context, &digest, found, labels)?;
                    drop((pin, lock));
                    Ok(digest)
                }
                Sink::File(data) => data.commit(&store, &request, size, expected, labels),
            }
        })
        .await
    }

    /// Runs blocking work on the data file; a shared blob is first given up for a file of its own.
    async fn with_data(&mut self, work: impl FnOnce(&mut Data) -> Result<()> + Send + 'static) -> Result<()> {
        let mut sink = self.sink.take().ok_or_else(closed)?;
        if let Sink::Shared { lock, .. } = *sink {
            let (data, started_at) = Data::open(&self.store, &self.request, lock)?;
            self.started_at = started_at;
            *sink = Sink::File(data);
        }
        let (sink, result) = blocking(move || {
            let result = match &mut *sink {
                Sink::File(data) => work(data),
                Sink::Shared { .. } => Ok(()),
            };
            Ok((sink, result))
        })
        .await?;
        self.sink = Some(sink);
        result
    }
}

impl Data {
    /// Opens the data of a reference, resumed where it stopped if that fits the request.
    fn open(store: &ContentStore, request: &Request, lock: Lock) -> Result<(Data, prost_types::Timestamp)> {
        let Request { context, reference, total, expected } = request;
        let directory = store.ingests.path(&context.namespace, reference);
        let known = store.ingests.status(&context.namespace, reference)?;
        let resumed = known.filter(|status| *total == 0 || status.total == 0 || status.total == *total);
        let started_at = resumed.as_ref().map_or_else(now, |status| status.started_at);
        if resumed.is_none() {
            // What is there is of no use; the lock says that nobody else uses it either.
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context("remove", directory.display().to_string());
                }
                _ => {}
            }
        }
        make_directory(&directory)?;
        let record = Record {
            namespace: context.namespace.to_string(),
            reference: reference.clone(),
            total: if *total > 0 { *total } else { resumed.map_or(0, |status| status.total) },
            expected: expected.as_ref().map(Digest::to_string).unwrap_or_default(),
            started_at,
            lease: context.lease.clone().unwrap_or_default(),
        };
        let name = || format!("ingest of {reference:?}");
        let (path, fresh) = (directory.join("record"), directory.join("record.new"));
        fs::write(&fresh, record.encode_to_vec())
            .and_then(|()| fs::rename(&fresh, &path))
            .context("write", name())?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("data"))
            .context("open", name())?;
        let mut hasher = Hasher::new(algorithm(expected.as_ref()));
        let offset = hash(&mut file, &mut hasher).context("read", name())?;
        let data = Data { file, directory, offset, hasher, updated: SystemTime::now(), lock };
        Ok((data, started_at))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // Part of the bytes may be there: go back to what is hashed.
            let back =
                self.file.set_len(self.offset).and_then(|()| self.file.seek(SeekFrom::Start(self.offset)));
            return Err(match back {
                Ok(_) => Error::io("write", "content", error),
                Err(second) => Error::because(
                    Kind::from_io(&error),
                    "write",
                    "content",
                    format!("{error}; and going back to byte {} failed: {second}", self.offset),
                ),
            });
        }
        self.hasher.update(bytes);
        let before = self.offset;
        self.offset += bytes.len() as u64;
        if before / WRITE_BACK != self.offset / WRITE_BACK {
            // Ignoring: some file systems have no such call, and the commit waits for all of it then.
            let _ = orlop_host::sys::disk::start_write_back(self.file.as_fd());
        }
        self.updated = SystemTime::now();
        Ok(())
    }

    fn reset(&mut self, algorithm: Algorithm) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).context("truncate", "content")?;
        self.offset = 0;
        self.hasher = Hasher::new(algorithm);
        self.updated = SystemTime::now();
        Ok(())
    }

    fn commit(
        self,
        store: &ContentStore,
        request: &Request,
        size: u64,
        expected: Option<Digest>,
        labels: Labels,
    ) -> Result<Digest> {
        if self.lock.is_aborted() {
            return Err(Error::because(
                Kind::NotFound,
                "commit",
                &request.reference,
                "the write was aborted",
            ));
        }
        check_size(&request.reference, self.offset, size)?;
        let digest = self.hasher.finish();
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            let text = format!("unexpected commit digest {digest}, expected {expected}");
            return Err(Error::new(Kind::FailedPrecondition, text, ""));
        }
        self.file
            .set_permissions(fs::Permissions::from_mode(0o444))
            .context("protect", digest.to_string())?;
        self.file.sync_all().context("sync", digest.to_string())?;
        let pin = store.blobs.pin(&digest);
        store.blobs.place(&self.directory.join("data"), &digest)?;
        let recorded = store.record(&request.context, &digest, self.offset, labels);
        match &recorded {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::AlreadyExists => {}
            // The verified bytes stay findable for another try until the next collection.
            Err(_) => store.blobs.suspect(digest.clone()),
        }
        drop(pin);
        // Ignoring: a directory that cannot be removed now is no write that can be resumed, and goes at the
        // next start.
        let _ = fs::remove_dir_all(&self.directory);
        recorded.map(|()| digest)
    }
}

/// Refuses what the namespace has, after holding it by the lease, and a lease that does not exist.
fn check(store: &ContentStore, request: &Request) -> Result<()> {
    let context = &request.context;
    let namespace = context.namespace.as_str();
    let record_key = request.expected.as_ref().map(|digest| key(&[namespace, digest.as_str()]));
    let known = store.db.read_now(|tx| {
        if let Some(lease) = &context.lease
            && tx.get(&leases::LEASES, &key(&[namespace, lease]))?.is_none()
        {
            return Err(leases::missing());
        }
        match &record_key {
            Some(record_key) => Ok(tx.get(&CONTENT, record_key)?.is_some()),
            None => Ok(false),
        }
    })?;
    match (&request.expected, &record_key) {
        (Some(digest), Some(record_key)) if known => {
            if context.lease.is_some() {
                let still_known = store.db.write_now(|tx| {
                    let still_known = tx.get(&CONTENT, record_key)?.is_some();
                    if still_known {
                        leases::hold(tx, context, leases::CONTENT, digest.as_str())?;
                    }
                    Ok(still_known)
                })?;
                if !still_known {
                    return Ok(());
                }
            }
            Err(exists(digest))
        }
        _ => Ok(()),
    }
}

/// Hashes all bytes of a file; returns their number and leaves the position at the end.
fn hash(file: &mut File, hasher: &mut Hasher) -> std::io::Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    file.rewind()?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            count => {
                hasher.update(&buffer[..count]);
                total += count as u64;
            }
        }
    }
}

fn algorithm(expected: Option<&Digest>) -> Algorithm {
    expected.map_or(Algorithm::Sha256, Digest::algorithm)
}

fn check_size(reference: &str, found: u64, wanted: u64) -> Result<()> {
    if wanted == 0 || wanted == found {
        return Ok(());
    }
    let text = format!("{reference:?} failed size validation: {found} != {wanted}");
    Err(Error::new(Kind::FailedPrecondition, text, ""))
}

fn closed() -> Error {
    Error::new(Kind::FailedPrecondition, "cannot commit on closed writer", "")
}
