//! Names given to images and taken from them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::found::{Found, dangling, familiar, normal};
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::filters::Filters;
use crate::store::images::Image;

/// The fields by which images to prune can be filtered.
pub const PRUNE_FILTERS: [&str; 4] = ["dangling", "label", "label!", "until"];

impl Engine {
    /// Tells an event of an image.
    pub fn image_event(&self, action: &str, id: &str, name: &str) {
        let mut attributes = BTreeMap::new();
        if !name.is_empty() {
            attributes.insert("name".to_owned(), name.to_owned());
        }
        self.events.tell("image", action, id, attributes);
    }

    /// Gives a target a name; an image that loses its last one is kept under none.
    pub async fn name_image(&self, name: &str, target: &crate::store::images::Descriptor) -> Result<()> {
        let names = &self.parts.names;
        let image = Image { name: name.to_owned(), target: target.clone(), ..Image::default() };
        self.put_name(image).await?;
        // A name of its own is better than none.
        let unnamed = dangling(&target.digest);
        if name != unnamed {
            // Ignoring: there need be none.
            let _ = names.delete(&self.context, &unnamed, None).await;
        }
        Ok(())
    }

    async fn put_name(&self, image: Image) -> Result<()> {
        let names = &self.parts.names;
        match names.create(&self.context, image.clone()).await {
            Err(error) if error.kind() == orlop_proto::kind::Kind::AlreadyExists => {
                names.update(&self.context, image, Vec::new()).await?;
            }
            result => drop(result?),
        }
        Ok(())
    }

    /// `docker tag`.
    pub async fn tag_image(&self, source: &str, repository: &str, tag: &str) -> Result<()> {
        let found = self.image(source).await?;
        let wanted = if tag.is_empty() { repository.to_owned() } else { format!("{repository}:{tag}") };
        let name = normal(&wanted)?;
        if name.contains('@') {
            return Err(Failure::invalid("refusing to create a tag with a digest reference"));
        }
        let first = found.names.first().ok_or_else(|| Failure::internal("the image has no name"))?;
        self.name_image(&name, &first.target).await?;
        self.image_event("tag", &found.id, &familiar(&name));
        Ok(())
    }

    /// `docker rmi`: takes a name, or with the last one the image.
    pub async fn remove_image(&self, name: &str, is_forced: bool) -> Result<Vec<Value>> {
        let found = self.image(name).await?;
        let named = normal(name).ok().filter(|full| found.names.iter().any(|image| image.name == *full));
        let users = self.users_of(&found.id);
        let running = users.iter().find(|(_, is_running)| *is_running);
        let short = |id: &str| id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        let is_last = found.names.len() == 1;
        match &named {
            Some(full) if !is_last => return Ok(vec![self.untag(&found, full).await?]),
            Some(full) => {
                if let Some((user, _)) = running.or(users.first()) {
                    if !is_forced {
                        return Err(Failure::conflict(format!(
                            "conflict: unable to remove repository reference {name:?} (must force) - container {} is \
                             using its referenced image {}",
                            short(user),
                            short(&found.id)
                        )));
                    }
                    if running.is_some() {
                        // The name goes, the image stays for its container.
                        return Ok(vec![self.untag(&found, full).await?]);
                    }
                }
            }
            None => {
                let tags = found.tags();
                if tags.len() > 1 && !is_forced {
                    return Err(Failure::conflict(format!(
                        "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
                        short(&found.id)
                    )));
                }
                if let Some((user, is_running)) = running.or(users.first())
                    && (!is_forced || *is_running)
                {
                    let (kind, how) = if *is_running {
                        ("running", "cannot be forced")
                    } else {
                        ("stopped", "must be forced")
                    };
                    return Err(Failure::conflict(format!(
                        "conflict: unable to delete {} ({how}) - image is being used by {kind} container {}",
                        short(&found.id),
                        short(user)
                    )));
                }
            }
        }
        self.delete_image(&found).await
    }

    async fn untag(&self, found: &Found, name: &str) -> Result<Value> {
        self.parts.names.delete(&self.context, name, None).await?;
        let name = familiar(name);
        self.image_event("untag", &found.id, &name);
        Ok(json!({ "Untagged": name }))
    }

    /// Takes every name of an image; what nothing else refers to is collected.
    pub async fn delete_image(&self, found: &Found) -> Result<Vec<Value>> {
        let mut removed = Vec::new();
        for image in &found.names {
            let untagged = self.untag(found, &image.name).await?;
            if !image.name.starts_with("moby-dangling@") {
                removed.push(untagged);
            }
        }
        self.image_event("delete", &found.id, "");
        removed.push(json!({ "Deleted": found.id }));
        let parent = self.parent_of(&found.id).await?;
        self.forget_step(&found.id).await?;
        removed.extend(self.delete_unused_parents(parent).await?);
        Ok(removed)
    }

    /// Deletes the images that an image was built of, as far as they have no name and nothing else needs them.
    async fn delete_unused_parents(&self, parent: Option<String>) -> Result<Vec<Value>> {
        let (mut removed, mut next) = (Vec::new(), parent);
        while let Some(id) = next.take() {
            let Ok(found) = self.image(&id).await else { break };
            let is_needed = !found.tags().is_empty()
                || found.names.iter().any(|image| !image.name.starts_with("moby-dangling@"))
                || self.parents().await?.contains(&id)
                || !self.users_of(&id).is_empty();
            if is_needed {
                break;
            }
            for image in &found.names {
                self.parts.names.delete(&self.context, &image.name, None).await?;
            }
            self.image_event("delete", &id, "");
            removed.push(json!({ "Deleted": id }));
            next = self.parent_of(&id).await?;
            self.forget_step(&id).await?;
        }
        Ok(removed)
    }

    /// `docker image prune`.
    pub async fn prune_images(&self, filters: &Filters) -> Result<Value> {
        let only_dangling = filters.flag("dangling")?.unwrap_or(true);
        let until = filters.until()?;
        let (mut removed, mut freed) = (Vec::new(), 0);
        let parents = self.parents().await?;
        for found in self.images().await? {
            let labels = found.labels();
            if found.tags().is_empty() && parents.contains(&found.id) {
                continue;
            }
            let is_old = until.is_none_or(|until| {
                crate::docker::container::state::parse(found.created()).is_none_or(|created| created < until)
            });
            let is_wanted = (!only_dangling || found.tags().is_empty())
                && is_old
                && filters.accepts_labels("label", &labels)
                && filters.refuses_no_label("label!", &labels)
                && self.users_of(&found.id).is_empty();
            if is_wanted {
                freed += self.image_size(&found).await;
                removed.extend(self.delete_image(&found).await?);
            }
        }
        self.image_event("prune", "", "");
        Ok(
            json!({ "ImagesDeleted": if removed.is_empty() { Value::Null } else { json!(removed) }, "SpaceReclaimed": freed }),
        )
    }
}
