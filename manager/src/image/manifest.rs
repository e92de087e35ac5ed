//! Documents of images: descriptors, indexes, manifests and configurations, of OCI and of Docker.
//!
//! They come from anywhere, so they are read leniently where readers differ and strictly where it matters: sizes,
//! digests and what a document says it is.

use std::collections::BTreeMap;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::media::{self, Role};
use super::platform::Platform;
use crate::content::digest::Digest;

/// The largest document that is read, in bytes: the registry's own limit for manifests.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// The most manifests of an index, and layers of a manifest.
const MAX_CHILDREN: usize = 1024;

/// A reference to a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest, which is also its name.
    #[serde(with = "digest_text")]
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Where it can be had besides the repository.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor of these bytes.
    pub fn of(media_type: &str, bytes: &[u8]) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of_bytes(bytes),
            size: bytes.len() as u64,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// What the media type says the blob is.
    pub fn role(&self) -> Role {
        media::role(&self.media_type)
    }
}

/// A list of manifests.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// What the document says it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The manifests.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    /// Annotations of the index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The manifest of one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What the document says it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The image's configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// Annotations of the image.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What unpacking needs of an image's configuration.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// What the image runs on.
    #[serde(flatten)]
    pub platform: Platform,
    /// The layers' contents.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// The layers of a configuration.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RootFs {
    /// Digests of the decompressed layers, the lowest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub diff_ids: Vec<String>,
}

/// A document that lists other blobs.
#[derive(Clone, Debug)]
pub enum Document {
    /// A list of manifests.
    Index(Index),
    /// The manifest of one image.
    Manifest(Manifest),
}

impl Document {
    /// Reads a document that a descriptor calls an index or a manifest; it must not be the other of the two, nor
    /// both, or two readers would see two images (CVE-2021-41190).
    pub fn parse(media_type: &str, digest: &Digest, bytes: &[u8]) -> Result<Document> {
        let fail =
            |why: String| Error::because(Kind::InvalidArgument, "read manifest", digest.to_string(), why);
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            #[serde(default)]
            schema_version: u32,
            #[serde(default)]
            media_type: String,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let shape: Shape = serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))?;
        if shape.schema_version == 1 || shape.fs_layers.is_some() {
            let why = "Docker image manifest version 2 schema 1 is not supported";
            return Err(Error::because(Kind::Unimplemented, "read manifest", digest.to_string(), why));
        }
        if !shape.media_type.is_empty() && media::role(&shape.media_type) != media::role(media_type) {
            return Err(fail(format!(
                "it says it is {}, expected {}",
                shape.media_type,
                media::bare(media_type)
            )));
        }
        let has_layers = shape.layers.is_some() || shape.config.is_some();
        match media::role(media_type) {
            Role::Index if has_layers => Err(fail("an index with layers is ambiguous".to_owned())),
            Role::Manifest if shape.manifests.is_some() => {
                Err(fail("a manifest with manifests is ambiguous".to_owned()))
            }
            Role::Index => {
                let index: Index = serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))?;
                if index.manifests.len() > MAX_CHILDREN {
                    return Err(fail(format!(
                        "{} manifests are more than {MAX_CHILDREN}",
                        index.manifests.len()
                    )));
                }
                Ok(Document::Index(index))
            }
            Role::Manifest => {
                let manifest: Manifest =
                    serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))?;
                if manifest.layers.len() > MAX_CHILDREN {
                    return Err(fail(format!(
                        "{} layers are more than {MAX_CHILDREN}",
                        manifest.layers.len()
                    )));
                }
                Ok(Document::Manifest(manifest))
            }
            _ => {
                let why = format!("media type {media_type:?} is not that of an image");
                Err(Error::because(Kind::Unimplemented, "read manifest", digest.to_string(), why))
            }
        }
    }

    /// The blobs that the document lists, in its order.
    pub fn children(&self) -> Vec<&Descriptor> {
        match self {
            Document::Index(index) => index.manifests.iter().collect(),
            Document::Manifest(manifest) => {
                std::iter::once(&manifest.config).chain(&manifest.layers).collect()
            }
        }
    }

    /// The labels that keep the listed blobs as long as the document (containerd's garbage collection).
    pub fn reference_labels(&self, keep: impl Fn(&Descriptor) -> bool) -> Vec<(String, String)> {
        let mut layers = 0;
        let mut manifests = 0;
        let mut others = 0;
        let mut labels = Vec::new();
        for child in self.children() {
            let next = |count: &mut usize| {
                *count += 1;
                *count - 1
            };
            let name = match child.role() {
                Role::Config => "config".to_owned(),
                Role::Layer => format!("l.{}", next(&mut layers)),
                Role::Index | Role::Manifest => format!("m.{}", next(&mut manifests)),
                Role::Other => match next(&mut others) {
                    0 => "0".to_owned(),
                    count => count.to_string(),
                },
            };
            if keep(child) {
                labels.push((format!("containerd.io/gc.ref.content.{name}"), child.digest.to_string()));
            }
        }
        labels
    }
}

impl Config {
    /// Reads a configuration.
    pub fn parse(digest: &Digest, bytes: &[u8]) -> Result<Config> {
        serde_json::from_slice(bytes).map_err(|error| {
            Error::because(Kind::InvalidArgument, "read image configuration", digest.to_string(), error)
        })
    }
}

/// The manifests of an index that serve a platform, the best first; the index's order decides between equals.
///
/// A manifest without a platform matches last, since its configuration may still tell.
pub fn select<'a>(index: &'a Index, wanted: &Platform) -> Vec<&'a Descriptor> {
    let mut ranked: Vec<(u32, &Descriptor)> = index
        .manifests
        .iter()
        .filter(|child| matches!(child.role(), Role::Index | Role::Manifest))
        .filter_map(|child| match &child.platform {
            Some(offered) => wanted.rank(offered).map(|rank| (rank, child)),
            None => Some((u32::MAX, child)),
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, child)| child).collect()
}

/// Names of the snapshots of a stack of layers: each is the digest of the name below it and the layer's diff ID.
pub fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => {
                let sum = Sha256::digest(format!("{parent} {diff_id}").as_bytes());
                format!("sha256:{}", super::unpack::hex(&sum))
            }
        };
        chain.push(next);
    }
    chain
}

/// Go writes empty lists and maps as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// Digests as text.
mod digest_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use crate::content::digest::Digest;

    pub fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(digest.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        Digest::parse(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(letter: char) -> String {
        format!("sha256:{}", letter.to_string().repeat(64))
    }

    fn parse(media_type: &str, text: &str) -> Result<Document> {
        Document::parse(media_type, &Digest::of_bytes(text.as_bytes()), text.as_bytes())
    }

    #[test]
    fn reads_manifests_of_both_kinds() {
        for (manifest_type, config_type, layer_type) in [
            (media::OCI_MANIFEST, media::OCI_CONFIG, media::OCI_LAYER_ZSTD),
            (media::DOCKER_MANIFEST, media::DOCKER_CONFIG, media::DOCKER_LAYER_GZIP),
        ] {
            let text = format!(
                r#"{{"schemaVersion":2,"mediaType":"{manifest_type}",
                "config":{{"mediaType":"{config_type}","digest":"{}","size":7,"annotations":null}},
                "layers":[{{"mediaType":"{layer_type}","digest":"{}","size":9}}]}}"#,
                digest('a'),
                digest('b')
            );
            let document = parse(manifest_type, &text).unwrap();
            let labels = document.reference_labels(|_| true);
            assert_eq!(
                labels,
                [
                    ("containerd.io/gc.ref.content.config".to_owned(), digest('a')),
                    ("containerd.io/gc.ref.content.l.0".to_owned(), digest('b')),
                ]
            );
        }
    }

    #[test]
    fn refuses_what_is_ambiguous_or_wrong() {
        let child = format!(r#"{{"mediaType":"{}","digest":"{}","size":7}}"#, media::OCI_CONFIG, digest('a'));
        for (media_type, text) in [
            (
                media::OCI_MANIFEST,
                format!(r#"{{"schemaVersion":2,"config":{child},"layers":[],"manifests":[]}}"#),
            ),
            (media::OCI_INDEX, format!(r#"{{"schemaVersion":2,"manifests":[],"config":{child}}}"#)),
            (
                media::OCI_INDEX,
                format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media::OCI_MANIFEST),
            ),
            (media::OCI_MANIFEST, r#"{"schemaVersion":2}"#.to_owned()),
            (media::OCI_MANIFEST, r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned()),
            (media::OCI_MANIFEST, "not json".to_owned()),
            ("text/html", "{}".to_owned()),
            (
                media::OCI_INDEX,
                r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}"#.to_owned(),
            ),
            (media::OCI_INDEX, r#"{"schemaVersion":2,"manifests":[{"digest":"x","size":-1}]}"#.to_owned()),
        ] {
            assert!(parse(media_type, &text).is_err(), "{text}");
        }
    }

    #[test]
    fn selects_by_platform() {
        let entry = |letter: char, platform: &str| {
            format!(
                r#"{{"mediaType":"{}","digest":"{}","size":1{platform}}}"#,
                media::OCI_MANIFEST,
                digest(letter)
            )
        };
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{},{},{}]}}"#,
            entry('a', r#","platform":{"os":"linux","architecture":"386"}"#),
            entry('b', ""),
            entry('c', r#","platform":{"os":"linux","architecture":"arm64","variant":"v8"}"#),
            entry('d', r#","platform":{"os":"linux","architecture":"amd64"}"#),
        );
        let Document::Index(index) = parse(media::OCI_INDEX, &text).unwrap() else { panic!("no index") };
        let chosen = |platform: &str| -> Vec<String> {
            let (os, architecture) = platform.split_once('/').unwrap();
            let platform =
                Platform { os: os.into(), architecture: architecture.into(), variant: String::new() };
            select(&index, &platform).iter().map(|child| child.digest.to_string()).collect()
        };
        assert_eq!(chosen("linux/amd64"), [digest('d'), digest('a'), digest('b')]);
        assert_eq!(chosen("linux/arm64"), [digest('c'), digest('b')]);
        assert_eq!(chosen("linux/s390x"), [digest('b')]);
    }

    #[test]
    fn names_snapshots_as_the_specification_does() {
        let chain = chain_ids(&[digest('a'), digest('b')]);
        assert_eq!(chain[0], digest('a'));
        let expected = Sha256::digest(format!("{} {}", digest('a'), digest('b')).as_bytes());
        assert_eq!(chain[1], format!("sha256:{}", super::super::unpack::hex(&expected)));
    }
}
