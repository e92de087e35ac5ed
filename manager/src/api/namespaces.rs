//! `containerd.services.namespaces.v1.Namespaces`.

use orlop_proto::containerd::services::namespaces::v1 as proto;
use tonic::{Request, Response, Status};

use super::convert::{hashed, paths, sorted};
use crate::request::RequestContext;
use crate::store::namespaces::Namespaces;

/// Serves the namespaces.
pub struct NamespacesService(pub Namespaces);

#[tonic::async_trait]
impl proto::namespaces_server::Namespaces for NamespacesService {
    async fn get(
        &self,
        request: Request<proto::GetNamespaceRequest>,
    ) -> Result<Response<proto::GetNamespaceResponse>, Status> {
        let name = request.into_inner().name;
        let labels = hashed(self.0.labels(&name).await?);
        Ok(Response::new(proto::GetNamespaceResponse { namespace: Some(proto::Namespace { name, labels }) }))
    }

    async fn list(
        &self,
        _request: Request<proto::ListNamespacesRequest>,
    ) -> Result<Response<proto::ListNamespacesResponse>, Status> {
        let namespaces = self.0.list().await?.into_iter();
        let namespaces =
            namespaces.map(|(name, labels)| proto::Namespace { name, labels: hashed(labels) }).collect();
        Ok(Response::new(proto::ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<proto::CreateNamespaceRequest>,
    ) -> Result<Response<proto::CreateNamespaceResponse>, Status> {
        let caller = RequestContext::of(&request).ok().map(|context| context.namespace);
        let namespace = request.into_inner().namespace.unwrap_or_default();
        self.0.create(caller, &namespace.name, sorted(namespace.labels.clone())).await?;
        Ok(Response::new(proto::CreateNamespaceResponse { namespace: Some(namespace) }))
    }

    async fn update(
        &self,
        request: Request<proto::UpdateNamespaceRequest>,
    ) -> Result<Response<proto::UpdateNamespaceResponse>, Status> {
        let caller = RequestContext::of(&request).ok().map(|context| context.namespace);
        let request = request.into_inner();
        let proto::Namespace { name, labels } = request.namespace.unwrap_or_default();
        let labels = hashed(self.0.update(caller, &name, sorted(labels), paths(request.update_mask)).await?);
        let namespace = Some(proto::Namespace { name, labels });
        Ok(Response::new(proto::UpdateNamespaceResponse { namespace }))
    }

    async fn delete(&self, request: Request<proto::DeleteNamespaceRequest>) -> Result<Response<()>, Status> {
        self.0.delete(&request.into_inner().name).await?;
        Ok(Response::new(()))
    }
}
