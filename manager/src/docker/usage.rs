//! `/system/df`: what images, containers and volumes take on the disk.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Engine;
use super::failure::{Failure, Result};
use super::filters::Filters;
use super::message::{Query, Request};
use super::volumes;
use crate::image::DEFAULT_SNAPSHOTTER;
use crate::image::manifest::chain_ids;

/// What can be asked for, by name.
const KINDS: [&str; 4] = ["container", "image", "volume", "build-cache"];

impl Engine {
    /// `docker system df`: all of it, or the kinds that are asked for.
    ///
    /// # Errors
    ///
    /// 400 for a kind that does not exist.
    pub(super) async fn disk_usage(&self, request: &Request) -> Result<Value> {
        let asked: Vec<&str> = request.query.all("type").collect();
        if let Some(unknown) = asked.iter().find(|kind| !KINDS.contains(kind)) {
            return Err(Failure::invalid(format!("unknown object type: {unknown}")));
        }
        let is_wanted = |kind: &str| asked.is_empty() || asked.contains(&kind);
        let mut all = Map::new();
        if is_wanted("image") {
            let (images, layers) = self.image_usage().await?;
            all.insert("LayersSize".to_owned(), json!(layers));
            all.insert("Images".to_owned(), json!(images));
        }
        if is_wanted("container") {
            let containers = self.list_containers(&Query::parse("all=1&size=1")).await?;
            all.insert("Containers".to_owned(), json!(containers));
        }
        if is_wanted("volume") {
            let mut shown = Vec::new();
            for volume in self.volumes.list().await? {
                let mut document = volumes::shown(self, &volume);
                let users = self.users_of_volume(&volume.name).len();
                let size = self.volumes.size(&volume.name).await.map_or(json!(-1), |size| json!(size));
                document["UsageData"] = json!({ "Size": size, "RefCount": users });
                shown.push(document);
            }
            all.insert("Volumes".to_owned(), json!(shown));
        }
        if is_wanted("build-cache") {
            let (kept, size) = self.build_usage().await;
            all.insert("BuildCache".to_owned(), json!(kept));
            all.insert("BuilderSize".to_owned(), json!(size));
        }
        Ok(Value::Object(all))
    }

    /// The images with what each shares with others, and what all layers together take.
    async fn image_usage(&self) -> Result<(Vec<Value>, u64)> {
        let mut listed = self.list_images(&Filters::default(), &self.images_in_use(), false, false).await?;
        let images = self.images().await?;
        let mut layers: BTreeMap<String, (u64, usize)> = BTreeMap::new();
        let chains: BTreeMap<String, Vec<String>> =
            images.iter().map(|found| (found.id.clone(), chain_ids(&found.diff_ids()))).collect();
        for name in chains.values().flatten() {
            if let Some((_, users)) = layers.get_mut(name) {
                *users += 1;
                continue;
            }
            let usage = self.parts.snapshots.usage(&self.context, DEFAULT_SNAPSHOTTER, name).await;
            layers.insert(name.clone(), (usage.map_or(0, |usage| usage.size), 1));
        }
        for image in &mut listed {
            let own = image["Id"].as_str().and_then(|id| chains.get(id));
            let shared = own.into_iter().flatten().filter_map(|name| layers.get(name));
            let shared: u64 = shared.filter(|(_, users)| *users > 1).map(|(size, _)| size).sum();
            image["SharedSize"] = json!(shared);
        }
        Ok((listed, layers.values().map(|(size, _)| size).sum()))
    }
}
