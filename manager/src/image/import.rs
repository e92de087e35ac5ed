//! Imports images from a tar stream: an OCI image layout, or what `docker save` wrote, of any age.
//!
//! The stream is read once, front to back: blobs go into the content store as they come, and the documents that
//! tie them together are read at the end.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read};

use bytes::Bytes;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use serde::Deserialize;
use tokio::runtime::Handle;

use super::export::{IMAGE_NAME, REFERENCE_NAME};
use super::manifest::{Config, Descriptor, Document, Index, MAX_DOCUMENT, Manifest, select};
use super::media::{self, Role};
use super::platform::Platform;
use super::reference::Reference;
use super::unpack::{Archive, Compression, Entry, EntryKind, reader};
use super::unpacker::Stack;
use super::{ExtraName, ImageService, Job, Unpack, unique};
use crate::content::Writer;
use crate::content::digest::{Algorithm, Digest, Hasher};
use crate::db::blocking;
use crate::labels::Labels;
use crate::store::images::Image;

/// How many bytes are written at a time.
const BUFFER: usize = 512 << 10;
/// The most files that are not named by their digest, as docker-archives have them.
const MAX_FILES: usize = 16 << 10;

/// An archive to import.
#[derive(Clone, Default)]
pub struct ImportRequest {
    /// The name of the image, where the archive holds one.
    pub name: String,
    /// Further names, or prefixes of names that the archive gives.
    pub extra_names: Vec<ExtraName>,
    /// Labels of the images.
    pub labels: Labels,
    /// The platforms whose content must be complete and may be unpacked; all when there is none.
    pub platforms: Vec<Platform>,
    /// What to unpack.
    pub unpacks: Vec<Unpack>,
}

/// What an archive held.
#[derive(Default)]
struct Contents {
    is_layout: bool,
    index: Option<Bytes>,
    docker: Option<Bytes>,
    /// Files that docker-archives name as they like: digest, size and how they are compressed.
    files: HashMap<String, (Digest, u64, Compression)>,
    /// Links between such files.
    links: HashMap<String, String>,
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl ImageService {
    /// Imports an archive and returns the images that it gave names to.
    ///
    /// # Errors
    /// `InvalidArgument` where it is no archive of images, `FailedPrecondition` where a blob is not what its name
    /// says, `NotFound` where a blob is missing. No image is made unless all can be.
    pub async fn import(
        &self,
        job: &Job,
        request: ImportRequest,
        input: impl Read + Send + 'static,
    ) -> Result<Vec<Image>> {
        for unpack in &request.unpacks {
            self.shared.snapshots.snapshotter(&unpack.snapshotter)?;
        }
        job.progress.note("Importing", "").await;
        self.under_lease(job, async |job: Job| {
            let (service, own, handle) = (self.clone(), job.clone(), Handle::current());
            let contents = blocking(move || service.read_archive(&own, input, &handle)).await?;
            let roots = self.roots(&job, &contents).await?;
            let mut named = Vec::new();
            for root in &roots {
                self.settle(&job, &request, root).await?;
                named.extend(names(&request, root).into_iter().map(|name| (name, root)));
            }
            let mut images = Vec::new();
            for (name, root) in named {
                let mut target = root.clone();
                target.annotations.clear();
                images.push(self.store(&job, &name, &request.labels, &target).await?);
                job.progress.note("saved", &name).await;
            }
            job.progress.note("Completed import", "").await;
            Ok(images)
        })
        .await
    }

    /// Reads the stream to its end; blocks.
    fn read_archive(&self, job: &Job, input: impl Read + Send, handle: &Handle) -> Result<Contents> {
        let (input, _) = reader(input)?;
        let mut archive = Archive::new(BufReader::with_capacity(BUFFER, input));
        let mut contents = Contents::default();
        while let Some(entry) = archive.next_entry()? {
            job.check()?;
            let name = entry.clean_name();
            match entry.kind {
                EntryKind::File => {}
                EntryKind::HardLink | EntryKind::Symlink => {
                    if contents.links.len() < MAX_FILES {
                        contents.links.insert(name.clone(), entry.link_from(&name));
                    }
                    continue;
                }
                _ => continue,
            }
            match name.as_str() {
                "oci-layout" => {
                    archive.read_entry(&entry, MAX_DOCUMENT)?;
                    contents.is_layout = true;
                }
                "index.json" => contents.index = Some(archive.read_entry(&entry, MAX_DOCUMENT)?.into()),
                "manifest.json" => contents.docker = Some(archive.read_entry(&entry, MAX_DOCUMENT)?.into()),
                _ => match blob_digest(&name) {
                    Some(digest) => {
                        self.import_blob(job, &mut archive, &entry, Some(digest), handle).map(|_| ())?
                    }
                    // The old docker-archive says of each layer again what `manifest.json` says of all.
                    None if name.ends_with("/json")
                        || name.ends_with("/VERSION")
                        || name == "repositories" => {}
                    None if contents.files.len() >= MAX_FILES => {
                        let why = "it has more files than an archive of images";
                        return Err(Error::because(Kind::ResourceExhausted, "import", "archive", why));
                    }
                    None => {
                        let blob = self.import_blob(job, &mut archive, &entry, None, handle)?;
                        contents.files.insert(name, blob);
                    }
                },
            }
        }
        archive.drain()?;
        Ok(contents)
    }

    /// Writes one file of the archive into the content store.
    fn import_blob<R: BufRead>(
        &self,
        job: &Job,
        archive: &mut Archive<R>,
        entry: &Entry,
        expected: Option<Digest>,
        handle: &Handle,
    ) -> Result<(Digest, u64, Compression)> {
        let write_name = match &expected {
            Some(digest) => format!("import-{digest}"),
            None => format!("import-{}", unique()),
        };
        let context = &job.context;
        let opened =
            handle.block_on(self.shared.content.writer(context, &write_name, entry.size, expected.as_ref()));
        let mut writer = match opened {
            Ok(writer) => writer,
            Err(error) if error.kind() == Kind::AlreadyExists => {
                let digest = expected.ok_or(error)?;
                return Ok((digest, entry.size, Compression::None));
            }
            Err(error) => return Err(error),
        };
        // What an earlier attempt left is no start to go on from, unless it is all there.
        let is_there = expected.is_some() && writer.status().offset == entry.size;
        if !is_there && writer.status().offset > 0 {
            handle.block_on(writer.truncate(0))?;
        }
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let into = if is_there { None } else { Some(&mut writer) };
        let (digest, compression) = copy(archive, into, algorithm, handle)?;
        let committed = match &expected {
            Some(expected) if *expected != digest => {
                drop(writer);
                let why = format!("the content has digest {digest}");
                Err(Error::because(Kind::FailedPrecondition, "import", entry.display_name(), why))
            }
            _ => handle.block_on(writer.commit(entry.size, Some(&digest), Labels::new())).map(|_| ()),
        };
        match committed {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::AlreadyExists => {}
            Err(error) => {
                // Ignoring: the write may be gone already, and the first error says what matters.
                let _ = handle.block_on(self.shared.content.abort(context, &write_name));
                return Err(error);
            }
        }
        Ok((digest, entry.size, compression))
    }

    /// The images of the archive, with the names that it gives as annotations.
    async fn roots(&self, job: &Job, contents: &Contents) -> Result<Vec<Descriptor>> {
        let fail = |name: &str, why: String| Error::because(Kind::InvalidArgument, "import", name, why);
        match (&contents.index, &contents.docker) {
            (Some(index), _) if contents.is_layout => {
                let digest = Digest::of_bytes(index);
                match Document::parse(media::OCI_INDEX, &digest, index)? {
                    Document::Index(index) => Ok(index.manifests),
                    Document::Manifest(_) => Err(fail("index.json", "it is no index".to_owned())),
                }
            }
            (_, Some(docker)) => {
                let images: Vec<DockerImage> = serde_json::from_slice(docker)
                    .map_err(|error| fail("manifest.json", error.to_string()))?;
                let mut roots = Vec::new();
                for image in images {
                    roots.extend(self.docker_image(job, contents, image).await?);
                }
                Ok(roots)
            }
            _ => Err(fail("archive", "it holds neither index.json nor manifest.json".to_owned())),
        }
    }

    /// Makes the manifest of an image that docker described in its own way.
    async fn docker_image(
        &self,
        job: &Job,
        contents: &Contents,
        image: DockerImage,
    ) -> Result<Vec<Descriptor>> {
        let find = |name: &str| {
            let mut name = name.to_owned();
            // Layers that several images share are stored once and linked.
            for _ in 0..8 {
                match contents.links.get(&name) {
                    Some(target) => name.clone_from(target),
                    None => break,
                }
            }
            contents.files.get(&name).cloned().ok_or_else(|| {
                Error::because(Kind::NotFound, "import", name.clone(), "the archive does not hold it")
            })
        };
        let blob = async |name: &str| match blob_digest(name) {
            Some(digest) => {
                let blob = self.shared.content.open_blob(&job.context, &digest).await?;
                let (size, mut start) = (blob.size, [0; 8]);
                let read = blocking(move || {
                    let mut file = blob.file.take(8);
                    let mut length = 0;
                    while let Ok(more @ 1..) = file.read(&mut start[length..]) {
                        length += more;
                    }
                    Ok(start[..length].to_vec())
                });
                Ok((digest, size, Compression::detect(&read.await?)?))
            }
            None => find(name),
        };
        let described = |media_type: &str, digest: Digest, size: u64| {
            let mut descriptor = Descriptor::of(media_type, b"");
            (descriptor.digest, descriptor.size) = (digest, size);
            descriptor
        };
        let (digest, size, _) = blob(&image.config).await?;
        let config = described(media::DOCKER_CONFIG, digest, size);
        let mut layers = Vec::new();
        for name in image.layers.unwrap_or_default() {
            let (digest, size, compression) = blob(&name).await?;
            let media_type = match compression {
                Compression::None => media::DOCKER_LAYER,
                Compression::Gzip => media::DOCKER_LAYER_GZIP,
                Compression::Zstd => media::DOCKER_LAYER_ZSTD,
            };
            layers.push(described(media_type, digest, size));
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::DOCKER_MANIFEST.to_owned(),
            config,
            layers,
            annotations: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest)
            .map_err(|error| Error::because(Kind::Internal, "write", "manifest", error))?;
        let root = Descriptor::of(media::DOCKER_MANIFEST, &bytes);
        let labels = Document::Manifest(manifest).reference_labels(|_| true).into_iter().collect();
        self.keep(&job.context, &root, bytes.into(), labels).await?;
        let names = image.repo_tags.unwrap_or_default();
        if names.is_empty() {
            return Ok(vec![root]);
        }
        let named = names.into_iter().map(|name| {
            let mut root = root.clone();
            let complete = Reference::parse(&name).map_or(name, |reference| reference.to_string());
            root.annotations.insert(IMAGE_NAME.to_owned(), complete);
            root
        });
        Ok(named.collect())
    }

    /// Labels what belongs to an image so that it is kept, checks that it is complete, and unpacks it.
    async fn settle(&self, job: &Job, request: &ImportRequest, root: &Descriptor) -> Result<()> {
        let mut pending: Vec<(Descriptor, Option<Platform>, bool)> =
            vec![(root.clone(), root.platform.clone(), true)];
        while let Some((descriptor, platform, is_wanted)) = pending.pop() {
            job.check()?;
            let bytes = match self.read_document(&job.context, &descriptor).await {
                // Archives need hold but the platforms that were wanted.
                Err(error) if error.kind() == Kind::NotFound && !is_wanted => continue,
                bytes => bytes?,
            };
            let document = Document::parse(&descriptor.media_type, &descriptor.digest, &bytes)?;
            let labels = document.reference_labels(|_| true).into_iter().collect();
            self.label(&job.context, &descriptor.digest, labels).await?;
            match document {
                Document::Index(index) => pending.extend(self.children(request, &index)),
                Document::Manifest(manifest) if is_wanted => {
                    self.settle_manifest(job, request, &manifest, platform.as_ref()).await?;
                }
                Document::Manifest(_) => {}
            }
        }
        Ok(())
    }

    fn children(&self, request: &ImportRequest, index: &Index) -> Vec<(Descriptor, Option<Platform>, bool)> {
        let best: Vec<&Descriptor> = request
            .platforms
            .iter()
            .filter_map(|platform| select(index, platform).into_iter().next())
            .collect();
        let documents =
            index.manifests.iter().filter(|child| matches!(child.role(), Role::Index | Role::Manifest));
        documents.map(|child| (child.clone(), child.platform.clone(), best.contains(&child))).collect()
    }

    async fn settle_manifest(
        &self,
        job: &Job,
        request: &ImportRequest,
        manifest: &Manifest,
        platform: Option<&Platform>,
    ) -> Result<()> {
        for child in std::iter::once(&manifest.config).chain(&manifest.layers) {
            match self.shared.content.info(&job.context, &child.digest).await {
                Err(error) if error.kind() == Kind::NotFound && !media::is_foreign(&child.media_type) => {
                    let why = "the archive does not hold it";
                    return Err(Error::because(Kind::NotFound, "import", child.digest.to_string(), why));
                }
                _ => {}
            }
        }
        if manifest.config.role() != Role::Config {
            return Ok(());
        }
        let bytes = self.read_document(&job.context, &manifest.config).await?;
        let config = Config::parse(&manifest.config.digest, &bytes)?;
        for unpack in request.unpacks.iter().filter(|unpack| unpack.concerns(platform, &config)) {
            Stack::check(manifest, &config, &self.shared.processors, &self.shared.differs)?;
            let stack =
                Stack { reference: "", digest: "", manifest, config: &config, downloads: &HashMap::new() };
            self.unpack(job, &unpack.snapshotter, &stack).await?;
        }
        Ok(())
    }
}

/// Hashes an entry's data, and writes it where it is still wanted; blocks.
fn copy<R: BufRead>(
    archive: &mut Archive<R>,
    mut into: Option<&mut Writer>,
    algorithm: Algorithm,
    handle: &Handle,
) -> Result<(Digest, Compression)> {
    let mut hasher = Hasher::new(algorithm);
    let mut start = Vec::new();
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        let chunk = archive.data()?;
        let length = chunk.len();
        start.extend_from_slice(&chunk[..length.min(8_usize.saturating_sub(start.len()))]);
        buffer.extend_from_slice(chunk);
        archive.consume(length);
        if buffer.len() >= BUFFER || (length == 0 && !buffer.is_empty()) {
            hasher.update(&buffer);
            if let Some(writer) = &mut into {
                handle.block_on(writer.write(Bytes::from(std::mem::take(&mut buffer))))?;
            }
            buffer.clear();
        }
        if length == 0 {
            return Ok((hasher.finish(), Compression::detect(&start)?));
        }
    }
}

/// The digest of a blob by its place in a layout.
fn blob_digest(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
    Digest::parse(&format!("{algorithm}:{hex}")).ok()
}

/// The names under which an image of an archive is stored (containerd's image store of the transfer service).
fn names(request: &ImportRequest, root: &Descriptor) -> Vec<String> {
    let mut names = Vec::new();
    if !request.name.is_empty() {
        names.push(request.name.clone());
    }
    let full = root.annotations.get(IMAGE_NAME).filter(|name| !name.is_empty());
    let tag = root.annotations.get(REFERENCE_NAME).filter(|name| !name.is_empty());
    if request.extra_names.is_empty() && request.name.is_empty() {
        names.extend(full.cloned());
    }
    for extra in &request.extra_names {
        if !extra.is_prefix {
            names.push(extra.name.clone());
            continue;
        }
        let given = match (full, tag) {
            (Some(full), _) if extra.allow_overwrite || is_below(full, &extra.name) => Some(full.clone()),
            (Some(_), _) => None,
            (None, Some(tag)) if tag.contains(['/', ':', '@']) => {
                (extra.allow_overwrite || is_below(tag, &extra.name)).then(|| tag.clone())
            }
            (None, Some(tag)) if !extra.name.is_empty() => Some(format!("{}:{tag}", extra.name)),
            _ => None,
        };
        if extra.add_digest && (given.is_none() || !extra.skip_named_digest) && !extra.name.is_empty() {
            names.push(format!("{}@{}", extra.name, root.digest));
        }
        names.extend(given);
    }
    names.dedup();
    names
}

/// Whether a name belongs to a prefix: it is followed by a tag, a digest or a further component.
fn is_below(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(annotations: &[(&str, &str)]) -> Descriptor {
        let mut root = Descriptor::of(media::OCI_MANIFEST, b"x");
        root.annotations =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        root
    }

    #[test]
    fn names_come_from_the_archive_and_the_request() {
        let prefix = |name: &str, allow_overwrite| ImportRequest {
            extra_names: vec![ExtraName {
                name: name.to_owned(),
                is_prefix: true,
                allow_overwrite,
                ..ExtraName::default()
            }],
            ..ImportRequest::default()
        };
        let full = root(&[(IMAGE_NAME, "docker.io/library/a:1"), (REFERENCE_NAME, "1")]);
        let tag = root(&[(REFERENCE_NAME, "1")]);
        let none = root(&[]);
        assert_eq!(names(&prefix("import-x", true), &full), ["docker.io/library/a:1"]);
        assert_eq!(names(&prefix("import-x", false), &full), Vec::<String>::new());
        assert_eq!(names(&prefix("docker.io/library/a", false), &full), ["docker.io/library/a:1"]);
        assert_eq!(names(&prefix("base", true), &tag), ["base:1"]);
        assert_eq!(names(&prefix("base", true), &none), Vec::<String>::new());
        assert_eq!(names(&ImportRequest::default(), &full), ["docker.io/library/a:1"]);
        let mut digests = prefix("base", true);
        digests.extra_names[0].add_digest = true;
        assert_eq!(names(&digests, &none), [format!("base@{}", none.digest)]);
        assert_eq!(names(&digests, &tag).len(), 2);
        digests.extra_names[0].skip_named_digest = true;
        assert_eq!(names(&digests, &tag), ["base:1"]);
    }

    #[test]
    fn blobs_are_known_by_their_place() {
        let hex = "a".repeat(64);
        assert!(blob_digest(&format!("blobs/sha256/{hex}")).is_some());
        for name in ["blobs/sha256/x", "blobs/x", "blobs/sha256/../../etc/passwd", "sha256/x"] {
            assert!(blob_digest(name).is_none(), "{name}");
        }
    }
}
