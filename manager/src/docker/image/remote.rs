//! What registries say of images that need not be here: search, and `/distribution`.

use http::Method;
use orlop_proto::kind::Kind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::found::{familiar, normal};
use super::transfer::AuthConfig;
use crate::docker::Engine;
use crate::docker::auth::registry;
use crate::docker::failure::{Failure, Result};
use crate::docker::filters::Filters;
use crate::docker::message::{self, Reply, Request};
use crate::docker::route::page_not_found;

/// Filters of a search.
const FILTERS: [&str; 3] = ["is-automated", "is-official", "stars"];
/// How many results there are, unless a client wants another number.
const RESULTS: u32 = 25;
/// The most results that a client may want.
const MOST_RESULTS: u32 = 100;

/// One image that was found.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Hit {
    star_count: i64,
    is_official: bool,
    name: String,
    is_automated: bool,
    description: Option<String>,
}

/// What a registry answers.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Hits {
    results: Vec<Hit>,
}

/// The registry of a term (`localhost:5000/word`) and the word to look for.
fn split(term: &str) -> (&str, &str) {
    match term.split_once('/') {
        Some((host, word)) if host.contains(['.', ':']) || host == "localhost" => (registry(host), word),
        _ => ("docker.io", term),
    }
}

impl Engine {
    /// `docker search`.
    pub(super) async fn search_images(&self, request: &Request) -> Result<Reply> {
        let term = request.query.get("term").unwrap_or_default();
        let limit = request.query.number::<u32>("limit")?.filter(|&limit| limit > 0).unwrap_or(RESULTS);
        if limit > MOST_RESULTS {
            return Err(Failure::invalid(format!(
                "limit {limit} is outside the range of [1, {MOST_RESULTS}]"
            )));
        }
        if term.contains("://") {
            return Err(Failure::invalid(format!(
                "invalid repository name: repository name ({term}) should not have a scheme"
            )));
        }
        let filters = Filters::parse(request.query.get("filters"), &FILTERS)?;
        let official = filters.flag("is-official")?;
        let stars = filters.values("stars").iter().map(|text| {
            text.parse::<i64>().map_err(|_| Failure::invalid(format!("invalid filter 'stars={text}'")))
        });
        let stars = stars.collect::<Result<Vec<i64>>>()?.into_iter().max().unwrap_or(0);
        // Whether an image was built by a machine is not known any more.
        if filters.flag("is-automated")? == Some(true) {
            return Ok(message::ok(&json!([])));
        }
        let (host, word) = split(term);
        let word = if host == "docker.io" { word.strip_prefix("library/").unwrap_or(word) } else { word };
        let access = AuthConfig::of(request).access(self);
        let said = self.parts.images.search(host, word, limit, access).await;
        let said = said.map_err(|error| Failure::internal(error.to_string()))?;
        let found: Hits = serde_json::from_slice(&said)
            .map_err(|error| Failure::internal(format!("search {host}: {error}")))?;
        let chosen: Vec<Hit> = found
            .results
            .into_iter()
            .filter(|hit| official.is_none_or(|wanted| wanted == hit.is_official) && hit.star_count >= stars)
            .map(|hit| Hit { is_automated: false, ..hit })
            .collect();
        Ok(message::ok(&chosen))
    }
}

/// Answers `GET /distribution/NAME/json`.
pub async fn distribution(engine: Engine, request: Request) -> Result<Reply> {
    let segments = request.segments();
    let (&Method::GET, [_, name @ .., "json"]) = (&request.method, segments.as_slice()) else {
        return Err(page_not_found());
    };
    let name = name.join("/");
    if name.len() == 64 && name.chars().all(|letter| letter.is_ascii_hexdigit()) {
        return Err(Failure::invalid(format!("unknown image reference format: {name}")));
    }
    let full = normal(&name)?;
    let access = AuthConfig::of(&request).access(&engine);
    let (root, platforms) = engine.parts.images.look_up(&full, access).await.map_err(|error| {
        let shown = familiar(&full);
        match error.kind() {
            Kind::NotFound => Failure::not_found(format!("manifest unknown: {shown}")),
            Kind::Unauthenticated | Kind::PermissionDenied => {
                Failure::new(http::StatusCode::UNAUTHORIZED, format!("access to {shown} denied: {error}"))
            }
            _ => Failure::from(error),
        }
    })?;
    let platforms: Vec<Value> = platforms
        .iter()
        .map(|platform| {
            let mut shown = json!({ "architecture": platform.architecture, "os": platform.os });
            if !platform.variant.is_empty() {
                shown["variant"] = json!(platform.variant);
            }
            shown
        })
        .collect();
    let descriptor =
        json!({ "mediaType": root.media_type, "digest": root.digest.as_str(), "size": root.size });
    Ok(message::ok(&json!({ "Descriptor": descriptor, "Platforms": platforms })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_may_name_a_registry() {
        assert_eq!(split("busybox"), ("docker.io", "busybox"));
        assert_eq!(split("user/app"), ("docker.io", "user/app"));
        assert_eq!(split("localhost/app"), ("localhost", "app"));
        assert_eq!(split("127.0.0.1:5000/a/b"), ("127.0.0.1:5000", "a/b"));
    }
}
