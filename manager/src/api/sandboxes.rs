//! `containerd.services.sandbox.v1`: `Store`, which keeps what sandboxes are to be, and `Controller`, which runs them.

use std::time::SystemTime;

use orlop_proto::containerd::events::{SandboxCreate, SandboxExit, SandboxStart};
use orlop_proto::containerd::services::sandbox::v1 as proto;
use orlop_proto::containerd::services::sandbox::v1::controller_client::ControllerClient;
use orlop_proto::containerd::types;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::convert::{hashed, sorted};
use crate::events::Exchange;
use crate::external::{self, sandboxer::Sandboxers};
use crate::labels::invalid;
use crate::request::RequestContext;
use crate::store::containers::Runtime;
use crate::store::sandboxes::{Sandbox, Sandboxes};
use crate::store::{Timestamp, publish};
use crate::task::{CreateSandbox, Supervisor};

/// The name of the one controller: the shims of the sandboxes' runtimes.
const CONTROLLER: &str = "shim";

/// Serves the records of sandboxes.
pub struct SandboxStoreService(pub Sandboxes);

fn decode(sandbox: Option<types::Sandbox>) -> Sandbox {
    let sandbox = sandbox.unwrap_or_default();
    let runtime = sandbox.runtime.unwrap_or_default();
    Sandbox {
        id: sandbox.sandbox_id,
        runtime: Runtime { name: runtime.name, options: runtime.options },
        spec: sandbox.spec,
        labels: sorted(sandbox.labels),
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        extensions: sorted(sandbox.extensions),
        sandboxer: sandbox.sandboxer,
    }
}

fn encode(sandbox: Sandbox) -> types::Sandbox {
    let Runtime { name, options } = sandbox.runtime;
    types::Sandbox {
        sandbox_id: sandbox.id,
        runtime: Some(types::sandbox::Runtime { name, options }),
        spec: sandbox.spec,
        labels: hashed(sandbox.labels),
        created_at: Some(sandbox.created_at),
        updated_at: Some(sandbox.updated_at),
        extensions: hashed(sandbox.extensions),
        sandboxer: sandbox.sandboxer,
    }
}

#[tonic::async_trait]
impl proto::store_server::Store for SandboxStoreService {
    async fn create(
        &self,
        request: Request<proto::StoreCreateRequest>,
    ) -> Result<Response<proto::StoreCreateResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let made = self.0.create(&context, decode(request.into_inner().sandbox)).await?;
        Ok(Response::new(proto::StoreCreateResponse { sandbox: Some(encode(made)) }))
    }

    async fn update(
        &self,
        request: Request<proto::StoreUpdateRequest>,
    ) -> Result<Response<proto::StoreUpdateResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::StoreUpdateRequest { sandbox, fields } = request.into_inner();
        let updated = self.0.update(&context, decode(sandbox), fields).await?;
        Ok(Response::new(proto::StoreUpdateResponse { sandbox: Some(encode(updated)) }))
    }

    async fn delete(
        &self,
        request: Request<proto::StoreDeleteRequest>,
    ) -> Result<Response<proto::StoreDeleteResponse>, Status> {
        let context = RequestContext::of(&request)?;
        self.0.delete(&context, &request.get_ref().sandbox_id).await?;
        Ok(Response::new(proto::StoreDeleteResponse {}))
    }

    async fn list(
        &self,
        request: Request<proto::StoreListRequest>,
    ) -> Result<Response<proto::StoreListResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let list = self.0.list(&context, &request.get_ref().filters).await?;
        Ok(Response::new(proto::StoreListResponse { list: list.into_iter().map(encode).collect() }))
    }

    async fn get(
        &self,
        request: Request<proto::StoreGetRequest>,
    ) -> Result<Response<proto::StoreGetResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let sandbox = self.0.get(&context, &request.get_ref().sandbox_id).await?;
        Ok(Response::new(proto::StoreGetResponse { sandbox: Some(encode(sandbox)) }))
    }
}

/// Runs sandboxes.
pub struct SandboxControllerService {
    /// What runs.
    pub supervisor: Supervisor,
    /// Where the events go.
    pub exchange: Exchange,
    /// Controllers that are programs of their own.
    pub external: Sandboxers,
}

impl SandboxControllerService {
    /// The external controller that a request asks for; nothing where that is our own.
    fn external(&self, name: &str) -> Result<Option<ControllerClient<Channel>>> {
        match self.external.get(name) {
            Some(client) => Ok(Some(client)),
            None => controller(name).map(|()| None),
        }
    }
}

/// Passes a request on to an external controller, if it asks for one.
macro_rules! pass_on {
    ($service:ident, $context:ident, $request:ident, $method:ident) => {
        if let Some(mut client) = $service.external(&$request.get_ref().sandboxer)? {
            return client.$method(external::request(&$context, $request.into_inner())).await;
        }
    };
}

/// Checks the name of our own controller, or says why it is none.
fn controller(name: &str) -> Result<()> {
    match name {
        "" => {
            let text = format!("{}: sandbox controller name can not be empty", Kind::InvalidArgument);
            Err(Error::exactly(Kind::InvalidArgument, text))
        }
        CONTROLLER => Ok(()),
        other => {
            let text = format!("{}: failed to get sandbox controller by {other}", Kind::NotFound);
            Err(Error::exactly(Kind::NotFound, text))
        }
    }
}

#[tonic::async_trait]
impl proto::controller_server::Controller for SandboxControllerService {
    async fn create(
        &self,
        request: Request<proto::ControllerCreateRequest>,
    ) -> Result<Response<proto::ControllerCreateResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let event = SandboxCreate { sandbox_id: request.get_ref().sandbox_id.clone() };
        if let Some(mut client) = self.external(&request.get_ref().sandboxer)? {
            let answer = client.create(external::request(&context, request.into_inner())).await?;
            publish(&self.exchange, &context.namespace, "/sandboxes/create", &event)?;
            return Ok(answer);
        }
        let request = request.into_inner();
        let sandbox = decode(request.sandbox);
        if sandbox.id != request.sandbox_id && !sandbox.id.is_empty() {
            return Err(invalid("sandbox.ID must be the request's").into());
        }
        let create = CreateSandbox {
            id: request.sandbox_id.clone(),
            runtime: sandbox.runtime.name,
            runtime_options: sandbox.runtime.options,
            spec: sandbox.spec.unwrap_or_default().value,
            rootfs: request.rootfs,
            options: request.options,
            network: request.netns_path,
            annotations: sorted(request.annotations),
        };
        self.supervisor.create_sandbox(&context.namespace, create).await?;
        publish(&self.exchange, &context.namespace, "/sandboxes/create", &event)?;
        Ok(Response::new(proto::ControllerCreateResponse { sandbox_id: request.sandbox_id }))
    }

    async fn start(
        &self,
        request: Request<proto::ControllerStartRequest>,
    ) -> Result<Response<proto::ControllerStartResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let event = SandboxStart { sandbox_id: request.get_ref().sandbox_id.clone() };
        if let Some(mut client) = self.external(&request.get_ref().sandboxer)? {
            let answer = client.start(external::request(&context, request.into_inner())).await?;
            publish(&self.exchange, &context.namespace, "/sandboxes/start", &event)?;
            return Ok(answer);
        }
        let sandbox_id = request.into_inner().sandbox_id;
        let (sandbox, started) = self.supervisor.start_sandbox(&context.namespace, &sandbox_id).await?;
        publish(&self.exchange, &context.namespace, "/sandboxes/start", &event)?;
        let (address, version) = sandbox.endpoint();
        Ok(Response::new(proto::ControllerStartResponse {
            sandbox_id,
            pid: started.pid,
            created_at: started.created_at,
            labels: Default::default(),
            address,
            version,
            spec: started.spec,
        }))
    }

    async fn platform(
        &self,
        request: Request<proto::ControllerPlatformRequest>,
    ) -> Result<Response<proto::ControllerPlatformResponse>, Status> {
        let context = RequestContext::of(&request)?;
        pass_on!(self, context, request, platform);
        let sandbox = self.supervisor.sandbox(&context.namespace, &request.get_ref().sandbox_id)?;
        let platform = sandbox.platform().await?;
        Ok(Response::new(proto::ControllerPlatformResponse { platform }))
    }

    async fn stop(
        &self,
        request: Request<proto::ControllerStopRequest>,
    ) -> Result<Response<proto::ControllerStopResponse>, Status> {
        let context = RequestContext::of(&request)?;
        pass_on!(self, context, request, stop);
        let proto::ControllerStopRequest { sandbox_id, timeout_secs, .. } = request.into_inner();
        // What does not run is stopped already.
        if let Ok(sandbox) = self.supervisor.sandbox(&context.namespace, &sandbox_id) {
            sandbox.stop(timeout_secs).await?;
        }
        Ok(Response::new(proto::ControllerStopResponse {}))
    }

    async fn wait(
        &self,
        request: Request<proto::ControllerWaitRequest>,
    ) -> Result<Response<proto::ControllerWaitResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let sandbox_id = request.get_ref().sandbox_id.clone();
        let (exit_status, exited_at) = match self.external(&request.get_ref().sandboxer)? {
            Some(mut client) => {
                let answer =
                    client.wait(external::request(&context, request.into_inner())).await?.into_inner();
                (answer.exit_status, answer.exited_at)
            }
            None => {
                let ended = self.supervisor.sandbox(&context.namespace, &sandbox_id)?.wait().await?;
                (ended.exit_status, ended.exited_at)
            }
        };
        let event = SandboxExit { sandbox_id, exit_status, exited_at };
        publish(&self.exchange, &context.namespace, "/sandboxes/exit", &event)?;
        Ok(Response::new(proto::ControllerWaitResponse { exit_status, exited_at }))
    }

    async fn status(
        &self,
        request: Request<proto::ControllerStatusRequest>,
    ) -> Result<Response<proto::ControllerStatusResponse>, Status> {
        let context = RequestContext::of(&request)?;
        pass_on!(self, context, request, status);
        let proto::ControllerStatusRequest { sandbox_id, verbose, .. } = request.into_inner();
        let Ok(sandbox) = self.supervisor.sandbox(&context.namespace, &sandbox_id) else {
            let exited_at = Some(SystemTime::now().into());
            return Ok(Response::new(proto::ControllerStatusResponse {
                sandbox_id,
                exited_at,
                ..Default::default()
            }));
        };
        let status = sandbox.status(verbose).await?;
        let (address, version) = sandbox.endpoint();
        Ok(Response::new(proto::ControllerStatusResponse {
            sandbox_id: status.sandbox_id,
            pid: status.pid,
            state: status.state,
            info: status.info,
            created_at: status.created_at,
            exited_at: status.exited_at,
            extra: Some(status.extra.unwrap_or_default()),
            address,
            version,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<proto::ControllerShutdownRequest>,
    ) -> Result<Response<proto::ControllerShutdownResponse>, Status> {
        let context = RequestContext::of(&request)?;
        pass_on!(self, context, request, shutdown);
        let sandbox_id = request.into_inner().sandbox_id;
        self.supervisor.shut_down_sandbox(&context.namespace, &sandbox_id).await?;
        Ok(Response::new(proto::ControllerShutdownResponse {}))
    }

    async fn metrics(
        &self,
        request: Request<proto::ControllerMetricsRequest>,
    ) -> Result<Response<proto::ControllerMetricsResponse>, Status> {
        let context = RequestContext::of(&request)?;
        pass_on!(self, context, request, metrics);
        let sandbox_id = request.into_inner().sandbox_id;
        let metrics = self.supervisor.sandbox(&context.namespace, &sandbox_id)?.metrics().await?;
        Ok(Response::new(proto::ControllerMetricsResponse { metrics }))
    }

    async fn update(
        &self,
        request: Request<proto::ControllerUpdateRequest>,
    ) -> Result<Response<proto::ControllerUpdateResponse>, Status> {
        let context = RequestContext::of(&request)?;
        pass_on!(self, context, request, update);
        // As under containerd: shims have no such call.
        Ok(Response::new(proto::ControllerUpdateResponse {}))
    }
}
