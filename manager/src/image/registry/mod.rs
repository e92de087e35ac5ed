//! Talks to registries (OCI distribution specification 1.1) over HTTP and HTTPS.

mod account;
pub mod auth;
mod blob;
pub mod challenge;
mod connect;
mod failure;
pub(super) mod hosts;
mod limits;
mod place;
mod referrers;
mod round;
mod tls;
mod trust;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response};
use tokio::sync::Semaphore;

use self::auth::Authorization;
pub use self::auth::{Credential, Credentials};
pub use self::blob::BlobReader;
use self::connect::Clients;
pub use self::failure::why;
use self::hosts::Capabilities;
use self::place::{Ask, Place};
pub use self::referrers::Referrer;
use self::round::{ATTEMPTS, Round};
pub use self::trust::Trust;
pub use self::upload::Source;
use super::manifest::{Descriptor, MAX_DOCUMENT};
use super::media;
use super::progress::Progress;
use super::reference::Reference;
use crate::content::digest::Digest;

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
    /// How many parts of large blobs are fetched at once, over all blobs; each waits in memory for its turn. Below 2, every
    /// blob is fetched in one piece.
    pub ranges: usize,
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
    /// Mirrors and registries that need not prove who they are.
    pub trust: Arc<Trust>,
}

/// Registries, and the connections that are kept to them.
pub struct Registries {
    hosts: PathBuf,
    clients: Arc<Clients>,
    parts: Arc<Semaphore>,
    ranges: usize,
}

impl Registries {
    /// Registries with nothing connected yet.
    pub fn new(settings: Settings) -> Self {
        Registries {
            clients: Arc::new(Clients::new(settings.connect_timeout, settings.stall_timeout)),
            parts: Arc::new(Semaphore::new(settings.ranges)),
            ranges: settings.ranges,
            hosts: settings.hosts,
        }
    }

    /// A repository of a registry. Nothing is sent yet; what the registry has to say goes to `progress`.
    pub fn repository(
        &self,
        reference: &Reference,
        access: Access,
        progress: &Arc<Progress>,
    ) -> Result<Repository> {
        let directory = access.hosts.as_deref().unwrap_or(&self.hosts);
        let mut headers = HeaderMap::new();
        for (name, value) in &access.headers {
            let invalid =
                || Error::because(Kind::InvalidArgument, "use header", name.clone(), "it is not valid");
            let value = HeaderValue::from_str(value).map_err(|_| invalid())?;
            headers.append(HeaderName::try_from(name.as_str()).map_err(|_| invalid())?, value);
        }
        let mut places = Vec::new();
        let endpoints = hosts::endpoints(Some(directory), reference, access.scheme.as_deref())?;
        for endpoint in access.trust.applied(reference, endpoints)? {
            let is_mirror = endpoint.host != reference.host() && endpoint.host != reference.domain();
            places.push(Place::new(
                endpoint,
                reference.path(),
                is_mirror.then(|| reference.domain().to_owned()),
                headers.clone(),
                Authorization::new(reference, access.credentials.clone()),
                self.clients.clone(),
                progress.clone(),
            )?);
        }
        Ok(Repository {
            reference: reference.clone(),
            distrusted: places.iter().map(|_| AtomicBool::new(false)).collect(),
            places,
            chosen: AtomicUsize::new(0),
            parts: self.parts.clone(),
            ranges: self.ranges,
        })
    }
}

/// A repository of a registry.
pub struct Repository {
    reference: Reference,
    places: Vec<Place>,
    /// The place that served last.
    chosen: AtomicUsize,
    /// Of each place, whether it sent something else than was asked for.
    distrusted: Vec<AtomicBool>,
    parts: Arc<Semaphore>,
    ranges: usize,
}

impl Repository {
    /// Which repository, and which object of it was named.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The places that may do it, from `first` on.
    fn round(&self, operation: &'static str, first: usize, may: impl Fn(Capabilities) -> bool) -> Round<'_> {
        let why = "no host is configured for it";
        let none = Error::because(Kind::Unavailable, operation, self.reference.to_string(), why);
        let is_trusted = |index: usize| !self.distrusted[index].load(Ordering::Relaxed);
        let may = |index: usize| is_trusted(index) && may(self.places[index].endpoint.capabilities);
        Round::new(&self.places, &self.chosen, first, may, none)
    }

    /// Asks none of these places again, unless no other host would be left. Says whether there is one.
    pub fn distrust(&self, places: &[usize]) -> bool {
        let host = |index: usize| self.places[index].endpoint.host.as_str();
        let wrong: Vec<&str> = places.iter().map(|index| host(*index)).collect();
        if wrong.is_empty() || self.hosts().all(|host| wrong.contains(&host)) {
            return false;
        }
        for (index, distrusted) in self.distrusted.iter().enumerate() {
            if wrong.contains(&host(index)) {
                distrusted.store(true, Ordering::Relaxed);
            }
        }
        true
    }

    /// Whether there is more than one host to pull from.
    pub fn has_others(&self) -> bool {
        let first = self.hosts().next();
        self.hosts().any(|host| Some(host) != first)
    }

    /// The hosts that may be pulled from.
    fn hosts(&self) -> impl Iterator<Item = &str> {
        let places = self.places.iter().zip(&self.distrusted);
        let may = places.filter(|(place, distrusted)| {
            place.endpoint.capabilities.pull && !distrusted.load(Ordering::Relaxed)
        });
        may.map(|(place, _)| place.endpoint.host.as_str())
    }

    /// How many places are asked no more.
    pub fn distrusted(&self) -> usize {
        self.distrusted.iter().filter(|place| place.load(Ordering::Relaxed)).count()
    }

    /// Asks the places that may be pulled from, the one that served last before the others; says which one answered.
    async fn fetch(&self, ask: &Ask<'_>) -> Result<(Response, usize)> {
        let first = self.chosen.load(Ordering::Relaxed);
        let mut round = self.round(ask.operation, first, |may| may.pull);
        loop {
            let (place, attempts) = round.next()?;
            match place.send(ask, attempts).await {
                Ok(response) => return Ok((response, round.served())),
                Err(error) => round.failed(error),
            }
        }
    }

    /// Turns away from the place that served last, if another host may be pulled from.
    fn pass_on(&self) -> bool {
        let (count, chosen) = (self.places.len(), self.chosen.load(Ordering::Relaxed));
        let is_other = |place: &Place| {
            place.endpoint.capabilities.pull && place.endpoint.host != self.places[chosen].endpoint.host
        };
        let next = (1..count)
            .map(|step| (chosen + step) % count)
            .find(|index| is_other(&self.places[*index]) && !self.distrusted[*index].load(Ordering::Relaxed));
        if let Some(next) = next {
            self.chosen.store(next, Ordering::Relaxed);
        }
        next.is_some()
    }

    /// The descriptor that the reference's tag or digest means.
    ///
    /// Every place is asked in turn; the first that knows serves the rest of the pull.
    pub async fn resolve(&self) -> Result<Descriptor> {
        let is_pinned = self.reference.digest().is_some();
        let may = |may: Capabilities| may.pull && (is_pinned || may.resolve);
        let mut round = self.round("resolve", 0, may);
        loop {
            let (place, attempts) = round.next()?;
            match self.resolve_at(place, attempts).await {
                Ok(descriptor) => {
                    round.served();
                    return Ok(descriptor);
                }
                Err(error) => round.failed(error),
            }
        }
    }

    async fn resolve_at(&self, place: &Place, attempts: u32) -> Result<Descriptor> {
        let name = self.reference.to_string();
        let mut ask = Ask::get("resolve", &name, format!("manifests/{}", self.reference.object()));
        ask.headers = accept_manifests();
        ask.method = Method::HEAD;
        let response = place.send(&ask, attempts).await?;
        let digest = text(response.headers(), CONTENT_DIGEST).and_then(|digest| Digest::parse(digest).ok());
        let size = text(response.headers(), CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let wanted = self.reference.digest().map(Digest::parse).transpose()?;
        let descriptor = match (digest, size, media_type(response.headers())) {
            (Some(digest), Some(size), Some(media_type)) => {
                Descriptor { digest, size, ..Descriptor::of(media_type, b"") }
            }
            // Not every registry tells by headers alone.
            _ => {
                ask.method = Method::GET;
                let (headers, body) = place.read(&ask, attempts, MAX_DOCUMENT).await?;
                Descriptor::of(media_type(&headers).unwrap_or_default(), &body)
            }
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != descriptor.digest) {
            let why = format!("the registry answered with digest {} for {wanted}", descriptor.digest);
            return Err(Error::because(Kind::FailedPrecondition, "resolve", name, why));
        }
        Ok(descriptor)
    }

    /// The descriptor of a blob of which the digest alone is known.
    pub async fn resolve_blob(&self, digest: &Digest) -> Result<Descriptor> {
        let name = self.reference.to_string();
        let mut ask = Ask::get("resolve", &name, format!("blobs/{digest}"));
        ask.method = Method::HEAD;
        let (response, _) = self.fetch(&ask).await?;
        let size = text(response.headers(), CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let size = size.ok_or_else(|| {
            let why = "the registry does not say how long it is";
            Error::because(Kind::FailedPrecondition, "resolve", name.clone(), why)
        })?;
        Ok(Descriptor { digest: digest.clone(), size, ..Descriptor::of("", b"") })
    }

    /// The bytes of a manifest or index, of the length and digest that the descriptor says.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes> {
        let digest = &descriptor.digest;
        if descriptor.size > MAX_DOCUMENT {
            let why = format!("{} bytes are more than a manifest may have", descriptor.size);
            return Err(Error::because(Kind::ResourceExhausted, "fetch manifest", digest.to_string(), why));
        }
        let mut ask = Ask::get("fetch manifest", digest.as_str(), format!("manifests/{digest}"));
        ask.headers = accept_manifests();
        let first = self.chosen.load(Ordering::Relaxed);
        let mut round = self.round(ask.operation, first, |may| may.pull);
        loop {
            let (place, attempts) = round.next()?;
            match manifest_at(place, attempts, &ask, digest).await {
                Ok(body) => {
                    round.served();
                    return Ok(body);
                }
                Err(error) => round.failed(error),
            }
        }
    }

    /// A reader of a blob, from an offset on.
    pub fn blob(self: &Arc<Self>, descriptor: &Descriptor, offset: u64) -> BlobReader {
        BlobReader::new(self.clone(), descriptor, offset)
    }

    fn place(&self) -> &Place {
        &self.places[self.chosen.load(Ordering::Relaxed)]
    }
}

/// A manifest as a place has it, which need not be what was asked for.
async fn manifest_at(place: &Place, attempts: u32, ask: &Ask<'_>, digest: &Digest) -> Result<Bytes> {
    let (_, body) = place.read(ask, attempts, MAX_DOCUMENT).await?;
    let got = Digest::of_bytes(&body);
    if got.algorithm() == digest.algorithm() && got != *digest {
        let why = format!("the registry answered with other content, digest {got}");
        return Err(Error::because(Kind::FailedPrecondition, ask.operation, digest.to_string(), why));
    }
    Ok(body)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn media_type(headers: &HeaderMap) -> Option<&str> {
    text(headers, CONTENT_TYPE).map(media::bare).filter(|media_type| !media_type.is_empty())
}

fn accept_manifests() -> HeaderMap {
    let value = HeaderValue::from_str(&format!("{}, */*", MANIFESTS.join(", ")));
    value.map(|value| (ACCEPT, value)).into_iter().collect()
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
