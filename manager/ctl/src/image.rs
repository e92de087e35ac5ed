//! Reading an image out of the content store: index, manifest, configuration.

use std::collections::HashMap;

use orlop_proto::containerd::services::content::v1::ReadContentRequest;
use orlop_proto::containerd::services::images::v1::{GetImageRequest, Image as Record};
use orlop_proto::containerd::types;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec::image::Image as Config;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::client::Client;
use crate::platform::Platform;

/// The largest index, manifest or configuration that is read into memory, containerd's limit for a message.
const MAX_DOCUMENT: i64 = 16 << 20;

/// Media type of an index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of Docker's form of an index.
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A descriptor (descriptor.md of the OCI Image Specification).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    /// Media type of the content.
    pub media_type: String,
    /// Digest of the content.
    pub digest: String,
    /// Size of the content in bytes.
    pub size: i64,
    /// Free-form metadata.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
    /// Platform of a manifest in an index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl From<&types::Descriptor> for Descriptor {
    fn from(descriptor: &types::Descriptor) -> Descriptor {
        Descriptor {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            annotations: descriptor.annotations.clone(),
            platform: None,
        }
    }
}

impl From<&Descriptor> for types::Descriptor {
    fn from(descriptor: &Descriptor) -> types::Descriptor {
        types::Descriptor {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            annotations: descriptor.annotations.clone(),
        }
    }
}

impl Descriptor {
    /// Whether it is an index of manifests.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }
}

/// An image manifest (manifest.md).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// An image index (image-index.md).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Index {
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

/// An image of one platform.
#[derive(Clone, Debug)]
pub struct Image {
    /// Descriptors from the image's name down to the manifest: at most an index, then the manifest.
    pub path: Vec<Descriptor>,
    /// The manifest.
    pub manifest: Manifest,
    /// The configuration.
    pub config: Config,
}

impl Image {
    /// The snapshot that holds the whole image.
    pub fn chain_id(&self) -> String {
        chain_ids(&self.config.rootfs.diff_ids).pop().unwrap_or_default()
    }

    /// What belongs to the image: index, manifest, configuration, layers.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        self.path.iter().chain([&self.manifest.config]).chain(&self.manifest.layers)
    }
}

/// The chain ID of each layer: what the layer is on top of those below it (config.md, "Layer ChainID").
pub fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.clone(),
            Some(below) => {
                let hash = Sha256::digest(format!("{below} {diff_id}"));
                let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("sha256:{hex}")
            }
        };
        chain.push(id);
    }
    chain
}

/// The record of an image by name.
///
/// # Errors
///
/// `NotFound` and what the server says.
pub async fn record(client: &Client, name: &str) -> Result<Record> {
    let response = client.images().get(GetImageRequest { name: name.to_owned() }).await?;
    response.into_inner().image.ok_or_else(|| Error::new(Kind::NotFound, "image", format!("{name:?}")))
}

/// The descriptor behind an image's name.
///
/// # Errors
///
/// `NotFound` for a record without one.
pub fn target(record: &Record) -> Result<Descriptor> {
    let target = record.target.as_ref();
    target.map(Descriptor::from).ok_or_else(|| Error::new(Kind::NotFound, "image target", &record.name))
}

/// A blob as bytes.
///
/// # Errors
///
/// `NotFound`, and `ResourceExhausted` for one that is too large for a document.
pub async fn read(client: &Client, digest: &str) -> Result<Vec<u8>> {
    let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let mut stream = client.content().read(request).await?.into_inner();
    let mut data = Vec::new();
    while let Some(part) = stream.message().await? {
        data.extend_from_slice(&part.data);
        if data.len() as i64 > MAX_DOCUMENT {
            return Err(Error::new(Kind::ResourceExhausted, "read document", digest));
        }
    }
    Ok(data)
}

/// A blob as a JSON document.
///
/// # Errors
///
/// Those of [`read`], and `DataLoss` for what is not such a document.
pub async fn document<T: for<'de> Deserialize<'de>>(client: &Client, digest: &str) -> Result<T> {
    let data = read(client, digest).await?;
    serde_json::from_slice(&data).map_err(|error| Error::because(Kind::DataLoss, "parse", digest, error))
}

/// The image for a platform behind a descriptor.
///
/// # Errors
///
/// `NotFound` when content is missing or no manifest is for the platform.
pub async fn resolve(client: &Client, target: &Descriptor, platform: &Platform) -> Result<Image> {
    let mut path = vec![target.clone()];
    if target.is_index() {
        let index: Index = document(client, &target.digest).await?;
        let manifest = select(&index, platform).ok_or_else(|| {
            Error::because(
                Kind::NotFound,
                "image",
                &target.digest,
                format!("no manifest for platform {platform}: not found"),
            )
        })?;
        path.push(manifest.clone());
    }
    let manifest: Manifest = document(client, &path[path.len() - 1].digest).await?;
    let config = document(client, &manifest.config.digest).await?;
    Ok(Image { path, manifest, config })
}

/// The manifest for a platform: the first that fits; one without a platform fits any.
pub fn select<'a>(index: &'a Index, platform: &Platform) -> Option<&'a Descriptor> {
    let fits =
        |manifest: &&Descriptor| manifest.platform.as_ref().is_none_or(|found| platform.accepts(found));
    index.manifests.iter().find(fits)
}

/// The platforms an image is for, in order and each once.
///
/// # Errors
///
/// Those of reading the documents.
pub async fn platforms(client: &Client, target: &Descriptor) -> Result<Vec<String>> {
    let mut platforms = Vec::new();
    if target.is_index() {
        let index: Index = document(client, &target.digest).await?;
        platforms.extend(
            index.manifests.iter().filter_map(|manifest| manifest.platform.as_ref()).map(Platform::to_string),
        );
    } else {
        let manifest: Manifest = document(client, &target.digest).await?;
        let config: Config = document(client, &manifest.config.digest).await?;
        platforms.push(Platform::of_config(&config).to_string());
    }
    platforms.sort();
    platforms.dedup();
    Ok(platforms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_hash_what_is_below() {
        let ids = ["sha256:aa".to_owned(), "sha256:bb".to_owned()];
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], "sha256:aa");
        // printf 'sha256:aa sha256:bb' | sha256sum
        assert_eq!(chain[1], "sha256:b68ad689d6d1ec110ea1c13617437ad6f3766d4b3b309f6a603a222e07a0164f");
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn the_first_manifest_that_fits_is_taken() {
        let manifest = |digest: &str, architecture: &str| Descriptor {
            digest: digest.into(),
            platform: Some(Platform {
                os: "linux".into(),
                architecture: architecture.into(),
                ..Platform::default()
            }),
            ..Descriptor::default()
        };
        let index =
            Index { manifests: vec![manifest("a", "arm64"), manifest("b", "amd64"), manifest("c", "amd64")] };
        let wanted = "linux/amd64".parse().unwrap();
        assert_eq!(select(&index, &wanted).unwrap().digest, "b");
        assert!(select(&index, &"linux/s390x".parse().unwrap()).is_none());
    }
}
