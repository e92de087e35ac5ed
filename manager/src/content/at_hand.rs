//! Reading without waiting: a part that lies in the page cache is read by the asynchronous threads themselves, as handing it to
//! another thread takes longer than the reading.

use std::collections::VecDeque;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use orlop_proto::error::{Error, Result};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::ReadWriteFlags;

use crate::db::blocking;

/// How many blobs are kept in mind.
const KEPT: usize = 16;

/// What was read of records of late, so that a client that reads a blob in many parts has it looked up once.
#[derive(Default)]
pub struct Recent(Mutex<VecDeque<Known>>);

/// The size of a blob in a namespace, as it was in a state of the database.
struct Known {
    key: String,
    size: u64,
    state: u64,
}

impl Recent {
    /// The size that a record says, if it was read in this state of the database.
    pub fn size(&self, key: &str, state: u64) -> Option<u64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|known| known.key == key && known.state == state).map(|known| known.size)
    }

    /// Keeps in mind what a record says. `state` is from before it was read.
    pub fn keep(&self, key: String, size: u64, state: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|known| known.key != key);
        known.truncate(KEPT - 1);
        known.push_front(Known { key, size, state });
    }
}

/// Opens a file whose name the kernel has in its cache.
pub fn open(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok().map(File::from)
}

/// Reads a part of a file if the page cache has all of it (`RWF_NOWAIT`).
pub fn read(file: &File, at: u64, length: usize) -> Option<Bytes> {
    let mut bytes = vec![0; length];
    let read =
        rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut bytes)], at, ReadWriteFlags::NOWAIT).ok()?;
    (read == length).then(|| bytes.into())
}

/// Reads a part of a file, in another thread where the disk is waited for.
pub async fn read_or_wait(file: &Arc<File>, at: u64, length: usize) -> Result<Bytes> {
    if let Some(bytes) = read(file, at, length) {
        return Ok(bytes);
    }
    let file = file.clone();
    blocking(move || {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).map_err(|error| Error::io("read", "content", error))?;
        Ok(bytes.into())
    })
    .await
}
