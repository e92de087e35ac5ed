//! The task service of one shim, in either version and over either protocol: all have the same messages.

use std::time::Duration;

use orlop_proto::containerd::runtime::sandbox::v1::sandbox_ttrpc;
use orlop_proto::containerd::task::v2::ShutdownRequest;
use orlop_proto::containerd::task::v2::task_ttrpc as v2;
use orlop_proto::containerd::task::v3::task_ttrpc as v3;
use orlop_proto::error::Result;
use prost::Message;

use super::grpc;
use super::launch::{Bootstrap, GRPC};
use crate::ttrpc;

/// A connection to a shim, which ends with the last clone.
#[derive(Clone)]
pub struct Shim {
    client: Client,
    service: &'static str,
}

#[derive(Clone)]
enum Client {
    Ttrpc(ttrpc::Client),
    Grpc(grpc::Client),
}

impl Shim {
    /// Connects to a shim that has started.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`, which mean that no shim listens there (any more).
    pub async fn connect(bootstrap: &Bootstrap, namespace: &str) -> Result<Shim> {
        let service = if bootstrap.version == 2 { v2::SERVICE } else { v3::SERVICE };
        let client = match bootstrap.protocol.as_str() {
            GRPC => Client::Grpc(grpc::Client::connect(&bootstrap.address, namespace).await?),
            _ => Client::Ttrpc(ttrpc::Client::connect(&bootstrap.address, namespace).await?),
        };
        Ok(Shim { client, service })
    }

    async fn send<A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
        deadline: Option<Duration>,
    ) -> Result<A> {
        match &self.client {
            Client::Ttrpc(client) => client.call(service, method, request, deadline).await,
            Client::Grpc(client) => client.call(service, method, request, deadline).await,
        }
    }

    /// Calls a method of the task service; it may take as long as the container needs.
    ///
    /// # Errors
    ///
    /// The shim's own, in its words; `Unavailable` when the shim has gone.
    pub async fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A> {
        self.send(self.service, method, request, None).await
    }

    /// Calls a method of the sandbox service.
    ///
    /// # Errors
    ///
    /// As [`Shim::call`].
    pub async fn call_sandbox<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A> {
        self.send(sandbox_ttrpc::SERVICE, method, request, None).await
    }

    /// Calls a method that must be answered in time.
    ///
    /// # Errors
    ///
    /// As [`Shim::call`], and `DeadlineExceeded`.
    pub async fn call_within<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
        deadline: Duration,
    ) -> Result<A> {
        self.send(self.service, method, request, Some(deadline)).await
    }

    /// Asks the shim to end, and waits until its connection has.
    ///
    /// Returns whether it did in time.
    pub async fn shut_down(&self, id: &str, deadline: Duration) -> bool {
        let request = ShutdownRequest { id: id.to_owned(), now: false };
        let ended = async {
            // A shim may end before it answers; whether it ended is what counts.
            let _ = self.call::<()>(v2::SHUTDOWN, &request).await;
            self.ended().await;
        };
        tokio::time::timeout(deadline, ended).await.is_ok()
    }

    /// Returns when the connection has ended.
    pub async fn ended(&self) {
        match &self.client {
            Client::Ttrpc(client) => client.ended().await,
            Client::Grpc(client) => client.ended().await,
        }
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        match &self.client {
            Client::Ttrpc(client) => client.has_ended(),
            Client::Grpc(client) => client.has_ended(),
        }
    }
}
