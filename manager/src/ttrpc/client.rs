//! A connection to one shim: any number of calls at once, each with its own deadline.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc::{FrameType, KeyValue, MAX_PAYLOAD, NAMESPACE_KEY, Request, Response, frame};
use prost::Message;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;

use super::{closed, read_frame};

/// Requests that may wait for the other side to read.
const QUEUE: usize = 16;

/// A client of a shim's ttrpc server. Clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    namespace: String,
    calls: Mutex<Calls>,
    /// Frames, so that a connection's queue, which has room for 32 from the start, is small.
    requests: mpsc::Sender<Vec<u8>>,
    /// Becomes true when the connection has ended.
    ended: watch::Receiver<bool>,
}

/// How many calls were made, and those that wait for their answer, by stream.
#[derive(Default)]
struct Calls {
    made: u32,
    waiting: HashMap<u32, oneshot::Sender<Response>>,
    ended: bool,
}

/// Connects to `unix:///path`, to a bare path, or to an abstract socket named `@name`.
pub async fn connect(address: &str) -> std::io::Result<UnixStream> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    match path.strip_prefix('@') {
        Some(name) => UnixStream::connect(format!("\0{name}")).await,
        None => UnixStream::connect(path).await,
    }
}

impl Client {
    /// Connects to `unix:///path`, to a bare path, or to an abstract socket named `@name`.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`, which never waits here: nobody listens at a dead shim's socket (`Unavailable` or
    /// `NotFound`), and a deaf one's may be full.
    pub async fn connect(address: &str, namespace: &str) -> Result<Client> {
        let stream = connect(address).await;
        Ok(Client::over(stream.context("connect to shim", address)?, namespace))
    }

    fn over(stream: UnixStream, namespace: &str) -> Client {
        let (reader, writer) = stream.into_split();
        let (requests, queue) = mpsc::channel(QUEUE);
        let (end, ended) = watch::channel(false);
        let shared =
            Arc::new(Shared { namespace: namespace.to_owned(), calls: Mutex::default(), requests, ended });
        tokio::spawn(read_answers(reader, Arc::downgrade(&shared), end));
        tokio::spawn(write_requests(writer, queue));
        Client { shared }
    }

    /// Calls a method and decodes its answer.
    ///
    /// # Errors
    ///
    /// What the other side answered, with its text and kind unchanged; `DeadlineExceeded` when it does not
    /// answer in time, which it is told too; `Unavailable` when the connection has ended.
    pub async fn call<A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
        deadline: Option<Duration>,
    ) -> Result<A> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: deadline.map_or(0, |left| i64::try_from(left.as_nanos()).unwrap_or(i64::MAX)),
            metadata: vec![KeyValue { key: NAMESPACE_KEY.to_owned(), value: self.shared.namespace.clone() }],
        };
        if request.encoded_len() > MAX_PAYLOAD {
            let reason = format!("a request of {} bytes exceeds {MAX_PAYLOAD}", request.encoded_len());
            return Err(Error::because(Kind::ResourceExhausted, method.to_owned(), "", reason));
        }
        let exchange = self.exchange(request).instrument(tracing::debug_span!("shim", method));
        let answer = match deadline {
            None => exchange.await?,
            Some(left) => tokio::time::timeout(left, exchange).await.map_err(|_| {
                let reason = format!("the shim did not answer within {left:?}");
                Error::because(Kind::DeadlineExceeded, method.to_owned(), "", reason)
            })??,
        };
        let payload = into_payload(answer)?;
        A::decode(payload.as_slice())
            .map_err(|error| Error::because(Kind::Internal, "decode answer to", method, error))
    }

    async fn exchange(&self, request: Request) -> Result<Response> {
        let (answer, answered) = oneshot::channel();
        let place = self.shared.requests.reserve().await.map_err(|_| closed())?;
        let stream = self.shared.register(answer, request, place)?;
        let _forget = Forget { shared: &self.shared, stream };
        answered.await.map_err(|_| closed())
    }

    /// Returns when the connection has ended, whoever ended it.
    pub async fn ended(&self) {
        // An error means that the reader is gone, and with it the connection.
        let _ = self.shared.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        *self.shared.ended.borrow()
    }
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a call its stream and queues its request; clients use the odd ones. Streams are queued in the order of their
    /// numbers, without which containerd's server ends the connection.
    fn register(
        &self,
        answer: oneshot::Sender<Response>,
        request: Request,
        place: mpsc::Permit<'_, Vec<u8>>,
    ) -> Result<u32> {
        let mut calls = self.calls();
        if calls.ended {
            return Err(closed());
        }
        let stream = calls.made.wrapping_mul(2) | 1;
        calls.made = calls.made.wrapping_add(1);
        calls.waiting.insert(stream, answer);
        place.send(frame(stream, FrameType::Request, &request));
        Ok(stream)
    }
}

/// Drops a call's place when it has been answered, or when its caller no longer waits.
struct Forget<'a> {
    shared: &'a Shared,
    stream: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.calls().waiting.remove(&self.stream);
    }
}

/// Hands answers to the calls that wait, until the connection ends or nobody holds the client any more.
async fn read_answers(reader: OwnedReadHalf, shared: std::sync::Weak<Shared>, end: watch::Sender<bool>) {
    let mut reader = BufReader::with_capacity(1024, reader);
    // A stream that breaks the protocol cannot be followed further: it counts as ended.
    while let Ok(Some((header, payload))) = read_frame(&mut reader).await {
        let Some(shared) = shared.upgrade() else { break };
        let Ok(answer) = Response::decode(payload.as_slice()) else { break };
        if let Some(call) = shared.calls().waiting.remove(&header.stream_id) {
            // Its caller may have given up in this moment.
            let _ = call.send(answer);
        }
    }
    if let Some(shared) = shared.upgrade() {
        let mut calls = shared.calls();
        calls.ended = true;
        calls.waiting.clear();
    }
    end.send_replace(true);
}

/// Writes whole requests one after the other, so that a caller that gives up leaves no torn frame.
async fn write_requests(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            // The reader sees the end of the connection and tells the callers.
            return;
        }
    }
}

/// The answer's payload, or the error that the other side reported, in its own words.
fn into_payload(answer: Response) -> Result<Vec<u8>> {
    match answer.status {
        Some(status) if status.code != 0 => Err(Error::new(Kind::from_code(status.code), status.message, "")),
        _ => Ok(answer.payload),
    }
}
