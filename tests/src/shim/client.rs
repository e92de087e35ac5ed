//! A ttrpc client for one shim: requests may be sent ahead and their answers taken in any order.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::patient;
use orlop_proto::containerd::task::v2::task_ttrpc;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc::{self, FrameType, Request, Response};
use prost::Message;

/// No answer takes longer than this, unless a test says so.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection to one shim.
#[derive(Debug)]
pub struct Client {
    /// The package of the Task service that it speaks; v2 at first.
    pub service: &'static str,
    stream: UnixStream,
    bytes: Vec<u8>,
    next: u32,
    answers: HashMap<u32, Response>,
}

/// A request whose answer is to come.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    stream: u32,
    method: &'static str,
}

impl Client {
    /// Connects to a shim's socket.
    ///
    /// # Panics
    /// When nobody listens there.
    pub fn connect(socket: &Path) -> Client {
        let stream = UnixStream::connect(socket).expect("connecting to the shim");
        stream.set_read_timeout(Some(patient(DEADLINE))).unwrap();
        Client { service: task_ttrpc::SERVICE, stream, bytes: Vec::new(), next: 1, answers: HashMap::new() }
    }

    /// Sends a request to the Task service.
    pub fn send(&mut self, method: &'static str, message: &impl Message) -> Pending {
        self.send_as(self.service, method, message, Duration::ZERO)
    }

    /// Sends a request to any service; a timeout of zero is none.
    pub fn send_as(
        &mut self,
        service: &str,
        method: &'static str,
        message: &impl Message,
        timeout: Duration,
    ) -> Pending {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            timeout_nano: timeout.as_nanos() as i64,
            metadata: Vec::new(),
        };
        let stream = self.next;
        self.next += 2;
        // That the shim has gone is told by the missing answer.
        let _ = self.stream.write_all(&ttrpc::frame(stream, FrameType::Request, &request));
        Pending { stream, method }
    }

    /// Waits for an answer.
    pub fn receive<R: Message + Default>(&mut self, pending: Pending) -> Result<R> {
        while !self.answers.contains_key(&pending.stream) {
            self.read_some()?;
        }
        let answer = self.answers.remove(&pending.stream).expect("it was just there");
        Ok(R::decode(answer.into_result(pending.method)?.as_slice()).expect("a whole message"))
    }

    /// Whether the answer has come, without waiting.
    pub fn has_answered(&mut self, pending: Pending) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        while self.read_some().is_ok() {}
        self.stream.set_nonblocking(false).unwrap();
        self.answers.contains_key(&pending.stream)
    }

    /// Sends a request and waits for its answer.
    pub fn call<R: Message + Default>(&mut self, method: &'static str, message: &impl Message) -> Result<R> {
        let pending = self.send(method, message);
        self.receive(pending)
    }

    fn read_some(&mut self) -> Result<()> {
        let mut chunk = [0; 4096];
        let length = self.stream.read(&mut chunk).map_err(|error| Error::io("read", "the shim", error))?;
        if length == 0 {
            return Err(Error::new(Kind::Unavailable, "connection to the shim", ""));
        }
        self.bytes.extend_from_slice(&chunk[..length]);
        while let Some((header, payload, used)) = ttrpc::next_frame(&self.bytes)? {
            let response = Response::decode(payload).expect("a whole response");
            self.answers.insert(header.stream_id, response);
            self.bytes.drain(..used);
        }
        Ok(())
    }
}
