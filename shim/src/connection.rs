//! A client's connection: bytes in, requests out; answers in, bytes out. Never waits.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc::{self, FrameType, HEADER_LEN, Request, Response};
use prost::Message;

/// Above this many bytes that a client does not read, no further request of it is taken.
const OUTBOUND_LIMIT: usize = 1 << 20;
/// How much is read at once.
const CHUNK: usize = 4096;

/// A connection and what waits to go through it.
pub struct Connection {
    stream: UnixStream,
    inbound: Vec<u8>,
    outbound: Vec<u8>,
}

/// A request with the call's number, or why it could not be read.
pub type Incoming = (u32, Result<Request>);

impl Connection {
    /// Takes over an accepted stream.
    pub fn new(stream: UnixStream) -> Result<Connection> {
        stream.set_nonblocking(true).context("set up a connection", "")?;
        Ok(Connection { stream, inbound: Vec::new(), outbound: Vec::new() })
    }

    /// The stream, to be watched.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether bytes wait to be written.
    pub fn wants_to_write(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Reads what is there and gives the whole requests in it; an error means that the connection is over.
    pub fn receive(&mut self) -> Result<Vec<Incoming>> {
        let mut requests = Vec::new();
        let mut chunk = [0; CHUNK];
        while self.outbound.len() < OUTBOUND_LIMIT {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    // What was asked before the end is still to be answered by nobody.
                    return Err(Error::new(Kind::Unavailable, "connection closed", ""));
                }
                Ok(length) => {
                    self.inbound.extend_from_slice(&chunk[..length]);
                    self.take_requests(&mut requests)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read from a client", "", error)),
            }
        }
        Ok(requests)
    }

    fn take_requests(&mut self, requests: &mut Vec<Incoming>) -> Result<()> {
        let mut used = 0;
        while let Some((header, payload, length)) = ttrpc::next_frame(&self.inbound[used..])? {
            used += length;
            if header.frame_type == FrameType::Request {
                let request = Request::decode(payload)
                    .map_err(|e| Error::because(Kind::InvalidArgument, "decode request", "", e));
                requests.push((header.stream_id, request));
            }
        }
        self.inbound.drain(..used);
        if self.inbound.is_empty() {
            // An idle connection keeps no memory.
            self.inbound = Vec::new();
        }
        Ok(())
    }

    /// Queues an answer and writes what the client takes now; an error means that the connection is over.
    pub fn answer(&mut self, stream_id: u32, result: Result<Vec<u8>>) -> Result<()> {
        let mut frame = ttrpc::frame(stream_id, FrameType::Response, &Response::of(result));
        if frame.len() - HEADER_LEN > ttrpc::MAX_PAYLOAD {
            let error = Error::because(Kind::ResourceExhausted, "answer", "", "the response is too long");
            frame = ttrpc::frame(stream_id, FrameType::Response, &Response::of(Err(error)));
        }
        self.outbound.extend_from_slice(&frame);
        self.flush()
    }

    /// Writes what the client takes now.
    pub fn flush(&mut self) -> Result<()> {
        let mut written = 0;
        let result = loop {
            if written == self.outbound.len() {
                break Ok(());
            }
            match self.stream.write(&self.outbound[written..]) {
                Ok(length) => written += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(Error::io("write to a client", "", error)),
            }
        };
        self.outbound.drain(..written);
        if self.outbound.is_empty() {
            self.outbound = Vec::new();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str) -> Vec<u8> {
        let request = Request { service: "s".into(), method: method.into(), ..Default::default() };
        ttrpc::frame(1, FrameType::Request, &request)
    }

    #[test]
    fn requests_may_come_in_pieces_and_together() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours).unwrap();
        let (first, second) = (request("a"), request("b"));
        theirs.write_all(&first[..5]).unwrap();
        assert!(connection.receive().unwrap().is_empty());
        theirs.write_all(&first[5..]).unwrap();
        theirs.write_all(&second).unwrap();
        let methods: Vec<String> =
            connection.receive().unwrap().into_iter().map(|(_, r)| r.unwrap().method).collect();
        assert_eq!(methods, ["a", "b"]);
        drop(theirs);
        assert_eq!(connection.receive().unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn a_client_that_does_not_read_is_not_listened_to() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours).unwrap();
        while connection.outbound.len() < OUTBOUND_LIMIT {
            connection.answer(1, Ok(vec![0; 100_000])).unwrap();
        }
        theirs.write_all(&request("a")).unwrap();
        assert!(connection.receive().unwrap().is_empty());
        assert!(connection.wants_to_write());
        let mut sink = vec![0; 1 << 20];
        while connection.wants_to_write() {
            assert!(theirs.read(&mut sink).unwrap() > 0);
            connection.flush().unwrap();
        }
        assert_eq!(connection.receive().unwrap().len(), 1);
    }

    #[test]
    fn garbage_ends_the_connection() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours).unwrap();
        theirs.write_all(&[0xff; 20]).unwrap();
        assert_eq!(connection.receive().unwrap_err().kind(), Kind::ResourceExhausted);
    }
}
