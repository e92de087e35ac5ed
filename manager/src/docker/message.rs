//! Requests and replies in the terms of the end points: path segments, parameters, JSON, streams, hijacked connections.

use std::collections::VecDeque;
use std::io;
use std::str::FromStr;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::OnUpgrade;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;

use super::failure::{Failure, Result};

/// The largest JSON document that is read, in bytes.
const MAX_JSON: usize = 16 << 20;
/// Content type of a stream that is one stream.
pub const RAW_STREAM: &str = "application/vnd.docker.raw-stream";
/// Content type of a stream of frames, each of standard output or standard error.
pub const MULTIPLEXED_STREAM: &str = "application/vnd.docker.multiplexed-stream";

/// The body of a reply.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;
/// A reply.
pub type Reply = Response<Body>;

/// A version of the API, such as 1.43.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u32, pub u32);

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for ApiVersion {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<ApiVersion, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        Ok(ApiVersion(major.parse().map_err(|_| ())?, minor.parse().map_err(|_| ())?))
    }
}

/// The parameters behind the question mark.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query.
    pub fn parse(text: &str) -> Query {
        Query(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first value of a parameter, unless it is empty.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The truth value of a parameter, as dockerd reads it: anything but nothing, `0`, `no`, `false` and `none`.
    pub fn flag(&self, name: &str) -> bool {
        let value = self.get(name).unwrap_or_default().trim().to_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// A number.
    ///
    /// # Errors
    ///
    /// 400 for what is no number.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        match self.filled(name) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Failure::invalid(format!("invalid value {text:?} for {name}"))),
            },
        }
    }
}

/// A request.
pub struct Request {
    /// Its method.
    pub method: Method,
    /// The version of the API that it is made in.
    pub version: ApiVersion,
    /// The segments of its path behind the version, decoded.
    pub path: Vec<String>,
    /// Its parameters.
    pub query: Query,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Incoming,
    /// The connection, once a reply of 101 is sent.
    pub upgrade: OnUpgrade,
}

impl Request {
    /// The segments, for matching.
    pub fn segments(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    /// Whether the client asks for the connection itself.
    pub fn wants_upgrade(&self) -> bool {
        self.headers.contains_key(UPGRADE)
    }

    /// The whole body as JSON; nulls count as absent, as in Go. Nothing where there is no body.
    ///
    /// # Errors
    ///
    /// 400 in dockerd's words for a body that is too large or no JSON of that form.
    pub async fn json_or_nothing<T: DeserializeOwned>(self) -> Result<Option<T>> {
        let body = Limited::new(self.body, MAX_JSON).collect().await;
        let bytes = body.map_err(|error| Failure::invalid(format!("invalid request: {error}")))?.to_bytes();
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let mut value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::invalid(format!("invalid JSON: {error}")))?;
        if value.is_null() {
            return Ok(None);
        }
        without_nulls(&mut value);
        let parsed = serde_json::from_value(value);
        parsed.map(Some).map_err(|error| Failure::invalid(format!("invalid JSON: {error}")))
    }

    /// As [`Request::json_or_nothing`], and 400 where there is no body.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T> {
        self.json_or_nothing()
            .await?
            .ok_or_else(|| Failure::invalid("invalid JSON: got EOF while reading request body"))
    }

    /// The body as a stream of bytes.
    pub fn into_reader(self) -> impl AsyncRead + Send + Unpin + 'static {
        let data = self.body.into_data_stream().map_err(io::Error::other);
        StreamReader::new(Box::pin(data))
    }
}

/// Removes members that are null, at any depth.
pub fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// A reply without a body.
pub fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *reply.status_mut() = status;
    reply
}

/// A reply of 204.
pub fn no_content() -> Reply {
    empty(StatusCode::NO_CONTENT)
}

/// A reply of bytes.
pub fn bytes(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// A JSON document, with the line end that Go's encoder writes.
pub fn json(status: StatusCode, document: &impl Serialize) -> Reply {
    match serde_json::to_vec(document) {
        Ok(mut text) => {
            text.push(b'\n');
            bytes(status, "application/json", text)
        }
        Err(error) => failure(&Failure::internal(format!("encode reply: {error}"))),
    }
}

/// A JSON document with status 200.
pub fn ok(document: &impl Serialize) -> Reply {
    json(StatusCode::OK, document)
}

/// A failure as a reply.
pub fn failure(failure: &Failure) -> Reply {
    match failure.status {
        StatusCode::NOT_MODIFIED => empty(failure.status),
        status => {
            let mut text = serde_json::json!({ "message": failure.message }).to_string().into_bytes();
            text.push(b'\n');
            bytes(status, "application/json", text)
        }
    }
}

/// A reply whose body comes bit by bit.
pub fn stream(
    content_type: &'static str,
    data: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Reply {
    let body = StreamBody::new(data.map(|piece| piece.map(Frame::data)));
    let mut reply = Response::new(BodyExt::boxed_unsync(body));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// A reply whose body is written to the sender.
pub fn channel(content_type: &'static str) -> (Reply, mpsc::Sender<io::Result<Bytes>>) {
    let (sender, receiver) = mpsc::channel(16);
    (stream(content_type, ReceiverStream::new(receiver)), sender)
}

/// One line of a stream of JSON documents.
pub fn line(document: &impl Serialize) -> Bytes {
    // Ignoring: these documents are made of text and numbers.
    let mut text = serde_json::to_vec(document).unwrap_or_default();
    text.extend_from_slice(b"\r\n");
    text.into()
}

/// The reply after which a connection belongs to the end point: 101 for clients that asked to upgrade.
pub fn upgraded(content_type: &'static str) -> Reply {
    let mut reply = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
    reply
}

/// Standard output and standard error in one stream: each piece behind a header of eight bytes with its stream and
/// length (API reference, "Stream format").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// A piece of output in its frame.
pub fn frame(channel: Channel, data: &[u8]) -> Bytes {
    let mut framed = Vec::with_capacity(data.len() + 8);
    framed.extend_from_slice(&[channel as u8, 0, 0, 0]);
    framed.extend_from_slice(&(data.len() as u32).to_be_bytes());
    framed.extend_from_slice(data);
    framed.into()
}

/// Splits a path into its decoded segments; empty ones count, as Go's router has them, except at the ends.
pub fn segments(path: &str) -> VecDeque<String> {
    let trimmed = path.trim_start_matches('/');
    let decode = |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
    trimmed.split('/').map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_dockerd_does() {
        let query = Query::parse("a=1&b=&c=False&d=no&e=x%20y&a=2&t=5");
        assert!(query.flag("a") && query.flag("e"));
        assert!(!query.flag("b") && !query.flag("c") && !query.flag("d") && !query.flag("none"));
        assert_eq!(query.get("e"), Some("x y"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.number::<u32>("t").unwrap(), Some(5));
        assert_eq!(query.number::<u32>("b").unwrap(), None);
        assert_eq!(query.number::<u32>("e").unwrap_err().status, 400);
    }

    #[test]
    fn a_frame_says_its_stream_and_length() {
        assert_eq!(frame(Channel::Stderr, b"ab").as_ref(), b"\x02\0\0\0\0\0\0\x02ab");
    }

    #[test]
    fn nulls_are_absent() {
        let mut value = serde_json::json!({"a": null, "b": [{"c": null, "d": 1}]});
        without_nulls(&mut value);
        assert_eq!(value, serde_json::json!({"b": [{"d": 1}]}));
    }

    #[test]
    fn versions_are_ordered() {
        assert!("1.9".parse::<ApiVersion>().unwrap() < ApiVersion(1, 24));
        assert!("x".parse::<ApiVersion>().is_err());
        assert_eq!(segments("/images/a%2Fb/c/json"), ["images", "a/b", "c", "json"]);
    }
}
