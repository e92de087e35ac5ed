//! Whether blobs are what their names say, and what is done with those that are not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::blobs::{Pin, make_directory};
use super::digest::{Digest, Hasher};
use super::{CONTENT, ContentStore};
use crate::db::{Database, Query, key};
use crate::store::namespaces;

/// How many bytes are read at a time.
const BUFFER: usize = 256 << 10;

/// The bytes of a blob that is fetched anew, beside the damaged ones. They go when this is dropped.
pub struct Replacement {
    store: ContentStore,
    digest: Digest,
    hasher: Hasher,
    directory: PathBuf,
    file: File,
    _pin: Pin,
}

impl ContentStore {
    /// What is wrong with a blob's file, if anything is. Blocks; reads all of it unless `quick`.
    pub fn inspect(&self, digest: &Digest, size: u64, quick: bool) -> Result<Option<String>> {
        let found = match self.blobs.size(digest)? {
            None => return Ok(Some("its file is missing".to_owned())),
            Some(found) => found,
        };
        if found != size {
            return Ok(Some(format!("its file has {found} bytes, its record says {size}")));
        }
        if quick {
            return Ok(None);
        }
        let mut file = match self.blobs.file(digest) {
            Err(error) if error.kind() == Kind::DataLoss => return Ok(Some(error.to_string())),
            file => file?,
        };
        let mut hasher = Hasher::new(digest.algorithm());
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => hasher.update(&buffer[..length]),
                Err(error) => return Ok(Some(format!("its file cannot be read: {error}"))),
            }
        }
        // Checked hashes are not wanted again soon: they must not drive everything else out of memory.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        let actual = hasher.finish();
        Ok((actual != *digest).then(|| format!("its bytes have the digest {actual}")))
    }

    /// Blobs that have a file and no record in any namespace. Blocks.
    pub fn strays(&self) -> Result<Vec<Digest>> {
        let mut strays = Vec::new();
        for digest in self.blobs.all()? {
            // A write that is being recorded holds its blob.
            if !self.blobs.is_pinned(&digest) && !super::is_known(&self.db, &digest)? {
                strays.push(digest);
            }
        }
        Ok(strays)
    }

    /// Takes a damaged blob from every namespace, so that the next pull fetches it. Blocks.
    pub fn give_up(&self, digest: &Digest) -> Result<()> {
        self.db.free_now(|tx| {
            for (namespace, _) in tx.scan(&namespaces::NAMESPACES, "")? {
                tx.remove(&CONTENT, &key(&[&namespace, digest.as_str()]))?;
            }
            Ok(())
        })?;
        self.sweep([digest.clone()])
    }

    /// Begins to write a blob anew. Blocks.
    pub fn replacement(&self, digest: &Digest) -> Result<Replacement> {
        let pin = self.blobs.pin(digest);
        // Without a record it is no write: a kill leaves what the next start takes away.
        let directory = self.ingests.directory().join(format!("repair-{}", digest.hex()));
        make_directory(&directory)?;
        let path = directory.join("data");
        let file = File::create(&path).context("create", path.display().to_string())?;
        let hasher = Hasher::new(digest.algorithm());
        Ok(Replacement { store: self.clone(), digest: digest.clone(), hasher, directory, file, _pin: pin })
    }
}

impl Replacement {
    /// Appends bytes. Blocks.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).context("write content", self.digest.to_string())
    }

    /// Puts the bytes in the damaged ones' place, if they are the right ones. Blocks.
    pub fn finish(mut self) -> Result<()> {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(self.digest.algorithm()));
        let actual = hasher.finish();
        if actual != self.digest {
            let why = format!("the registry sent bytes with the digest {actual}");
            return Err(Error::because(Kind::DataLoss, "fetch", self.digest.to_string(), why));
        }
        let name = || self.digest.to_string();
        self.file.set_permissions(PermissionsExt::from_mode(0o444)).context("protect content", name())?;
        self.file.sync_all().context("sync content", name())?;
        self.store.blobs.replace(&self.directory.join("data"), &self.digest)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // Ignoring: what is left goes at the next start.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The namespaces that have a blob, with its size and labels there.
pub type Places = BTreeMap<Digest, Vec<(String, super::Record)>>;

/// Every blob that has a record. Blocks.
pub fn places(db: &Database) -> Result<Places> {
    let mut places = Places::new();
    for (key, record) in db.read_now(|tx| tx.scan(&CONTENT, ""))? {
        if let Some((namespace, digest)) = key.split_once('\0')
            && let Ok(digest) = Digest::parse(digest)
        {
            places.entry(digest).or_default().push((namespace.to_owned(), record));
        }
    }
    Ok(places)
}
