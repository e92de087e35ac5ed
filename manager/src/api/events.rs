//! `containerd.services.events.v1.Events`, and the ttrpc service of the same purpose that shims call.

use futures_util::StreamExt;
use orlop_proto::containerd::services::events::ttrpc::v1 as ttrpc;
use orlop_proto::containerd::services::events::v1 as proto;
use orlop_proto::containerd::types::Envelope;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc::Request as TtrpcRequest;
use prost::Message;
use tonic::{Request, Response, Status};

use super::convert::Streamed;
use crate::events::Exchange;
use crate::request::RequestContext;
use crate::task::Supervisor;

/// Serves the event exchange.
pub struct EventsService {
    /// Where events are published and subscribed to.
    pub exchange: Exchange,
    /// Who learns first what shims tell.
    pub supervisor: Supervisor,
}

#[tonic::async_trait]
impl proto::events_server::Events for EventsService {
    async fn publish(&self, request: Request<proto::PublishRequest>) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::PublishRequest { topic, event } = request.into_inner();
        self.exchange.publish(context.namespace.as_str(), &topic, event.unwrap_or_default())?;
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<proto::ForwardRequest>) -> Result<Response<()>, Status> {
        self.supervisor.forward(request.into_inner().envelope.unwrap_or_default())?;
        Ok(Response::new(()))
    }

    type SubscribeStream = Streamed<Envelope>;

    async fn subscribe(
        &self,
        request: Request<proto::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let events = self.exchange.subscribe(&request.get_ref().filters)?;
        let events = events.map(|event| match event {
            Ok(envelope) => Ok(Envelope::clone(&envelope)),
            Err(error) => Err(error.into()),
        });
        Ok(Response::new(Box::pin(events)))
    }
}

/// Answers the calls of shims.
///
/// # Errors
///
/// `Unimplemented` for any service or method but `Events/Forward`; `InvalidArgument` for a malformed event.
pub fn from_shim(supervisor: &Supervisor, request: &TtrpcRequest) -> Result<Vec<u8>> {
    let unknown = |what: String| Err(Error::new(Kind::Unimplemented, what, ""));
    if request.service != ttrpc::events_ttrpc::SERVICE {
        return unknown(format!("service {}", request.service));
    }
    if request.method != ttrpc::events_ttrpc::FORWARD {
        return unknown(format!("method {}", request.method));
    }
    let forward = ttrpc::ForwardRequest::decode(request.payload.as_slice())
        .map_err(|error| Error::because(Kind::InvalidArgument, "decode", "event", error))?;
    supervisor.forward(forward.envelope.unwrap_or_default())?;
    Ok(().encode_to_vec())
}
