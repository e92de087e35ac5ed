//! Uploads blobs and manifests.

use bytes::Bytes;
use futures_util::Stream;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, StatusCode, Url};

use super::{Place, Repository, failure, read_some};
use crate::content::digest::Digest;
use crate::image::manifest::Descriptor;

impl Repository {
    /// Chooses the place that takes uploads.
    pub fn choose_for_push(&self) -> Result<()> {
        let index =
            self.places.iter().position(|place| place.endpoint.capabilities.push).ok_or_else(|| {
                Error::because(
                    Kind::FailedPrecondition,
                    "push",
                    self.reference.to_string(),
                    "no host takes uploads",
                )
            })?;
        *self.chosen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = index;
        Ok(())
    }

    /// Whether the repository has a blob.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        self.has(&format!("blobs/{digest}"), digest).await
    }

    /// Whether the repository has a manifest or index.
    pub async fn has_manifest(&self, digest: &Digest) -> Result<bool> {
        self.has(&format!("manifests/{digest}"), digest).await
    }

    async fn has(&self, what: &str, digest: &Digest) -> Result<bool> {
        let url = self.url(self.place(), what);
        match self.send("look for", digest.as_str(), Method::HEAD, &url, super::accept_manifests).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Starts an upload, or takes the blob over from another repository of the same registry: then there is nothing
    /// to upload, and `None` is returned.
    pub async fn start_upload(&self, digest: &Digest, from: Option<&str>) -> Result<Option<Upload<'_>>> {
        let place = self.place();
        let mut url = self.url(place, "blobs/uploads/");
        if let Some(from) = from {
            url.push_str(&format!("?mount={digest}&from={from}"));
        }
        let no_body = |request: reqwest::RequestBuilder| request.header(CONTENT_LENGTH, 0);
        let response = self.send("upload", digest.as_str(), Method::POST, &url, no_body).await?;
        if response.status() == StatusCode::CREATED {
            return Ok(None);
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        // A relative location is relative to what was asked.
        let location = location.and_then(|location| response.url().join(location).ok()).ok_or_else(|| {
            Error::because(Kind::Unknown, "upload", digest.to_string(), "the registry does not say where to")
        })?;
        Ok(Some(Upload { repository: self, place, location }))
    }

    /// Puts a manifest or index under a tag or its digest.
    pub async fn put_manifest(&self, object: &str, descriptor: &Descriptor, bytes: Bytes) -> Result<()> {
        let url = self.url(self.place(), &format!("manifests/{object}"));
        let name = descriptor.digest.as_str();
        let complete = |request: reqwest::RequestBuilder| {
            request.header(CONTENT_TYPE, &descriptor.media_type).body(bytes.clone())
        };
        self.send("push manifest", name, Method::PUT, &url, complete).await.map(|_| ())
    }
}

/// An upload that a registry waits for.
pub struct Upload<'a> {
    repository: &'a Repository,
    place: &'a Place,
    location: Url,
}

impl Upload<'_> {
    /// Sends the blob in one piece.
    pub async fn send(
        self,
        descriptor: &Descriptor,
        body: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<()> {
        let digest = descriptor.digest.as_str();
        let mut url = self.location;
        url.query_pairs_mut().append_pair("digest", digest);
        let mut request = self
            .place
            .client
            .put(url)
            .headers(self.repository.headers.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, descriptor.size)
            .body(Body::wrap_stream(body));
        if let Some(header) = self.repository.authorization.header("pull,push") {
            request = request.header(reqwest::header::AUTHORIZATION, header);
        }
        let response = request.send().await.map_err(|error| failure::connection("upload", digest, error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let body = read_some(response).await;
        Err(failure::answer("upload", digest, status, &body))
    }
}
