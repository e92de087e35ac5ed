//! A connection to one shim: any number of calls at once, each with its own deadline.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc::{FrameType, KeyValue, MAX_PAYLOAD, NAMESPACE_KEY, Request, Response, frame};
use prost::Message;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, SetOnce, oneshot};
use tracing::Instrument;

use super::{closed, read_frame};

/// Bytes that are read ahead: room for most answers.
const AHEAD: usize = 256;

/// A client of a shim's ttrpc server. Clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    namespace: String,
    calls: Mutex<Calls>,
    /// Held until a whole request is written. Who waits here is in order.
    writer: Arc<AsyncMutex<OwnedWriteHalf>>,
    /// Set when the connection has ended.
    ended: SetOnce<()>,
}

/// How many calls were made, and those that wait for their answer, by stream.
#[derive(Default)]
struct Calls {
    made: u32,
    waiting: HashMap<u32, oneshot::Sender<Response>>,
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
        let writer = Arc::new(AsyncMutex::new(writer));
        let (calls, ended) = (Mutex::default(), SetOnce::new());
        let shared = Arc::new(Shared { namespace: namespace.to_owned(), calls, writer, ended });
        tokio::spawn(read_answers(reader, Arc::downgrade(&shared)));
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
        let mut writer = self.shared.writer.clone().lock_owned().await;
        let stream = self.shared.register(answer)?;
        let _forget = Forget { shared: &self.shared, stream };
        let bytes = frame(stream, FrameType::Request, &request);
        match writer.try_write(&bytes) {
            Ok(begun) if begun == bytes.len() => drop(writer),
            Err(error) if error.kind() != ErrorKind::WouldBlock => self.shared.fail(stream),
            begun => {
                let (begun, shared) = (begun.unwrap_or(0), Arc::downgrade(&self.shared));
                // By a task of its own, so that a caller that gives up leaves no torn frame.
                tokio::spawn(async move {
                    let written = writer.write_all(&bytes[begun..]).await;
                    if let (Err(_), Some(shared)) = (written, shared.upgrade()) {
                        shared.fail(stream);
                    }
                });
            }
        }
        answered.await.map_err(|_| closed())
    }

    /// Returns when the connection has ended, whoever ended it.
    pub async fn ended(&self) {
        self.shared.ended.wait().await;
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.shared.ended.initialized()
    }
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a call its stream; clients use the odd ones. Whoever asks has the writer: streams that begin in another order than
    /// that of their numbers make containerd's server end the connection.
    fn register(&self, answer: oneshot::Sender<Response>) -> Result<u32> {
        let mut calls = self.calls();
        if self.ended.initialized() {
            return Err(closed());
        }
        let stream = calls.made.wrapping_mul(2) | 1;
        calls.made = calls.made.wrapping_add(1);
        calls.waiting.insert(stream, answer);
        Ok(stream)
    }

    /// Lets a call wait no longer whose request could not be written. What was answered before the other side went is still to
    /// be read, so that only the reader knows the end of the connection.
    fn fail(&self, stream: u32) {
        self.calls().waiting.remove(&stream);
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
async fn read_answers(reader: OwnedReadHalf, shared: std::sync::Weak<Shared>) {
    let mut reader = BufReader::with_capacity(AHEAD, reader);
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
        // Nobody else sets it.
        let _ = shared.ended.set(());
        shared.calls().waiting.clear();
    }
}

/// The answer's payload, or the error that the other side reported, in its own words.
fn into_payload(answer: Response) -> Result<Vec<u8>> {
    match answer.status {
        Some(status) if status.code != 0 => Err(Error::new(Kind::from_code(status.code), status.message, "")),
        _ => Ok(answer.payload),
    }
}
