//! Uploads blobs and manifests.
//!
//! A blob goes in one request: each further one costs the registry what it writes about the upload. Where that breaks off, a
//! large blob is gone on with as a stream (PATCH), as far as the registry can tell where that was; a registry that takes no
//! requests of that size gets it in chunks.

use std::time::Duration;

use bytes::Bytes;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use reqwest::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Body, Method, Response, StatusCode, Url};

use super::auth::Scope;
use super::place::{Ask, FIRST_PAUSE, Place};
use super::{ATTEMPTS, Repository, failure, read_some};
use crate::content::digest::Digest;
use crate::image::manifest::Descriptor;

/// What is being done, for messages.
const OPERATION: &str = "upload";
/// From this size on a blob is gone on with where it broke, in bytes.
const LARGE: u64 = 4 << 20;
/// The chunks for a registry that refuses larger requests, in bytes.
const CHUNK: u64 = 32 << 20;
/// The least that a registry takes in a chunk but the last, in bytes.
const CHUNK_MINIMUM: HeaderName = HeaderName::from_static("oci-chunk-min-length");
/// A registry says by this header that it keeps the list of a subject's referrers itself.
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// Where an upload reads a blob from, as often as it must.
pub trait Source: Send + Sync {
    /// A body of the bytes from `offset` on, `length` of them.
    fn open(&self, offset: u64, length: u64) -> Body;
}

impl Repository {
    /// Chooses the place that takes uploads: of several, the first that serves a registry at all (a host may be known by
    /// plain HTTP and by HTTPS, and speak one of them).
    pub async fn choose_for_push(&self) -> Result<()> {
        let takes = |index: &usize| self.places[*index].endpoint.capabilities.push;
        let candidates: Vec<usize> = (0..self.places.len()).filter(takes).collect();
        let Some(mut index) = candidates.first().copied() else {
            let why = "no host takes uploads";
            return Err(Error::because(Kind::FailedPrecondition, "push", self.reference.to_string(), why));
        };
        if candidates.len() > 1 {
            for candidate in candidates {
                if self.places[candidate].answers().await {
                    index = candidate;
                    break;
                }
            }
        }
        self.chosen.store(index, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    /// Whether the repository has a blob.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        Ok(self.look_for(format!("blobs/{digest}"), digest).await?.is_some())
    }

    /// Whether the repository has a manifest or index.
    pub async fn has_manifest(&self, digest: &Digest) -> Result<bool> {
        Ok(self.look_for(format!("manifests/{digest}"), digest).await?.is_some())
    }

    /// Whether a tag or digest means this manifest or index already.
    pub async fn is_manifest(&self, object: &str, digest: &Digest) -> Result<bool> {
        let found = self.look_for(format!("manifests/{object}"), digest).await?;
        Ok(found.is_some_and(|headers| super::text(&headers, super::CONTENT_DIGEST) == Some(digest.as_str())))
    }

    async fn look_for(&self, target: String, digest: &Digest) -> Result<Option<HeaderMap>> {
        let mut ask = Ask::get("look for", digest.as_str(), target);
        ask.headers = super::accept_manifests();
        ask.method = Method::HEAD;
        ask.scope = Scope::push();
        match self.place().send(&ask, ATTEMPTS).await {
            Ok(response) => Ok(Some(response.headers().clone())),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Starts an upload, or takes the blob over from another repository of the same registry: then there is nothing
    /// to upload, and `None` is returned.
    pub async fn start_upload(&self, digest: &Digest, from: Option<&str>) -> Result<Option<Upload<'_>>> {
        let place = self.place();
        let mut ask = Ask::get(OPERATION, digest.as_str(), "blobs/uploads/".to_owned());
        ask.method = Method::POST;
        ask.scope = Scope::push();
        ask.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let mut started = None;
        if let Some(from) = from {
            let mut mount = ask.clone();
            mount.target = format!("blobs/uploads/?mount={digest}&from={from}");
            mount.scope = Scope::push_from(from);
            match place.send(&mount, ATTEMPTS).await {
                Ok(response) => started = Some(response),
                // Who may push here need not be let into the neighbour.
                Err(error)
                    if matches!(
                        error.kind(),
                        Kind::Unauthenticated | Kind::PermissionDenied | Kind::NotFound | Kind::Unknown
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        let response = match started {
            Some(response) => response,
            None => place.send(&ask, ATTEMPTS).await?,
        };
        if response.status() == StatusCode::CREATED {
            return Ok(None);
        }
        let location = location(&response).ok_or_else(|| {
            Error::because(Kind::Unknown, OPERATION, digest.to_string(), "the registry does not say where to")
        })?;
        let minimum =
            response.headers().get(CHUNK_MINIMUM).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Some(Upload { place, location, chunk_minimum: minimum.unwrap_or(0) }))
    }

    /// Puts a manifest or index under a tag or its digest. Whether the registry notes by itself that it refers to a
    /// subject.
    pub async fn put_manifest(&self, object: &str, descriptor: &Descriptor, bytes: Bytes) -> Result<bool> {
        let mut ask = Ask::get("push manifest", descriptor.digest.as_str(), format!("manifests/{object}"));
        ask.method = Method::PUT;
        ask.scope = Scope::push();
        ask.body = bytes;
        let media_type = HeaderValue::from_str(&descriptor.media_type).map_err(|_| {
            let why = format!("media type {:?} is not valid", descriptor.media_type);
            Error::because(Kind::InvalidArgument, "push manifest", descriptor.digest.to_string(), why)
        })?;
        ask.headers.insert(CONTENT_TYPE, media_type);
        let response = self.place().send(&ask, ATTEMPTS).await?;
        Ok(response.headers().contains_key(SUBJECT))
    }
}

/// Where an answer sends us; a relative location is relative to what was asked.
fn location(response: &Response) -> Option<Url> {
    let text = response.headers().get(LOCATION)?.to_str().ok()?;
    let url = response.url().join(text).ok()?;
    matches!(url.scheme(), "http" | "https").then_some(url)
}

/// An upload that a registry waits for.
pub struct Upload<'a> {
    place: &'a Place,
    location: Url,
    chunk_minimum: u64,
}

impl Upload<'_> {
    /// Sends the blob.
    ///
    /// # Errors
    /// `Unavailable` where it broke off and the registry cannot go on with it: a new upload may be started.
    pub async fn send(mut self, descriptor: &Descriptor, source: &dyn Source) -> Result<()> {
        let failed = match self.finish(descriptor, source.open(0, descriptor.size), descriptor.size).await {
            Ok(response) if response.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let chunk = CHUNK.max(self.chunk_minimum);
                if descriptor.size <= chunk {
                    return self.outcome(descriptor, response).await;
                }
                return self.stream(descriptor, source, 0, chunk).await;
            }
            Ok(response) => self.outcome(descriptor, response).await,
            Err(error) => Err(error),
        };
        match failed {
            Err(error) if error.kind() == Kind::Unavailable && descriptor.size >= LARGE => {
                let offset = self.progress(descriptor).await?.filter(|offset| *offset > 0).ok_or(error)?;
                match self.stream(descriptor, source, offset, u64::MAX).await {
                    // One that knows no PATCH, or this upload no more, gets a new one.
                    Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unimplemented) => {
                        Err(Error::exactly(Kind::Unavailable, error.to_string()))
                    }
                    result => result,
                }
            }
            result => result,
        }
    }

    /// The request that ends the upload, with what is left of the blob.
    async fn finish(&self, descriptor: &Descriptor, body: Body, length: u64) -> Result<Response> {
        let mut url = self.location.clone();
        url.query_pairs_mut().append_pair("digest", descriptor.digest.as_str());
        self.request(descriptor, Method::PUT, url, sized(length), Some(body)).await
    }

    /// What the end of an upload came to.
    async fn outcome(&self, descriptor: &Descriptor, response: Response) -> Result<()> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let body = read_some(response).await;
        Err(failure::answer(OPERATION, descriptor.digest.as_str(), status, &body))
    }

    /// Sends the bytes from an offset on in requests of at most `chunk` bytes, and ends the upload.
    async fn stream(
        &mut self,
        descriptor: &Descriptor,
        source: &dyn Source,
        mut offset: u64,
        mut chunk: u64,
    ) -> Result<()> {
        let (mut failures, mut pause) = (0, FIRST_PAUSE);
        while offset < descriptor.size {
            let length = chunk.min(descriptor.size - offset);
            let mut headers = sized(length);
            let range = HeaderValue::from_str(&format!("{offset}-{}", offset + length - 1));
            headers.extend(range.map(|range| (CONTENT_RANGE, range)));
            let body = source.open(offset, length);
            let sent =
                self.request(descriptor, Method::PATCH, self.location.clone(), headers, Some(body)).await;
            let failed = match sent {
                Ok(response) if response.status().is_success() => {
                    self.location = location(&response).unwrap_or_else(|| self.location.clone());
                    (failures, pause) = (0, FIRST_PAUSE);
                    offset += length;
                    continue;
                }
                Ok(response) if response.status() == StatusCode::PAYLOAD_TOO_LARGE && chunk == u64::MAX => {
                    chunk = CHUNK.max(self.chunk_minimum);
                    continue;
                }
                Ok(response) => {
                    let status = response.status();
                    let body = read_some(response).await;
                    failure::answer(OPERATION, descriptor.digest.as_str(), status, &body)
                }
                Err(error) => error,
            };
            failures += 1;
            if failures == ATTEMPTS || failed.kind() != Kind::Unavailable {
                return Err(failed);
            }
            pause = wait(pause).await;
            // Where the registry cannot say how much it has, the blob is sent again from its start by a new upload.
            offset = self.progress(descriptor).await?.ok_or(failed)?;
        }
        let response = self.finish(descriptor, Body::from(Bytes::new()), 0).await?;
        self.outcome(descriptor, response).await
    }

    /// How many bytes the registry has, if it can say.
    async fn progress(&mut self, descriptor: &Descriptor) -> Result<Option<u64>> {
        let response =
            self.request(descriptor, Method::GET, self.location.clone(), HeaderMap::new(), None).await?;
        if response.status() != StatusCode::NO_CONTENT {
            return Ok(None);
        }
        if let Some(next) = location(&response) {
            self.location = next;
        }
        let range = response.headers().get(RANGE).and_then(|value| value.to_str().ok());
        Ok(match range {
            None => Some(0),
            Some(range) => range.trim_start_matches("bytes=").strip_prefix("0-").and_then(|last| {
                let last: u64 = last.parse().ok()?;
                // Nothing at all is said as 0-0 too, by some, and by others as one byte: sending one twice is refused.
                let count = if last == 0 { 0 } else { last.checked_add(1)? };
                (count <= descriptor.size).then_some(count)
            }),
        })
    }

    async fn request(
        &self,
        descriptor: &Descriptor,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<Body>,
    ) -> Result<Response> {
        let mut ask = Ask::get(OPERATION, descriptor.digest.as_str(), String::new());
        (ask.method, ask.headers, ask.scope) = (method, headers, Scope::push());
        self.place.request(&ask, url, body).await
    }
}

/// The headers of a body of that length.
fn sized(length: u64) -> HeaderMap {
    [
        (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (CONTENT_LENGTH, HeaderValue::from(length)),
    ]
    .into_iter()
    .collect()
}

async fn wait(pause: Duration) -> Duration {
    tokio::time::sleep(pause).await;
    pause * 2
}
