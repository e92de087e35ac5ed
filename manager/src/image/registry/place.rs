//! One place that serves a repository, and requests to it: who we are, where it sends us, when to try again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION};
use reqwest::{Body, Client, Method, Response, StatusCode, Url};

use super::auth::{Authorization, Scope};
use super::connect::Clients;
use super::hosts::Endpoint;
use super::{failure, limits, read_limited, read_some};
use crate::image::progress::Progress;

/// The pause after the first failure; it doubles with each.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause that a registry may ask for: a longer one is an error that says so.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// From this pause on the user is told what is waited for.
const TOLD_PAUSE: Duration = Duration::from_secs(1);
/// How often a registry may send us elsewhere for one request.
const MAX_REDIRECTS: u32 = 10;

/// What is asked of a repository.
#[derive(Clone)]
pub(super) struct Ask<'a> {
    /// What is being done, for messages.
    pub operation: &'static str,
    /// What to, for messages.
    pub object: &'a str,
    pub method: Method,
    /// What follows the repository's name in the path.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// What a token must allow.
    pub scope: Scope,
}

impl<'a> Ask<'a> {
    pub(super) fn get(operation: &'static str, object: &'a str, target: String) -> Ask<'a> {
        Ask {
            operation,
            object,
            method: Method::GET,
            target,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            scope: Scope::pull(),
        }
    }
}

/// One place that serves the repository.
pub(super) struct Place {
    pub endpoint: Endpoint,
    clients: Arc<Clients>,
    client: Client,
    /// URL of the repository, without a slash at its end.
    base: Url,
    /// The registry that a mirror stands for (`ns`), as containerd says it.
    namespace: Option<String>,
    headers: HeaderMap,
    authorization: Authorization,
    progress: Arc<Progress>,
}

impl Place {
    pub(super) fn new(
        endpoint: Endpoint,
        path: &str,
        namespace: Option<String>,
        mut headers: HeaderMap,
        authorization: Authorization,
        clients: Arc<Clients>,
        progress: Arc<Progress>,
    ) -> Result<Place> {
        let text = format!("{}://{}{}/{path}", endpoint.scheme, endpoint.host, endpoint.path);
        let base = Url::parse(text.trim_end_matches('/'))
            .map_err(|error| Error::because(Kind::InvalidArgument, "use registry", text, error))?;
        // The host's own headers replace the client's.
        headers.extend(endpoint.headers.clone());
        let client = clients.to(&endpoint)?;
        Ok(Place { endpoint, clients, client, base, namespace, headers, authorization, progress })
    }

    /// Connections for a URL outside of the repository, and whether it is this place's own.
    pub(super) fn client_for(&self, url: &Url) -> Result<(Client, bool)> {
        match self.is_own(url) {
            true => Ok((self.client.clone(), true)),
            false => self
                .clients
                .beyond(&self.endpoint, url.host_str().unwrap_or_default())
                .map(|client| (client, false)),
        }
    }

    /// Whether a URL is of this place, which may know who we are. From HTTP to HTTPS a host stays the same.
    fn is_own(&self, url: &Url) -> bool {
        let is_same_port = self.base.port_or_known_default() == url.port_or_known_default();
        let is_upgrade = self.base.scheme() == "http"
            && url.scheme() == "https"
            && (self.base.port(), url.port()) == (None, None);
        self.base.host() == url.host() && ((self.base.scheme() == url.scheme() && is_same_port) || is_upgrade)
    }

    fn url(&self, target: &str) -> Url {
        let mut url = self.base.clone();
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("{}/{path}", self.base.path()));
        url.set_query(query);
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Whether a registry answers there, to whomever.
    pub(super) async fn answers(&self) -> bool {
        let Endpoint { scheme, host, path, .. } = &self.endpoint;
        let Ok(url) = Url::parse(&format!("{scheme}://{host}{path}/")) else { return false };
        let answer = self.request(&Ask::get("look for", host, String::new()), url, None).await;
        answer.is_ok_and(|answer| answer.status().is_success() || answer.status() == StatusCode::UNAUTHORIZED)
    }

    /// Asks until the place grants it, refuses for good or has failed too often; answers other than success are errors.
    /// Only for what may be asked twice.
    pub(super) async fn send(&self, ask: &Ask<'_>, attempts: u32) -> Result<Response> {
        let url = self.url(&ask.target);
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let (failed, wait) = match self.exchange(ask, &url).await {
                Ok(response) if response.status().is_success() => {
                    self.tell_limit(response.headers()).await;
                    return Ok(response);
                }
                Ok(response) => {
                    let status = response.status();
                    let wait = limits::retry_after(response.headers(), SystemTime::now());
                    let left = limits::left(response.headers());
                    let body = read_some(response).await;
                    let error = failure::answer(ask.operation, ask.object, status, &body);
                    let error = match status {
                        StatusCode::TOO_MANY_REQUESTS => failure::limited(error, left, wait),
                        _ => error,
                    };
                    if !is_transient(status) || wait.is_some_and(|wait| wait > LONGEST_PAUSE) {
                        return Err(error);
                    }
                    if attempt < attempts && wait.unwrap_or(pause) >= TOLD_PAUSE {
                        let wait = limits::words(wait.unwrap_or(pause));
                        let note = format!("{} answered {status}: waiting {wait}", self.endpoint.host);
                        self.progress.note(&note, "").await;
                    }
                    (error, wait)
                }
                // Who hangs once will hang again; nobody listening may be a restart.
                Err(error) if error.kind() != Kind::Unavailable => return Err(error),
                Err(error) => (error, None),
            };
            if attempt >= attempts {
                return Err(failed);
            }
            attempt += 1;
            tokio::time::sleep(wait.unwrap_or(pause)).await;
            pause *= 2;
        }
    }

    /// Asks, and reads the answer whole; one that breaks off is asked for again.
    pub(super) async fn read(&self, ask: &Ask<'_>, attempts: u32, limit: u64) -> Result<(HeaderMap, Bytes)> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let response = self.send(ask, attempts).await?;
            let headers = response.headers().clone();
            match read_limited(response, ask.operation, ask.object, limit).await {
                Ok(body) => return Ok((headers, body)),
                Err(error) if error.kind() != Kind::Unavailable || attempt >= attempts => return Err(error),
                Err(_) => {}
            }
            attempt += 1;
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Tells of a limit that is nearly reached.
    async fn tell_limit(&self, headers: &HeaderMap) {
        if let Some((0..=10, text)) = limits::left(headers) {
            self.progress.note(&format!("{}: {text}", self.endpoint.host), "").await;
        }
    }

    /// Asks once, and once more with authorization where the place wants it.
    async fn exchange(&self, ask: &Ask<'_>, url: &Url) -> Result<Response> {
        let response = self.follow(ask, url).await?;
        // Whoever we were sent to is not asked who it wants us to be.
        if response.status() != StatusCode::UNAUTHORIZED || !self.is_own(response.url()) {
            return Ok(response);
        }
        let challenges: Vec<String> = response
            .headers()
            .get_all(reqwest::header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        if !self.authorization.answer(self, &challenges, &ask.scope).await? {
            return Ok(response);
        }
        self.follow(ask, url).await
    }

    /// Asks, and goes where the place says, without what says who we are.
    async fn follow(&self, ask: &Ask<'_>, url: &Url) -> Result<Response> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let body = (!ask.body.is_empty()).then(|| Body::from(ask.body.clone()));
            let response = self.request(ask, url.clone(), body).await?;
            let may_follow =
                matches!(ask.method, Method::GET | Method::HEAD) && response.status().is_redirection();
            let next = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            match next.and_then(|next| response.url().join(next).ok()).filter(|_| may_follow) {
                Some(next) if matches!(next.scheme(), "http" | "https") => url = next,
                _ => return Ok(response),
            }
        }
        let why = format!("{} sends us from one place to another", self.endpoint.host);
        Err(Error::because(Kind::Unavailable, ask.operation, ask.object, why))
    }

    /// Sends one request; with what says who we are if it goes to this place itself.
    pub(super) async fn request(&self, ask: &Ask<'_>, url: Url, body: Option<Body>) -> Result<Response> {
        let (client, is_own) = self.client_for(&url)?;
        let mut request = client.request(ask.method.clone(), url).headers(ask.headers.clone());
        if is_own {
            request = request.headers(self.headers.clone());
            if let Some(header) = self.authorization.header(&ask.scope) {
                request = request.header(AUTHORIZATION, header);
            }
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        request.send().await.map_err(|error| failure::connection(ask.operation, ask.object, error))
    }
}

fn is_transient(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::INTERNAL_SERVER_ERROR
    )
}
