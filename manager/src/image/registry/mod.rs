//! Talks to registries (OCI distribution specification 1.1) over HTTP and HTTPS.

mod auth;
mod blob;
pub mod challenge;
mod failure;
mod hosts;
mod upload;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};

use self::auth::Authorization;
pub use self::auth::{Credential, Credentials};
pub use self::blob::BlobReader;
use self::hosts::Endpoint;
use super::manifest::{Descriptor, MAX_DOCUMENT};
use super::media;
use super::reference::{Reference, is_loopback};
use crate::content::digest::Digest;

/// How often an idempotent request is made at most.
const ATTEMPTS: u32 = 5;
/// The pause after the first failure; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause that a registry may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest error answer that is read, in bytes.
const MAX_ERROR: usize = 16 << 10;
/// What is accepted as a manifest, as containerd asks.
const MANIFESTS: [&str; 4] =
    [media::DOCKER_MANIFEST, media::DOCKER_INDEX, media::OCI_MANIFEST, media::OCI_INDEX];
/// Header with a manifest's digest.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What concerns every registry.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time for a connection to be made.
    pub connect_timeout: Duration,
    /// Time without a byte after which a registry counts as hanging.
    pub stall_timeout: Duration,
    /// Directory of `HOST/hosts.toml` files.
    pub hosts: PathBuf,
}

/// How one client wants a registry to be reached.
#[derive(Clone, Default)]
pub struct Access {
    /// `http` or `https`, unless the host's name says which.
    pub scheme: Option<String>,
    /// Directory of `HOST/hosts.toml` files, instead of the daemon's.
    pub hosts: Option<PathBuf>,
    /// Headers to send with every request.
    pub headers: Vec<(String, String)>,
    /// Who is asking.
    pub credentials: Option<Arc<dyn Credentials>>,
}

/// Registries, and the connections that are kept to them.
pub struct Registries {
    settings: Settings,
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
}

/// What a connection may not be shared across.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    is_loopback: bool,
    skip_verify: bool,
    authorities: Vec<PathBuf>,
}

impl Registries {
    /// Registries with nothing connected yet.
    pub fn new(settings: Settings) -> Self {
        // reqwest is built without a provider of its own. An error means that one is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Registries { settings, clients: Mutex::new(HashMap::new()) }
    }

    /// A repository of a registry. Nothing is sent yet.
    pub fn repository(&self, reference: &Reference, access: Access) -> Result<Repository> {
        let directory = access.hosts.as_deref().unwrap_or(&self.settings.hosts);
        let endpoints = hosts::endpoints(Some(directory), reference.host(), access.scheme.as_deref())?;
        let mut places = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            places.push(Place { client: self.client(&endpoint)?, endpoint });
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &access.headers {
            let invalid =
                || Error::because(Kind::InvalidArgument, "use header", name.clone(), "it is not valid");
            let value = HeaderValue::from_str(value).map_err(|_| invalid())?;
            headers.append(HeaderName::try_from(name.as_str()).map_err(|_| invalid())?, value);
        }
        Ok(Repository {
            reference: reference.clone(),
            places,
            chosen: Mutex::new(0),
            headers,
            authorization: Authorization::new(reference, access.credentials),
        })
    }

    fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client> {
        let key = ClientKey {
            is_loopback: is_loopback(&endpoint.host),
            skip_verify: endpoint.skip_verify,
            authorities: endpoint.authorities.clone(),
        };
        if let Some(client) = self.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(&key)?;
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, key: &ClientKey) -> Result<reqwest::Client> {
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("orlop/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(self.settings.connect_timeout)
                .read_timeout(self.settings.stall_timeout)
                .tls_danger_accept_invalid_certs(key.skip_verify);
            // This machine is not reached through a proxy.
            if key.is_loopback { builder.no_proxy() } else { builder }
        };
        let mut certificates = Vec::new();
        for path in &key.authorities {
            let pem = std::fs::read(path).context("read", path.display().to_string())?;
            let parsed = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| {
                Error::because(Kind::InvalidArgument, "read certificates", path.display().to_string(), error)
            })?;
            certificates.extend(parsed);
        }
        let built = match builder().tls_certs_merge(certificates.clone()).build() {
            // A machine without certificates of its own can still speak plain HTTP, and trust the given ones.
            Err(_) => builder().tls_certs_only(certificates).build(),
            built => built,
        };
        built.map_err(|error| failure::connection("set up", "TLS", error))
    }
}

/// One place that serves the repository.
struct Place {
    client: reqwest::Client,
    endpoint: Endpoint,
}

/// A repository of a registry.
pub struct Repository {
    reference: Reference,
    places: Vec<Place>,
    /// The place that answered for the reference.
    chosen: Mutex<usize>,
    headers: HeaderMap,
    authorization: Authorization,
}

impl Repository {
    /// Which repository, and which object of it was named.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The descriptor that the reference's tag or digest means.
    ///
    /// Every place is asked in turn; the first that knows serves the rest of the pull.
    pub async fn resolve(&self) -> Result<Descriptor> {
        let mut first_error = None;
        for (index, place) in self.places.iter().enumerate() {
            let capabilities = place.endpoint.capabilities;
            if !capabilities.pull || (self.reference.digest().is_none() && !capabilities.resolve) {
                continue;
            }
            *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) = index;
            match self.resolve_at(place).await {
                Ok(descriptor) => return Ok(descriptor),
                // A place that hangs or refuses is no reason to try the same registry over another protocol.
                Err(error) if matches!(error.kind(), Kind::DeadlineExceeded | Kind::Unauthenticated) => {
                    return Err(first_error.unwrap_or(error));
                }
                // The registry itself comes last, and knows best why; but HTTP is tried before HTTPS on this machine.
                Err(error) if first_error.is_none() || error.kind() == Kind::NotFound => {
                    first_error = Some(error)
                }
                Err(_) => {}
            }
        }
        Err(first_error.unwrap_or_else(|| {
            Error::because(
                Kind::Unavailable,
                "resolve",
                self.reference.to_string(),
                "no host is configured for it",
            )
        }))
    }

    async fn resolve_at(&self, place: &Place) -> Result<Descriptor> {
        let object = self.reference.object();
        let url = self.url(place, &format!("manifests/{object}"));
        let name = self.reference.to_string();
        let response = self.send("resolve", &name, Method::HEAD, &url, accept_manifests).await?;
        let header = |key: HeaderName| response.headers().get(key).and_then(|value| value.to_str().ok());
        let digest = header(CONTENT_DIGEST).and_then(|digest| Digest::parse(digest).ok());
        let media_type = media::bare(header(CONTENT_TYPE).unwrap_or_default()).to_owned();
        let size = header(CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let wanted = self.reference.digest().map(Digest::parse).transpose()?;
        let descriptor = match (digest, size) {
            (Some(digest), Some(size)) if !media_type.is_empty() => Descriptor {
                size,
                digest,
                media_type,
                urls: Vec::new(),
                annotations: Default::default(),
                platform: None,
            },
            // Not every registry tells by headers alone.
            _ => {
                let response = self.send("resolve", &name, Method::GET, &url, accept_manifests).await?;
                let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let media_type = media::bare(media_type.unwrap_or_default()).to_owned();
                let body = read_limited(response, "resolve", &name, MAX_DOCUMENT).await?;
                Descriptor::of(&media_type, &body)
            }
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != descriptor.digest) {
            let why = format!("the registry answered with digest {} for {wanted}", descriptor.digest);
            return Err(Error::because(Kind::FailedPrecondition, "resolve", name, why));
        }
        Ok(descriptor)
    }

    /// The bytes of a manifest or index, of the length and digest that the descriptor says.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes> {
        let digest = &descriptor.digest;
        if descriptor.size > MAX_DOCUMENT {
            let why = format!("{} bytes are more than a manifest may have", descriptor.size);
            return Err(Error::because(Kind::ResourceExhausted, "fetch manifest", digest.to_string(), why));
        }
        let url = self.url(self.place(), &format!("manifests/{digest}"));
        let response =
            self.send("fetch manifest", digest.as_str(), Method::GET, &url, accept_manifests).await?;
        let body = read_limited(response, "fetch manifest", digest.as_str(), MAX_DOCUMENT).await?;
        let got = Digest::of_bytes(&body);
        if got.algorithm() == digest.algorithm() && got != *digest {
            let why = format!("the registry answered with other content, digest {got}");
            return Err(Error::because(Kind::FailedPrecondition, "fetch manifest", digest.to_string(), why));
        }
        Ok(body)
    }

    /// A reader of a blob, from an offset on.
    pub fn blob(self: &Arc<Self>, descriptor: &Descriptor, offset: u64) -> BlobReader {
        BlobReader::new(self.clone(), descriptor, offset)
    }

    fn place(&self) -> &Place {
        let chosen = *self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        &self.places[chosen]
    }

    fn url(&self, place: &Place, rest: &str) -> String {
        let Endpoint { scheme, host, path, .. } = &place.endpoint;
        format!("{scheme}://{host}{path}/{}/{rest}", self.reference.path())
    }

    /// Makes a request until it succeeds, fails for good or has failed too often; answers other than success are
    /// errors. Only for requests that may be made twice.
    async fn send(
        &self,
        operation: &'static str,
        object: &str,
        method: Method,
        url: &str,
        complete: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let failed = match self.exchange(operation, object, method.clone(), url, &complete).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let status = response.status();
                    let wanted_pause = retry_after(&response);
                    let body = read_some(response).await;
                    let error = failure::answer(operation, object, status, &body);
                    let is_transient = matches!(
                        status,
                        StatusCode::TOO_MANY_REQUESTS
                            | StatusCode::REQUEST_TIMEOUT
                            | StatusCode::BAD_GATEWAY
                            | StatusCode::SERVICE_UNAVAILABLE
                            | StatusCode::GATEWAY_TIMEOUT
                            | StatusCode::INTERNAL_SERVER_ERROR
                    );
                    if !is_transient {
                        return Err(error);
                    }
                    pause = wanted_pause.unwrap_or(pause).min(LONGEST_PAUSE);
                    error
                }
                // Who hangs once will hang again; nobody listening may be a restart.
                Err(error) if error.kind() != Kind::Unavailable => return Err(error),
                Err(error) => error,
            };
            if attempt == ATTEMPTS {
                return Err(failed);
            }
            attempt += 1;
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Makes a request once, and once more with authorization where the registry asks for it.
    async fn exchange(
        &self,
        operation: &'static str,
        object: &str,
        method: Method,
        url: &str,
        complete: &impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response> {
        let place = self.place();
        let actions = if method == Method::GET || method == Method::HEAD { "pull" } else { "pull,push" };
        let request = || {
            let request = place.client.request(method.clone(), url).headers(self.headers.clone());
            let request = complete(request);
            match self.authorization.header(actions) {
                Some(header) => request.header(reqwest::header::AUTHORIZATION, header),
                None => request,
            }
        };
        let failed = |error| failure::connection(operation, object, error);
        let response = request().send().await.map_err(failed)?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges: Vec<String> = response
            .headers()
            .get_all(reqwest::header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        if !self.authorization.answer(place, &challenges, actions).await? {
            return Ok(response);
        }
        request().send().await.map_err(failed)
    }
}

fn accept_manifests(request: RequestBuilder) -> RequestBuilder {
    request.header(ACCEPT, format!("{}, */*", MANIFESTS.join(", ")))
}

/// How long a registry asks to wait, in seconds.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Reads an answer whole, up to a limit.
async fn read_limited(
    mut response: Response,
    operation: &'static str,
    object: &str,
    limit: u64,
) -> Result<Bytes> {
    let mut body = BytesMut::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| failure::connection(operation, object, error))?
    {
        if (body.len() + chunk.len()) as u64 > limit {
            let why = format!("the answer is longer than {limit} bytes");
            return Err(Error::because(Kind::ResourceExhausted, operation, object, why));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The start of an error answer, as far as it can be had.
async fn read_some(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ERROR {
            break;
        }
    }
    body
}
