//! The end points below `/images`.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde_json::json;

use super::list::FILTERS;
use super::remove::PRUNE_FILTERS;
use crate::docker::Engine;
use crate::docker::failure::Result;
use crate::docker::filters::Filters;
use crate::docker::message::{self, Reply, Request};
use crate::docker::route::page_not_found;

/// Answers a request. Names of images have slashes, so the last segment says what is wanted.
pub async fn answer(engine: Engine, request: Request) -> Result<Reply> {
    let path = request.path.clone();
    let segments: Vec<&str> = path.iter().skip(1).map(String::as_str).collect();
    let query = &request.query;
    match (request.method.clone(), segments.as_slice()) {
        (Method::GET, ["json"]) => {
            let filters = Filters::parse(query.get("filters"), &FILTERS)?;
            let used: BTreeMap<String, i64> = engine.images_in_use();
            Ok(message::ok(
                &engine.list_images(&filters, &used, query.flag("all"), query.flag("manifests")).await?,
            ))
        }
        (Method::POST, ["create"]) if query.filled("fromSrc").is_some() => engine.import_image(request).await,
        (Method::POST, ["create"]) => engine.pull_image(&request).await,
        (Method::POST, ["load"]) => engine.load_images(request).await,
        (Method::POST, ["prune"]) => {
            let filters = Filters::parse(query.get("filters"), &PRUNE_FILTERS)?;
            Ok(message::ok(&engine.prune_images(&filters).await?))
        }
        (Method::GET, ["get"]) => {
            let names: Vec<String> =
                query.all("names").flat_map(|all| all.split(',')).map(str::to_owned).collect();
            engine.save_images(&names, query.get("platform")).await
        }
        (Method::GET, ["search"]) => engine.search_images(&request).await,
        (Method::GET, [name @ .., "get"]) => {
            engine.save_images(&[name.join("/")], query.get("platform")).await
        }
        (Method::GET, [name @ .., "json"]) => {
            let found = engine.image(&name.join("/")).await?;
            Ok(message::ok(&engine.inspect_image(&found, query.flag("manifests")).await))
        }
        (Method::GET, [name @ .., "history"]) => {
            let found = engine.image(&name.join("/")).await?;
            Ok(message::ok(&engine.image_history(&found).await))
        }
        (Method::POST, [name @ .., "tag"]) => {
            let repository = query.filled("repo").unwrap_or_default();
            engine.tag_image(&name.join("/"), repository, query.get("tag").unwrap_or_default()).await?;
            Ok(message::empty(StatusCode::CREATED))
        }
        (Method::POST, [name @ .., "push"]) => engine.push_image(&name.join("/"), &request).await,
        (Method::DELETE, name) if !name.is_empty() => {
            Ok(message::ok(&json!(engine.remove_image(&name.join("/"), query.flag("force")).await?)))
        }
        _ => Err(page_not_found()),
    }
}
