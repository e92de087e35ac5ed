//! The end points below `/volumes`.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use orlop_proto::contract::time::rfc3339;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Engine;
use super::failure::Result;
use super::filters::Filters;
use super::message::{ApiVersion, Reply, Request, json, no_content, ok};
use super::route::page_not_found;
use crate::volume::{Definition, LOCAL, Volume};

/// Filters of the list.
const LIST_FILTERS: [&str; 4] = ["dangling", "driver", "label", "name"];
/// Filters of prune.
const PRUNE_FILTERS: [&str; 3] = ["label", "label!", "all"];
/// From this version on only volumes without a name are pruned, unless all are asked for.
const ANONYMOUS_ONLY: ApiVersion = ApiVersion(1, 42);

/// The body of `POST /volumes/create`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateBody {
    name: String,
    driver: String,
    driver_opts: BTreeMap<String, String>,
    labels: Option<BTreeMap<String, String>>,
}

/// Answers a request.
pub async fn answer(engine: Engine, request: Request) -> Result<Reply> {
    let path = request.path.clone();
    let segments: Vec<&str> = path.iter().map(String::as_str).collect();
    match (&request.method, &segments[1..]) {
        (&Method::GET, []) => list(&engine, &request).await,
        (&Method::POST, ["create"]) => create(&engine, request).await,
        (&Method::POST, ["prune"]) => prune(&engine, &request).await,
        (&Method::GET, [name]) => {
            let volume = engine.volumes.get(name).await?;
            Ok(ok(&shown(&engine, &volume)))
        }
        (&Method::DELETE, [name]) => remove(&engine, &request, name).await,
        _ => Err(page_not_found()),
    }
}

/// A volume as the API shows it.
pub fn shown(engine: &Engine, volume: &Volume) -> Value {
    let created = std::time::SystemTime::try_from(volume.created_at).unwrap_or(std::time::UNIX_EPOCH);
    let options = if volume.options.is_empty() { Value::Null } else { json!(volume.options) };
    let mut labels = volume.labels.clone();
    if volume.anonymous {
        labels.insert("com.docker.volume.anonymous".to_owned(), String::new());
    }
    let labels = if labels.is_empty() && !volume.has_labels { Value::Null } else { json!(labels) };
    json!({
        "CreatedAt": rfc3339(created),
        "Driver": LOCAL,
        "Labels": labels,
        "Mountpoint": engine.volumes.data(&volume.name).display().to_string(),
        "Name": volume.name,
        "Options": options,
        "Scope": "local",
    })
}

fn tell(engine: &Engine, name: &str, action: &str) {
    engine.events.tell("volume", action, name, BTreeMap::from([("driver".to_owned(), LOCAL.to_owned())]));
}

async fn list(engine: &Engine, request: &Request) -> Result<Reply> {
    let filters = Filters::parse(request.query.get("filters"), &LIST_FILTERS)?;
    let dangling = filters.flag("dangling")?;
    let is_chosen = |volume: &&Volume| {
        filters.accepts("driver", |wanted| wanted == LOCAL)
            && filters.accepts("name", |wanted| volume.name.contains(wanted))
            && filters.accepts_labels("label", &volume.labels)
            && dangling.is_none_or(|dangling| dangling == engine.users_of_volume(&volume.name).is_empty())
    };
    let all = engine.volumes.list().await?;
    let shown: Vec<Value> = all.iter().filter(is_chosen).map(|volume| shown(engine, volume)).collect();
    Ok(ok(&json!({ "Volumes": shown, "Warnings": null })))
}

async fn create(engine: &Engine, request: Request) -> Result<Reply> {
    let body: CreateBody = request.json_or_nothing().await?.unwrap_or_default();
    let definition =
        Definition { name: body.name, driver: body.driver, labels: body.labels, options: body.driver_opts };
    let (volume, is_new) = engine.volumes.create(definition).await?;
    if is_new {
        tell(engine, &volume.name, "create");
    }
    Ok(json(StatusCode::CREATED, &shown(engine, &volume)))
}

async fn remove(engine: &Engine, request: &Request, name: &str) -> Result<Reply> {
    match engine.volumes.remove(name, &engine.users_of_volume(name)).await {
        Err(error) if error.kind() == orlop_proto::kind::Kind::NotFound && request.query.flag("force") => {
            return Ok(no_content());
        }
        result => result?,
    }
    tell(engine, name, "destroy");
    Ok(no_content())
}

async fn prune(engine: &Engine, request: &Request) -> Result<Reply> {
    let filters = Filters::parse(request.query.get("filters"), &PRUNE_FILTERS)?;
    let all = filters.flag("all")?.unwrap_or(request.version < ANONYMOUS_ONLY);
    let (mut removed, mut freed) = (Vec::new(), 0);
    for volume in engine.volumes.list().await? {
        let is_chosen = (all || volume.anonymous)
            && engine.users_of_volume(&volume.name).is_empty()
            && filters.accepts_labels("label", &volume.labels)
            && filters.refuses_no_label("label!", &volume.labels);
        if !is_chosen {
            continue;
        }
        let size = engine.volumes.size(&volume.name).await.unwrap_or(0);
        if engine.volumes.remove(&volume.name, &[]).await.is_ok() {
            tell(engine, &volume.name, "destroy");
            freed += size;
            removed.push(volume.name);
        }
    }
    let removed = if removed.is_empty() { Value::Null } else { json!(removed) };
    Ok(ok(&json!({ "VolumesDeleted": removed, "SpaceReclaimed": freed })))
}
