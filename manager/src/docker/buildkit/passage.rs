//! Calls of BuildKit's control service, passed on one by one.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::{Body, Buildkit, solve, workers};

/// The call that begins a build.
const SOLVE: &str = "/moby.buildkit.v1.Control/Solve";
/// The call that asks what can be built with.
const WORKERS: &str = "/moby.buildkit.v1.Control/ListWorkers";
/// The largest message that is changed, in bytes: what BuildKit's own server takes.
const MAX_MESSAGE: usize = 16 << 20;
/// gRPC's code for a service that is not there.
const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");

/// Any error.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// Serves a client's calls until it hangs up.
///
/// # Errors
///
/// Those of its connection.
pub async fn serve(client: Upgraded, buildkit: Buildkit) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let buildkit = buildkit.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(buildkit, request).await) }
    });
    http2::Builder::new(TokioExecutor::new()).timer(TokioTimer::new()).serve_connection(client, service).await
}

async fn answer(buildkit: Buildkit, request: Request<Incoming>) -> Response<Body> {
    match pass(buildkit, request).await {
        Ok(response) => response,
        Err(error) => {
            let text = format!("buildkitd: {error}");
            let text = percent_encoding::utf8_percent_encode(&text, percent_encoding::CONTROLS).to_string();
            let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", UNAVAILABLE);
            if let Ok(text) = HeaderValue::from_str(&text) {
                headers.insert("grpc-message", text);
            }
            response
        }
    }
}

async fn pass(mut buildkit: Buildkit, request: Request<Incoming>) -> Result<Response<Body>, Error> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let body = match path.as_str() {
        SOLVE => {
            let whole = Limited::new(body, MAX_MESSAGE).collect().await?.to_bytes();
            full(solve::translated(&whole)?.map_or(whole, Bytes::from))
        }
        _ => boxed(body),
    };
    let asks_for_workers = path.as_str() == WORKERS;
    parts.uri = uri(path);
    let (parts, body) = buildkit.send_request(Request::from_parts(parts, body)).await?.into_parts();
    let body = match asks_for_workers {
        true => {
            let whole = Limited::new(body, MAX_MESSAGE).collect().await?;
            let trailers = whole.trailers().cloned();
            let whole = whole.to_bytes();
            let answer = full(workers::unmarked(&whole)?.map_or(whole, Bytes::from));
            answer.with_trailers(async { trailers.map(Ok) }).boxed_unsync()
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

fn boxed(body: Incoming) -> Body {
    body.map_err(Error::from).boxed_unsync()
}
