//! `docker import`: an image of one layer from an archive of files.

use std::sync::Arc;
use std::time::SystemTime;

use orlop_proto::contract::time::rfc3339_nano;
use serde_json::{Value, json};
use tokio::io::AsyncRead;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tokio_util::sync::CancellationToken;

use super::found::{dangling, normal};
use super::transfer::wanted_platform;
use crate::db::blocking;
use crate::docker::Engine;
use crate::docker::build::apply_all;
use crate::docker::container::config::Config;
use crate::docker::container::fresh_id;
use crate::docker::errand::while_awaited;
use crate::docker::failure::{Failure, Result};
use crate::docker::fetch;
use crate::docker::message::{self, Reply, Request};
use crate::image::diff::DiffRequest;
use crate::image::unpack::apply;
use crate::image::{DEFAULT_SNAPSHOTTER, Job, mounts};
use crate::labels::Labels;
use crate::request::RequestContext;

/// An archive on its way in.
type Input = Box<dyn AsyncRead + Send + Unpin>;

impl Engine {
    /// Makes an image of the archive in the body, or at a URL.
    ///
    /// # Errors
    ///
    /// 400 for changes, names and platforms that are none; those of the archive. Nothing is left, also when the client goes.
    pub async fn import_image(&self, request: Request) -> Result<Reply> {
        let engine = self.clone();
        while_awaited(|stop| async move { engine.import(request, stop).await }).await
    }

    async fn import(&self, request: Request, stop: CancellationToken) -> Result<Reply> {
        let query = request.query.clone();
        let source = query.filled("fromSrc").unwrap_or_default().to_owned();
        let name = match (query.filled("repo"), query.filled("tag")) {
            (Some(repository), Some(tag)) => Some(normal(&format!("{repository}:{tag}"))?),
            (Some(repository), None) => Some(normal(repository)?),
            (None, _) => None,
        };
        let changes: Vec<String> = query.all("changes").map(str::to_owned).collect();
        let config = apply_all(Config::default(), &changes)?;
        let platform = wanted_platform(query.get("platform"))?;
        let comment = match query.filled("message") {
            Some(message) => message.to_owned(),
            None => format!("Imported from {source}"),
        };
        let now = rfc3339_nano(SystemTime::now());
        let mut document = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "created": now,
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        if !platform.variant.is_empty() {
            document["variant"] = json!(platform.variant);
        }
        let step = json!({ "created": now, "comment": comment });
        let input: Input = match source.as_str() {
            "-" => Box::new(request.into_reader()),
            url => {
                let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
                let response = fetch::get(&url, &stop).await?;
                Box::new(StreamReader::new(fetch::body(response, stop.clone())))
            }
        };
        let leased = self.parts.images.begin_lease(&self.context).await?;
        let done = async {
            let (target, id) = self.import_files(&leased, stop, input, document, step).await?;
            let name = name.clone().unwrap_or_else(|| dangling(&target.digest));
            self.name_image(&name, &target).await?;
            Ok::<_, Failure>(id)
        }
        .await;
        self.parts.images.end_lease(&leased).await?;
        let id = done?;
        self.image_event("import", &id, "");
        Ok(message::bytes(http::StatusCode::OK, "application/json", message::line(&json!({ "status": id }))))
    }

    /// Unpacks an archive and makes a layer of what it holds.
    async fn import_files(
        &self,
        leased: &RequestContext,
        stop: CancellationToken,
        input: Input,
        mut document: Value,
        step: Value,
    ) -> Result<(crate::store::images::Descriptor, String)> {
        let snapshots = &self.parts.snapshots;
        let key = format!("import-{}", fresh_id()?);
        let place = snapshots.prepare(leased, DEFAULT_SNAPSHOTTER, &key, "", Labels::new()).await?;
        let input = SyncIoBridge::new(input);
        let right = place.clone();
        let unpacked = blocking(move || apply(input, mounts::target(&place)?)).await;
        let made = match unpacked {
            Ok(_) => {
                let request = DiffRequest { right, ..DiffRequest::default() };
                let job = Job { context: leased.clone(), progress: Arc::default(), cancel: stop };
                let images = &self.parts.images;
                let made = images
                    .add_layer(&job, request, Vec::new(), DEFAULT_SNAPSHOTTER, &mut document, step)
                    .await;
                made.map_err(Failure::from)
            }
            Err(error) => Err(Failure::from(error)),
        };
        snapshots.remove(leased, DEFAULT_SNAPSHOTTER, &key).await?;
        let made = made?;
        Ok((made.target, made.config.to_string()))
    }
}
