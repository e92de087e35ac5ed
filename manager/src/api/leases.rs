//! `containerd.services.leases.v1.Leases`.

use orlop_proto::containerd::services::leases::v1 as proto;
use tonic::{Request, Response, Status};

use super::convert::{hashed, sorted};
use crate::gc::Collector;
use crate::image::unique;
use crate::request::RequestContext;
use crate::store::leases::{Lease, Leases, Resource};

/// Serves the leases.
pub struct LeasesService {
    /// The stored leases.
    pub leases: Leases,
    /// Collects when a client waits for that.
    pub collector: Collector,
}

fn encode(lease: Lease) -> proto::Lease {
    proto::Lease { id: lease.id, created_at: Some(lease.created_at), labels: hashed(lease.labels) }
}

fn decode(resource: Option<proto::Resource>) -> Resource {
    let resource = resource.unwrap_or_default();
    Resource { id: resource.id, kind: resource.r#type }
}

#[tonic::async_trait]
impl proto::leases_server::Leases for LeasesService {
    async fn create(
        &self,
        request: Request<proto::CreateRequest>,
    ) -> Result<Response<proto::CreateResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::CreateRequest { id, labels } = request.into_inner();
        let id = if id.is_empty() { unique() } else { id };
        let lease = self.leases.create(&context, &id, sorted(labels)).await?;
        Ok(Response::new(proto::CreateResponse { lease: Some(encode(lease)) }))
    }

    async fn delete(&self, request: Request<proto::DeleteRequest>) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::DeleteRequest { id, sync } = request.into_inner();
        self.leases.delete(&context, &id).await?;
        if sync {
            self.collector.collect().await?;
        }
        Ok(Response::new(()))
    }

    async fn list(
        &self,
        request: Request<proto::ListRequest>,
    ) -> Result<Response<proto::ListResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let leases = self.leases.list(&context, &request.get_ref().filters).await?;
        Ok(Response::new(proto::ListResponse { leases: leases.into_iter().map(encode).collect() }))
    }

    async fn add_resource(
        &self,
        request: Request<proto::AddResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::AddResourceRequest { id, resource } = request.into_inner();
        self.leases.add_resource(&context, &id, decode(resource)).await?;
        Ok(Response::new(()))
    }

    async fn delete_resource(
        &self,
        request: Request<proto::DeleteResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::DeleteResourceRequest { id, resource } = request.into_inner();
        self.leases.delete_resource(&context, &id, decode(resource)).await?;
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<proto::ListResourcesRequest>,
    ) -> Result<Response<proto::ListResourcesResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let resources = self.leases.resources(&context, &request.get_ref().id).await?;
        let encode = |Resource { id, kind }| proto::Resource { id, r#type: kind };
        let resources = resources.into_iter().map(encode).collect();
        Ok(Response::new(proto::ListResourcesResponse { resources }))
    }
}
