//! `containerd.services.content.v1.Content`.

use std::sync::Arc;

use futures_util::stream::try_unfold;
use orlop_proto::containerd::services::content::v1 as proto;
use orlop_proto::error::{Error, Result as DomainResult};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{Streamed, digest, hashed, paths, sorted, stream};
use crate::content::digest::Digest;
use crate::content::ingest;
use crate::content::session::{Action, Answer, Session, Step};
use crate::content::{Blob, ContentStore, Info, at_hand};
use crate::labels::invalid;
use crate::request::RequestContext;

/// Blobs per message of a list.
const CHUNK: usize = 100;
/// Bytes per message of a read. With what goes around them they fill a buffer of 64 KiB: such come from the heap, where larger
/// ones would be mapped, and faulted in page by page, for each message.
const READ: u64 = 63 << 10;

/// Serves the content.
pub struct ContentService(pub ContentStore);

fn encode(info: Info) -> proto::Info {
    proto::Info {
        digest: info.digest.to_string(),
        size: info.size.cast_signed(),
        created_at: Some(info.created_at),
        updated_at: Some(info.updated_at),
        labels: hashed(info.labels),
    }
}

fn encode_status(status: ingest::Status) -> proto::Status {
    proto::Status {
        started_at: Some(status.started_at),
        updated_at: Some(status.updated_at),
        r#ref: status.reference,
        offset: status.offset.cast_signed(),
        total: status.total.cast_signed(),
        expected: status.expected.as_ref().map(Digest::to_string).unwrap_or_default(),
    }
}

/// Parses the digest of a request; what the answer says of a bad one depends on the call.
fn decode_digest(text: &str, refusal: impl FnOnce(&'static str) -> String) -> Result<Digest, Status> {
    match Digest::check(text) {
        Ok(_) => Ok(Digest::parse(text)?),
        Err(why) => Err(Status::invalid_argument(refusal(why))),
    }
}

/// What is said of a digest that is none.
fn failed(digest: &str) -> String {
    format!("{digest:?} failed validation")
}

fn decode_step(request: proto::WriteContentRequest) -> DomainResult<Step> {
    let action = match request.action() {
        proto::WriteAction::Stat => Action::Stat,
        proto::WriteAction::Write => Action::Write,
        proto::WriteAction::Commit => Action::Commit,
    };
    let number = |value: i64, what: &str| {
        u64::try_from(value).map_err(|_| invalid(format!("{what} must not be negative: {value}")))
    };
    Ok(Step {
        action,
        total: number(request.total, "total")?,
        offset: number(request.offset, "offset")?,
        expected: digest(&request.expected)?,
        reference: request.r#ref,
        data: request.data,
        labels: sorted(request.labels),
    })
}

fn encode_answer(Answer { action, status, digest }: Answer) -> proto::WriteContentResponse {
    let stat = action == Action::Stat;
    let action = match action {
        Action::Stat => proto::WriteAction::Stat,
        Action::Write => proto::WriteAction::Write,
        Action::Commit => proto::WriteAction::Commit,
    };
    proto::WriteContentResponse {
        action: action.into(),
        started_at: stat.then_some(status.started_at),
        updated_at: stat.then_some(status.updated_at),
        offset: status.offset.cast_signed(),
        total: if stat { status.total.cast_signed() } else { 0 },
        digest: digest.as_ref().map(Digest::to_string).unwrap_or_default(),
    }
}

/// Streams a range of a blob; offsets count from the start of the range, as containerd's do.
fn pieces(blob: Blob, start: u64, length: u64) -> Streamed<proto::ReadContentResponse> {
    Box::pin(try_unfold((Arc::new(blob.file), 0), move |(file, offset)| async move {
        if offset == length {
            return Ok(None);
        }
        let piece = READ.min(length - offset);
        let data = at_hand::read_or_wait(&file, start + offset, piece as usize).await?;
        let message = proto::ReadContentResponse { offset: offset.cast_signed(), data };
        Ok(Some((message, (file, offset + piece))))
    }))
}

#[tonic::async_trait]
impl proto::content_server::Content for ContentService {
    async fn info(
        &self,
        request: Request<proto::InfoRequest>,
    ) -> Result<Response<proto::InfoResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let info = self
            .0
            .info(&context, &decode_digest(&request.get_ref().digest, |_| failed(&request.get_ref().digest))?)
            .await?;
        Ok(Response::new(proto::InfoResponse { info: Some(encode(info)) }))
    }

    async fn update(
        &self,
        request: Request<proto::UpdateRequest>,
    ) -> Result<Response<proto::UpdateResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::UpdateRequest { info, update_mask } = request.into_inner();
        let proto::Info { digest, labels, .. } = info.unwrap_or_default();
        let digest = decode_digest(&digest, |_| failed(&digest))?;
        let info = self.0.update(&context, &digest, sorted(labels), paths(update_mask)).await?;
        Ok(Response::new(proto::UpdateResponse { info: Some(encode(info)) }))
    }

    type ListStream = Streamed<proto::ListContentResponse>;

    async fn list(
        &self,
        request: Request<proto::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let context = RequestContext::of(&request)?;
        let all = self.0.list(&context, &request.get_ref().filters).await?;
        let all: Vec<_> = all.into_iter().map(encode).collect();
        let message = |info: &[proto::Info]| proto::ListContentResponse { info: info.to_vec() };
        Ok(Response::new(stream(all.chunks(CHUNK).map(message).collect())))
    }

    async fn delete(&self, request: Request<proto::DeleteContentRequest>) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        let digest = decode_digest(&request.get_ref().digest, str::to_owned)?;
        self.0.delete(&context, &digest).await?;
        Ok(Response::new(()))
    }

    type ReadStream = Streamed<proto::ReadContentResponse>;

    async fn read(
        &self,
        request: Request<proto::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::ReadContentRequest { digest, offset, size } = request.into_inner();
        let digest = decode_digest(&digest, |why| format!("{digest}: {why}"))?;
        let blob = self.0.open_blob(&context, &digest).await?;
        let start = u64::try_from(offset).unwrap_or(0);
        let Some(left) = blob.size.checked_sub(start) else {
            return Err(Status::out_of_range(format!("read past object length {} bytes", blob.size)));
        };
        let length = u64::try_from(size).ok().filter(|size| *size > 0).map_or(left, |size| size.min(left));
        Ok(Response::new(pieces(blob, start, length)))
    }

    async fn status(
        &self,
        request: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let reference = &request.get_ref().r#ref;
        let status = self.0.status(&context, reference).await.map_err(|error| {
            Error::because(error.kind(), format!("could not get status for ref {reference:?}"), "", error)
        })?;
        Ok(Response::new(proto::StatusResponse { status: Some(encode_status(status)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<proto::ListStatusesRequest>,
    ) -> Result<Response<proto::ListStatusesResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let statuses = self.0.statuses(&context, &request.get_ref().filters).await?;
        let statuses = statuses.into_iter().map(encode_status).collect();
        Ok(Response::new(proto::ListStatusesResponse { statuses }))
    }

    type WriteStream = Streamed<proto::WriteContentResponse>;

    async fn write(
        &self,
        request: Request<Streaming<proto::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let context = RequestContext::of(&request)?;
        let session = Session::new(self.0.clone(), context);
        let state = Some((request.into_inner(), session));
        let answers = try_unfold(state, |state| async move {
            let Some((mut steps, mut session)) = state else { return Ok(None) };
            let Some(step) = steps.next().await else { return Ok(None) };
            let answer = encode_answer(session.step(decode_step(step?)?).await?);
            let rest = (!session.is_finished()).then_some((steps, session));
            Ok::<_, Status>(Some((answer, rest)))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn abort(&self, request: Request<proto::AbortRequest>) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        self.0.abort(&context, &request.get_ref().r#ref).await?;
        Ok(Response::new(()))
    }
}
