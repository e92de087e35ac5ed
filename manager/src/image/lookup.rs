//! What registries say without anything being fetched for good.

use std::sync::Arc;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::manifest::{Descriptor, Document, MAX_DOCUMENT};
use super::platform::Platform;
use super::progress::Progress;
use super::reference::Reference;
use super::registry::Access;
use super::{ImageService, manifest};

impl ImageService {
    /// Asks a registry whether it knows who is asking.
    ///
    /// # Errors
    ///
    /// `Unauthenticated` for one that it does not know.
    pub async fn log_in(&self, host: &str, access: Access) -> Result<()> {
        self.shared.registries.log_in(host, access).await
    }

    /// What a registry answers to a search.
    ///
    /// # Errors
    ///
    /// Those of the registry.
    pub async fn search(&self, host: &str, word: &str, limit: u32, access: Access) -> Result<Vec<u8>> {
        self.shared.registries.search(host, word, limit, access).await
    }

    /// What a name stands for at its registry, and for which platforms it is.
    ///
    /// # Errors
    ///
    /// Those of the registry.
    pub async fn look_up(&self, name: &str, access: Access) -> Result<(Descriptor, Vec<Platform>)> {
        let reference = Reference::parse(name)?;
        let progress = Arc::new(Progress::default());
        let repository = Arc::new(self.shared.registries.repository(&reference, access, &progress)?);
        let root = repository.resolve().await?;
        let bytes = repository.manifest(&root).await?;
        let platforms = match Document::parse(&root.media_type, &root.digest, &bytes)? {
            Document::Index(index) => {
                index.manifests.into_iter().filter_map(|manifest| manifest.platform).collect()
            }
            Document::Manifest(manifest) => {
                if manifest.config.size > MAX_DOCUMENT {
                    return Err(Error::new(Kind::ResourceExhausted, "read configuration of", name));
                }
                let mut reader = repository.blob(&manifest.config, 0);
                let mut bytes = Vec::new();
                while let Some(piece) = reader.next().await? {
                    bytes.extend_from_slice(&piece);
                }
                vec![manifest::Config::parse(&manifest.config.digest, &bytes)?.platform]
            }
        };
        Ok((root, platforms))
    }
}
