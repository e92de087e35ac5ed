//! The diff service's two halves: apply a layer to mounts, and make a layer of what two mounts differ in.

mod archive;
mod gzip;
mod tree;
mod walk;

use std::collections::HashSet;
use std::io::{self, Write};

use bytes::Bytes;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use rustix::fs::{FileType, Stat};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

pub use self::archive::Looks;
pub use self::tree::{Change, changes, write_tree, write_tree_as};
pub use self::walk::differences;
use super::manifest::Descriptor;
use super::media;
use super::unpack::{self, hex};
use super::{ImageService, canceled, mounts, unique};
use crate::content::Writer;
use crate::content::digest::Digest;
use crate::db::blocking;
use crate::labels::Labels;
use crate::request::RequestContext;
use crate::snapshot::{Mount, UnpackPlace};

/// Label of a layer's blob: the digest of what it decompresses to.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// How many bytes are written at a time.
const BUFFER: usize = 512 << 10;

/// A layer to make.
#[derive(Clone, Debug, Default)]
pub struct DiffRequest {
    /// What is there before; nothing for everything.
    pub left: Vec<Mount>,
    /// What is there after.
    pub right: Vec<Mount>,
    /// Media type of the layer; a gzip layer unless said.
    pub media_type: String,
    /// Name of the write, or nothing.
    pub reference: String,
    /// Labels of the layer's blob.
    pub labels: Labels,
    /// Time, in seconds since 1970, that no entry is newer than, and that whiteouts have.
    pub epoch: Option<i64>,
    /// Paths that were made for something to be mounted on: empty files and directories there are no difference.
    pub places: Vec<String>,
}

impl ImageService {
    /// Applies a layer of the content store to mounts; returns what it decompresses to.
    ///
    /// # Errors
    /// `NotFound` for an unknown blob, `Unimplemented` for what is no layer, and what unpacking says.
    pub async fn apply(
        &self,
        context: &RequestContext,
        layer: &Descriptor,
        mounts: Vec<Mount>,
        sync: bool,
    ) -> Result<Descriptor> {
        let name = layer.digest.as_str();
        if !self.shared.processors.is_layer(&layer.media_type) {
            let why = format!("media type {:?} is not that of a layer", media::bare(&layer.media_type));
            return Err(Error::because(Kind::Unimplemented, "apply layer", name, why));
        }
        let _permit = self.shared.extractions.acquire().await.map_err(|_| canceled())?;
        let blob = self.shared.content.open_blob(context, &layer.digest).await?;
        let input = self.shared.processors.layer(&layer.media_type, Box::new(blob.file))?;
        // A snapshotter that keeps images gets one, though the client thinks of a directory.
        let place = mounts::written(&mounts).and_then(|upper| self.shared.snapshots.place_of(upper));
        let form = self.form(&layer.media_type, name, place.as_ref())?;
        let applied = blocking(move || {
            let target = mounts::target(&mounts)?;
            let root = target.root.try_clone().map_err(|error| Error::io("open", "mount", error))?;
            let applied = match place {
                Some(place @ UnpackPlace::Image(_)) => {
                    mounts::unpack(input, form, &place)?.finish(&target.lowers)?
                }
                _ => unpack::apply(input, target)?,
            };
            if sync {
                rustix::fs::syncfs(&root).map_err(|error| Error::io("sync", "mount", error.into()))?;
            }
            Ok(applied)
        })
        .await
        .map_err(|error| Error::because(error.kind(), "apply layer", name, error))?;
        let mut plain = Descriptor::of(media::OCI_LAYER, b"");
        plain.digest = Digest::parse(&applied.diff_id)?;
        plain.size = applied.size;
        Ok(plain)
    }

    /// Makes a layer of what differs, and puts it into the content store. The same difference gives the same bytes.
    ///
    /// # Errors
    /// `Unimplemented` for a media type that is not written; what mounting and reading say.
    pub async fn diff(&self, context: &RequestContext, request: DiffRequest) -> Result<Descriptor> {
        let media_type = match request.media_type.as_str() {
            "" => media::OCI_LAYER_GZIP.to_owned(),
            media::OCI_LAYER | media::OCI_LAYER_GZIP | media::OCI_LAYER_ZSTD => request.media_type.clone(),
            other => {
                let text = format!("unsupported diff media type: {other}");
                return Err(Error::new(Kind::Unimplemented, text, ""));
            }
        };
        let is_unnamed = request.reference.is_empty();
        let reference = if is_unnamed { format!("diff-{}", unique()) } else { request.reference.clone() };
        let mut writer = self.shared.content.writer(context, &reference, 0, None).await?;
        if writer.status().offset > 0 {
            writer.truncate(0).await?;
        }
        let handle = Handle::current();
        let (labels, written_type) = (request.labels.clone(), media_type.clone());
        let made = blocking(move || make(&request, &written_type, writer, &handle)).await;
        let committed = match made {
            Ok((writer, diff_id)) => {
                let mut labels = labels;
                labels.insert(UNCOMPRESSED.to_owned(), diff_id);
                self.commit_diff(context, writer, labels).await
            }
            Err(error) => Err(error),
        };
        match committed {
            Ok((digest, size)) => {
                let mut layer = Descriptor::of(&media_type, b"");
                (layer.digest, layer.size) = (digest, size);
                Ok(layer)
            }
            Err(error) => {
                // Ignoring: the write may be gone already, and the first error says what matters.
                let _ = self.shared.content.abort(context, &reference).await;
                Err(error)
            }
        }
    }

    pub(super) async fn commit_diff(
        &self,
        context: &RequestContext,
        writer: Writer,
        labels: Labels,
    ) -> Result<(Digest, u64)> {
        let size = writer.status().offset;
        let digest = writer.digest().ok_or_else(|| Error::new(Kind::Internal, "commit", "layer"))?;
        match writer.commit(size, Some(&digest), labels.clone()).await {
            Err(error) if error.kind() == Kind::AlreadyExists => self.label(context, &digest, labels).await?,
            result => drop(result?),
        }
        Ok((digest, size))
    }
}

/// Writes the layer; blocks. Gives the writer back, and the digest of the layer before compression.
fn make(
    request: &DiffRequest,
    media_type: &str,
    writer: Writer,
    handle: &Handle,
) -> Result<(Writer, String)> {
    let left = match request.left.as_slice() {
        [] => None,
        mounts => Some(mounts::readable(mounts)?),
    };
    let right = mounts::readable(&request.right)?;
    let upper = mounts::upper_over(&request.left, &request.right)?;
    let sink = Sink { writer, handle: handle.clone(), buffer: Vec::with_capacity(BUFFER) };
    let roots = walk::Roots { left, right, upper };
    let places = Places::new(&request.places);
    let (sink, diff_id) = match media_type {
        media::OCI_LAYER_GZIP => {
            let encoder = gzip::GzipWriter::new(sink).map_err(write_failed)?;
            let (gzip, diff_id) = archived(encoder, roots, request.epoch, &places)?;
            (gzip.finish().map_err(write_failed)?, diff_id)
        }
        media::OCI_LAYER_ZSTD => {
            let encoder = zstd::stream::write::Encoder::new(sink, 0).map_err(write_failed)?;
            let (zstd, diff_id) = archived(encoder, roots, request.epoch, &places)?;
            (zstd.finish().map_err(write_failed)?, diff_id)
        }
        _ => archived(sink, roots, request.epoch, &places)?,
    };
    let mut sink = sink;
    sink.flush().map_err(write_failed)?;
    Ok((sink.writer, diff_id))
}

/// Where something was mounted, and the directories that lead there.
struct Places {
    all: HashSet<Vec<u8>>,
    /// Without the directories.
    leaves: HashSet<Vec<u8>>,
}

impl Places {
    fn new(paths: &[String]) -> Places {
        let (mut all, mut leaves) = (HashSet::new(), HashSet::new());
        for path in paths {
            let path = path.trim_matches('/');
            let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
            all.extend(ends.map(|end| path.as_bytes()[..end].to_vec()));
            leaves.insert(path.as_bytes().to_vec());
        }
        Places { all, leaves }
    }

    /// Whether something is there for a mount alone.
    fn explain(&self, path: &[u8], was_there: bool, stat: &Stat) -> bool {
        let is_empty = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => true,
            FileType::RegularFile => stat.st_size == 0,
            FileType::Symlink => self.leaves.contains(path),
            _ => false,
        };
        !was_there && is_empty && self.all.contains(path)
    }
}

fn archived<W: Write>(
    output: W,
    roots: walk::Roots,
    epoch: Option<i64>,
    places: &Places,
) -> Result<(W, String)> {
    let mut archive = archive::LayerArchive::new(Hashed { output, hash: Sha256::new() }, epoch);
    walk::walk(roots, &mut archive, &|path, was_there, stat| places.explain(path, was_there, stat))?;
    let Hashed { output, hash } = archive.finish()?;
    Ok((output, format!("sha256:{}", hex(&hash.finalize()))))
}

/// An error on the way into the content store.
fn write_failed(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => own,
        Err(error) => Error::io("write", "layer", error),
    }
}

/// Hashes what is written.
struct Hashed<W> {
    output: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.output.write(bytes)?;
        self.hash.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// The content store as something that can be written to; blocks.
struct Sink {
    writer: Writer,
    handle: Handle,
    buffer: Vec<u8>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(BUFFER)));
        self.handle.block_on(self.writer.write(bytes)).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests;
