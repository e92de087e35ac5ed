//! `POST /session`: the client is the server of this connection, which goes to buildkitd as a stream of
//! messages (`Control.Session`).

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::call::{Error, stream};
use super::wire::framed;
use super::{Buildkit, uploads};

/// The call that a session is.
const SESSION: &str = "/moby.buildkit.v1.Control/Session";
/// What a client says of itself, for buildkitd too.
const ABOUT: &str = "x-docker-expose-session-";
/// What a client says that it serves.
const METHOD: &str = "x-docker-expose-session-grpc-method";
/// What a session is known by.
const ID: &str = "x-docker-expose-session-uuid";
/// The service of a client that has the context itself.
const FILES: &str = "/moby.filesync.v1.FileSync/DiffCopy";
/// The largest piece that is sent at once, in bytes.
const PIECE: usize = 32 << 10;

/// BuildKit's message of bytes.
#[derive(Clone, PartialEq, Message)]
pub struct Piece {
    /// Some bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// Serves a client's session. One in which the client serves no context may belong to a build whose context is uploaded.
///
/// # Errors
///
/// Those of either connection.
pub async fn serve(
    client: Upgraded,
    buildkit: Buildkit,
    about: &HeaderMap,
    waiting: uploads::Waiting,
) -> Result<(), Error> {
    let has_context = |method: &HeaderValue| {
        [FILES, uploads::PULL].iter().any(|known| method.as_bytes().eq_ignore_ascii_case(known.as_bytes()))
    };
    match about.get_all(METHOD).iter().any(has_context) {
        true => pass(TokioIo::new(client), buildkit, about).await,
        false => uploads::serve(Some(client), buildkit, about, waiting).await,
    }
}

/// What is said of a session that is the engine's own.
///
/// # Errors
///
/// For an ID that is no header.
pub fn own(id: &str) -> Result<HeaderMap, Error> {
    let mut about = HeaderMap::new();
    about.insert(ID, HeaderValue::from_str(id)?);
    about.insert(METHOD, HeaderValue::from_static(uploads::PULL));
    Ok(about)
}

/// Passes bytes to and fro until either end closes.
///
/// # Errors
///
/// Those of either connection.
pub async fn pass(
    client: impl AsyncRead + AsyncWrite + Send + 'static,
    mut buildkit: Buildkit,
    about: &HeaderMap,
) -> Result<(), Error> {
    let (from_client, mut to_client) = tokio::io::split(client);
    let pieces = ReaderStream::with_capacity(from_client, PIECE);
    let frames = pieces.map_ok(|data| Frame::data(piece(data))).map_err(Error::from);
    let of_session = |name: &HeaderName| name.as_str().starts_with(ABOUT);
    let mut headers = HeaderMap::new();
    for (name, value) in about.iter().filter(|(name, _)| of_session(name)) {
        headers.append(name, value.clone());
    }
    let body = BodyExt::boxed_unsync(StreamBody::new(frames));
    let mut answers = stream(&mut buildkit, SESSION, headers, body).await?;
    while let Some(message) = answers.next().await? {
        to_client.write_all(&Piece::decode(message)?.data).await?;
    }
    to_client.shutdown().await?;
    Ok(())
}

/// Bytes as a message of gRPC.
pub fn piece(data: Bytes) -> Bytes {
    framed(&[&Piece { data }.encode_to_vec()]).into()
}
