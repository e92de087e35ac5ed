//! `containerd.services.diff.v1.Diff`.

use orlop_proto::containerd::services::diff::v1 as proto;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tonic::{Request, Response, Status};

use super::convert::{decode_mounts, descriptor, sorted};
use crate::content::digest::Digest;
use crate::image::ImageService;
use crate::image::diff::DiffRequest;
use crate::image::manifest::Descriptor;
use crate::request::RequestContext;

/// Serves differences.
pub struct DiffService(pub ImageService);

#[tonic::async_trait]
impl proto::diff_server::Diff for DiffService {
    async fn apply(
        &self,
        request: Request<proto::ApplyRequest>,
    ) -> Result<Response<proto::ApplyResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let request = request.into_inner();
        if let Some(answer) = self.0.differs().apply(&context, &request).await? {
            return Ok(Response::new(answer));
        }
        let proto::ApplyRequest { diff, mounts, sync_fs, .. } = request;
        let diff =
            diff.ok_or_else(|| Error::because(Kind::InvalidArgument, "apply", "layer", "none is given"))?;
        let mut layer = Descriptor::of(&diff.media_type, b"");
        layer.digest = Digest::parse(&diff.digest)?;
        let (images, mounts) = (self.0.clone(), decode_mounts(mounts));
        // A client that goes away must not stop the unpacking halfway while others read its permit as free.
        let work = tokio::spawn(async move { images.apply(&context, &layer, mounts, sync_fs).await });
        let applied =
            work.await.map_err(|error| Error::because(Kind::Internal, "apply", "layer", error))??;
        Ok(Response::new(proto::ApplyResponse { applied: Some(descriptor(applied)) }))
    }

    async fn diff(
        &self,
        request: Request<proto::DiffRequest>,
    ) -> Result<Response<proto::DiffResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let request = request.into_inner();
        if let Some(answer) = self.0.differs().diff(&context, &request).await? {
            return Ok(Response::new(answer));
        }
        let proto::DiffRequest { left, right, media_type, r#ref, labels, source_date_epoch } = request;
        let request = DiffRequest {
            left: decode_mounts(left),
            right: decode_mounts(right),
            media_type,
            reference: r#ref,
            labels: sorted(labels),
            epoch: source_date_epoch.map(|time| time.seconds),
            places: Vec::new(),
        };
        let images = self.0.clone();
        let work = tokio::spawn(async move { images.diff(&context, request).await });
        let made =
            work.await.map_err(|error| Error::because(Kind::Internal, "diff", "snapshots", error))??;
        Ok(Response::new(proto::DiffResponse { diff: Some(descriptor(made)) }))
    }
}
