//! Exports images as one OCI image layout in a tar stream, which `docker load` reads too.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Write};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use serde::Serialize;
use tokio::runtime::Handle;

use super::manifest::{Descriptor, Document, Index, select};
use super::media::{self, Role};
use super::platform::Platform;
use super::reference::{DEFAULT_DOMAIN, Reference};
use super::{ImageService, Job, canceled};
use crate::content::digest::Digest;
use crate::db::blocking;
use crate::request::RequestContext;

/// Annotation with an image's full name.
pub(super) const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation with an image's tag.
pub(super) const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";
/// The size of a tar block, in bytes.
const BLOCK: usize = 512;
/// The file that marks a layout.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Images to export.
#[derive(Clone, Default)]
pub struct ExportRequest {
    /// Their names.
    pub names: Vec<String>,
    /// The platforms to export; all that are here when there is none.
    pub platforms: Vec<Platform>,
    /// Leave `manifest.json` out, which docker before version 25 needs.
    pub skip_docker_manifest: bool,
    /// Leave layers out that must not be distributed.
    pub skip_foreign: bool,
}

/// Everything that an export writes.
#[derive(Default)]
struct Plan {
    /// The entries of `index.json`.
    roots: Vec<Descriptor>,
    /// Blobs by name, so that the archive has them in order.
    blobs: BTreeMap<String, Descriptor>,
    docker: Vec<DockerImage>,
}

/// An entry of `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageService {
    /// Writes images to a stream, each blob once. The same images give the same bytes.
    ///
    /// # Errors
    /// `NotFound` where an image, or a blob that belongs to a wanted platform, is not here.
    pub async fn export(
        &self,
        job: &Job,
        request: ExportRequest,
        output: impl Write + Send + 'static,
    ) -> Result<()> {
        if request.names.is_empty() {
            return Err(Error::because(Kind::InvalidArgument, "export", "images", "no name is given"));
        }
        let mut plan = Plan::default();
        for name in &request.names {
            let image = self.shared.images.get(&job.context, name).await?;
            let mut root = Descriptor::of(&image.target.media_type, b"");
            root.digest = Digest::parse(&image.target.digest)?;
            root.size = image.target.size.unsigned_abs();
            root.annotations = image.target.annotations.clone();
            self.plan_blobs(job, &request, &root, name, &mut plan).await?;
            root.annotations.insert(IMAGE_NAME.to_owned(), name.clone());
            if let Some(tag) =
                Reference::parse(name).ok().and_then(|reference| reference.tag().map(str::to_owned))
            {
                root.annotations.insert(REFERENCE_NAME.to_owned(), tag);
            }
            plan.roots.push(root);
        }
        let Plan { roots, blobs, docker } = plan;
        let index = Index {
            schema_version: 2,
            media_type: media::OCI_INDEX.to_owned(),
            manifests: roots,
            annotations: BTreeMap::new(),
        };
        let mut documents = vec![("index.json", json(&index)?)];
        if !request.skip_docker_manifest && !docker.is_empty() {
            documents.push(("manifest.json", json(&docker)?));
        }
        documents.push(("oci-layout", LAYOUT.to_vec()));
        let (content, job, handle) = (self.shared.content.clone(), job.clone(), Handle::current());
        blocking(move || {
            let mut output = output;
            for directory in ["blobs/", "blobs/sha256/"] {
                add(&mut output, directory, 0, io::empty())?;
            }
            for (path, descriptor) in &blobs {
                job.check()?;
                handle.block_on(job.progress.blob("exporting", descriptor, "", 0));
                let blob = handle.block_on(content.open_blob(&job.context, &descriptor.digest))?;
                add(&mut output, path, blob.size, blob.file)?;
                handle.block_on(job.progress.blob("complete", descriptor, "", descriptor.size));
            }
            for (name, bytes) in documents {
                add(&mut output, name, bytes.len() as u64, bytes.as_slice())?;
            }
            // Two blocks of zeros are the end.
            output
                .write_all(&[0; 2 * BLOCK])
                .and_then(|()| output.flush())
                .map_err(|error| failed("archive", error))
        })
        .await
    }

    async fn plan_blobs(
        &self,
        job: &Job,
        request: &ExportRequest,
        descriptor: &Descriptor,
        name: &str,
        plan: &mut Plan,
    ) -> Result<()> {
        job.check()?;
        let bytes = self.read_document(&job.context, descriptor).await?;
        plan.blobs.insert(path(&descriptor.digest), descriptor.clone());
        match Document::parse(&descriptor.media_type, &descriptor.digest, &bytes)? {
            Document::Index(index) => {
                let mut wanted: Vec<&Descriptor> = Vec::new();
                for platform in &request.platforms {
                    wanted.extend(select(&index, platform).into_iter().take(1));
                }
                if request.platforms.is_empty() {
                    wanted.extend(&index.manifests);
                }
                let wanted: HashSet<&Digest> = wanted.iter().map(|child| &child.digest).collect();
                let mut found = false;
                let mut parts: Vec<(&Descriptor, Plan)> = Vec::new();
                for child in index.manifests.iter().filter(|child| wanted.contains(&child.digest)) {
                    // Of an image for many platforms, usually one was pulled: the others need not be here.
                    if request.platforms.is_empty() && !self.is_here(&job.context, &child.digest).await? {
                        continue;
                    }
                    let mut part = Plan::default();
                    match Box::pin(self.plan_blobs(job, request, child, name, &mut part)).await {
                        Ok(()) => {}
                        // Its manifest alone was fetched.
                        Err(error) if request.platforms.is_empty() && error.kind() == Kind::NotFound => {
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                    found = true;
                    parts.push((child, part));
                }
                let best = select(&index, &Platform::own())
                    .into_iter()
                    .find_map(|best| parts.iter().position(|(child, _)| child.digest == best.digest));
                for (number, (_, part)) in parts.into_iter().enumerate() {
                    plan.blobs.extend(part.blobs);
                    // A name means one image there: this machine's, if it is among them.
                    if number == best.unwrap_or(0) {
                        plan.docker.extend(part.docker);
                    }
                }
                match found {
                    true => Ok(()),
                    false => {
                        let why = "no image of a wanted platform is here";
                        Err(Error::because(Kind::NotFound, "export", name, why))
                    }
                }
            }
            Document::Manifest(manifest) => {
                let mut layers = Vec::new();
                for child in std::iter::once(&manifest.config).chain(&manifest.layers) {
                    let is_foreign = media::is_foreign(&child.media_type);
                    if is_foreign
                        && (request.skip_foreign || !self.is_here(&job.context, &child.digest).await?)
                    {
                        continue;
                    }
                    self.shared.content.info(&job.context, &child.digest).await?;
                    plan.blobs.insert(path(&child.digest), child.clone());
                    if child.role() == Role::Layer {
                        layers.push(path(&child.digest));
                    }
                }
                if manifest.config.role() == Role::Config {
                    let tag = Reference::parse(name).ok().map(|reference| familiar(&reference));
                    let config = path(&manifest.config.digest);
                    plan.docker.push(DockerImage { config, repo_tags: tag.map(|tag| vec![tag]), layers });
                }
                Ok(())
            }
        }
    }

    async fn is_here(&self, context: &RequestContext, digest: &Digest) -> Result<bool> {
        match self.shared.content.info(context, digest).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Where a layout has a blob.
fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// A name as docker shows it: without what it would complete by itself.
fn familiar(reference: &Reference) -> String {
    let text = reference.to_string();
    match text.strip_prefix(DEFAULT_DOMAIN).and_then(|rest| rest.strip_prefix('/')) {
        Some(rest) => rest.strip_prefix("library/").unwrap_or(rest).to_owned(),
        None => text,
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::because(Kind::Internal, "write", "JSON", error))
}

/// Writes one entry.
fn add(output: &mut impl Write, name: &str, size: u64, data: impl Read) -> Result<()> {
    let is_directory = name.ends_with('/');
    let mut header = tar::Header::new_ustar();
    header.set_path(name).map_err(|error| failed(name, error))?;
    header.set_size(size);
    header.set_mode(if is_directory { 0o755 } else { 0o444 });
    header.set_entry_type(if is_directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    output.write_all(header.as_bytes()).map_err(|error| failed(name, error))?;
    let written = io::copy(&mut data.take(size), output).map_err(|error| failed(name, error))?;
    if written != size {
        let why = format!("it has {written} bytes instead of {size}");
        return Err(Error::because(Kind::DataLoss, "export", name, why));
    }
    let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
    output.write_all(&[0; BLOCK][..padding]).map_err(|error| failed(name, error))
}

fn failed(name: &str, error: io::Error) -> Error {
    match error.kind() {
        // Who reads the archive has gone away.
        io::ErrorKind::BrokenPipe => canceled(),
        _ => Error::io("export", name, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_docker_does() {
        for (name, expected) in [
            ("docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/user/app:1", "user/app:1"),
            ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app:1"),
        ] {
            assert_eq!(familiar(&Reference::parse(name).unwrap()), expected);
        }
    }
}
