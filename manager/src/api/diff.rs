//! `containerd.services.diff.v1.Diff`.

use orlop_proto::containerd::services::diff::v1 as proto;
use orlop_proto::containerd::types;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tonic::{Request, Response, Status};

use super::convert::{hashed, sorted};
use crate::content::digest::Digest;
use crate::image::ImageService;
use crate::image::diff::DiffRequest;
use crate::image::manifest::Descriptor;
use crate::request::RequestContext;
use crate::snapshot::Mount;

/// Serves differences.
pub struct DiffService(pub ImageService);

fn decode(mounts: Vec<types::Mount>) -> Vec<Mount> {
    mounts
        .into_iter()
        .map(|types::Mount { r#type, source, target, options }| Mount {
            kind: r#type,
            source,
            target,
            options,
        })
        .collect()
}

fn encode(descriptor: Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type,
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: hashed(descriptor.annotations),
    }
}

#[tonic::async_trait]
impl proto::diff_server::Diff for DiffService {
    async fn apply(
        &self,
        request: Request<proto::ApplyRequest>,
    ) -> Result<Response<proto::ApplyResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::ApplyRequest { diff, mounts, sync_fs, .. } = request.into_inner();
        let diff =
            diff.ok_or_else(|| Error::because(Kind::InvalidArgument, "apply", "layer", "none is given"))?;
        let mut layer = Descriptor::of(&diff.media_type, b"");
        layer.digest = Digest::parse(&diff.digest)?;
        let (images, mounts) = (self.0.clone(), decode(mounts));
        // A client that goes away must not stop the unpacking halfway while others read its permit as free.
        let work = tokio::spawn(async move { images.apply(&context, &layer, mounts, sync_fs).await });
        let applied =
            work.await.map_err(|error| Error::because(Kind::Internal, "apply", "layer", error))??;
        Ok(Response::new(proto::ApplyResponse { applied: Some(encode(applied)) }))
    }

    async fn diff(
        &self,
        request: Request<proto::DiffRequest>,
    ) -> Result<Response<proto::DiffResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::DiffRequest { left, right, media_type, r#ref, labels, source_date_epoch } =
            request.into_inner();
        let request = DiffRequest {
            left: decode(left),
            right: decode(right),
            media_type,
            reference: r#ref,
            labels: sorted(labels),
            epoch: source_date_epoch.map(|time| time.seconds),
        };
        let images = self.0.clone();
        let work = tokio::spawn(async move { images.diff(&context, request).await });
        let made =
            work.await.map_err(|error| Error::because(Kind::Internal, "diff", "snapshots", error))??;
        Ok(Response::new(proto::DiffResponse { diff: Some(encode(made)) }))
    }
}
