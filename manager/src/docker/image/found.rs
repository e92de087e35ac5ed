//! Finding images: by name, by ID and by the start of one.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use http::StatusCode;
use serde_json::Value;

use crate::content::digest::Digest;
use crate::docker::Engine;
use crate::docker::container::config::Config;
use crate::docker::failure::{Failure, Result};
use crate::image::DEFAULT_SNAPSHOTTER;
use crate::image::manifest::{Descriptor, Document, MAX_DOCUMENT, Manifest, chain_ids, select};
use crate::image::platform::Platform;
use crate::image::reference::Reference;
use crate::store::images::Image;

/// What the name of an image without one starts with, as dockerd names it.
pub const DANGLING: &str = "moby-dangling@";
/// How deep indexes may refer to indexes.
const MAX_DEPTH: u32 = 4;

/// The stored name of an image that has none.
pub fn dangling(digest: &str) -> String {
    format!("{DANGLING}{digest}")
}

/// An image and everything that refers to it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Digest of the configuration.
    pub id: String,
    /// The stored names, each with what it stands for.
    pub names: Vec<Image>,
    /// The manifest of this machine's platform.
    pub manifest: Manifest,
    /// The configuration document.
    pub document: Value,
}

impl Found {
    /// How containers are run.
    pub fn config(&self) -> Config {
        let mut config = self.document.get("config").cloned().unwrap_or_default();
        crate::docker::message::without_nulls(&mut config);
        // An image whose configuration cannot be read is run as if it had none.
        serde_json::from_value(config).unwrap_or_default()
    }

    /// The platform that its configuration names.
    pub fn platform(&self) -> Platform {
        let word = |member: &str| self.document[member].as_str().unwrap_or_default().to_owned();
        Platform { os: word("os"), architecture: word("architecture"), variant: word("variant") }.normalised()
    }

    /// Digests of the decompressed layers.
    pub fn diff_ids(&self) -> Vec<String> {
        let ids = self.document["rootfs"]["diff_ids"].as_array();
        ids.into_iter().flatten().filter_map(|id| id.as_str().map(str::to_owned)).collect()
    }

    /// The snapshot of all layers; empty for an image without layers.
    pub fn chain_id(&self) -> String {
        chain_ids(&self.diff_ids()).pop().unwrap_or_default()
    }

    /// Names with tags, as people write them.
    pub fn tags(&self) -> Vec<String> {
        let names = self.names.iter().filter(|image| !image.name.contains('@'));
        names.map(|image| familiar(&image.name)).collect()
    }

    /// Names with digests, as people write them.
    pub fn digests(&self) -> Vec<String> {
        let mut digests: Vec<String> = Vec::new();
        for image in self.names.iter().filter(|image| !image.name.starts_with(DANGLING)) {
            let name = familiar(&image.name);
            let repository = repository(&name);
            let digest = format!("{repository}@{}", image.target.digest);
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        }
        digests
    }

    /// Labels of its configuration.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.config().labels
    }

    /// When it was made, as its configuration says.
    pub fn created(&self) -> &str {
        self.document["created"].as_str().unwrap_or_default()
    }
}

/// A name without tag and digest.
pub fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// A complete name as people write it: without Docker's own domain.
pub fn familiar(name: &str) -> String {
    let short = name.strip_prefix("docker.io/library/").or_else(|| name.strip_prefix("docker.io/"));
    short.unwrap_or(name).to_owned()
}

/// The complete name of what people write, with `latest` where there is neither tag nor digest.
///
/// # Errors
///
/// 400 in dockerd's words.
pub fn normal(name: &str) -> Result<String> {
    let wrong = || Failure::invalid("invalid reference format");
    let reference = Reference::parse(name).map_err(|_| wrong())?;
    let text = match (reference.tag(), reference.digest()) {
        (None, None) => format!("{reference}:latest"),
        // A digest is all that counts.
        (_, Some(digest)) => format!("{}/{}@{digest}", reference.domain(), reference.path()),
        _ => reference.to_string(),
    };
    Ok(text)
}

/// Whether an entry of an index says something about another entry rather than being an image.
pub fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.contains_key("vnd.docker.reference.type")
}

/// This machine's platform.
pub fn platform() -> Platform {
    Platform::own()
}

/// The failure of an image that is not there, in dockerd's words.
pub fn no_such_image(name: &str) -> Failure {
    let shown = match normal(name) {
        Ok(full) if !name.starts_with("sha256:") => familiar(&full),
        _ => name.to_owned(),
    };
    Failure::new(StatusCode::NOT_FOUND, format!("No such image: {shown}"))
}

impl Engine {
    /// The image that a name, an ID or the start of an ID means.
    ///
    /// # Errors
    ///
    /// 404 in dockerd's words.
    pub async fn image(&self, name: &str) -> Result<Found> {
        let name = name.strip_prefix('/').unwrap_or(name);
        let is_id =
            name.strip_prefix("sha256:").unwrap_or(name).chars().all(|letter| letter.is_ascii_hexdigit());
        if let Ok(full) = normal(name)
            && let Ok(image) = self.parts.names.get(&self.context, &full).await
        {
            let mut found = self.resolve(&image).await.map_err(|_| no_such_image(name))?;
            found.names = self.names_of(&found.id, &image).await?;
            return Ok(found);
        }
        if is_id && !name.is_empty() {
            let wanted = name.strip_prefix("sha256:").unwrap_or(name);
            let all = self.images().await?;
            let mut matching =
                all.into_iter().filter(|found| found.id["sha256:".len()..].starts_with(wanted));
            if let Some(found) = matching.next() {
                return match matching.next() {
                    None => Ok(found),
                    Some(_) => Err(Failure::not_found(format!("ambiguous reference: {name}"))),
                };
            }
        }
        Err(no_such_image(name))
    }

    /// The part of an image for a platform, and no other.
    ///
    /// # Errors
    ///
    /// 404 for an image that is not here, or not for this platform: clients then pull it.
    pub async fn image_for(&self, name: &str, wanted: &Platform) -> Result<Found> {
        let found = match normal(name) {
            Ok(full) => match self.parts.names.get(&self.context, &full).await {
                Ok(image) => self.resolve_for(&image, wanted).await.ok(),
                Err(_) => None,
            },
            Err(_) => None,
        };
        let found = match found {
            Some(found) => found,
            None => self.image(name).await?,
        };
        // A manifest that no index names says what it is for in its configuration alone.
        let platform = found.platform();
        if wanted.rank(&platform).is_some() {
            return Ok(found);
        }
        Err(Failure::not_found(format!(
            "image with reference {name} was found but its platform ({platform}) does not match the specified platform ({wanted})"
        )))
    }

    /// The names of an image, of which one is known.
    async fn names_of(&self, id: &str, known: &Image) -> Result<Vec<Image>> {
        let mut names = Vec::new();
        for image in self.parts.names.list(&self.context, &[]).await? {
            let is_same = image.target.digest == known.target.digest;
            // What steps of builds made is many, and has no other name.
            let may_be = || !image.name.starts_with(DANGLING);
            if is_same || (may_be() && self.resolve(&image).await.is_ok_and(|found| found.id == id)) {
                names.push(image);
            }
        }
        Ok(names)
    }

    /// All images of which this machine's part is here, the newest first.
    pub async fn images(&self) -> Result<Vec<Found>> {
        let mut images: BTreeMap<String, Found> = BTreeMap::new();
        for name in self.parts.names.list(&self.context, &[]).await? {
            // One that is not here (yet), or is for another platform, is not an image to run.
            let Ok(mut found) = self.resolve(&name).await else { continue };
            match images.get_mut(&found.id) {
                Some(known) => known.names.append(&mut found.names),
                None => drop(images.insert(found.id.clone(), found)),
            }
        }
        let mut images: Vec<Found> = images.into_values().collect();
        images.sort_by(|left, right| right.created().cmp(left.created()).then(left.id.cmp(&right.id)));
        Ok(images)
    }

    /// What a stored name stands for on this machine; its other names are left out. Where nothing of it is for this
    /// machine's platform, the first part that is here counts.
    pub async fn resolve(&self, image: &Image) -> Result<Found> {
        self.resolve_part(image, &platform(), true).await
    }

    /// What a stored name stands for on another platform, and on no other than that.
    pub async fn resolve_for(&self, image: &Image, wanted: &Platform) -> Result<Found> {
        self.resolve_part(image, wanted, false).await
    }

    async fn resolve_part(&self, image: &Image, wanted: &Platform, takes_others: bool) -> Result<Found> {
        let digest = Digest::parse(&image.target.digest)?;
        let media_type = &image.target.media_type;
        let (manifest, document) = self.part(digest, media_type, wanted, takes_others, MAX_DEPTH).await?;
        Ok(Found { id: manifest.config.digest.to_string(), names: vec![image.clone()], manifest, document })
    }

    /// The manifest and the configuration that a document leads to.
    fn part<'a>(
        &'a self,
        digest: Digest,
        media_type: &'a str,
        wanted: &'a Platform,
        takes_others: bool,
        depth: u32,
    ) -> BoxFuture<'a, Result<(Manifest, Value)>> {
        Box::pin(async move {
            let content = &self.parts.content;
            if depth == 0 {
                return Err(Failure::internal(format!("image {digest}: indexes are nested too deep")));
            }
            let bytes = content.read_all(&self.context, &digest, MAX_DOCUMENT).await?;
            let index = match Document::parse(media_type, &digest, &bytes)? {
                Document::Manifest(manifest) => {
                    let config =
                        content.read_all(&self.context, &manifest.config.digest, MAX_DOCUMENT).await?;
                    let document = serde_json::from_slice(&config)
                        .map_err(|error| Failure::internal(format!("read image configuration: {error}")))?;
                    return Ok((manifest, document));
                }
                Document::Index(index) => index,
            };
            let mut children = select(&index, wanted);
            if takes_others {
                children.extend(index.manifests.iter().filter(|child| !is_attestation(child)));
            }
            for child in children {
                let part =
                    self.part(child.digest.clone(), &child.media_type, wanted, takes_others, depth - 1);
                if let Ok(found) = part.await {
                    return Ok(found);
                }
            }
            Err(Failure::not_found(format!("image {digest}: no part of it is here")))
        })
    }

    /// Bytes of an image's files.
    pub async fn image_size(&self, found: &Found) -> u64 {
        let mut size = 0;
        for name in chain_ids(&found.diff_ids()) {
            let usage = self.parts.snapshots.usage(&self.context, DEFAULT_SNAPSHOTTER, &name).await;
            size += usage.map_or(0, |usage| usage.size);
        }
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_and_shortened() {
        for (name, full, short) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("a/b:1", "docker.io/a/b:1", "a/b:1"),
            ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ] {
            assert_eq!(normal(name).unwrap(), full);
            assert_eq!(familiar(full), short);
        }
        assert!(normal("UPPER").is_err());
        assert_eq!(repository("localhost:5000/x:1"), "localhost:5000/x");
        assert_eq!(repository("localhost:5000/x"), "localhost:5000/x");
        assert_eq!(repository("x@sha256:1"), "x");
    }

    #[test]
    fn what_is_missing_is_named_with_its_tag() {
        assert_eq!(no_such_image("nope").message, "No such image: nope:latest");
    }
}
