//! What was built of what, and by which step: the layer cache, and the parents of images.
//!
//! One record per image that a step made. A later build that does the same step on the same parent takes the image.

use std::collections::{BTreeMap, HashSet};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::db::{Query, Table};
use crate::docker::Engine;
use crate::docker::container::config::Config;
use crate::docker::image::Found;
use crate::image::unpack::hex;
use crate::store::images::{Descriptor, Image};

/// Steps by the ID of the image that they made.
static STEPS: Table<Step> = Table::new("docker.builds");

/// A step that made an image.
#[derive(Clone, PartialEq, Message)]
pub struct Step {
    /// ID of the image that it began with; empty for none.
    #[prost(string, tag = "1")]
    pub parent: String,
    /// What the step was, as a digest.
    #[prost(string, tag = "2")]
    pub key: String,
    /// Digest of the image's manifest.
    #[prost(string, tag = "3")]
    pub manifest: String,
    /// Media type of the manifest.
    #[prost(string, tag = "4")]
    pub media_type: String,
    /// Length of the manifest in bytes.
    #[prost(int64, tag = "5")]
    pub size: i64,
    /// When it was made, in nanoseconds since 1970.
    #[prost(uint64, tag = "6")]
    pub made: u64,
}

/// What makes a step the same as another.
#[derive(Debug, Serialize)]
pub struct Key<'a> {
    /// The configuration after it.
    pub config: &'a Config,
    /// What the history says of it, with digests of what it copies.
    pub said: &'a str,
    /// Who makes the image.
    pub author: &'a str,
}

impl Key<'_> {
    /// The key as a digest.
    ///
    /// # Errors
    ///
    /// `Internal` for what cannot be JSON.
    pub fn digest(&self) -> Result<String> {
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::because(Kind::Internal, "encode", "build step", error))?;
        Ok(hex(&Sha256::digest(text)))
    }
}

impl Step {
    fn target(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.manifest.clone(),
            size: self.size,
            annotations: BTreeMap::default(),
        }
    }
}

impl Engine {
    async fn steps(&self) -> Result<Vec<(String, Step)>> {
        self.parts.database.read(|tx| tx.scan(&STEPS, "")).await
    }

    /// The image that the same step made of the same parent last, if it is still here.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub(super) async fn built(&self, parent: &str, key: &str) -> Result<Option<Found>> {
        let mut steps = self.steps().await?;
        steps.retain(|(_, step)| step.parent == parent && step.key == key);
        steps.sort_by_key(|(_, step)| std::cmp::Reverse(step.made));
        for (id, step) in steps {
            let target = step.target();
            // What is not here any more is no reason to fail.
            match self.resolve(&Image { target, ..Image::default() }).await {
                Ok(found) if found.id == id => return Ok(Some(found)),
                _ => self.forget_step(&id).await?,
            }
        }
        Ok(None)
    }

    /// What a name of an image that was built is given to.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub(super) async fn target_of(&self, found: &Found) -> crate::docker::failure::Result<Descriptor> {
        if let Some(name) = found.names.first() {
            return Ok(name.target.clone());
        }
        let id = found.id.clone();
        let step = self.parts.database.read(move |tx| tx.get(&STEPS, &id)).await?;
        let gone = || crate::docker::failure::Failure::internal("the image that was built is gone");
        Ok(step.ok_or_else(gone)?.target())
    }

    /// Remembers which step made an image.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub(super) async fn remember_step(&self, id: &str, step: Step) -> Result<()> {
        let id = id.to_owned();
        self.parts.database.write(move |tx| tx.put(&STEPS, &id, &step)).await
    }

    /// Forgets which step made an image.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn forget_step(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.parts.database.free(move |tx| tx.remove(&STEPS, &id)).await.map(drop)
    }

    /// The image that an image was made of.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn parent_of(&self, id: &str) -> Result<Option<String>> {
        let id = id.to_owned();
        let step = self.parts.database.read(move |tx| tx.get(&STEPS, &id)).await?;
        Ok(step.map(|step| step.parent).filter(|parent| !parent.is_empty()))
    }

    /// The images of which others were made.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn parents(&self) -> Result<HashSet<String>> {
        Ok(self.steps().await?.into_iter().map(|(_, step)| step.parent).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_all_that_counts() {
        let config = Config { env: vec!["A=1".to_owned()], ..Config::default() };
        let key = |config: &Config, said: &str| Key { config, said, author: "" }.digest().unwrap();
        let first = key(&config, "RUN a");
        assert_eq!(first, key(&config.clone(), "RUN a"));
        assert_ne!(first, key(&config, "RUN b"));
        assert_ne!(first, key(&Config::default(), "RUN a"));
    }
}
