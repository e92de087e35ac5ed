//! `containerd.services.version.v1.Version`.

use orlop_proto::containerd::services::version::v1::VersionResponse;
use orlop_proto::containerd::services::version::v1::version_server::Version;
use tonic::{Request, Response, Status};

/// What `--version` calls the product.
pub const PACKAGE: &str = "github.com/orlop/orlop";
/// The containerd version whose behaviour is served (docs/decisions/0401-version.md).
const COMPATIBLE: &str = "1.7.0";

/// The version that clients see: containerd's, with ours as build metadata; parses as a semantic version.
pub fn version() -> String {
    format!("{COMPATIBLE}+orlop.{}", env!("CARGO_PKG_VERSION"))
}

/// Answers what version this is.
pub struct VersionService;

#[tonic::async_trait]
impl Version for VersionService {
    async fn version(&self, _request: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse { version: version(), revision: String::new() }))
    }
}
