//! Contexts that clients upload (`POST /build` with a body), given to buildkitd: it asks for them within the build's session,
//! as BuildKit's own clients have it (`moby.upload.v1.Upload`). So of that session, which is HTTP/2 with the client as its
//! server, each call goes to the client, but for that one.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{pending, ready};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self as client, SendRequest};
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::call::Error;
use super::passage::{NOT_FOUND, UNAVAILABLE, UNIMPLEMENTED, boxed, failed, uri};
use super::session::{pass, piece};
use super::wire::framed;
use super::{Body, Buildkit, MAX_HEADERS};
use crate::docker::failure::{Failure, Result};

/// The call by which buildkitd asks for an upload.
pub const PULL: &str = "/moby.upload.v1.Upload/Pull";
/// Where that call says of which.
const URL_PATH: &str = "urlpath";
/// What the URL of an upload begins with.
const URL: &str = "http://buildkit-session/";
/// The call by which buildkitd sees that a session lives.
const HEALTH: &str = "/grpc.health.v1.Health/Check";
/// `HealthCheckResponse` with the status `SERVING`.
const SERVING: &[u8] = b"\x08\x01";
/// How long one end waits for the other: a client sends both requests at once.
const PATIENCE: Duration = Duration::from_secs(60);
/// The bytes of a session that are on their way.
const BUFFER: usize = 64 << 10;

/// The uploads that nobody has asked for yet; clones are handles of the same.
#[derive(Clone, Default)]
pub struct Waiting(Arc<Shared>);

#[derive(Default)]
struct Shared {
    uploads: Mutex<HashMap<String, Upload>>,
    came: Notify,
}

/// What a client sends, until it is read.
struct Upload {
    body: Incoming,
    until_read: DropGuard,
}

/// An upload that is ready to be asked for, for as long as this is held.
pub struct Offer {
    waiting: Waiting,
    id: String,
    read: CancellationToken,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id);
    }
}

impl Offer {
    /// Waits until all of it is read.
    ///
    /// # Errors
    ///
    /// 500 when nobody asks for it.
    pub async fn read(self) -> Result<()> {
        let read = tokio::time::timeout(PATIENCE, self.read.cancelled()).await;
        if read.is_err() && self.waiting.lock().contains_key(&self.id) {
            return Err(Failure::internal(format!("no build asked for the context {}", self.id)));
        }
        self.read.cancelled().await;
        Ok(())
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.0.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds an upload ready under an ID.
    pub fn offer(&self, id: &str, body: Incoming) -> Offer {
        let read = CancellationToken::new();
        self.lock().insert(id.to_owned(), Upload { body, until_read: read.clone().drop_guard() });
        self.0.came.notify_waiters();
        Offer { waiting: self.clone(), id: id.to_owned(), read }
    }

    /// The upload with that ID, once it is there.
    async fn take(&self, id: &str) -> Option<Upload> {
        let taken = async {
            loop {
                let mut came = std::pin::pin!(self.0.came.notified());
                came.as_mut().enable();
                if let Some(upload) = self.lock().remove(id) {
                    return upload;
                }
                came.await;
            }
        };
        tokio::time::timeout(PATIENCE, taken).await.ok()
    }
}

/// The URL by which buildkitd asks for an upload.
pub fn url(id: &str) -> String {
    format!("{URL}{id}")
}

/// Serves a session with uploads: a client's, or one without a client. Ends with either.
///
/// # Errors
///
/// Those of either connection.
pub async fn serve(
    client: Option<Upgraded>,
    buildkit: Buildkit,
    about: &HeaderMap,
    waiting: Waiting,
) -> Result<(), Error> {
    let (client, connection) = match client {
        None => (None, None),
        Some(client) => {
            let mut builder = client::Builder::new(TokioExecutor::new());
            builder.max_header_list_size(MAX_HEADERS);
            let (client, connection) = builder.handshake(client).await?;
            (Some(client), Some(connection))
        }
    };
    let hung_up = async {
        match connection {
            Some(connection) => connection.await,
            None => pending().await,
        }
    };
    let service = service_fn(move |request| {
        let (client, waiting) = (client.clone(), waiting.clone());
        async move { Ok::<_, Infallible>(answer(client, &waiting, request).await) }
    });
    let (near, far) = tokio::io::duplex(BUFFER);
    let mut builder = server::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).max_header_list_size(MAX_HEADERS);
    tokio::select! {
        passed = pass(near, buildkit, about) => passed?,
        served = builder.serve_connection(TokioIo::new(far), service) => served?,
        ended = hung_up => ended?,
    }
    Ok(())
}

async fn answer(
    client: Option<SendRequest<Body>>,
    waiting: &Waiting,
    request: Request<Incoming>,
) -> Response<Body> {
    match (client, request.uri().path()) {
        (_, PULL) => {
            let path = request.headers().get(URL_PATH).map(HeaderValue::as_bytes).unwrap_or_default();
            let id = String::from_utf8_lossy(path).trim_start_matches('/').to_owned();
            match waiting.take(&id).await {
                Some(upload) => pulled(upload),
                None => failed(NOT_FOUND, &format!("no context {id} was uploaded")),
            }
        }
        (Some(client), _) => match to_client(client, request).await {
            Ok(response) => response,
            Err(error) => failed(UNAVAILABLE, &error.to_string()),
        },
        (None, HEALTH) => {
            let answer = Full::new(Bytes::from(framed(&[SERVING]))).map_err(|never| match never {});
            response(answer.with_trailers(ready(Some(Ok(done())))).boxed_unsync())
        }
        (None, path) => failed(UNIMPLEMENTED, &format!("{path} is not served")),
    }
}

async fn to_client(
    mut client: SendRequest<Body>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Error> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned();
    parts.uri = uri(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Ok(client.send_request(Request::from_parts(parts, boxed(body))).await?.map(boxed))
}

/// An upload as a stream of messages.
fn pulled(upload: Upload) -> Response<Body> {
    let Upload { body, until_read } = upload;
    let pieces = body.into_data_stream().map_ok(|data| Frame::data(piece(data))).map_err(Error::from);
    let end = stream::once(async move {
        drop(until_read);
        Ok(Frame::trailers(done()))
    });
    response(BodyExt::boxed_unsync(StreamBody::new(pieces.chain(end))))
}

fn done() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))])
}

fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}
