//! Media types of layers, and what becomes of them (OCI Image Specification, Docker image manifest version 2 schema 2).

use std::io::{self, BufRead, BufReader, Read};

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// Docker's types and OCI's for the same.
const DOCKER_TO_OCI: [(&str, &str); 3] = [
    ("application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.oci.image.index.v1+json"),
    ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json"),
    ("application/vnd.docker.container.image.v1+json", "application/vnd.oci.image.config.v1+json"),
];
/// Layers: what a type starts with, and how a compression follows it.
const LAYERS: [(&str, char); 4] = [
    ("application/vnd.docker.image.rootfs.diff.tar", '.'),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", '.'),
    ("application/vnd.oci.image.layer.v1.tar", '+'),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", '+'),
];

fn split(media_type: &str) -> Option<(usize, Compression)> {
    LAYERS.iter().enumerate().find_map(|(kind, (name, mark))| {
        let compression = match media_type.strip_prefix(name)?.strip_prefix(*mark) {
            Some("gzip") => Compression::Gzip,
            Some("zstd") => Compression::Zstd,
            None if media_type.len() == name.len() => Compression::None,
            _ => return None,
        };
        Some((kind, compression))
    })
}

fn join(kind: usize, compression: Compression) -> String {
    let (name, mark) = LAYERS[kind];
    match compression {
        Compression::None => name.to_owned(),
        Compression::Gzip => format!("{name}{mark}gzip"),
        Compression::Zstd => format!("{name}{mark}zstd"),
    }
}

/// How a layer of this type is compressed; nothing where it is none.
pub fn compression(media_type: &str) -> Option<Compression> {
    split(media_type).map(|(_, compression)| compression)
}

/// What a layer decompresses to, however it is compressed: its first bytes say it.
///
/// # Errors
///
/// Those of reading.
pub fn decompressed<'a>(input: &'a mut dyn Read) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(128 << 10, input);
    Ok(match input.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(input)?)
        }
        _ => Box::new(input),
    })
}

/// The type of the same layer with another compression.
pub fn compressed(media_type: &str, compression: Compression) -> String {
    split(media_type).map_or_else(|| media_type.to_owned(), |(kind, _)| join(kind, compression))
}

/// OCI's type for one of Docker's; others stay.
pub fn oci(media_type: &str) -> String {
    if let Some((_, oci)) = DOCKER_TO_OCI.iter().find(|(docker, _)| *docker == media_type) {
        return (*oci).to_owned();
    }
    match split(media_type) {
        Some((kind @ (0 | 1), compression)) => join(kind + 2, compression),
        _ => media_type.to_owned(),
    }
}

/// Docker's type for one of OCI's layers; others stay.
pub fn docker(media_type: &str) -> String {
    match split(media_type) {
        Some((kind @ (2 | 3), compression)) => join(kind - 2, compression),
        _ => media_type.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_the_compression() {
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        assert_eq!(compression(docker), Some(Compression::Gzip));
        assert_eq!(compressed(docker, Compression::None), "application/vnd.docker.image.rootfs.diff.tar");
        assert_eq!(oci(docker), "application/vnd.oci.image.layer.v1.tar+gzip");
        assert_eq!(super::docker(&oci(docker)), docker);
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert_eq!(oci(foreign), "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        let plain = "application/vnd.oci.image.layer.v1.tar";
        assert_eq!(compressed(plain, Compression::Zstd), "application/vnd.oci.image.layer.v1.tar+zstd");
        assert_eq!(oci(plain), plain);
        for other in ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/json", ""] {
            assert_eq!(compression(other), None, "{other}");
        }
        let manifest = "application/vnd.docker.distribution.manifest.v2+json";
        assert_eq!(oci(manifest), "application/vnd.oci.image.manifest.v1+json");
    }
}
