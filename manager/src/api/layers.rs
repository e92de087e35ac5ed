//! What every call passes through before its service: a span that names it, and the caller's deadline.
//!
//! The namespace and the lease are read from the headers where a call needs them
//! ([`crate::request::RequestContext`]), as some calls need none.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use tower::{Layer, Service};
use tracing::Instrument;

use crate::request::{LEASE_HEADER, NAMESPACE_HEADER};

/// Header of the time that the caller gives a call (gRPC over HTTP/2, "Timeout").
const TIMEOUT_HEADER: &str = "grpc-timeout";

/// Wraps a service in [`Calls`].
#[derive(Clone, Copy, Debug)]
pub struct CallLayer;

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner }
    }
}

/// Gives each call its span and its deadline.
#[derive(Clone, Debug)]
pub struct Calls<S> {
    inner: S,
}

impl<S, I, O> Service<Request<I>> for Calls<S>
where
    S: Service<Request<I>, Response = Response<O>> + Clone + Send + 'static,
    S::Future: Send,
    I: Send + 'static,
    O: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let header = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let span = tracing::debug_span!(
            "call",
            method = request.uri().path(),
            namespace = header(NAMESPACE_HEADER),
            lease = header(LEASE_HEADER),
        );
        let deadline = deadline(request.headers());
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
            let status = response.headers().get("grpc-status").and_then(|value| value.to_str().ok());
            tracing::debug!(elapsed = ?begin.elapsed(), status, "answered");
            Ok(response)
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
