//! Calls of BuildKit's control service, passed on one by one.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::rt::{Read, Write};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message;

use super::built::Solved;
use super::call::Error;
use super::wire::unframed;
use super::{Body, Buildkit, MAX_HEADERS, SOLVE, solve, workers};

/// The call that asks what can be built with.
const WORKERS: &str = "/moby.buildkit.v1.Control/ListWorkers";
/// The largest message that is changed, in bytes: what BuildKit's own server takes.
const MAX_MESSAGE: usize = 16 << 20;
/// gRPC's code for an object that is not there.
pub const NOT_FOUND: HeaderValue = HeaderValue::from_static("5");
/// gRPC's code for a call that is not served.
pub const UNIMPLEMENTED: HeaderValue = HeaderValue::from_static("12");
/// gRPC's code for a service that is not there.
pub const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");

/// Told of an image that was built, and its names.
pub type Built = Arc<dyn Fn(Solved, Vec<String>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Serves a client's calls until it hangs up, or buildkitd does: then the client's connection ends as that did, so that who
/// calls again has a new one.
///
/// # Errors
///
/// Those of its connection.
pub async fn serve(
    client: impl Read + Write + Unpin,
    buildkit: Buildkit,
    ended: impl Future,
    built: Built,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let (buildkit, built) = (buildkit.clone(), built.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(buildkit, request, &built).await) }
    });
    let mut server = http2::Builder::new(TokioExecutor::new());
    server.timer(TokioTimer::new()).max_header_list_size(MAX_HEADERS);
    let mut connection = std::pin::pin!(server.serve_connection(client, service));
    tokio::select! {
        served = &mut connection => return served,
        _ = ended => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

async fn answer(buildkit: Buildkit, request: Request<Incoming>, built: &Built) -> Response<Body> {
    match pass(buildkit, request, built).await {
        Ok(response) => response,
        Err(error) => failed(UNAVAILABLE, &format!("buildkitd: {error}")),
    }
}

/// A failure of a call.
pub fn failed(code: HeaderValue, text: &str) -> Response<Body> {
    let text = percent_encoding::utf8_percent_encode(text, percent_encoding::CONTROLS).to_string();
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", code);
    if let Ok(text) = HeaderValue::from_str(&text) {
        headers.insert("grpc-message", text);
    }
    response
}

async fn pass(
    mut buildkit: Buildkit,
    request: Request<Incoming>,
    built: &Built,
) -> Result<Response<Body>, Error> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut names = Vec::new();
    let body = match path.as_str() {
        SOLVE => {
            let whole = Limited::new(body, MAX_MESSAGE).collect().await?.to_bytes();
            match solve::translated(&whole)? {
                Some(translated) => {
                    names = translated.names;
                    full(translated.call.into())
                }
                None => full(whole),
            }
        }
        _ => boxed(body),
    };
    let asks_for_workers = path.as_str() == WORKERS;
    parts.uri = uri(path);
    let (parts, body) = buildkit.send_request(Request::from_parts(parts, body)).await?.into_parts();
    // A failure has nothing but headers, and stays that way.
    let body = match (asks_for_workers || !names.is_empty()) && !body.is_end_stream() {
        true => {
            let whole = Limited::new(body, MAX_MESSAGE).collect().await?;
            let trailers = whole.trailers().cloned();
            let mut whole = whole.to_bytes();
            if asks_for_workers {
                whole = workers::unmarked(&whole)?.map_or(whole, Bytes::from);
            } else if let Some(Ok(solved)) = unframed(&whole).map(Solved::decode) {
                built(solved, names).await;
            }
            full(whole).with_trailers(async { trailers.map(Ok) }).boxed_unsync()
        }
        false => boxed(body),
    };
    Ok(Response::from_parts(parts, body))
}

/// A path as buildkitd is asked for it.
pub fn uri(path: PathAndQuery) -> Uri {
    let mut parts = Uri::from_static("http://buildkitd").into_parts();
    parts.path_and_query = Some(path);
    // With all three parts there is nothing that could fail.
    Uri::from_parts(parts).unwrap_or_default()
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A body that is passed on.
pub fn boxed(body: Incoming) -> Body {
    body.map_err(Error::from).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::client::conn::http2 as client;
    use hyper_util::rt::TokioIo;
    use tokio::net::UnixListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// What is in the headers of BuildKit's errors.
    const DETAILS: &str = "grpc-status-details-bin";

    /// A failure with as many details, in headers alone or behind a message.
    async fn failure(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let details = HeaderValue::from_str(&"x".repeat(100_000)).unwrap();
        if request.uri().path().ends_with("Status") {
            let trailers = http::HeaderMap::from_iter([(http::HeaderName::from_static(DETAILS), details)]);
            let body = full(Bytes::from_static(b"\0\0\0\0\0")).with_trailers(async { Some(Ok(trailers)) });
            return Ok(Response::new(body.boxed_unsync()));
        }
        let mut response = Response::new(full(Bytes::new()));
        response.headers_mut().insert(DETAILS, details);
        Ok(response)
    }

    /// A client of a buildkitd that fails, the end of its connection, and that buildkitd.
    async fn passage(
        directory: &std::path::Path,
    ) -> (client::SendRequest<Body>, JoinHandle<()>, JoinHandle<()>) {
        let address = directory.join("buildkit.sock");
        let listener = UnixListener::bind(&address).unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let server = http2::Builder::new(TokioExecutor::new());
            // Ignoring: its end is the test's.
            let _ = server.serve_connection(TokioIo::new(stream), service_fn(failure)).await;
        });
        let (buildkit, ended) = super::super::connect(&address).await.unwrap();
        let (near, far) = tokio::io::duplex(64 << 10);
        let built: Built = Arc::new(|_, _| Box::pin(std::future::ready(())));
        tokio::spawn(serve(TokioIo::new(far), buildkit, ended, built));
        let (sender, connection) = client::Builder::new(TokioExecutor::new())
            .max_header_list_size(MAX_HEADERS)
            .handshake(TokioIo::new(near))
            .await
            .unwrap();
        let end = tokio::spawn(async move { drop(connection.await) });
        (sender, end, server)
    }

    fn call(path: &'static str) -> Request<Body> {
        let mut request = Request::new(full(Bytes::new()));
        *request.uri_mut() = uri(PathAndQuery::from_static(path));
        request
    }

    #[tokio::test]
    async fn a_failure_comes_with_all_its_details() {
        let directory = tempfile::tempdir().unwrap();
        let (mut sender, ..) = passage(directory.path()).await;
        for path in ["/moby.buildkit.v1.Control/DiskUsage", WORKERS, SOLVE] {
            let response = sender.send_request(call(path)).await.unwrap();
            assert_eq!(response.headers()[DETAILS].len(), 100_000, "{path}");
            assert!(response.body().is_end_stream(), "{path}");
        }
        let response = sender.send_request(call("/moby.buildkit.v1.Control/Status")).await.unwrap();
        let whole = response.into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()[DETAILS].len(), 100_000);
    }

    #[tokio::test]
    async fn a_connection_ends_with_buildkitds() {
        let directory = tempfile::tempdir().unwrap();
        let (mut sender, end, server) = passage(directory.path()).await;
        sender.send_request(call("/moby.buildkit.v1.Control/Info")).await.unwrap();
        server.abort();
        end.await.unwrap();
        assert!(sender.send_request(call("/moby.buildkit.v1.Control/Info")).await.is_err());
    }
}
