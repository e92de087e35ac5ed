//! BuildKit's end points, for clients that build by it (buildx): what they say goes to a buildkitd that the configuration names.
//!
//! `POST /grpc` becomes a connection of HTTP/2 with BuildKit's control service, of which each call is passed on. `POST /session`
//! becomes one in which the client serves its files, and which buildkitd takes as a stream of messages. For clients that only speak
//! of the latter, `POST /build` has buildkitd build (`builds`).

mod builds;
mod built;
mod cache;
mod call;
mod passage;
mod request;
mod session;
mod solve;
mod uploads;
mod wire;
mod workers;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, UPGRADE};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use orlop_proto::error::Error;
use orlop_proto::kind::Kind;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::Engine;
use super::failure::{Failure, Result};
use super::message::{self, RAW_STREAM, Reply, Request};
use super::route::page_not_found;

pub use builds::{Builds, answer as build};

/// The call that begins a build.
const SOLVE: &str = "/moby.buildkit.v1.Control/Solve";
/// The call that tells of a build.
const STATUS: &str = "/moby.buildkit.v1.Control/Status";
/// The protocol that clients ask for: HTTP/2 from its first byte on.
const PROTOCOL: &str = "h2c";
/// The longest headers and trailers, in bytes: gRPC's own default in Go. BuildKit's errors have the whole Dockerfile in theirs.
const MAX_HEADERS: u32 = 16 << 20;

/// The body of a call of buildkitd.
type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
/// A connection to buildkitd.
type Buildkit = SendRequest<Body>;

/// The socket of the buildkitd that the configuration names.
///
/// # Errors
///
/// `InvalidArgument` for what is not on this machine: a build can do to it whatever the engine can.
pub fn address(text: &str) -> std::result::Result<PathBuf, Error> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err(Error::because(
            Kind::InvalidArgument,
            "configure buildkit",
            text,
            "it has to be unix:///PATH",
        )),
    }
}

/// Answers a request of BuildKit's clients.
///
/// # Errors
///
/// 501 where no buildkitd is configured, 503 where it does not listen, 400 for another protocol.
pub async fn answer(engine: Engine, request: Request) -> Result<Reply> {
    if request.method != Method::POST || request.path.len() != 1 {
        return Err(page_not_found());
    }
    let address = configured(&engine)?;
    let wanted = request.headers.get(UPGRADE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match wanted.as_deref() {
        None => return Err(Failure::invalid("no upgrade proto in request")),
        Some(PROTOCOL) => {}
        Some(other) => return Err(Failure::invalid(format!("protocol {other} not supported"))),
    }
    let (buildkit, ended) = connect(address).await?;
    let is_session = request.path[0] == "session";
    let waiting = engine.builds.waiting.clone();
    tokio::spawn(async move {
        let Ok(connection) = request.upgrade.await else { return };
        let served = match is_session {
            true => session::serve(connection, buildkit, &request.headers, waiting).await,
            false => passage::serve(connection, buildkit, ended, namer(engine)).await.map_err(Into::into),
        };
        if let Err(error) = served {
            tracing::debug!(is_session, "a client of buildkitd: {error}");
        }
    });
    let mut reply = message::upgraded(RAW_STREAM);
    let headers = reply.headers_mut();
    headers.remove(CONTENT_TYPE);
    headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(reply)
}

/// What is done with the images that clients have built.
fn namer(engine: Engine) -> passage::Built {
    std::sync::Arc::new(move |solved, names| {
        let engine = engine.clone();
        Box::pin(async move {
            if let Err(failure) = engine.name_built(&solved, &names).await {
                tracing::warn!("an image of {names:?}: {failure}");
            }
        })
    })
}

/// Where buildkitd is.
fn configured(engine: &Engine) -> Result<&Path> {
    engine.parts.buildkit.as_deref().ok_or_else(|| {
        Failure::new(
            StatusCode::NOT_IMPLEMENTED,
            "BuildKit is not configured for this engine: buildkit in [docker] of its configuration names a buildkitd",
        )
    })
}

/// A connection to buildkitd, and its end.
async fn connect(address: &Path) -> Result<(Buildkit, JoinHandle<()>)> {
    let failed = |why: String| {
        let text = format!("connect to buildkitd {}: {why}", address.display());
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, text)
    };
    let stream = UnixStream::connect(address).await.map_err(|error| failed(error.to_string()))?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(MAX_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.to_string()))?;
    // Ignoring: however it ends, who uses it learns of it.
    let ended = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, ended))
}
