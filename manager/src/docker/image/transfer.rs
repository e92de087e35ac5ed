//! Pulling, pushing, saving, loading and importing, with the streams of progress that clients show.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use orlop_proto::error::Error;
use orlop_proto::kind::Kind;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::CancellationToken;

use super::found::{familiar, normal, platform, repository};
use crate::docker::Engine;
use crate::docker::errand::while_awaited;
use crate::docker::failure::{Failure, Result};
use crate::docker::message::{self, Reply, Request};
use crate::image::manifest::Descriptor;
use crate::image::media::Role;
use crate::image::platform::Platform;
use crate::image::progress::{Event, Progress};
use crate::image::reference::Reference;
use crate::image::registry::auth::{Credential, Credentials};
use crate::image::registry::{Access, Trust};
use crate::image::{
    DEFAULT_SNAPSHOTTER, ExportRequest, ExtraName, ImportRequest, Job, PullRequest, PushRequest, Unpack,
};

/// Addresses of this machine.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
/// How many steps may wait for a client.
const STEPS: usize = 64;

/// Credentials as clients send them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AuthConfig {
    /// The user's name.
    pub username: String,
    /// The password.
    pub password: String,
    /// The registry.
    pub serveraddress: String,
    /// A token that gives tokens.
    pub identitytoken: String,
    /// A token for the registry itself.
    pub registrytoken: String,
    /// `user:password` in base64, in place of both.
    pub auth: String,
}

/// Credentials that came with a request.
struct Given(Credential);

impl Credentials for Given {
    fn get<'a>(
        &'a self,
        _host: &'a str,
        _reference: &'a str,
        _challenges: &'a [String],
    ) -> BoxFuture<'a, orlop_proto::error::Result<Credential>> {
        Box::pin(std::future::ready(Ok(self.0.clone())))
    }
}

impl AuthConfig {
    /// Reads the header `X-Registry-Auth`.
    pub fn of(request: &Request) -> AuthConfig {
        let header = request.headers.get("X-Registry-Auth").and_then(|value| value.to_str().ok());
        let decoded = header.and_then(|text| {
            [URL_SAFE, STANDARD, URL_SAFE_NO_PAD, STANDARD_NO_PAD]
                .iter()
                .find_map(|engine| engine.decode(text).ok())
        });
        // As dockerd: what cannot be read is nobody.
        decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// How to reach a registry with these.
    pub fn access(&self, engine: &Engine) -> Access {
        let settings = engine.settings();
        // As under dockerd, this machine is trusted.
        let own = LOOPBACK.iter().map(|&range| range.to_owned());
        let insecure = settings.insecure.iter().cloned().chain(own).collect();
        let trust = Trust { mirrors: settings.mirrors.clone(), insecure };
        Access { credentials: self.credentials(), trust: Arc::new(trust), ..Access::default() }
    }

    fn credentials(&self) -> Option<Arc<dyn Credentials>> {
        let (mut user, mut secret) = (self.username.clone(), self.password.clone());
        if let Some((name, word)) = STANDARD
            .decode(&self.auth)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.split_once(':').map(|(name, word)| (name.to_owned(), word.to_owned())))
        {
            (user, secret) = (name, word);
        }
        let credential = if !self.registrytoken.is_empty() {
            Credential::Header(format!("Bearer {}", self.registrytoken))
        } else if !self.identitytoken.is_empty() {
            Credential::Refresh(self.identitytoken.clone())
        } else if !user.is_empty() {
            Credential::Password { user, secret }
        } else {
            return None;
        };
        Some(Arc::new(Given(credential)))
    }
}

/// A platform as clients name it: `linux/arm64/v8`, or as JSON.
///
/// # Errors
///
/// 400 for anything else.
pub fn wanted_platform(text: Option<&str>) -> Result<Platform> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(platform()) };
    if text.starts_with('{') {
        return serde_json::from_str(text)
            .map_err(|error| Failure::invalid(format!("invalid platform: {error}")));
    }
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts.as_slice() {
        [os] if *os == "linux" => (*os, platform().architecture, ""),
        [architecture] => ("linux", (*architecture).to_owned(), ""),
        [os, architecture] => (*os, (*architecture).to_owned(), ""),
        [os, architecture, variant] => (*os, (*architecture).to_owned(), *variant),
        _ => return Err(Failure::invalid(format!("{text:?} is an invalid OS component"))),
    };
    Ok(Platform { os: os.to_owned(), architecture, variant: variant.to_owned() }.normalised())
}

fn short(descriptor: &Descriptor) -> String {
    let digest = descriptor.digest.as_str();
    digest.split_once(':').map_or(digest, |(_, hex)| hex).chars().take(12).collect()
}

fn step(status: &str, id: &str, current: u64, total: u64) -> Value {
    let detail = match (current, total) {
        (0, _) => json!({}),
        (current, 0) => json!({ "current": current }),
        (current, total) => json!({ "current": current, "total": total }),
    };
    json!({ "status": status, "progressDetail": detail, "id": id })
}

/// What a client shows of a step of a pull.
pub fn pull_step(event: &Event, seen: &mut HashSet<String>) -> Vec<Value> {
    let Some(descriptor) = event.descriptor.as_ref().filter(|descriptor| descriptor.role() == Role::Layer)
    else {
        return Vec::new();
    };
    let id = short(descriptor);
    let mut steps = Vec::new();
    if seen.insert(id.clone()) && event.event != "already exists" {
        steps.push(step("Pulling fs layer", &id, 0, 0));
    }
    match event.event.as_str() {
        "waiting" => steps.push(step("Waiting", &id, 0, 0)),
        "downloading" => steps.push(step("Downloading", &id, event.progress, event.total)),
        "complete" => steps.push(step("Download complete", &id, 0, 0)),
        "already exists" => steps.push(step("Already exists", &id, 0, 0)),
        "extracting" => steps.push(step("Extracting", &id, event.progress, event.total)),
        "extracted" => steps.push(step("Pull complete", &id, 0, 0)),
        _ => {}
    }
    steps
}

/// What a client shows of a step of a push.
fn push_step(event: &Event) -> Option<Value> {
    let descriptor = event.descriptor.as_ref().filter(|descriptor| descriptor.role() == Role::Layer)?;
    let id = short(descriptor);
    match event.event.as_str() {
        "waiting" => Some(step("Preparing", &id, 0, 0)),
        "uploading" => Some(step("Pushing", &id, event.progress, event.total)),
        "complete" => Some(step("Pushed", &id, 0, 0)),
        "already exists" => Some(step("Layer already exists", &id, 0, 0)),
        _ if event.event.starts_with("mounted") => Some(step("Mounted", &id, 0, 0)),
        _ => None,
    }
}

/// The last line of a stream that failed.
pub fn error_line(message: &str) -> Bytes {
    message::line(&json!({ "errorDetail": { "message": message }, "error": message }))
}

/// A failure of the same kind with the error's text.
fn error_failure(error: &Error) -> Failure {
    Error::exactly(error.kind(), error.to_string()).into()
}

/// dockerd's words for a registry that does not give an image.
pub fn pull_failure(error: &Error, name: &str) -> Failure {
    let shown = familiar(name);
    let text = match error.kind() {
        Kind::NotFound if error.to_string().contains("platform") => {
            format!("no matching manifest for the wanted platform in the manifest list entries: {error}")
        }
        Kind::NotFound => format!("manifest for {shown} not found: manifest unknown: manifest unknown"),
        Kind::Unauthenticated | Kind::PermissionDenied => format!(
            "pull access denied for {}, repository does not exist or may require 'docker login': {error}",
            repository(&shown)
        ),
        _ => return error_failure(error),
    };
    Failure::not_found(text)
}

impl Engine {
    /// Work of this engine's, and how it is given up.
    pub fn job(&self, progress: Progress) -> (Job, CancellationToken) {
        let cancel = CancellationToken::new();
        let job = Job { context: self.context.clone(), progress: Arc::new(progress), cancel: cancel.clone() };
        (job, cancel)
    }

    /// `docker pull`.
    pub async fn pull_image(&self, request: &Request) -> Result<Reply> {
        let query = &request.query;
        let from = query.filled("fromImage").unwrap_or_default();
        let name = normal(&match query.filled("tag") {
            Some(tag) if tag.contains(':') => format!("{}@{tag}", repository(from)),
            Some(tag) => format!("{from}:{tag}"),
            None => from.to_owned(),
        })?;
        let wanted = wanted_platform(query.get("platform"))?;
        let before = self.parts.names.get(&self.context, &name).await.ok();
        let (sender, mut steps) = mpsc::channel(STEPS);
        let (job, cancel) = self.job(Progress::to(sender));
        let pull = PullRequest {
            reference: name.clone(),
            access: AuthConfig::of(request).access(self),
            name: name.clone(),
            platforms: vec![wanted],
            unpacks: vec![Unpack { platform: None, snapshotter: DEFAULT_SNAPSHOTTER.to_owned() }],
            ..PullRequest::default()
        };
        let images = self.parts.images.clone();
        let mut working = tokio::spawn(async move { images.pull(&job, pull).await });
        let guard = cancel.drop_guard();
        let failed = |error: tokio::task::JoinError| Failure::internal(error.to_string());

        // Nothing is said until the registry has the image, so that its absence has a status.
        let mut first = Vec::new();
        let mut seen = HashSet::new();
        let mut finished = None;
        loop {
            tokio::select! {
                biased;
                Some(event) = steps.recv() => {
                    first = pull_step(&event, &mut seen);
                    if event.descriptor.is_some() {
                        break;
                    }
                }
                ended = &mut working => {
                    finished = Some(ended.map_err(failed)?.map_err(|error| pull_failure(&error, &name))?);
                    break;
                }
            }
        }
        let (reply, client) = message::channel("application/json");
        let engine = self.clone();
        tokio::spawn(async move {
            let _guard = guard;
            let say = async |value: Value| client.send(Ok(message::line(&value))).await.is_ok();
            let reference = Reference::parse(&name);
            let (path, tag) = match &reference {
                Ok(reference) => (reference.path(), reference.object()),
                Err(_) => (name.as_str(), ""),
            };
            say(json!({ "status": format!("Pulling from {path}"), "id": tag })).await;
            for value in first {
                say(value).await;
            }
            let pulled = loop {
                if let Some(pulled) = finished.take() {
                    break Ok(pulled);
                }
                tokio::select! {
                    biased;
                    Some(event) = steps.recv() => {
                        for value in pull_step(&event, &mut seen) {
                            if !say(value).await {
                                return;
                            }
                        }
                    }
                    () = client.closed() => return,
                    ended = &mut working => match ended {
                        Ok(Ok(pulled)) => break Ok(pulled),
                        Ok(Err(error)) => break Err(pull_failure(&error, &name).message),
                        Err(error) => break Err(error.to_string()),
                    },
                }
            };
            while let Ok(event) = steps.try_recv() {
                for value in pull_step(&event, &mut seen) {
                    say(value).await;
                }
            }
            match pulled {
                Ok(images) => {
                    let digest = images.first().map(|image| image.target.digest.clone()).unwrap_or_default();
                    let is_new = before.as_ref().is_none_or(|before| before.target.digest != digest);
                    engine.image_event("pull", &familiar(&name), repository(&familiar(&name)));
                    say(json!({ "status": format!("Digest: {digest}") })).await;
                    let shown = familiar(&name);
                    let status = if is_new {
                        format!("Status: Downloaded newer image for {shown}")
                    } else {
                        format!("Status: Image is up to date for {shown}")
                    };
                    say(json!({ "status": status })).await;
                }
                Err(text) => drop(client.send(Ok(error_line(&text))).await),
            }
        });
        Ok(reply)
    }

    /// `docker push`.
    pub async fn push_image(&self, name: &str, request: &Request) -> Result<Reply> {
        let full = normal(&match request.query.filled("tag") {
            Some(tag) => format!("{name}:{tag}"),
            None => name.to_owned(),
        })?;
        let image = self.parts.names.get(&self.context, &full).await;
        let image = image.map_err(|_| {
            Failure::not_found(format!(
                "An image does not exist locally with the tag: {}",
                repository(&familiar(&full))
            ))
        })?;
        let access = AuthConfig::of(request).access(self);
        let (sender, mut steps) = mpsc::channel(STEPS);
        let (job, cancel) = self.job(Progress::to(sender));
        let push = PushRequest { name: full.clone(), reference: full.clone(), access, platforms: Vec::new() };
        let here = PushRequest { platforms: vec![platform()], ..push.clone() };
        let images = self.parts.images.clone();
        let mut working = tokio::spawn(async move {
            match images.push(&job, push).await {
                // What was pulled for one platform is pushed for it.
                Err(error) if error.kind() == Kind::NotFound => images.push(&job, here).await,
                result => result,
            }
        });
        let (reply, client) = message::channel("application/json");
        let guard = cancel.drop_guard();
        let engine = self.clone();
        tokio::spawn(async move {
            let _guard = guard;
            let say = async |value: Value| client.send(Ok(message::line(&value))).await.is_ok();
            let shown = repository(&full).to_owned();
            say(json!({ "status": format!("The push refers to repository [{shown}]") })).await;
            let ended = loop {
                tokio::select! {
                    biased;
                    Some(event) = steps.recv() => {
                        if let Some(value) = push_step(&event)
                            && !say(value).await
                        {
                            return;
                        }
                    }
                    () = client.closed() => return,
                    ended = &mut working => break ended,
                }
            };
            while let Ok(event) = steps.try_recv() {
                if let Some(value) = push_step(&event) {
                    say(value).await;
                }
            }
            match ended {
                Ok(Ok(())) => {
                    let tag = full.rsplit_once(':').map_or("", |(_, tag)| tag).to_owned();
                    let digest = &image.target.digest;
                    let size = image.target.size;
                    say(json!({ "status": format!("{tag}: digest: {digest} size: {size}") })).await;
                    say(json!({ "progressDetail": {}, "aux": { "Tag": tag, "Digest": digest, "Size": size } })).await;
                    engine.image_event("push", &familiar(&full), repository(&familiar(&full)));
                }
                Ok(Err(error)) => drop(client.send(Ok(error_line(&error.to_string()))).await),
                Err(error) => drop(client.send(Ok(error_line(&error.to_string()))).await),
            }
        });
        Ok(reply)
    }

    /// `docker save`: for one platform where a client names it, and otherwise for all that are here.
    pub async fn save_images(&self, names: &[String], wanted: Option<&str>) -> Result<Reply> {
        let named = wanted.filter(|text| !text.is_empty());
        let platforms = named.map(|text| wanted_platform(Some(text))).transpose()?.into_iter().collect();
        let mut full = Vec::new();
        for name in names {
            let found = self.image(name).await?;
            let named = normal(name).ok().filter(|full| found.names.iter().any(|image| image.name == *full));
            // An ID has no name in the archive; any of the image's leads to it.
            full.extend(named.or_else(|| found.names.first().map(|image| image.name.clone())));
        }
        let (job, cancel) = self.job(Progress::default());
        let export = ExportRequest { names: full, platforms, ..ExportRequest::default() };
        let (reply, client) = message::channel("application/x-tar");
        let images = self.parts.images.clone();
        let output = ToClient(client.clone());
        let guard = cancel.drop_guard();
        tokio::spawn(async move {
            let _guard = guard;
            if let Err(error) =
                images.export(&job, export, io::BufWriter::with_capacity(64 << 10, output)).await
            {
                // A body that breaks off is the only way to say so now.
                let _ = client.send(Err(io::Error::other(error.to_string()))).await;
            }
        });
        Ok(reply)
    }

    /// `docker load`.
    pub async fn load_images(&self, request: Request) -> Result<Reply> {
        let engine = self.clone();
        while_awaited(|stop| async move { engine.load(request, stop).await }).await
    }

    async fn load(&self, request: Request, cancel: CancellationToken) -> Result<Reply> {
        let job = Job { context: self.context.clone(), progress: Arc::default(), cancel };
        let wanted = wanted_platform(request.query.get("platform"))?;
        let import = ImportRequest {
            extra_names: vec![ExtraName {
                // An image without a name is kept under its digest.
                name: "moby-dangling".to_owned(),
                is_prefix: true,
                allow_overwrite: true,
                add_digest: true,
                skip_named_digest: true,
            }],
            platforms: vec![wanted],
            unpacks: vec![Unpack { platform: None, snapshotter: DEFAULT_SNAPSHOTTER.to_owned() }],
            ..ImportRequest::default()
        };
        let input = SyncIoBridge::new(request.into_reader());
        let loaded = self.parts.images.import(&job, import, input).await?;
        let mut lines = Vec::new();
        for image in loaded {
            let found = self.resolve(&image).await?;
            let text = if image.name.contains('@') {
                format!("Loaded image ID: {}\n", found.id)
            } else {
                format!("Loaded image: {}\n", familiar(&image.name))
            };
            self.image_event("load", &found.id, &familiar(&image.name));
            lines.extend_from_slice(&message::line(&json!({ "stream": text })));
        }
        Ok(message::bytes(http::StatusCode::OK, "application/json", lines))
    }
}

/// Hands what is written to a client; blocks.
pub struct ToClient(pub mpsc::Sender<io::Result<Bytes>>);

impl Write for ToClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(word: &str, progress: u64) -> Event {
        let descriptor = Descriptor::of(crate::image::media::OCI_LAYER, b"x");
        Event {
            event: word.to_owned(),
            name: String::new(),
            parents: Vec::new(),
            progress,
            total: 10,
            descriptor: Some(descriptor),
        }
    }

    #[test]
    fn a_pull_is_shown_layer_by_layer() {
        let mut seen = HashSet::new();
        let first = pull_step(&event("downloading", 4), &mut seen);
        assert_eq!(first[0]["status"], "Pulling fs layer");
        assert_eq!(first[1]["progressDetail"], json!({ "current": 4, "total": 10 }));
        assert_eq!(pull_step(&event("extracted", 10), &mut seen)[0]["status"], "Pull complete");
        assert_eq!(push_step(&event("complete", 10)).unwrap()["status"], "Pushed");
    }

    #[test]
    fn platforms_have_forms() {
        assert_eq!(wanted_platform(Some("linux/arm64/v8")).unwrap().to_string(), "linux/arm64");
        assert_eq!(wanted_platform(Some("arm64")).unwrap().to_string(), "linux/arm64");
        assert_eq!(
            wanted_platform(Some(r#"{"os":"linux","architecture":"arm64"}"#)).unwrap().architecture,
            "arm64"
        );
        assert!(wanted_platform(Some("a/b/c/d")).is_err());
        assert_eq!(wanted_platform(None).unwrap(), platform());
    }
}
