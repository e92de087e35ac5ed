//! `orlopd publish`: shims that do not speak ttrpc run it to deliver an event.

use std::io::Read;
use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use orlop_proto::containerd::services::events::v1::PublishRequest;
use orlop_proto::containerd::services::events::v1::events_client::EventsClient;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use prost_types::Any;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};

use crate::request::NAMESPACE_HEADER;

/// Reads an event, a `google.protobuf.Any`, from standard input and publishes it through a running daemon.
///
/// # Errors
///
/// When the input is no event, the daemon cannot be reached, or refuses topic or namespace.
pub async fn publish(address: PathBuf, namespace: &str, topic: String) -> Result<()> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("read", "event")?;
    let event = Any::decode(bytes.as_slice())
        .map_err(|error| Error::because(Kind::InvalidArgument, "decode", "event", error))?;

    let name = address.display().to_string();
    let connector = tower::service_fn(move |_: Uri| {
        let address = address.clone();
        async move { UnixStream::connect(address).await.map(TokioIo::new) }
    });
    // The address in the URI is not used: the connector knows the socket.
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::because(Kind::Unavailable, "connect to", name, error))?;
    let mut request = tonic::Request::new(PublishRequest { topic, event: Some(event) });
    if !namespace.is_empty() {
        let value = namespace
            .parse()
            .map_err(|error| Error::because(Kind::InvalidArgument, "namespace", namespace, error))?;
        request.metadata_mut().insert(NAMESPACE_HEADER, value);
    }
    EventsClient::new(channel).publish(request).await?;
    Ok(())
}
