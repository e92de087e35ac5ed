//! Calls that the engine itself makes of buildkitd: one request, or a stream of them, and a stream of answers.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use prost::Message;

use super::passage::uri;
use super::wire::{PREFIX, framed};
use super::{Body, Buildkit};

/// The largest message that buildkitd may send, in bytes: what its own client takes.
const MAX_MESSAGE: usize = 16 << 20;

/// Any error.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Calls a method (its path) with one message; its answers.
///
/// # Errors
///
/// Those of the connection, and buildkitd's own.
pub async fn call(
    buildkit: &mut Buildkit,
    method: &'static str,
    message: &impl Message,
) -> Result<Answers, Error> {
    let body = Full::new(Bytes::from(framed(&[&message.encode_to_vec()])));
    let body = body.map_err(|never| match never {}).boxed_unsync();
    stream(buildkit, method, HeaderMap::new(), body).await
}

/// Calls a method with a stream of messages and headers of its own.
///
/// # Errors
///
/// As [`call`].
pub async fn stream(
    buildkit: &mut Buildkit,
    method: &'static str,
    headers: HeaderMap,
    body: Body,
) -> Result<Answers, Error> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri(PathAndQuery::from_static(method));
    *request.headers_mut() = headers;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    let response = buildkit.send_request(request).await?;
    refused(response.headers())?;
    Ok(Answers { body: response.into_body(), held: BytesMut::new() })
}

/// The error that headers or trailers tell of.
fn refused(headers: &HeaderMap) -> Result<(), Error> {
    let status =
        headers.get("grpc-status").map_or("0".into(), |status| String::from_utf8_lossy(status.as_bytes()));
    if status == "0" {
        return Ok(());
    }
    let why = headers.get("grpc-message").map(HeaderValue::as_bytes).unwrap_or_default();
    let why = percent_encoding::percent_decode(why).decode_utf8_lossy();
    Err(if why.is_empty() { format!("buildkitd: status {status}") } else { why.into_owned() }.into())
}

/// What buildkitd answers, message by message.
pub struct Answers {
    body: Incoming,
    held: BytesMut,
}

impl Answers {
    /// The next message; nothing at the end.
    ///
    /// # Errors
    ///
    /// As [`call`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(message) = next(&mut self.held)? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            match frame?.into_data() {
                Ok(data) => self.held.extend_from_slice(&data),
                Err(frame) => frame.trailers_ref().map_or(Ok(()), refused)?,
            }
        }
    }

    /// The only message.
    ///
    /// # Errors
    ///
    /// As [`call`], also where there is none.
    pub async fn only<M: Message + Default>(mut self) -> Result<M, Error> {
        let message = self.next().await?.ok_or("buildkitd gave no answer")?;
        while self.next().await?.is_some() {}
        Ok(M::decode(message)?)
    }
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
    Ok(Some(held.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    #[test]
    fn messages_are_cut_anywhere() {
        let mut sent = BytesMut::new();
        for text in ["first", "", "second"] {
            sent.extend_from_slice(&framed(&[text.as_bytes()]));
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

    #[test]
    fn an_error_is_what_buildkitd_says() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(key, value)| (http::HeaderName::from_static(key), HeaderValue::from_static(value)))
                .collect()
        };
        let said = |pairs| refused(&headers(pairs)).unwrap_err().to_string();
        assert_eq!(said(&[("grpc-status", "2"), ("grpc-message", "exit code: 7%0A")]), "exit code: 7\n");
        assert_eq!(said(&[("grpc-status", "12")]), "buildkitd: status 12");
        assert!(refused(&headers(&[("grpc-status", "0")])).is_ok() && refused(&HeaderMap::new()).is_ok());
    }
}
