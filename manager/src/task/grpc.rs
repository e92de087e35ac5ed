//! A connection to one shim that speaks gRPC: the same services and messages as over ttrpc.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::Uri;
use http::uri::PathAndQuery;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use tokio::sync::SetOnce;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};
use tower::service_fn;

use crate::request::NAMESPACE_HEADER;
use crate::ttrpc;

/// What the other end of a unix socket is called.
const ORIGIN: &str = "http://localhost";

/// A client of a shim's gRPC server. Clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct Client {
    sender: http2::SendRequest<Body>,
    namespace: String,
    /// Set when the connection has ended.
    ended: Arc<SetOnce<()>>,
}

impl Client {
    /// Connects to `unix:///path`, to a bare path, or to an abstract socket named `@name`.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`.
    pub async fn connect(address: &str, namespace: &str) -> Result<Client> {
        let stream = ttrpc::connect(address).await.context("connect to shim", address)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| Error::because(Kind::Unavailable, "connect to shim", address, error))?;
        let ended = Arc::new(SetOnce::new());
        let end = ended.clone();
        tokio::spawn(async move {
            // However it ends, the shim cannot be reached any more; nobody else says so.
            let _ = connection.await;
            let _ = end.set(());
        });
        Ok(Client { sender, namespace: namespace.to_owned(), ended })
    }

    /// Calls a method and decodes its answer.
    ///
    /// # Errors
    ///
    /// What the other side answered; `DeadlineExceeded` when it does not answer in time; `Unavailable` when the connection has
    /// ended.
    pub async fn call<A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        message: &impl Message,
        deadline: Option<Duration>,
    ) -> Result<A> {
        let path = PathAndQuery::try_from(format!("/{service}/{method}"))
            .map_err(|error| Error::because(Kind::Internal, "call", method, error))?;
        let mut request = Request::new(Bytes::from(message.encode_to_vec()));
        // Namespaces are letters, digits and a few signs.
        if let Ok(namespace) = self.namespace.parse() {
            request.metadata_mut().insert(NAMESPACE_HEADER, namespace);
        }
        if let Some(left) = deadline {
            request.set_timeout(left);
        }
        let sender = self.sender.clone();
        let mut grpc = Grpc::with_origin(
            service_fn(move |request| {
                let mut sender = sender.clone();
                async move { sender.send_request(request).await }
            }),
            Uri::from_static(ORIGIN),
        );
        let call = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            grpc.unary(request, path, Plain).await
        };
        let answer = match deadline {
            None => call.await,
            Some(left) => tokio::time::timeout(left, call).await.unwrap_or_else(|_| {
                Err(Status::deadline_exceeded(format!("the shim did not answer within {left:?}")))
            }),
        };
        match answer {
            Ok(answer) => A::decode(answer.into_inner())
                .map_err(|error| Error::because(Kind::Internal, "decode answer to", method, error)),
            Err(_) if self.has_ended() => Err(ttrpc::closed()),
            Err(status) => Err(Error::from(status)),
        }
    }

    /// Returns when the connection has ended, whoever ended it.
    pub async fn ended(&self) {
        self.ended.wait().await;
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.initialized()
    }
}

/// Messages as their bytes.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Plain;
    type Decoder = Plain;

    fn encoder(&mut self) -> Plain {
        Plain
    }

    fn decoder(&mut self) -> Plain {
        Plain
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> std::result::Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> std::result::Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
