//! A client's files, credentials and secrets: it is the server of this connection, which goes to buildkitd as a stream of
//! messages (`Control.Session`).

use bytes::{Buf, Bytes, BytesMut};
use futures_util::TryStreamExt;
use http::header::{CONTENT_TYPE, TE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use super::Buildkit;
use super::passage::uri;
use super::wire::{PREFIX, framed};

/// What a client says of itself, for buildkitd too.
const ABOUT: &str = "x-docker-expose-session-";
/// The largest piece that is sent at once, in bytes.
const PIECE: usize = 32 << 10;
/// The largest message that buildkitd may send, in bytes: gRPC's own default.
const MAX_MESSAGE: usize = 4 << 20;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// BuildKit's message of bytes.
#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(bytes = "bytes", tag = "1")]
    data: Bytes,
}

/// Passes bytes to and fro until either end closes.
///
/// # Errors
///
/// Those of either connection.
pub async fn serve(client: Upgraded, mut buildkit: Buildkit, about: &HeaderMap) -> Result<(), Error> {
    let (from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
    let pieces = ReaderStream::with_capacity(from_client, PIECE);
    let frames = pieces.map_ok(|data| Frame::data(piece(data))).map_err(Error::from);
    let mut request = Request::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = uri(PathAndQuery::from_static("/moby.buildkit.v1.Control/Session"));
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    let of_session = |name: &HeaderName| name.as_str().starts_with(ABOUT);
    for (name, value) in about.iter().filter(|(name, _)| of_session(name)) {
        headers.append(name, value.clone());
    }
    let response = buildkit.send_request(request).await?;
    if let Some(why) = response.headers().get("grpc-message") {
        return Err(String::from_utf8_lossy(why.as_bytes()).into_owned().into());
    }
    let (mut body, mut held) = (response.into_body(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        held.extend_from_slice(&data);
        while let Some(data) = next(&mut held)? {
            to_client.write_all(&data).await?;
        }
    }
    to_client.shutdown().await?;
    Ok(())
}

/// Bytes as a message of gRPC.
fn piece(data: Bytes) -> Bytes {
    framed(&[&Piece { data }.encode_to_vec()]).into()
}

/// Takes the next message, once all of it is there.
fn next(held: &mut BytesMut) -> Result<Option<Bytes>, Error> {
    let Some((prefix, _)) = held.split_first_chunk::<PREFIX>() else { return Ok(None) };
    let [compressed, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 || length > MAX_MESSAGE {
        return Err(format!("a message of {length} bytes, compressed: {compressed}").into());
    }
    if held.len() < PREFIX + length {
        return Ok(None);
    }
    held.advance(PREFIX);
    Ok(Some(Piece::decode(held.split_to(length).freeze())?.data))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    #[test]
    fn messages_are_cut_anywhere() {
        let mut sent = BytesMut::new();
        for text in ["first", "", "second"] {
            sent.extend_from_slice(&piece(Bytes::from_static(text.as_bytes())));
        }
        let (mut held, mut heard) = (BytesMut::new(), Vec::new());
        for byte in sent {
            held.put_u8(byte);
            heard.extend(next(&mut held).unwrap());
        }
        assert_eq!(heard, ["first", "", "second"]);
        assert!(next(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).is_err());
        assert!(next(&mut BytesMut::from(&[0, 255, 0, 0, 0][..])).is_err());
    }
}
