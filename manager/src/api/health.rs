//! `grpc.health.v1.Health`: while the socket answers, every service is up.

use orlop_proto::grpc::health::v1::health_check_response::ServingStatus;
use orlop_proto::grpc::health::v1::health_server::Health;
use orlop_proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Answers whether the daemon, or one service of it, is up.
pub struct HealthService;

/// What is known of a service: the daemon itself, or one of the API's.
fn status(service: &str) -> ServingStatus {
    if service.is_empty() || service.starts_with("containerd.services.") || service == "grpc.health.v1.Health"
    {
        ServingStatus::Serving
    } else {
        ServingStatus::ServiceUnknown
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match status(&request.get_ref().service) {
            ServingStatus::Serving => {
                Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
            }
            _ => Err(Status::not_found("unknown service")),
        }
    }

    type WatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        use tokio_stream::StreamExt;
        let now = HealthCheckResponse { status: status(&request.get_ref().service).into() };
        let stream = tokio_stream::once(Ok(now)).chain(tokio_stream::pending());
        Ok(Response::new(Box::pin(stream)))
    }
}
