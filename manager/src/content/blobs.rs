//! The files of blobs: placed when durable, taken away when no record names them.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::digest::{Algorithm, Digest};

/// The directory of blobs.
pub struct Blobs {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Blobs that a write is about to record, with the number of such writes: these are not taken away.
    pinned: HashMap<Digest, usize>,
    /// Blobs whose records went away, or whose record failed.
    suspects: HashSet<Digest>,
}

/// Keeps a blob's file from being taken away while it is being recorded.
pub struct Pin {
    blobs: Arc<Blobs>,
    digest: Digest,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.blobs.lock();
        if let Some(count) = state.pinned.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                state.pinned.remove(&self.digest);
            }
        }
    }
}

impl Blobs {
    /// Opens the directory, which is made if need be.
    pub fn open(directory: &Path) -> Result<Blobs> {
        for name in Algorithm::ALL.map(Algorithm::name).into_iter().chain(["trash"]) {
            make_directory(&directory.join(name))?;
        }
        Ok(Blobs { directory: directory.to_owned(), state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Path of a blob.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.algorithm().name()).join(digest.hex())
    }

    /// Keeps a blob's file, present or to come.
    pub fn pin(self: &Arc<Self>, digest: &Digest) -> Pin {
        *self.lock().pinned.entry(digest.clone()).or_default() += 1;
        Pin { blobs: self.clone(), digest: digest.clone() }
    }

    /// Whether a write is about to record a blob.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.lock().pinned.contains_key(digest)
    }

    /// Size of a blob's file, in bytes, if there is one.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.path(digest);
        match fs::symlink_metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("inspect", path.display().to_string()),
        }
    }

    /// Opens a blob's file for reading.
    pub fn file(&self, digest: &Digest) -> Result<File> {
        File::open(self.path(digest)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::because(Kind::DataLoss, "open content", digest.to_string(), "its file is missing")
            }
            _ => Error::io("open content", digest.to_string(), error),
        })
    }

    /// Moves verified and synced data to its name, and makes the name durable. The caller holds a pin.
    pub fn place(&self, data: &Path, digest: &Digest) -> Result<()> {
        let path = self.path(digest);
        if self.size(digest)?.is_some() {
            return Ok(());
        }
        fs::rename(data, &path).context("name content", digest.to_string())?;
        sync_directory(path.parent().unwrap_or(&self.directory))
    }

    /// Puts verified and synced data in the place of a blob's file, and makes that durable. The caller holds a pin.
    pub fn replace(&self, data: &Path, digest: &Digest) -> Result<()> {
        let path = self.path(digest);
        fs::rename(data, &path).context("name content", digest.to_string())?;
        sync_directory(path.parent().unwrap_or(&self.directory))
    }

    /// Notes a blob that may have no record any more.
    pub fn suspect(&self, digest: Digest) {
        self.lock().suspects.insert(digest);
    }

    /// The blobs noted since the last call.
    pub fn take_suspects(&self) -> HashSet<Digest> {
        std::mem::take(&mut self.lock().suspects)
    }

    /// Takes a blob's name away if it is not pinned and the caller still wants it; returns where it lies now.
    ///
    /// Asking and renaming are one step for writers that pin: they see the file or they do not.
    pub fn take_away(
        &self,
        digest: &Digest,
        unwanted: impl FnOnce() -> Result<bool>,
    ) -> Result<Option<PathBuf>> {
        let state = self.lock();
        if state.pinned.contains_key(digest) || !unwanted()? {
            return Ok(None);
        }
        let trash = self.directory.join("trash").join(digest.hex());
        match fs::rename(self.path(digest), &trash) {
            Ok(()) => Ok(Some(trash)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("remove content", digest.to_string()),
        }
    }

    /// Deletes what was taken away.
    pub fn discard(&self, path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove", path.display().to_string())
            }
            _ => Ok(()),
        }
    }

    /// Deletes what a stopped daemon had taken away.
    pub fn empty_trash(&self) -> Result<()> {
        for name in names(&self.directory.join("trash"))? {
            self.discard(&self.directory.join("trash").join(name))?;
        }
        Ok(())
    }

    /// Every blob that has a file.
    pub fn all(&self) -> Result<Vec<Digest>> {
        let mut all = Vec::new();
        for algorithm in Algorithm::ALL {
            for hex in names(&self.directory.join(algorithm.name()))? {
                all.extend(Digest::parse(&format!("{}:{hex}", algorithm.name())));
            }
        }
        Ok(all)
    }
}

/// Makes a directory that only root may use.
pub fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).context("create", path.display().to_string())
}

/// The names in a directory; those that are not text are none of ours.
pub fn names(directory: &Path) -> Result<Vec<String>> {
    let name = || directory.display().to_string();
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).context("read", name())? {
        names.extend(entry.context("read", name())?.file_name().into_string());
    }
    Ok(names)
}

/// Makes the names in a directory durable.
pub fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|file| file.sync_all()).context("sync", directory.display().to_string())
}
