//! `containerd.services.containers.v1.Containers`.

use orlop_proto::containerd::services::containers::v1 as proto;
use tonic::{Request, Response, Status};

use super::convert::{Streamed, hashed, paths, sorted, stream};
use crate::request::RequestContext;
use crate::store::Timestamp;
use crate::store::containers::{Container, Containers, Runtime};

/// Serves the containers.
pub struct ContainersService(pub Containers);

fn decode(container: Option<proto::Container>) -> Container {
    let container = container.unwrap_or_default();
    let runtime = container.runtime.unwrap_or_default();
    Container {
        id: container.id,
        labels: sorted(container.labels),
        image: container.image,
        runtime: Runtime { name: runtime.name, options: runtime.options },
        spec: container.spec,
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        extensions: sorted(container.extensions),
        sandbox: container.sandbox,
    }
}

fn encode(container: Container) -> proto::Container {
    let Runtime { name, options } = container.runtime;
    proto::Container {
        id: container.id,
        labels: hashed(container.labels),
        image: container.image,
        runtime: Some(proto::container::Runtime { name, options }),
        spec: container.spec,
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        created_at: Some(container.created_at),
        updated_at: Some(container.updated_at),
        extensions: hashed(container.extensions),
        sandbox: container.sandbox,
    }
}

#[tonic::async_trait]
impl proto::containers_server::Containers for ContainersService {
    async fn get(
        &self,
        request: Request<proto::GetContainerRequest>,
    ) -> Result<Response<proto::GetContainerResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let container = self.0.get(&context, &request.get_ref().id).await?;
        Ok(Response::new(proto::GetContainerResponse { container: Some(encode(container)) }))
    }

    async fn list(
        &self,
        request: Request<proto::ListContainersRequest>,
    ) -> Result<Response<proto::ListContainersResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let containers = self.0.list(&context, &request.get_ref().filters).await?;
        let containers = containers.into_iter().map(encode).collect();
        Ok(Response::new(proto::ListContainersResponse { containers }))
    }

    type ListStreamStream = Streamed<proto::ListContainerMessage>;

    async fn list_stream(
        &self,
        request: Request<proto::ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let context = RequestContext::of(&request)?;
        let containers = self.0.list(&context, &request.get_ref().filters).await?.into_iter();
        let message = |container| proto::ListContainerMessage { container: Some(encode(container)) };
        Ok(Response::new(stream(containers.map(message).collect())))
    }

    async fn create(
        &self,
        request: Request<proto::CreateContainerRequest>,
    ) -> Result<Response<proto::CreateContainerResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let container = self.0.create(&context, decode(request.into_inner().container)).await?;
        Ok(Response::new(proto::CreateContainerResponse { container: Some(encode(container)) }))
    }

    async fn update(
        &self,
        request: Request<proto::UpdateContainerRequest>,
    ) -> Result<Response<proto::UpdateContainerResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let request = request.into_inner();
        let container = decode(request.container);
        if container.id.is_empty() {
            return Err(Status::invalid_argument("Container.ID required"));
        }
        let container = self.0.update(&context, container, paths(request.update_mask)).await?;
        Ok(Response::new(proto::UpdateContainerResponse { container: Some(encode(container)) }))
    }

    async fn delete(&self, request: Request<proto::DeleteContainerRequest>) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        self.0.delete(&context, &request.get_ref().id).await?;
        Ok(Response::new(()))
    }
}
