//! Events to the manager, one at a time so that they arrive in order, kept and tried again while it is away.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use orlop_proto::any;
use orlop_proto::containerd::events as messages;
use orlop_proto::containerd::services::events::ttrpc::v1::{ForwardRequest, events_ttrpc};
use orlop_proto::containerd::types::{Envelope, Mount};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc::{self, FrameType, KeyValue, Request, Response};
use prost::Message;
use prost_types::Any;

use crate::poll::{Interest, Poller, Token};
use crate::task::{Event, Stdio};

/// How many events wait at most; the oldest are given up first, since a manager that comes back asks for the state.
const QUEUE_LIMIT: usize = 2048;
/// How often the manager may refuse an event or leave it without an answer.
const ATTEMPTS: u32 = 5;
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before the next attempt.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// What every event of a container tells beside what happened.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The container.
    pub container: &'a str,
    /// Its bundle directory.
    pub bundle: &'a str,
    /// Init's standard streams.
    pub stdio: &'a Stdio,
    /// The mounts that make up its root file system.
    pub rootfs: &'a [Mount],
    /// The image of a checkpoint that it was made from.
    pub checkpoint: &'a str,
}

/// An event's topic and message.
pub fn encode(event: &Event, subject: Subject) -> (&'static str, Any) {
    let container_id = subject.container.to_owned();
    match event {
        Event::Create { pid } => (
            "/tasks/create",
            any::pack(&messages::TaskCreate {
                container_id,
                bundle: subject.bundle.to_owned(),
                rootfs: subject.rootfs.to_vec(),
                io: Some(messages::TaskIo {
                    stdin: subject.stdio.stdin.clone(),
                    stdout: subject.stdio.stdout.clone(),
                    stderr: subject.stdio.stderr.clone(),
                    terminal: subject.stdio.terminal,
                }),
                checkpoint: subject.checkpoint.to_owned(),
                pid: *pid as u32,
            }),
        ),
        Event::Start { pid } => {
            ("/tasks/start", any::pack(&messages::TaskStart { container_id, pid: *pid as u32 }))
        }
        Event::ExecAdded { exec } => {
            let exec_id = exec.clone();
            ("/tasks/exec-added", any::pack(&messages::TaskExecAdded { container_id, exec_id }))
        }
        Event::ExecStarted { exec, pid } => {
            let (exec_id, pid) = (exec.clone(), *pid as u32);
            ("/tasks/exec-started", any::pack(&messages::TaskExecStarted { container_id, exec_id, pid }))
        }
        Event::Exit { exec, pid, exit } => (
            "/tasks/exit",
            any::pack(&messages::TaskExit {
                id: if exec.is_empty() { container_id.clone() } else { exec.clone() },
                container_id,
                pid: *pid as u32,
                exit_status: exit.status,
                exited_at: Some(exit.at.into()),
            }),
        ),
        Event::Delete { pid, exit } => (
            "/tasks/delete",
            any::pack(&messages::TaskDelete {
                container_id,
                pid: *pid as u32,
                exit_status: exit.status,
                exited_at: Some(exit.at.into()),
                id: String::new(),
            }),
        ),
        Event::OutOfMemory => ("/tasks/oom", any::pack(&messages::TaskOom { container_id })),
        Event::Paused => ("/tasks/paused", any::pack(&messages::TaskPaused { container_id })),
        Event::Resumed => ("/tasks/resumed", any::pack(&messages::TaskResumed { container_id })),
        Event::Checkpointed { images } => {
            let checkpoint = images.clone();
            ("/tasks/checkpointed", any::pack(&messages::TaskCheckpointed { container_id, checkpoint }))
        }
    }
}

struct Queued {
    frame: Vec<u8>,
    topic: &'static str,
    attempts: u32,
}

/// A call on the way to the manager.
struct Attempt {
    written: usize,
    inbound: Vec<u8>,
    until: Instant,
}

/// Publishes events to the manager's ttrpc socket.
pub struct Publisher {
    address: String,
    namespace: String,
    queue: VecDeque<Queued>,
    connection: Option<UnixStream>,
    attempt: Option<Attempt>,
    next_stream: u32,
    not_before: Option<Instant>,
    lost: u64,
}

impl Publisher {
    /// Publishes to this socket; an empty address publishes nowhere.
    pub fn new(address: &str, namespace: &str) -> Publisher {
        Publisher {
            address: address.strip_prefix("unix://").unwrap_or(address).to_owned(),
            namespace: namespace.to_owned(),
            queue: VecDeque::new(),
            connection: None,
            attempt: None,
            next_stream: 1,
            not_before: None,
            lost: 0,
        }
    }

    /// Whether all events are delivered or given up.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// When [`Publisher::advance`] is to be called although nothing became ready.
    pub fn wakes_at(&self) -> Option<Instant> {
        if self.queue.is_empty() {
            return None;
        }
        self.attempt.as_ref().map(|attempt| attempt.until).or(self.not_before)
    }

    /// Queues an event.
    pub fn publish(&mut self, poller: &Poller, topic: &'static str, event: Any) {
        if self.address.is_empty() {
            return;
        }
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(event),
        };
        let request = Request {
            service: events_ttrpc::SERVICE.to_owned(),
            method: events_ttrpc::FORWARD.to_owned(),
            payload: ForwardRequest { envelope: Some(envelope) }.encode_to_vec(),
            timeout_nano: ATTEMPT_TIMEOUT.as_nanos() as i64,
            metadata: vec![KeyValue { key: ttrpc::NAMESPACE_KEY.to_owned(), value: self.namespace.clone() }],
        };
        if self.queue.len() >= QUEUE_LIMIT {
            // The first may be half written; the second is the oldest that can go.
            self.queue.remove(1);
            self.lost += 1;
        }
        let stream = self.next_stream;
        // Clients use odd numbers.
        self.next_stream = self.next_stream.wrapping_add(2);
        let frame = ttrpc::frame(stream, FrameType::Request, &request);
        self.queue.push_back(Queued { frame, topic, attempts: 0 });
        self.advance(poller);
    }

    /// Goes as far as it can without waiting.
    pub fn advance(&mut self, poller: &Poller) {
        while !self.queue.is_empty() {
            if self.not_before.is_some_and(|time| time > Instant::now()) {
                return;
            }
            self.not_before = None;
            match self.attempt_first(poller) {
                Ok(true) => {
                    self.queue.pop_front();
                    self.attempt = None;
                }
                Ok(false) => return,
                Err(error) => self.fail(poller, error),
            }
        }
        // Delivered all: an unexpected end of the connection is seen here too.
        if let Some(connection) = &mut self.connection {
            let mut byte = [0];
            match connection.read(&mut byte) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => self.disconnect(poller),
            }
        }
        self.queue.shrink_to(16);
        if self.lost > 0 {
            crate::log::warn(format_args!("{} events were lost while the manager was away", self.lost));
            self.lost = 0;
        }
    }

    /// Tries to deliver the first event; true when the manager has it.
    fn attempt_first(&mut self, poller: &Poller) -> Result<bool> {
        if self.connection.is_none() {
            let stream = open(&self.address)?;
            poller.add(&stream, Token::Publisher, Interest::Edges)?;
            self.connection = Some(stream);
        }
        let (Some(connection), Some(first)) = (&mut self.connection, self.queue.front()) else {
            return Ok(false);
        };
        let attempt = self.attempt.get_or_insert_with(|| Attempt {
            written: 0,
            inbound: Vec::new(),
            until: Instant::now() + ATTEMPT_TIMEOUT,
        });
        while attempt.written < first.frame.len() {
            match connection.write(&first.frame[attempt.written..]) {
                Ok(length) => attempt.written += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return attempt.check(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("write to", &self.address, error)),
            }
        }
        let mut chunk = [0; 512];
        loop {
            if let Some((header, payload, length)) = ttrpc::next_frame(&attempt.inbound)? {
                let ours = header.stream_id.to_be_bytes() == first.frame[4..8];
                if ours && header.frame_type == FrameType::Response {
                    let response = Response::decode(payload)
                        .map_err(|e| Error::because(Kind::InvalidArgument, "decode response", "", e))?;
                    // What the manager refuses it may take later; the count of attempts decides.
                    return response.into_result(events_ttrpc::FORWARD).map(|_| true).map_err(|error| {
                        Error::because(Kind::FailedPrecondition, "publish", first.topic, error)
                    });
                }
                attempt.inbound.drain(..length);
                continue;
            }
            match connection.read(&mut chunk) {
                Ok(0) => return Err(Error::new(Kind::Unavailable, "manager closed", &self.address)),
                Ok(length) => attempt.inbound.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return attempt.check(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read from", &self.address, error)),
            }
        }
    }

    /// Plans the next attempt, or gives the event up.
    fn fail(&mut self, poller: &Poller, error: Error) {
        self.disconnect(poller);
        self.not_before = Some(Instant::now() + RETRY_AFTER);
        // A manager that is away costs no attempt: it may be restarted any time later.
        let Some(first) = self.queue.front_mut() else { return };
        if matches!(error.kind(), Kind::FailedPrecondition | Kind::DeadlineExceeded) {
            first.attempts += 1;
        }
        crate::log::debug(format_args!("event {} not delivered yet: {error}", first.topic));
        if first.attempts >= ATTEMPTS {
            crate::log::warn(format_args!("event {} given up: {error}", first.topic));
            self.queue.pop_front();
        }
    }

    fn disconnect(&mut self, poller: &Poller) {
        self.attempt = None;
        if let Some(connection) = self.connection.take() {
            poller.remove(&connection);
        }
    }
}

impl Attempt {
    fn check(&self) -> Result<bool> {
        if Instant::now() >= self.until {
            return Err(Error::new(Kind::DeadlineExceeded, "publish an event", ""));
        }
        Ok(false)
    }
}

/// Connects without waiting.
fn open(address: &str) -> Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket: OwnedFd =
        socket(AddressFamily::Unix, SockType::Stream, flags, None).context("make a socket", "")?;
    let name = UnixAddr::new(address).context("connect to", address)?;
    connect(socket.as_raw_fd(), &name).context("connect to", address)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests;
