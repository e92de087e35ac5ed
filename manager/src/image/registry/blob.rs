//! Downloads a blob, goes on where a connection broke, and fetches parts of a large one at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use super::place::{Ask, FIRST_PAUSE};
use super::{ATTEMPTS, Repository, failure};
use crate::image::manifest::Descriptor;

/// What is being done, for messages.
const OPERATION: &str = "fetch";
/// The length of a part of a large blob, in bytes. What waits in memory takes up to twice as much: pieces hold the
/// connection's buffers.
const PART: u64 = 4 << 20;
/// From how many bytes on a blob is fetched in parts.
const LARGE: u64 = 8 * PART;
/// After how many failures in a row another place is asked.
const FAILURES_BEFORE_NEXT: u32 = 2;

/// A blob being downloaded, from an offset to its end.
pub struct BlobReader {
    repository: Arc<Repository>,
    descriptor: Descriptor,
    /// What is read as it comes.
    stretch: Stretch,
    /// Parts that follow it, fetched into memory at the same time.
    parts: VecDeque<Part>,
    /// Where the next part starts.
    ahead: u64,
    /// Pieces of the part whose turn it is, and the permit for the memory that they are in.
    ready: VecDeque<Bytes>,
    permit: Option<OwnedSemaphorePermit>,
    /// Which places sent something of it.
    served: Served,
}

/// Which places sent something of a blob, for all of its parts.
type Served = Arc<Mutex<Vec<usize>>>;

/// A part on its way into memory, given up when dropped.
struct Part(JoinHandle<Result<(VecDeque<Bytes>, OwnedSemaphorePermit)>>);

impl Drop for Part {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl BlobReader {
    pub(super) fn new(repository: Arc<Repository>, descriptor: &Descriptor, offset: u64) -> Self {
        let size = descriptor.size;
        let is_large = repository.ranges > 1 && size.saturating_sub(offset) >= LARGE;
        let end = if is_large { offset + PART } else { size };
        let served = Served::default();
        BlobReader {
            stretch: Stretch::new(repository.clone(), descriptor, offset, end, served.clone()),
            repository,
            descriptor: descriptor.clone(),
            parts: VecDeque::new(),
            ahead: end,
            ready: VecDeque::new(),
            permit: None,
            served,
        }
    }

    /// Says that the blob is not what it should be: whoever sent something of it is asked no more, unless nobody else is
    /// left. Returns whether there is somebody.
    pub fn distrust(&self) -> bool {
        self.repository.distrust(&self.served.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next piece, or `None` when as many bytes came as the descriptor says.
    ///
    /// A connection that breaks is made again from where it broke; what hangs is an error, as is a blob that is
    /// longer than it should be.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            self.permit = None;
            if let Some(piece) = self.stretch.next().await? {
                // A registry that knows no ranges sends all of it.
                self.ahead = self.ahead.max(self.stretch.end);
                self.spread();
                return Ok(Some(piece));
            }
            match self.parts.pop_front() {
                Some(mut part) => {
                    let part = (&mut part.0).await.map_err(|error| {
                        Error::because(Kind::Internal, OPERATION, self.descriptor.digest.to_string(), error)
                    })?;
                    let (pieces, permit) = part?;
                    (self.ready, self.permit) = (pieces, Some(permit));
                    self.spread();
                }
                None if self.ahead == self.descriptor.size => return Ok(None),
                // Others have the memory for parts: this one is read as it comes.
                None => {
                    let end = (self.ahead + PART).min(self.descriptor.size);
                    self.stretch = self.stretch_to(end);
                    self.ahead = end;
                }
            }
        }
    }

    /// What follows, up to an offset.
    fn stretch_to(&self, end: u64) -> Stretch {
        Stretch::new(self.repository.clone(), &self.descriptor, self.ahead, end, self.served.clone())
    }

    /// Starts to fetch the parts that there is memory for.
    fn spread(&mut self) {
        while self.ahead < self.descriptor.size && self.parts.len() < self.repository.ranges {
            let Ok(permit) = self.repository.parts.clone().try_acquire_owned() else { return };
            let end = (self.ahead + PART).min(self.descriptor.size);
            let mut stretch = self.stretch_to(end);
            self.ahead = end;
            self.parts.push_back(Part(tokio::spawn(async move {
                let mut pieces = VecDeque::new();
                while let Some(piece) = stretch.next().await? {
                    pieces.push_back(piece);
                }
                Ok((pieces, permit))
            })));
        }
    }
}

/// Bytes that follow each other, read as they come.
struct Stretch {
    repository: Arc<Repository>,
    descriptor: Descriptor,
    offset: u64,
    /// Where it ends.
    end: u64,
    response: Option<Response>,
    /// Bytes to pass over, where a registry sends the whole blob though a part was asked for.
    skip: u64,
    failures: u32,
    pause: Duration,
    served: Served,
}

impl Stretch {
    fn new(
        repository: Arc<Repository>,
        descriptor: &Descriptor,
        offset: u64,
        end: u64,
        served: Served,
    ) -> Self {
        Stretch {
            repository,
            descriptor: descriptor.clone(),
            offset,
            end,
            response: None,
            skip: 0,
            failures: 0,
            pause: FIRST_PAUSE,
            served,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(response) = &mut self.response else {
                if self.offset == self.end {
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
                    if chunk.len() as u64 > self.end - self.offset {
                        let why = format!("the registry sends more than {} bytes", self.end);
                        return Err(self.error(Kind::FailedPrecondition, why));
                    }
                    self.offset += chunk.len() as u64;
                    (self.failures, self.pause) = (0, FIRST_PAUSE);
                    return Ok(Some(chunk));
                }
                Ok(None) if self.offset == self.end => self.response = None,
                Ok(None) => {
                    let why =
                        format!("the registry ended after {} of {} bytes", self.offset, self.descriptor.size);
                    let error = self.error(Kind::DataLoss, why);
                    self.failed(error).await?;
                }
                // Of a body, the error does not tell who sent it.
                Err(error) if error.is_timeout() => {
                    let why = format!("{} does not answer", self.repository.place().endpoint.host);
                    let error = self.error(Kind::DeadlineExceeded, why);
                    // Who hangs once will hang again.
                    if !self.repository.pass_on() {
                        return Err(error);
                    }
                    self.failed(error).await?;
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
        if self.failures == FAILURES_BEFORE_NEXT {
            self.repository.pass_on();
        }
        tokio::time::sleep(self.pause).await;
        self.pause *= 2;
        Ok(())
    }

    async fn open(&mut self) -> Result<()> {
        let digest = self.descriptor.digest.to_string();
        let (offset, size) = (self.offset, self.descriptor.size);
        let mut ask = Ask::get(OPERATION, &digest, format!("blobs/{digest}"));
        if offset > 0 || self.end < size {
            let last = if self.end < size { (self.end - 1).to_string() } else { String::new() };
            let range = HeaderValue::from_str(&format!("bytes={offset}-{last}"));
            ask.headers.extend(range.map(|range| (RANGE, range)));
        }
        let (response, place) = self.repository.fetch(&ask).await?;
        {
            let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
            if !served.contains(&place) {
                served.push(place);
            }
        }
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let start = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let expected = format!("bytes {offset}-");
                if !start.is_some_and(|start| start.starts_with(&expected)) {
                    return Err(self.error(
                        Kind::FailedPrecondition,
                        "the registry sends another range than asked for".to_owned(),
                    ));
                }
                self.skip = 0;
            }
            // Servers need not know ranges: then everything comes again.
            _ => (self.skip, self.end) = (offset, size),
        }
        self.response = Some(response);
        Ok(())
    }

    fn error(&self, kind: Kind, why: String) -> Error {
        Error::because(kind, OPERATION, self.descriptor.digest.to_string(), why)
    }
}
