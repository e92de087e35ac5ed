//! What clients are told of images: lists, details, histories.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::found::{Found, repository};
use crate::docker::Engine;
use crate::docker::container::state::parse;
use crate::docker::failure::Result;
use crate::docker::filters::Filters;

/// The fields by which images can be filtered.
pub const FILTERS: [&str; 7] = ["before", "dangling", "label", "label!", "reference", "since", "until"];

/// Seconds since 1970 of a time in an image's configuration.
pub fn seconds(text: &str) -> i64 {
    let since = parse(text).and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_secs() as i64)
}

/// Whether a pattern (`*`, `?`) matches a name, as Go's `path.Match` does for the patterns that people write.
pub fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.chars().next(), name.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            let rest = &pattern[1..];
            let mut at = 0;
            loop {
                if matches(rest, &name[at..]) {
                    return true;
                }
                match name[at..].chars().next() {
                    Some(letter) if letter != '/' => at += letter.len_utf8(),
                    _ => return false,
                }
            }
        }
        (Some('?'), Some(letter)) if letter != '/' => matches(&pattern[1..], &name[letter.len_utf8()..]),
        (Some(wanted), Some(letter)) if wanted == letter => {
            matches(&pattern[wanted.len_utf8()..], &name[letter.len_utf8()..])
        }
        _ => false,
    }
}

/// Whether a filter `reference` chooses a name.
fn is_reference(pattern: &str, name: &str) -> bool {
    let last = repository(name);
    matches(pattern, name)
        || matches(pattern, last)
        || last.rsplit('/').next().is_some_and(|base| matches(pattern, base))
}

impl Engine {
    /// The images that filters choose, as `docker images` lists them.
    /// Those that others were built of and that have no name are shown where all are asked for.
    pub async fn list_images(
        &self,
        filters: &Filters,
        used: &BTreeMap<String, i64>,
        all: bool,
        with_parts: bool,
    ) -> Result<Vec<Value>> {
        let images = self.images().await?;
        let parents = if all { HashSet::new() } else { self.parents().await? };
        let edge = |field: &str| {
            let names = filters.values(field).iter();
            names.map(|name| self.image(name)).collect::<Vec<_>>()
        };
        let (mut before, mut since) = (None::<i64>, None::<i64>);
        for found in edge("before") {
            before = Some(seconds(found.await?.created()));
        }
        for found in edge("since") {
            since = Some(seconds(found.await?.created()));
        }
        let is_dangling = filters.flag("dangling")?;
        let until = filters.until()?;
        let mut listed = Vec::new();
        for found in images {
            let created = seconds(found.created());
            let labels = found.labels();
            let (mut tags, mut digests) = (found.tags(), found.digests());
            if tags.is_empty() && parents.contains(&found.id) {
                continue;
            }
            let is_wanted = filters.accepts_labels("label", &labels)
                && filters.refuses_no_label("label!", &labels)
                && before.is_none_or(|edge| created < edge)
                && since.is_none_or(|edge| created > edge)
                && until.is_none_or(|edge| parse(found.created()).is_none_or(|created| created < edge))
                && is_dangling.is_none_or(|wanted| tags.is_empty() == wanted);
            if !is_wanted {
                continue;
            }
            if !filters.values("reference").is_empty() {
                tags.retain(|tag| filters.accepts("reference", |pattern| is_reference(pattern, tag)));
                digests
                    .retain(|digest| filters.accepts("reference", |pattern| is_reference(pattern, digest)));
                if tags.is_empty() && digests.is_empty() {
                    continue;
                }
            }
            let size = self.image_size(&found).await;
            let mut document = json!({
                "Containers": used.get(&found.id).copied().unwrap_or(0),
                "Created": created,
                "Id": found.id,
                "Labels": if labels.is_empty() { Value::Null } else { json!(labels) },
                "ParentId": self.parent_of(&found.id).await?.unwrap_or_default(),
                "RepoDigests": digests,
                "RepoTags": tags,
                "SharedSize": -1,
                "Size": size,
                "VirtualSize": size,
                "Descriptor": found.root(),
            });
            if with_parts && let Some(image) = found.names.first() {
                document["Manifests"] = json!(self.parts_of(image).await);
            }
            listed.push(document);
        }
        Ok(listed)
    }

    /// An image in all detail.
    pub async fn inspect_image(&self, found: &Found, with_parts: bool) -> Value {
        let size = self.image_size(found).await;
        let text = |name: &str| found.document[name].as_str().unwrap_or_default().to_owned();
        let mut config = json!(found.config());
        // As it is stored: an image without labels may say so in two ways.
        if found.document["config"]["Labels"].is_null() {
            config["Labels"] = Value::Null;
        }
        let mut details = json!({
            "Id": found.id,
            "RepoTags": found.tags(),
            "RepoDigests": found.digests(),
            "Parent": self.parent_of(&found.id).await.ok().flatten().unwrap_or_default(),
            "Comment": found.document["history"].as_array().and_then(|all| all.last()?["comment"].as_str()).unwrap_or_default(),
            "Created": text("created"),
            "DockerVersion": text("docker_version"),
            "Author": text("author"),
            "Config": config,
            "Architecture": text("architecture"),
            "Os": text("os"),
            "Size": size,
            "VirtualSize": size,
            "GraphDriver": { "Data": null, "Name": "overlayfs" },
            "RootFS": { "Type": "layers", "Layers": found.diff_ids() },
            "Metadata": { "LastTagTime": "0001-01-01T00:00:00Z" },
        });
        details["Descriptor"] = found.root();
        if with_parts && let Some(image) = found.names.first() {
            details["Manifests"] = json!(self.parts_of(image).await);
        }
        if let Some(variant) = found.document["variant"].as_str().filter(|variant| !variant.is_empty()) {
            details["Variant"] = json!(variant);
        }
        details
    }

    /// The steps by which an image was made, the last first.
    pub async fn image_history(&self, found: &Found) -> Vec<Value> {
        let chain = crate::image::manifest::chain_ids(&found.diff_ids());
        let mut layers = chain.iter();
        let mut steps = Vec::new();
        for step in found.document["history"].as_array().into_iter().flatten() {
            let is_empty = step["empty_layer"].as_bool().unwrap_or(false);
            let size = match (is_empty, if is_empty { None } else { layers.next() }) {
                (false, Some(name)) => {
                    let snapshotter = crate::image::DEFAULT_SNAPSHOTTER;
                    self.parts
                        .snapshots
                        .usage(&self.context, snapshotter, name)
                        .await
                        .map_or(0, |usage| usage.size)
                }
                _ => 0,
            };
            steps.push(json!({
                "Id": "<missing>",
                "Created": seconds(step["created"].as_str().unwrap_or_default()),
                "CreatedBy": step["created_by"].as_str().unwrap_or_default(),
                "Tags": null,
                "Size": size,
                "Comment": step["comment"].as_str().unwrap_or_default(),
            }));
        }
        if let Some(last) = steps.last_mut() {
            last["Id"] = json!(found.id);
            last["Tags"] = json!(found.tags());
        }
        steps.reverse();
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, name, is_match) in [
            ("busy*", "busybox", true),
            ("busy*", "a/busybox", false),
            ("*/busy?ox", "a/busybox", true),
            ("busybox", "busybox2", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), is_match, "{pattern} {name}");
        }
        assert!(is_reference("busybox", "busybox:latest"));
        assert!(is_reference("localhost:5000/x", "localhost:5000/x:1"));
        assert!(!is_reference("other", "busybox:latest"));
    }

    #[test]
    fn times_become_seconds() {
        assert_eq!(seconds("1970-01-01T00:01:00Z"), 60);
        assert_eq!(seconds(""), 0);
    }
}
