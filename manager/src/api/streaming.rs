//! `containerd.services.streaming.v1.Streaming`: streams that clients open and other calls then name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use orlop_proto::any;
use orlop_proto::containerd::services::streaming::v1 as proto;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::request::{Namespace, RequestContext};

/// Messages that wait in each direction.
const QUEUE: usize = 16;
/// The URL of the empty message with which a stream is acknowledged.
const EMPTY: &str = "google.protobuf.Empty";

/// One stream, as the call that uses it has it.
pub struct Stream {
    /// What the client sends.
    pub incoming: mpsc::Receiver<Any>,
    /// What the client gets; the stream ends when this is dropped.
    pub outgoing: mpsc::Sender<Result<Any, Status>>,
}

/// Streams that no call has taken yet; cheap to clone.
#[derive(Clone, Default)]
pub struct Streams {
    waiting: Arc<Mutex<HashMap<(Namespace, String), Stream>>>,
}

impl Streams {
    /// Takes the stream that a client named.
    ///
    /// # Errors
    /// `NotFound` where there is none, or another call has it.
    pub fn take(&self, context: &RequestContext, id: &str) -> Result<Stream> {
        let key = (context.namespace.clone(), id.to_owned());
        let taken = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        taken.ok_or_else(|| Error::new(Kind::NotFound, "stream", format!("{id:?}")))
    }

    fn offer(&self, key: (Namespace, String), stream: Stream) -> Result<()> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.contains_key(&key) {
            return Err(Error::new(Kind::AlreadyExists, "stream", format!("{:?}", key.1)));
        }
        waiting.insert(key, stream);
        Ok(())
    }

    fn forget(&self, key: &(Namespace, String)) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Serves streams.
pub struct StreamingService(pub Streams);

#[tonic::async_trait]
impl proto::streaming_server::Streaming for StreamingService {
    type StreamStream = ReceiverStream<Result<Any, Status>>;

    async fn stream(&self, request: Request<Streaming<Any>>) -> Result<Response<Self::StreamStream>, Status> {
        let context = RequestContext::of(&request)?;
        let mut messages = request.into_inner();
        let (outgoing, answers) = mpsc::channel(QUEUE);
        let streams = self.0.clone();
        // The answer's headers do not wait for the first message.
        tokio::spawn(async move {
            let (forward, incoming) = mpsc::channel(QUEUE);
            let key = match open(&mut messages, &context).await {
                Ok(key) => key,
                Err(status) => return drop(outgoing.send(Err(status)).await),
            };
            let offered = streams.offer(key.clone(), Stream { incoming, outgoing: outgoing.clone() });
            if let Err(error) = offered {
                return drop(outgoing.send(Err(error.into())).await);
            }
            if outgoing.send(Ok(Any { type_url: EMPTY.to_owned(), value: Vec::new() })).await.is_err() {
                return streams.forget(&key);
            }
            // From here on, the stream lasts as long as the call that takes it.
            drop(outgoing);
            while let Ok(Some(message)) = messages.message().await {
                if forward.send(message).await.is_err() {
                    break;
                }
            }
            streams.forget(&key);
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

async fn open(
    messages: &mut Streaming<Any>,
    context: &RequestContext,
) -> Result<(Namespace, String), Status> {
    let first =
        messages.message().await?.ok_or_else(|| Status::invalid_argument("stream ended before it began"))?;
    let proto::StreamInit { id } = any::unpack(&first)?;
    if id.is_empty() {
        return Err(Status::invalid_argument("stream without id"));
    }
    Ok((context.namespace.clone(), id))
}
