//! What every call passes through before its service: a span that names it with namespace and lease, the caller's
//! deadline, a limit on how many are open, and the metrics.
//!
//! The namespace and the lease are read from the headers again where a call needs them
//! ([`crate::request::RequestContext`]), as some calls need none.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument;

use crate::metrics::METRICS;
use crate::request::{LEASE_HEADER, NAMESPACE_HEADER};
use crate::traces;

/// Header of the time that the caller gives a call (gRPC over HTTP/2, "Timeout").
const TIMEOUT_HEADER: &str = "grpc-timeout";
/// Method of a call that no service knows, as its name is the client's to choose and every one would stay in the metrics.
const UNKNOWN_METHOD: &str = "unknown";
/// The code of such a call (gRPC, "Unimplemented").
const UNIMPLEMENTED: &str = "12";

/// Codes that are the server's fault, by which a trace shows as failed (OpenTelemetry's conventions for gRPC).
const SERVER_FAULTS: [&str; 6] = ["2", "4", "12", "13", "14", "15"];

/// Wraps a service in [`Calls`].
#[derive(Clone, Debug)]
pub struct CallLayer {
    open: Arc<Semaphore>,
}

impl CallLayer {
    /// At most so many calls are open at once, streams until they end.
    pub fn new(limit: usize) -> CallLayer {
        CallLayer { open: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))) }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner, open: self.open.clone() }
    }
}

/// Gives each call its span, its deadline, its place among the open ones and its time.
#[derive(Clone, Debug)]
pub struct Calls<S> {
    inner: S,
    open: Arc<Semaphore>,
}

/// A place among the open calls.
struct Place(#[allow(dead_code, reason = "it is held, and let go of when dropped")] OwnedSemaphorePermit);

impl Place {
    fn take(open: &Arc<Semaphore>) -> Option<Place> {
        match open.clone().try_acquire_owned() {
            Ok(permit) => {
                METRICS.calls_open.inc();
                Some(Place(permit))
            }
            Err(_) => {
                METRICS.calls_refused.inc();
                None
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        METRICS.calls_open.dec();
    }
}

/// The body of an answer, which keeps the call's place until it has ended.
struct Answer {
    body: Body,
    _place: Place,
}

impl HttpBody for Answer {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<S, I> Service<Request<I>> for Calls<S>
where
    S: Service<Request<I>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    I: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let header = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        crate::memory::note_call();
        let method = request.uri().path().to_owned();
        let span = tracing::debug_span!(
            "call",
            method,
            namespace = header(NAMESPACE_HEADER),
            lease = header(LEASE_HEADER),
            otel.name = tracing::field::Empty,
            otel.kind = tracing::field::Empty,
            otel.status_code = tracing::field::Empty,
        );
        if traces::is_on() {
            traces::follow(&span, request.headers());
            span.record("otel.name", method.trim_start_matches('/'));
            span.record("otel.kind", "server");
        }
        let deadline = deadline(request.headers());
        let Some(place) = Place::take(&self.open) else {
            let refusal = tonic::Status::resource_exhausted("too many calls are open");
            return Box::pin(async move { Ok(refusal.into_http()) });
        };
        // The service that was polled ready is the one to be called.
        let fresh = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, fresh);
        let call = async move {
            let begin = Instant::now();
            let late = || tonic::Status::deadline_exceeded("context deadline exceeded").into_http();
            let response = match deadline {
                // A timer of no length still lets a call through that answers at once.
                Some(Duration::ZERO) => late(),
                Some(deadline) => match tokio::time::timeout(deadline, ready.call(request)).await {
                    Ok(response) => response?,
                    Err(_) => late(),
                },
                None => ready.call(request).await?,
            };
            let elapsed = begin.elapsed();
            let status = response.headers().get("grpc-status").and_then(|value| value.to_str().ok());
            tracing::debug!(?elapsed, status, "answered");
            let code = status.unwrap_or("0");
            if traces::is_on() && SERVER_FAULTS.contains(&code) {
                tracing::Span::current().record("otel.status_code", "ERROR");
            }
            let known = if code == UNIMPLEMENTED { UNKNOWN_METHOD } else { &method };
            METRICS.call(known, code, elapsed);
            Ok(response.map(|body| Body::new(Answer { body, _place: place })))
        };
        Box::pin(call.instrument(span))
    }
}

/// The time that the caller gives, less what the answer needs to be first: the transport would call it
/// cancelled.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT_HEADER)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(number.saturating_mul(3600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Some(timeout.saturating_sub(Duration::from_millis(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_timeouts() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT_HEADER, text.parse().unwrap());
            deadline(&headers)
        };
        assert_eq!(read("10S"), Some(Duration::from_millis(9998)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(97_999_999)));
        assert_eq!(read("1H"), Some(Duration::from_millis(3_599_998)));
        assert_eq!(read("1n"), Some(Duration::ZERO));
        assert_eq!(read("1x"), None);
        assert_eq!(read(""), None);
        assert_eq!(deadline(&HeaderMap::new()), None);
    }
}
