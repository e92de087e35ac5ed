//! Images made from nothing: layers entry by entry, configuration, manifest, and the two archive forms.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::binaries;
use crate::registry::Registry;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By gzip, as nearly all layers are.
    Gzip,
    /// By zstd.
    Zstd,
}

/// `sha256:` and the digest of `bytes` in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// One layer, built entry by entry as a GNU tar stream. Paths are relative, without a leading slash.
pub struct Layer {
    tar: Builder<Vec<u8>>,
    compression: Compression,
}

impl Layer {
    /// An empty layer, to be compressed by gzip.
    #[allow(clippy::new_without_default, reason = "a builder starts with new")]
    pub fn new() -> Layer {
        Layer { tar: Builder::new(Vec::new()), compression: Compression::Gzip }
    }

    /// A layer with busybox as `bin/busybox`, a link per common applet, and the usual directories.
    pub fn busybox() -> Layer {
        let busybox = fs::read(binaries::system("busybox")).expect("reading busybox");
        let mut layer = Layer::new();
        for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
            layer = layer.dir(name, if name == "tmp" { 0o1777 } else { 0o755 });
        }
        layer = layer.file("bin/busybox", &busybox, 0o755);
        for name in APPLETS {
            layer = layer.symlink(&format!("bin/{name}"), "busybox");
        }
        layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n", 0o644).file(
            "etc/group",
            b"root:x:0:\nuser:x:1000:\n",
            0o644,
        )
    }

    /// Chooses the compression.
    pub fn compressed(mut self, compression: Compression) -> Layer {
        self.compression = compression;
        self
    }

    /// Adds a directory.
    pub fn dir(self, path: &str, mode: u32) -> Layer {
        self.entry(&format!("{path}/"), EntryType::Directory, mode, |_| {}, &[])
    }

    /// Adds a file.
    pub fn file(self, path: &str, content: &[u8], mode: u32) -> Layer {
        self.entry(path, EntryType::Regular, mode, |_| {}, content)
    }

    /// Adds a symbolic link; `target` is stored as it is.
    pub fn symlink(mut self, path: &str, target: &str) -> Layer {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, target).expect("adding a link");
        self
    }

    /// Adds a hard link to `target`, a path in the layer.
    pub fn hardlink(mut self, path: &str, target: &str) -> Layer {
        let mut header = header(EntryType::Link, 0o644, 0);
        self.tar.append_link(&mut header, path, target).expect("adding a link");
        self
    }

    /// Adds a device node, FIFO or whatever `change` makes of the header.
    pub fn special(self, path: &str, kind: EntryType, mode: u32, change: impl FnOnce(&mut Header)) -> Layer {
        self.entry(path, kind, mode, change, &[])
    }

    /// Adds extended attributes (PAX `SCHILY.xattr.NAME`) to the entry that is added next.
    pub fn xattrs<'a>(mut self, attributes: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Layer {
        let named: Vec<(String, &[u8])> =
            attributes.into_iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value)).collect();
        self.tar
            .append_pax_extensions(named.iter().map(|(name, value)| (name.as_str(), *value)))
            .expect("adding extended attributes");
        self
    }

    /// Marks `path` as deleted: an empty `.wh.NAME` beside it.
    pub fn whiteout(self, path: &str) -> Layer {
        let (dir, name) = path.rsplit_once('/').map_or(("", path), |(dir, name)| (dir, name));
        let marker = if dir.is_empty() { format!(".wh.{name}") } else { format!("{dir}/.wh.{name}") };
        self.file(&marker, b"", 0o644)
    }

    /// Marks the directory `path` as opaque: what lower layers have in it is hidden.
    pub fn opaque(self, path: &str) -> Layer {
        self.file(&format!("{path}/.wh..wh..opq"), b"", 0o644)
    }

    /// Adds a whole directory tree as it is on disk.
    pub fn tree(mut self, from: &Path) -> Layer {
        self.tar.follow_symlinks(false);
        self.tar.append_dir_all(".", from).expect("adding a tree");
        self
    }

    /// Adds an entry with whatever the header is changed to; the path is written as given, even a hostile one.
    pub fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        change: impl FnOnce(&mut Header),
        content: &[u8],
    ) -> Layer {
        let mut header = header(kind, mode, content.len() as u64);
        change(&mut header);
        if path.split('/').any(|part| part == "..") || path.starts_with('/') {
            // The library refuses such names; a layer from outside does not ask it.
            let name = &mut header.as_old_mut().name;
            name.fill(0);
            name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            self.tar.append(&header, content).expect("adding an entry");
        } else {
            self.tar.append_data(&mut header, path, content).expect("adding an entry");
        }
        self
    }

    /// The finished layer.
    pub fn finish(self) -> Blob {
        let tar = self.tar.into_inner().expect("ending the archive");
        Blob::from_tar(tar, self.compression)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    header
}

/// The applets that a busybox layer links: those that the suites call.
const APPLETS: [&str; 36] = [
    "sh", "ash", "ls", "cat", "echo", "true", "false", "sleep", "hostname", "mount", "ps", "id", "env",
    "kill", "touch", "rm", "mkdir", "stat", "head", "tail", "wc", "grep", "sort", "dd", "seq", "readlink",
    "tty", "stty", "uname", "yes", "test", "printf", "cut", "tr", "awk", "sed",
];

/// A compressed layer with its two digests.
#[derive(Debug, Clone)]
pub struct Blob {
    /// The bytes as they are stored and sent.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: String,
    /// The digest of the tar stream.
    pub diff_id: String,
    /// How the tar stream is compressed.
    pub compression: Compression,
}

impl Blob {
    /// Compresses a tar stream.
    pub fn from_tar(tar: Vec<u8>, compression: Compression) -> Blob {
        let diff_id = digest(&tar);
        let bytes = match compression {
            Compression::None => tar,
            Compression::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar).expect("compressing");
                encoder.finish().expect("compressing")
            }
            Compression::Zstd => zstd::encode_all(tar.as_slice(), 1).expect("compressing"),
        };
        Blob { digest: digest(&bytes), bytes, diff_id, compression }
    }

    fn media_type(&self, docker: bool) -> &'static str {
        match (docker, self.compression) {
            (true, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (true, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (false, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (false, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image for linux/amd64, unless told otherwise: layers and a configuration.
#[derive(Debug, Clone)]
pub struct Image {
    layers: Vec<Blob>,
    config: Value,
    docker: bool,
    architecture: &'static str,
}

impl Image {
    /// An image without layers that runs `sh`, with OCI media types.
    #[allow(clippy::new_without_default, reason = "a builder starts with new")]
    pub fn new() -> Image {
        let config = json!({
            "Cmd": ["sh"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        });
        Image { layers: Vec::new(), config, docker: false, architecture: "amd64" }
    }

    /// One busybox layer.
    pub fn busybox() -> Image {
        Image::new().layer(Layer::busybox())
    }

    /// Two layers: busybox with `etc/changed` ("one"), `etc/deleted` and `etc/kept`; then a layer that changes the first
    /// ("two") and deletes the second.
    pub fn two_layers() -> Image {
        let first = Layer::busybox()
            .file("etc/changed", b"one\n", 0o644)
            .file("etc/deleted", b"here\n", 0o644)
            .file("etc/kept", b"kept\n", 0o644);
        let second = Layer::new().file("etc/changed", b"two\n", 0o644).whiteout("etc/deleted");
        Image::new().layer(first).layer(second)
    }

    /// Adds a layer on top.
    pub fn layer(self, layer: Layer) -> Image {
        self.blob(layer.finish())
    }

    /// Adds a finished layer on top.
    pub fn blob(mut self, blob: Blob) -> Image {
        self.layers.push(blob);
        self
    }

    /// Changes the `config` object of the image configuration (`Cmd`, `Env`, `User`, …).
    pub fn config(mut self, change: impl FnOnce(&mut Value)) -> Image {
        change(&mut self.config);
        self
    }

    /// Uses Docker's schema 2 media types in place of OCI's.
    pub fn docker(mut self) -> Image {
        self.docker = true;
        self
    }

    /// Makes it an image for another architecture, as Go names it.
    pub fn architecture(mut self, name: &'static str) -> Image {
        self.architecture = name;
        self
    }

    /// The layers, the lowest first.
    pub fn layers(&self) -> &[Blob] {
        &self.layers
    }

    /// The image configuration as stored.
    pub fn config_bytes(&self) -> Vec<u8> {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let history: Vec<Value> = self.layers.iter().map(|_| json!({"created_by": "orlop-tests"})).collect();
        let config = json!({
            "created": "2024-01-01T00:00:00Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        });
        serde_json::to_vec(&config).expect("a JSON value can be written")
    }

    /// The manifest's media type.
    pub fn manifest_type(&self) -> &'static str {
        if self.docker {
            "application/vnd.docker.distribution.manifest.v2+json"
        } else {
            "application/vnd.oci.image.manifest.v1+json"
        }
    }

    /// The manifest as stored.
    pub fn manifest_bytes(&self) -> Vec<u8> {
        let config = self.config_bytes();
        let config_type = if self.docker {
            "application/vnd.docker.container.image.v1+json"
        } else {
            "application/vnd.oci.image.config.v1+json"
        };
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|l| json!({"mediaType": l.media_type(self.docker), "digest": l.digest, "size": l.bytes.len()}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.manifest_type(),
            "config": {"mediaType": config_type, "digest": digest(&config), "size": config.len()},
            "layers": layers,
        });
        serde_json::to_vec(&manifest).expect("a JSON value can be written")
    }

    /// The manifest's digest.
    pub fn digest(&self) -> String {
        digest(&self.manifest_bytes())
    }

    /// Writes an OCI archive (`oci-layout`, `index.json`, `blobs/`) whose index names the image `name` by the annotation
    /// that containerd reads.
    pub fn oci_archive(&self, path: &Path, name: &str) {
        let manifest = self.manifest_bytes();
        let config = self.config_bytes();
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": self.manifest_type(), "digest": digest(&manifest), "size": manifest.len(),
                "platform": {"os": "linux", "architecture": self.architecture},
                "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag},
            }],
        });
        let mut entries: Vec<(String, Vec<u8>)> = vec![
            ("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".into(), serde_json::to_vec(&index).expect("a JSON value can be written")),
        ];
        let blobs = self.layers.iter().map(|layer| layer.bytes.clone()).chain([config, manifest]);
        entries.extend(blobs.map(|bytes| (format!("blobs/{}", digest(&bytes).replace(':', "/")), bytes)));
        write_archive(path, &entries);
    }

    /// Writes an archive as `docker save` does: `manifest.json`, the configuration, and uncompressed layers.
    pub fn docker_archive(&self, path: &Path, name: &str) {
        let config = self.config_bytes();
        let config_name = format!("{}.json", digest(&config).trim_start_matches("sha256:"));
        let mut entries = Vec::new();
        let mut names = Vec::new();
        for layer in &self.layers {
            let tar = match layer.compression {
                Compression::None => layer.bytes.clone(),
                Compression::Gzip => {
                    let mut tar = Vec::new();
                    std::io::Read::read_to_end(
                        &mut flate2::read::GzDecoder::new(layer.bytes.as_slice()),
                        &mut tar,
                    )
                    .expect("decompressing what was compressed here");
                    tar
                }
                Compression::Zstd => {
                    zstd::decode_all(layer.bytes.as_slice()).expect("decompressing what was compressed here")
                }
            };
            let name = format!("{}/layer.tar", layer.diff_id.trim_start_matches("sha256:"));
            names.push(name.clone());
            entries.push((name, tar));
        }
        let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
        entries.push((config_name, config));
        entries.push((
            "manifest.json".into(),
            serde_json::to_vec(&manifest).expect("a JSON value can be written"),
        ));
        write_archive(path, &entries);
    }

    /// Uploads the image to `registry` as `name:tag` and returns the full reference, `HOST:PORT/name:tag`.
    pub fn push(&self, registry: &Registry, name: &str, tag: &str) -> String {
        for blob in
            self.layers.iter().map(|layer| layer.bytes.as_slice()).chain([self.config_bytes().as_slice()])
        {
            registry.put_blob(name, blob);
        }
        registry.put_manifest(name, tag, self.manifest_type(), &self.manifest_bytes());
        format!("{}/{name}:{tag}", registry.address())
    }

    /// Uploads images for several architectures under one name: an OCI index, or Docker's manifest list if `docker`.
    pub fn push_index(images: &[Image], docker: bool, registry: &Registry, name: &str, tag: &str) -> String {
        let kind = if docker {
            "application/vnd.docker.distribution.manifest.list.v2+json"
        } else {
            "application/vnd.oci.image.index.v1+json"
        };
        let manifests: Vec<Value> = images
            .iter()
            .map(|image| {
                image.push(registry, name, image.architecture);
                json!({
                    "mediaType": image.manifest_type(),
                    "digest": image.digest(),
                    "size": image.manifest_bytes().len(),
                    "platform": {"os": "linux", "architecture": image.architecture},
                })
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
        registry.put_manifest(name, tag, kind, index.to_string().as_bytes());
        format!("{}/{name}:{tag}", registry.address())
    }
}

fn write_archive(path: &Path, entries: &[(String, Vec<u8>)]) {
    let mut tar = Builder::new(fs::File::create(path).expect("making the archive"));
    for (name, bytes) in entries {
        let mut header = header(EntryType::Regular, 0o644, bytes.len() as u64);
        tar.append_data(&mut header, name, bytes.as_slice()).expect("writing the archive");
    }
    tar.into_inner().and_then(|mut file| file.flush()).expect("writing the archive");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layers_diff_id_is_the_digest_of_its_tar_stream_in_every_compression() {
        let layer = |compression| {
            Layer::new().file("a", b"x", 0o644).whiteout("b/c").compressed(compression).finish()
        };
        let plain = layer(Compression::None);
        assert_eq!(plain.digest, plain.diff_id);
        for compression in [Compression::Gzip, Compression::Zstd] {
            let packed = layer(compression);
            assert_eq!(packed.diff_id, plain.diff_id);
            assert_ne!(packed.digest, plain.digest);
        }
    }

    #[test]
    fn a_hostile_name_is_stored_as_given() {
        let layer = Layer::new().file("../../escape", b"x", 0o644).compressed(Compression::None).finish();
        assert!(layer.bytes.starts_with(b"../../escape\0"));
    }
}
