//! `containerd.services.snapshots.v1.Snapshots`.

use orlop_proto::containerd::services::snapshots::v1 as proto;
use tonic::{Request, Response, Status};

use super::convert::{Streamed, hashed, mounts, paths, sorted, stream};
use crate::request::RequestContext;
use crate::snapshot::{Info, SnapshotKind, Snapshots};

/// Snapshots per message of a list.
const CHUNK: usize = 100;

/// Serves the snapshots.
pub struct SnapshotsService(pub Snapshots);

fn encode(info: Info) -> proto::Info {
    let kind = match info.kind {
        SnapshotKind::View => proto::Kind::View,
        SnapshotKind::Active => proto::Kind::Active,
        SnapshotKind::Committed => proto::Kind::Committed,
    };
    proto::Info {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: Some(info.created_at),
        updated_at: Some(info.updated_at),
        labels: hashed(info.labels),
    }
}

#[tonic::async_trait]
impl proto::snapshots_server::Snapshots for SnapshotsService {
    async fn prepare(
        &self,
        request: Request<proto::PrepareSnapshotRequest>,
    ) -> Result<Response<proto::PrepareSnapshotResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::PrepareSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let made = self.0.prepare(&context, &snapshotter, &key, &parent, sorted(labels)).await?;
        Ok(Response::new(proto::PrepareSnapshotResponse { mounts: mounts(made) }))
    }

    async fn view(
        &self,
        request: Request<proto::ViewSnapshotRequest>,
    ) -> Result<Response<proto::ViewSnapshotResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::ViewSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let made = self.0.view(&context, &snapshotter, &key, &parent, sorted(labels)).await?;
        Ok(Response::new(proto::ViewSnapshotResponse { mounts: mounts(made) }))
    }

    async fn mounts(
        &self,
        request: Request<proto::MountsRequest>,
    ) -> Result<Response<proto::MountsResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::MountsRequest { snapshotter, key } = request.into_inner();
        let found = self.0.mounts(&context, &snapshotter, &key).await?;
        Ok(Response::new(proto::MountsResponse { mounts: mounts(found) }))
    }

    async fn commit(&self, request: Request<proto::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::CommitSnapshotRequest { snapshotter, name, key, labels } = request.into_inner();
        self.0.commit(&context, &snapshotter, &name, &key, sorted(labels)).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<proto::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::RemoveSnapshotRequest { snapshotter, key } = request.into_inner();
        self.0.remove(&context, &snapshotter, &key).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<proto::StatSnapshotRequest>,
    ) -> Result<Response<proto::StatSnapshotResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::StatSnapshotRequest { snapshotter, key } = request.into_inner();
        let info = encode(self.0.stat(&context, &snapshotter, &key).await?);
        Ok(Response::new(proto::StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<proto::UpdateSnapshotRequest>,
    ) -> Result<Response<proto::UpdateSnapshotResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::UpdateSnapshotRequest { snapshotter, info, update_mask } = request.into_inner();
        let proto::Info { name, labels, .. } = info.unwrap_or_default();
        let info = self.0.update(&context, &snapshotter, &name, sorted(labels), paths(update_mask)).await?;
        Ok(Response::new(proto::UpdateSnapshotResponse { info: Some(encode(info)) }))
    }

    type ListStream = Streamed<proto::ListSnapshotsResponse>;

    async fn list(
        &self,
        request: Request<proto::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::ListSnapshotsRequest { snapshotter, filters } = request.into_inner();
        let all: Vec<_> =
            self.0.list(&context, &snapshotter, &filters).await?.into_iter().map(encode).collect();
        let message = |info: &[proto::Info]| proto::ListSnapshotsResponse { info: info.to_vec() };
        Ok(Response::new(stream(all.chunks(CHUNK).map(message).collect())))
    }

    async fn usage(
        &self,
        request: Request<proto::UsageRequest>,
    ) -> Result<Response<proto::UsageResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::UsageRequest { snapshotter, key } = request.into_inner();
        let usage = self.0.usage(&context, &snapshotter, &key).await?;
        let (size, inodes) = (usage.size.cast_signed(), usage.inodes.cast_signed());
        Ok(Response::new(proto::UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, request: Request<proto::CleanupRequest>) -> Result<Response<()>, Status> {
        self.0.cleanup(&request.get_ref().snapshotter).await?;
        Ok(Response::new(()))
    }
}
