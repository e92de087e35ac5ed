//! Images that stages begin with and copy from: here, or fetched.

use std::collections::{BTreeMap, HashSet};

use serde_json::json;
use tokio::sync::mpsc;

use super::output::{Broken, Console};
use super::stage::Build;
use crate::docker::failure::{Failure, Result};
use crate::docker::image::{Found, familiar, normal, platform, pull_failure, pull_step};
use crate::image::manifest::{Descriptor, Manifest};
use crate::image::platform::Platform;
use crate::image::progress::Progress;
use crate::image::reference::Reference;
use crate::image::{DEFAULT_SNAPSHOTTER, PullRequest, Unpack, media};

/// How many steps of a pull may wait for the client.
const STEPS: usize = 64;
/// The name of no image at all.
pub const SCRATCH: &str = "scratch";

/// The image that `FROM scratch` means: no layers, no configuration.
pub fn scratch(wanted: &Platform) -> Found {
    let document = json!({
        "architecture": wanted.architecture,
        "os": wanted.os,
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [] },
        "history": [],
    });
    let manifest = Manifest {
        schema_version: 2,
        media_type: media::OCI_MANIFEST.to_owned(),
        config: Descriptor::of(media::OCI_CONFIG, b""),
        layers: Vec::new(),
        annotations: BTreeMap::new(),
    };
    Found { id: String::new(), names: Vec::new(), manifest, document }
}

impl Build {
    /// The image of a name: the one that is here, unless `--pull` asks for the registry's.
    ///
    /// # Errors
    ///
    /// Those of the registry, in dockerd's words.
    pub(super) async fn image(
        &self,
        name: &str,
        wanted: Option<Platform>,
        console: &Console,
    ) -> Result<Found, Broken> {
        let is_own = wanted.as_ref().is_none_or(|wanted| *wanted == platform());
        let wanted = wanted.unwrap_or_else(platform);
        let is_id = name.starts_with("sha256:");
        if (!self.wishes.pulls || is_id)
            && is_own
            && let Ok(found) = self.engine.image(name).await
        {
            return Ok(found);
        }
        if is_id {
            return Ok(self.engine.image(name).await?);
        }
        let full = normal(name)?;
        if !self.wishes.pulls
            && let Ok(image) = self.engine.parts.names.get(&self.engine.context, &full).await
            && let Ok(found) = self.engine.resolve_for(&image, &wanted).await
        {
            return Ok(found);
        }
        self.pull(&full, wanted, console).await
    }

    async fn pull(&self, full: &str, wanted: Platform, console: &Console) -> Result<Found, Broken> {
        let engine = &self.engine;
        let (sender, mut steps) = mpsc::channel(STEPS);
        let (mut job, _) = engine.job(Progress::to(sender));
        job.cancel = self.stop.child_token();
        let domain =
            Reference::parse(full).map(|reference| reference.domain().to_owned()).unwrap_or_default();
        let request = PullRequest {
            reference: full.to_owned(),
            access: self.wishes.credentials_for(&domain).access(&self.engine),
            name: full.to_owned(),
            platforms: vec![wanted.clone()],
            unpacks: vec![Unpack { platform: None, snapshotter: DEFAULT_SNAPSHOTTER.to_owned() }],
            ..PullRequest::default()
        };
        let images = engine.parts.images.clone();
        let mut working = tokio::spawn(async move { images.pull(&job, request).await });
        let (mut seen, mut is_told) = (HashSet::new(), false);
        let pulled = loop {
            tokio::select! {
                biased;
                Some(event) = steps.recv() => {
                    for value in pull_step(&event, &mut seen) {
                        if !is_told {
                            is_told = true;
                            console.send(json!({ "status": format!("Pulling from {}", familiar(full)) })).await;
                        }
                        console.send(value).await;
                    }
                }
                ended = &mut working => {
                    break ended.map_err(|error| Failure::internal(error.to_string()))?;
                }
            }
        };
        let pulled = pulled.map_err(|error| pull_failure(&error, full))?;
        let image = pulled.first().ok_or_else(|| Failure::internal("the registry gave no image"))?;
        engine.image_event("pull", &familiar(full), &familiar(full));
        Ok(engine.resolve_for(image, &wanted).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_layers() {
        let found = scratch(&platform());
        assert!(found.diff_ids().is_empty() && found.chain_id().is_empty());
        assert_eq!(found.config(), Default::default());
    }
}
