//! `containerd.services.mounts.v1.Mounts`.

use orlop_proto::containerd::services::mounts::v1 as proto;
use orlop_proto::containerd::types;
use orlop_proto::error::Error;
use orlop_proto::kind::Kind;
use tonic::{Request, Response, Status};

use super::convert::{Streamed, decode_mounts, hashed, mounts, sorted, stream};
use crate::mount::{Activation, Active, Mounts};
use crate::request::RequestContext;

/// Serves mounts that the daemon makes.
pub struct MountsService(pub Mounts);

fn encode(name: String, activation: Activation) -> types::ActivationInfo {
    let system = mounts(activation.system());
    let active = activation.active.into_iter().map(|active: Active| types::ActiveMount {
        mount: mounts(vec![active.mount()]).pop(),
        mounted_at: active.mounted_at,
        mount_point: active.mount_point,
        data: Default::default(),
    });
    types::ActivationInfo { name, active: active.collect(), system, labels: hashed(activation.labels) }
}

#[tonic::async_trait]
impl proto::mounts_server::Mounts for MountsService {
    async fn activate(
        &self,
        request: Request<proto::ActivateRequest>,
    ) -> Result<Response<proto::ActivateResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::ActivateRequest { name, mounts, labels, temporary } = request.into_inner();
        let (mounts, labels) = (decode_mounts(mounts), sorted(labels));
        let made = self.0.activate(&context, &name, mounts, labels, temporary).await?;
        Ok(Response::new(proto::ActivateResponse { info: Some(encode(name, made)) }))
    }

    async fn deactivate(&self, request: Request<proto::DeactivateRequest>) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        self.0.deactivate(&context, &request.get_ref().name).await?;
        Ok(Response::new(()))
    }

    async fn info(
        &self,
        request: Request<proto::InfoRequest>,
    ) -> Result<Response<proto::InfoResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let name = request.into_inner().name;
        let found = self.0.info(&context, &name).await?;
        Ok(Response::new(proto::InfoResponse { info: Some(encode(name, found)) }))
    }

    async fn update(
        &self,
        request: Request<proto::UpdateRequest>,
    ) -> Result<Response<proto::UpdateResponse>, Status> {
        RequestContext::of(&request)?;
        // As under containerd.
        Err(Error::exactly(Kind::Unimplemented, Kind::Unimplemented.to_string()).into())
    }

    type ListStream = Streamed<proto::ListMessage>;

    async fn list(&self, request: Request<proto::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let context = RequestContext::of(&request)?;
        let all = self.0.list(&context, &request.get_ref().filters).await?;
        let message = |(name, found)| proto::ListMessage { info: Some(encode(name, found)) };
        Ok(Response::new(stream(all.into_iter().map(message).collect())))
    }
}
