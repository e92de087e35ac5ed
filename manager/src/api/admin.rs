//! `orlop.admin.v1.Admin`: what an administrator asks beyond the containerd API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::stream::try_unfold;
use orlop_proto::error::Context;
use orlop_proto::orlop::admin::v1 as proto;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::convert::Streamed;
use super::streaming::Streams;
use super::transfer::{access, descriptor, platform};
use crate::config::Config;
use crate::content::digest::Digest;
use crate::db::blocking;
use crate::fsck::{Checker, Options, Outcome, Problem, Report, Severity};
use crate::gc::Collector;
use crate::gc::explain::{Explanation, Step};
use crate::image::{Job, PushObjectRequest, ReferrersRequest};
use crate::metrics::METRICS;
use crate::request::RequestContext;
use crate::snapshot::SNAPSHOTS;
use crate::space::{self, Owner, Taken};
use crate::store::containers::{CONTAINERS, Containers};
use crate::store::images::{IMAGES, Images};
use crate::store::leases::{LEASES, Leases};
use crate::store::namespaces::NAMESPACES;
use crate::task::Supervisor;

/// Serves administrators.
pub struct AdminService {
    /// The root directory.
    pub root: PathBuf,
    /// Checks what is stored.
    pub checker: Checker,
    /// Collects and explains.
    pub collector: Collector,
    /// What is kept for its own sake.
    pub images: Images,
    /// What is kept for its own sake.
    pub containers: Containers,
    /// What is kept for its own sake.
    pub leases: Leases,
    /// Knows the tasks.
    pub supervisor: Supervisor,
    /// What holds.
    pub config: Config,
    /// Identity of the installation.
    pub uuid: String,
    /// When the daemon started.
    pub started: SystemTime,
    /// Streams that requests name.
    pub streams: Streams,
}

/// The message of a problem.
fn encode_problem(problem: Problem) -> proto::Problem {
    let severity = match problem.severity {
        Severity::Damage => proto::problem::Severity::Damage,
        Severity::Notice => proto::problem::Severity::Notice,
    };
    let (repaired, outcome) = match problem.outcome {
        Outcome::Untouched => (false, String::new()),
        Outcome::Repaired(how) => (true, how),
        Outcome::Left(why) => (false, why),
    };
    proto::Problem {
        severity: severity.into(),
        kind: problem.kind.to_owned(),
        namespace: problem.namespace,
        name: problem.name,
        text: problem.text,
        outcome,
        repaired,
    }
}

fn encode_report(report: Report) -> proto::CheckResponse {
    proto::CheckResponse {
        problems: report.problems.into_iter().map(encode_problem).collect(),
        records: report.records,
        blobs: report.blobs,
        blob_bytes: report.blob_bytes,
        snapshots: report.snapshots,
        layers_compared: report.layers_compared,
        layers_unsynced: report.layers_unsynced,
    }
}

fn encode_owner((owner, taken): (Owner, Taken)) -> proto::Owner {
    proto::Owner {
        kind: owner.kind.to_owned(),
        name: owner.name,
        namespaces: owner.namespaces,
        kept_by: owner.kept_by.unwrap_or_default(),
        bytes: taken.bytes,
        inodes: taken.inodes,
    }
}

fn encode_explanation(explanation: Explanation) -> proto::Explanation {
    let step =
        |step: Step| proto::Step { kind: step.kind.to_owned(), name: step.name, because: step.because };
    proto::Explanation {
        kind: explanation.kind.to_owned(),
        name: explanation.name,
        path: explanation.path.into_iter().map(step).collect(),
    }
}

/// Something that is kept until it is removed.
fn own(kind: &'static str, namespace: &str, name: &str, because: &str) -> Explanation {
    Explanation {
        namespace: namespace.to_owned(),
        kind,
        name: name.to_owned(),
        path: vec![Step { kind, name: name.to_owned(), because: because.to_owned() }],
    }
}

#[tonic::async_trait]
impl proto::admin_server::Admin for AdminService {
    async fn check(
        &self,
        request: Request<proto::CheckRequest>,
    ) -> Result<Response<proto::CheckResponse>, Status> {
        let proto::CheckRequest { repair, quick } = request.into_inner();
        let checker = self.checker.clone();
        // It runs to its end whether or not the caller waits: nothing is left half repaired.
        let check = tokio::spawn(async move { checker.check(Options { repair, quick }).await });
        let report = check.await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(encode_report(report)))
    }

    async fn usage(
        &self,
        _request: Request<proto::UsageRequest>,
    ) -> Result<Response<proto::UsageResponse>, Status> {
        let explainer = self.collector.explainer().await?;
        let (root, checker) = (self.root.clone(), self.checker.clone());
        let taken = blocking(move || {
            space::usage(&root, &checker.db, &checker.content, &checker.snapshots, &explainer)
        })
        .await?;
        let sum = |part: fn(&Taken) -> u64| taken.values().map(part).sum();
        let (bytes, inodes) = (sum(|taken| taken.bytes), sum(|taken| taken.inodes));
        let owners = taken.into_iter().map(encode_owner).collect();
        Ok(Response::new(proto::UsageResponse { owners, bytes, inodes }))
    }

    async fn collect(
        &self,
        _request: Request<proto::CollectRequest>,
    ) -> Result<Response<proto::CollectResponse>, Status> {
        let removed = self.collector.collect().await?;
        Ok(Response::new(proto::CollectResponse {
            content: removed.content as u64,
            snapshots: removed.snapshots as u64,
            ingests: removed.ingests as u64,
            leases: removed.leases as u64,
        }))
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::ExplainResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let name = request.into_inner().name;
        let namespace = context.namespace.as_str();
        let mut found = Vec::new();
        if self.images.get(&context, &name).await.is_ok() {
            found.push(own("image", namespace, &name, "images are kept until they are removed"));
        }
        if self.containers.get(&context, &name).await.is_ok() {
            found.push(own("container", namespace, &name, "containers are kept until they are deleted"));
        }
        let leases = self.leases.list(&context, &[]).await?;
        if leases.iter().any(|lease| lease.id == name) {
            found.push(own("lease", namespace, &name, "leases are kept until they expire or are deleted"));
        }
        found.extend(self.collector.explainer().await?.explain(namespace, &name));
        if found.is_empty() {
            let text = format!("nothing in namespace {namespace} goes by the name {name:?}");
            return Err(Status::not_found(text));
        }
        let explanations = found.into_iter().map(encode_explanation).collect();
        Ok(Response::new(proto::ExplainResponse { explanations }))
    }

    async fn info(
        &self,
        _request: Request<proto::InfoRequest>,
    ) -> Result<Response<proto::InfoResponse>, Status> {
        let root = self.root.clone();
        let count = self.checker.db.read(move |tx| {
            Ok([
                tx.count(&NAMESPACES)?,
                tx.count(&IMAGES)?,
                tx.count(&CONTAINERS)?,
                tx.count(&SNAPSHOTS)?,
                tx.count(&LEASES)?,
            ])
        });
        let [namespaces, images, containers, snapshots, leases] = count.await?;
        let db = self.checker.db.clone();
        let (disk, blobs) = blocking(move || {
            let disk = rustix::fs::statvfs(&root).context("inspect", root.display().to_string())?;
            Ok((disk, crate::content::health::places(&db)?.len()))
        })
        .await?;
        let snapshotters = self.checker.snapshots.snapshotters();
        Ok(Response::new(proto::InfoResponse {
            version: super::version::version(),
            uuid: self.uuid.clone(),
            pid: u64::from(std::process::id()),
            started_at: Some(self.started.into()),
            root: self.root.display().to_string(),
            state: self.config.state.display().to_string(),
            address: self.config.address().display().to_string(),
            metrics_address: self.config.metrics.address.clone().unwrap_or_default(),
            snapshotters: snapshotters.map(|one| one.name().to_owned()).collect(),
            runtimes: self.config.runtimes.keys().cloned().collect(),
            namespaces,
            images,
            containers,
            tasks: self.supervisor.count() as u64,
            snapshots,
            blobs: blobs as u64,
            leases,
            disk_size: disk.f_blocks * disk.f_frsize,
            disk_free: disk.f_bavail * disk.f_frsize,
        }))
    }

    async fn metrics(
        &self,
        _request: Request<proto::MetricsRequest>,
    ) -> Result<Response<proto::MetricsResponse>, Status> {
        let text = METRICS.text(self.supervisor.count())?;
        Ok(Response::new(proto::MetricsResponse { text }))
    }

    async fn store_layer_image(
        &self,
        request: Request<proto::StoreLayerImageRequest>,
    ) -> Result<Response<proto::StoreLayerImageResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::StoreLayerImageRequest { snapshotter, name } = request.into_inner();
        let stored = self.checker.images.store_layer_image(&context, &snapshotter, &name).await?;
        Ok(Response::new(proto::StoreLayerImageResponse { descriptor: Some(descriptor(stored)) }))
    }

    async fn referrers(
        &self,
        request: Request<proto::ReferrersRequest>,
    ) -> Result<Response<proto::ReferrersResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::ReferrersRequest { image, platforms, artifact_type, fetch } = request.into_inner();
        let image = image.unwrap_or_default();
        let wanted = ReferrersRequest {
            access: access(&self.streams, &context, image.resolver)?,
            reference: image.reference,
            platforms: platforms.into_iter().map(platform).collect(),
            artifact_type: Some(artifact_type).filter(|wanted| !wanted.is_empty()),
            is_fetch: fetch,
        };
        let cancel = CancellationToken::new();
        let job = Job { context, progress: Arc::default(), cancel: cancel.clone() };
        let images = self.checker.images.clone();
        // As with transfers, a client that goes away has it end and roll back.
        let _stop = cancel.drop_guard();
        let work = tokio::spawn(async move { images.referrers(&job, wanted).await });
        let found = work.await.map_err(|error| Status::internal(error.to_string()))??;
        let referrers = found.into_iter().map(|(subject, referrer)| proto::Referrer {
            subject: subject.to_string(),
            descriptor: Some(descriptor(referrer.descriptor)),
            artifact_type: referrer.artifact_type,
        });
        Ok(Response::new(proto::ReferrersResponse { referrers: referrers.collect() }))
    }

    type FetchObjectStream = Streamed<proto::FetchObjectResponse>;

    async fn fetch_object(
        &self,
        request: Request<proto::FetchObjectRequest>,
    ) -> Result<Response<Self::FetchObjectStream>, Status> {
        let context = RequestContext::of(&request)?;
        let object = request.into_inner().object.unwrap_or_default();
        let access = access(&self.streams, &context, object.resolver)?;
        let object = self.checker.images.fetch_object(&object.reference, access).await?;
        Ok(Response::new(Box::pin(try_unfold(object, |object| async move {
            let next = object.next().await?;
            Ok(next.map(|(piece, object)| (proto::FetchObjectResponse { data: piece.into() }, object)))
        }))))
    }

    async fn push_object(
        &self,
        request: Request<proto::PushObjectRequest>,
    ) -> Result<Response<proto::PushObjectResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::PushObjectRequest { destination, digest, media_type } = request.into_inner();
        let destination = destination.unwrap_or_default();
        let request = PushObjectRequest {
            digest: Digest::parse(&digest)?,
            media_type,
            access: access(&self.streams, &context, destination.resolver)?,
            reference: destination.reference,
        };
        let job = Job { context, progress: Arc::default(), cancel: CancellationToken::new() };
        // A client that goes away has it end; an upload that broke off is the registry's to forget.
        self.checker.images.push_object(&job, request).await?;
        Ok(Response::new(proto::PushObjectResponse {}))
    }
}
