//! ttrpc framing: a ten-byte header and a protobuf payload, for shim and manager.
//!
//! Follows the protocol of github.com/containerd/ttrpc: length (u32), stream id (u32), type (u8), flags (u8),
//! all big endian; clients use odd stream ids. Only unary calls are spoken here, as the shim protocol has no
//! others. Pure code: the caller moves the bytes.

use prost::Message;

use crate::error::{Error, Result};
use crate::generated::google::rpc::Status;
pub use crate::generated::ttrpc::{KeyValue, Request, Response};
use crate::kind::Kind;

/// Size of a frame's header in bytes.
pub const HEADER_LEN: usize = 10;
/// The largest payload that either side accepts, in bytes.
pub const MAX_PAYLOAD: usize = 4 << 20;
/// Metadata key that carries the containerd namespace.
pub const NAMESPACE_KEY: &str = "containerd-namespace-ttrpc";

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// A [`Request`].
    Request = 1,
    /// A [`Response`].
    Response = 2,
    /// Data of a stream.
    Data = 3,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Payload length in bytes.
    pub length: u32,
    /// The call that the frame belongs to.
    pub stream_id: u32,
    /// What the frame carries.
    pub frame_type: FrameType,
    /// Stream flags; zero for unary calls.
    pub flags: u8,
}

impl Header {
    /// Reads a header; refuses payloads over [`MAX_PAYLOAD`] and unknown types.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header> {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let length = word(0);
        if length as usize > MAX_PAYLOAD {
            return Err(Error::because(
                Kind::ResourceExhausted,
                "read ttrpc frame",
                "",
                format!("message length {length} exceed maximum message size of {MAX_PAYLOAD}"),
            ));
        }
        let frame_type = match bytes[8] {
            1 => FrameType::Request,
            2 => FrameType::Response,
            3 => FrameType::Data,
            other => {
                return Err(Error::because(
                    Kind::InvalidArgument,
                    "read ttrpc frame",
                    "",
                    format!("unknown message type {other}"),
                ));
            }
        };
        Ok(Header { length, stream_id: word(4), frame_type, flags: bytes[9] })
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&self.length.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream_id.to_be_bytes());
        bytes[8] = self.frame_type as u8;
        bytes[9] = self.flags;
        bytes
    }
}

/// A whole frame, header and payload.
pub fn frame(stream_id: u32, frame_type: FrameType, message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let header = Header { length: length as u32, stream_id, frame_type, flags: 0 };
    let mut bytes = Vec::with_capacity(HEADER_LEN + length);
    bytes.extend_from_slice(&header.encode());
    message.encode_raw(&mut bytes);
    bytes
}

/// Takes the first whole frame off a buffer of received bytes, or nothing while it is incomplete.
///
/// Returns the header, the payload, and how many bytes of the buffer they took.
pub fn next_frame(buffer: &[u8]) -> Result<Option<(Header, &[u8], usize)>> {
    let Some(head) = buffer.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let header = Header::decode(head)?;
    let end = HEADER_LEN + header.length as usize;
    Ok(buffer.get(HEADER_LEN..end).map(|payload| (header, payload, end)))
}

impl Response {
    /// The answer to a call: the encoded reply, or an error's code and text.
    pub fn of(result: Result<Vec<u8>>) -> Response {
        match result {
            Ok(payload) => Response { status: None, payload },
            Err(error) => Response {
                status: Some(Status {
                    code: error.kind().code(),
                    message: error.to_string(),
                    details: Vec::new(),
                }),
                payload: Vec::new(),
            },
        }
    }

    /// The encoded reply, or the error that the other side reported.
    pub fn into_result(self, method: &str) -> Result<Vec<u8>> {
        match self.status {
            Some(status) if status.code != 0 => {
                Err(Error::because(Kind::from_code(status.code), method.to_owned(), "", status.message))
            }
            _ => Ok(self.payload),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_wait_for_the_rest() {
        let request = Request { service: "s".into(), method: "m".into(), ..Default::default() };
        let mut bytes = frame(1, FrameType::Request, &request);
        let whole = bytes.len();
        bytes.extend_from_slice(&[0, 0]);
        for cut in 0..whole {
            assert!(next_frame(&bytes[..cut]).unwrap().is_none());
        }
        let (header, payload, used) = next_frame(&bytes).unwrap().unwrap();
        assert_eq!((header.stream_id, header.frame_type, used), (1, FrameType::Request, whole));
        assert_eq!(Request::decode(payload).unwrap(), request);
    }

    #[test]
    fn refuses_what_is_too_long() {
        let mut head = Header { length: 0, stream_id: 1, frame_type: FrameType::Data, flags: 0 }.encode();
        head[0] = 0xff;
        assert_eq!(next_frame(&head).unwrap_err().kind(), Kind::ResourceExhausted);
    }

    #[test]
    fn carries_an_error() {
        let error = Error::new(Kind::NotFound, "container", "x");
        let back = Response::of(Err(error)).into_result("State").unwrap_err();
        assert_eq!(back.kind(), Kind::NotFound);
    }
}
