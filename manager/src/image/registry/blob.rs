//! Downloads a blob, and goes on where a connection broke.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};

use super::{ATTEMPTS, FIRST_PAUSE, Repository, failure};
use crate::image::manifest::Descriptor;

/// What is being done, for messages.
const OPERATION: &str = "fetch";

/// A blob being downloaded.
pub struct BlobReader {
    repository: Arc<Repository>,
    descriptor: Descriptor,
    offset: u64,
    response: Option<Response>,
    /// Bytes to pass over, where a registry sends the whole blob though a part was asked for.
    skip: u64,
    failures: u32,
    pause: Duration,
}

impl BlobReader {
    pub(super) fn new(repository: Arc<Repository>, descriptor: &Descriptor, offset: u64) -> Self {
        BlobReader {
            repository,
            descriptor: descriptor.clone(),
            offset,
            response: None,
            skip: 0,
            failures: 0,
            pause: FIRST_PAUSE,
        }
    }

    /// The next piece, or `None` when as many bytes came as the descriptor says.
    ///
    /// A connection that breaks is made again from where it broke; what hangs is an error, as is a blob that is
    /// longer than it should be.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(response) = &mut self.response else {
                if self.offset == self.descriptor.size {
                    return Ok(None);
                }
                self.open().await?;
                continue;
            };
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    let skipped = self.skip.min(chunk.len() as u64);
                    self.skip -= skipped;
                    let chunk = chunk.slice(usize::try_from(skipped).unwrap_or(chunk.len())..);
                    if chunk.is_empty() {
                        continue;
                    }
                    if chunk.len() as u64 > self.descriptor.size - self.offset {
                        let why = format!("the registry sends more than {} bytes", self.descriptor.size);
                        return Err(self.error(Kind::FailedPrecondition, why));
                    }
                    self.offset += chunk.len() as u64;
                    (self.failures, self.pause) = (0, FIRST_PAUSE);
                    return Ok(Some(chunk));
                }
                Ok(None) if self.offset == self.descriptor.size => return Ok(None),
                Ok(None) => {
                    let why =
                        format!("the registry ended after {} of {} bytes", self.offset, self.descriptor.size);
                    let error = self.error(Kind::DataLoss, why);
                    self.failed(error).await?;
                }
                // Of a body, the error does not tell who sent it.
                Err(error) if error.is_timeout() => {
                    let why = format!("{} does not answer", self.repository.place().endpoint.host);
                    return Err(self.error(Kind::DeadlineExceeded, why));
                }
                Err(error) => {
                    let error = failure::connection(OPERATION, self.descriptor.digest.as_str(), error);
                    self.failed(error).await?;
                }
            }
        }
    }

    /// Notes a failure and waits, unless there were too many.
    async fn failed(&mut self, error: Error) -> Result<()> {
        self.response = None;
        self.failures += 1;
        if self.failures == ATTEMPTS {
            return Err(error);
        }
        tokio::time::sleep(self.pause).await;
        self.pause *= 2;
        Ok(())
    }

    async fn open(&mut self) -> Result<()> {
        let repository = self.repository.clone();
        let digest = self.descriptor.digest.as_str();
        let offset = self.offset;
        let url = repository.url(repository.place(), &format!("blobs/{digest}"));
        let range = |request: reqwest::RequestBuilder| match offset {
            0 => request,
            _ => request.header(RANGE, format!("bytes={offset}-")),
        };
        let response = repository.send(OPERATION, digest, Method::GET, &url, range).await?;
        self.skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let start = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let expected = format!("bytes {offset}-");
                if !start.is_some_and(|start| start.starts_with(&expected)) {
                    return Err(self.error(
                        Kind::FailedPrecondition,
                        "the registry sends another range than asked for".to_owned(),
                    ));
                }
                0
            }
            // Servers need not know ranges: then the start comes again.
            _ => offset,
        };
        self.response = Some(response);
        Ok(())
    }

    fn error(&self, kind: Kind, why: String) -> Error {
        Error::because(kind, OPERATION, self.descriptor.digest.to_string(), why)
    }
}
