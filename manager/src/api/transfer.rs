//! `containerd.services.transfer.v1.Transfer`: pull, push, import, export and tag.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use orlop_proto::any;
use orlop_proto::containerd::services::transfer::v1 as proto;
use orlop_proto::containerd::types::{self, transfer};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost_types::Any;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::convert::{hashed, sorted};
use super::streaming::{Stream, Streams};
use crate::image::manifest::Descriptor;
use crate::image::platform::Platform;
use crate::image::progress::{Event, Progress};
use crate::image::registry::{Access, Credential, Credentials};
use crate::image::{
    DEFAULT_SNAPSHOTTER, ExportRequest, ExtraName, ImageService, ImportRequest, Job, PullRequest,
    PushRequest, Unpack,
};
use crate::labels::Labels;
use crate::request::RequestContext;

/// How many steps wait for a slow listener.
const STEPS: usize = 64;
/// The bytes that a client may send before it is told that they were read.
const WINDOW: i32 = 1 << 20;
/// The most bytes of one message to a client, as containerd sends.
const CHUNK: usize = 32 << 10;

/// Serves transfers.
pub struct TransferService {
    /// What transfers.
    pub images: ImageService,
    /// Streams that transfers name.
    pub streams: Streams,
}

/// One end of a transfer.
enum End {
    Registry(transfer::OciRegistry),
    Store(transfer::ImageStore),
    Import(transfer::ImageImportStream),
    Export(transfer::ImageExportStream),
}

impl End {
    fn decode(value: Option<Any>, side: &str) -> Result<End> {
        let value = value.unwrap_or_default();
        match any::name(&value.type_url) {
            "containerd.types.transfer.OCIRegistry" => any::unpack(&value).map(End::Registry),
            "containerd.types.transfer.ImageStore" => any::unpack(&value).map(End::Store),
            "containerd.types.transfer.ImageImportStream" => any::unpack(&value).map(End::Import),
            "containerd.types.transfer.ImageExportStream" => any::unpack(&value).map(End::Export),
            other => Err(Error::because(
                Kind::Unimplemented,
                "transfer",
                side,
                format!("type {other:?} is not known"),
            )),
        }
    }
}

#[tonic::async_trait]
impl proto::transfer_server::Transfer for TransferService {
    async fn transfer(&self, request: Request<proto::TransferRequest>) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::TransferRequest { source, destination, options } = request.into_inner();
        let ends = (End::decode(source, "source")?, End::decode(destination, "destination")?);
        let progress = match options.map(|options| options.progress_stream).filter(|id| !id.is_empty()) {
            Some(id) => Progress::to(listen(self.streams.take(&context, &id)?)),
            None => Progress::default(),
        };
        let cancel = CancellationToken::new();
        let job = Job { context, progress: Arc::new(progress), cancel: cancel.clone() };
        let work = self.start(job, ends)?;
        // The work goes on by itself, so that a client that goes away cannot stop it between two steps: it is told
        // to end, and rolls back.
        let _stop = cancel.drop_guard();
        let result = tokio::spawn(work).await;
        result.map_err(|error| Error::because(Kind::Internal, "transfer", "", error))??;
        Ok(Response::new(()))
    }
}

impl TransferService {
    fn start(&self, job: Job, ends: (End, End)) -> Result<BoxFuture<'static, Result<()>>> {
        let images = self.images.clone();
        Ok(match ends {
            (End::Registry(source), End::Store(store)) => {
                let access = access(&self.streams, &job.context, source.resolver)?;
                let request = PullRequest {
                    access,
                    name: store.name,
                    labels: sorted(store.labels),
                    extra_names: store.extra_references.into_iter().map(extra_name).collect(),
                    platforms: store.platforms.into_iter().map(platform).collect(),
                    all_metadata: store.all_metadata,
                    unpacks: store.unpacks.into_iter().map(unpack).collect(),
                    reference: source.reference,
                };
                Box::pin(async move { images.pull(&job, request).await.map(|_| ()) })
            }
            (End::Store(store), End::Registry(target)) => {
                let access = access(&self.streams, &job.context, target.resolver)?;
                let request = PushRequest {
                    name: store.name,
                    access,
                    platforms: store.platforms.into_iter().map(platform).collect(),
                    reference: target.reference,
                };
                Box::pin(async move { images.push(&job, request).await })
            }
            (End::Import(source), End::Store(store)) => {
                let stream = self.streams.take(&job.context, &source.stream)?;
                let request = ImportRequest {
                    name: store.name,
                    labels: sorted(store.labels),
                    extra_names: store.extra_references.into_iter().map(extra_name).collect(),
                    platforms: store.platforms.into_iter().map(platform).collect(),
                    unpacks: store.unpacks.into_iter().map(unpack).collect(),
                };
                let reader = StreamReader::new(stream);
                Box::pin(async move { images.import(&job, request, reader).await.map(|_| ()) })
            }
            (End::Store(store), End::Export(target)) => {
                let stream = self.streams.take(&job.context, &target.stream)?;
                let names = store.extra_references.into_iter().map(|extra| extra.name).chain([store.name]);
                let platforms = if target.all_platforms { Vec::new() } else { target.platforms };
                let request = ExportRequest {
                    names: names.filter(|name| !name.is_empty()).collect(),
                    platforms: platforms.into_iter().map(platform).collect(),
                    skip_docker_manifest: target.skip_compatibility_manifest,
                    skip_foreign: target.skip_non_distributable,
                };
                let writer = StreamWriter { stream, window: 0 };
                Box::pin(async move { images.export(&job, request, writer).await })
            }
            (End::Store(source), End::Store(target)) => {
                let labels: Labels = sorted(target.labels);
                Box::pin(
                    async move { images.tag(&job, &source.name, &target.name, &labels).await.map(|_| ()) },
                )
            }
            _ => {
                let why = "there is no way from this source to this destination";
                return Err(Error::because(Kind::Unimplemented, "transfer", "", why));
            }
        })
    }
}

/// How a client wants a registry to be reached.
///
/// # Errors
///
/// `NotFound` where there is no stream of the name under which it answers for itself.
pub fn access(
    streams: &Streams,
    context: &RequestContext,
    resolver: Option<transfer::RegistryResolver>,
) -> Result<Access> {
    let Some(resolver) = resolver else { return Ok(Access::default()) };
    let credentials: Option<Arc<dyn Credentials>> = match resolver.auth_stream.as_str() {
        "" => None,
        id => Some(Arc::new(AskClient { stream: Mutex::new(streams.take(context, id)?) })),
    };
    Ok(Access {
        scheme: Some(resolver.default_scheme).filter(|scheme| !scheme.is_empty()),
        hosts: Some(resolver.host_dir).filter(|path| !path.is_empty()).map(PathBuf::from),
        headers: sorted(resolver.headers).into_iter().collect(),
        credentials,
        ..Access::default()
    })
}

/// The platform of a message.
pub fn platform(platform: types::Platform) -> Platform {
    let types::Platform { os, architecture, variant, .. } = platform;
    Platform { os, architecture, variant }.normalised()
}

fn unpack(unpack: transfer::UnpackConfiguration) -> Unpack {
    let snapshotter = match unpack.snapshotter.as_str() {
        "" => DEFAULT_SNAPSHOTTER.to_owned(),
        _ => unpack.snapshotter,
    };
    Unpack { platform: unpack.platform.map(platform), snapshotter }
}

fn extra_name(reference: transfer::ImageReference) -> ExtraName {
    let transfer::ImageReference { name, is_prefix, allow_overwrite, add_digest, skip_named_digest } =
        reference;
    ExtraName { name, is_prefix, allow_overwrite, add_digest, skip_named_digest }
}

/// Sends a transfer's steps to a stream.
fn listen(stream: Stream) -> mpsc::Sender<Event> {
    let (sender, mut events) = mpsc::channel::<Event>(STEPS);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            let message = transfer::Progress {
                event: event.event,
                name: event.name,
                parents: event.parents,
                progress: i64::try_from(event.progress).unwrap_or(i64::MAX),
                total: i64::try_from(event.total).unwrap_or(i64::MAX),
                desc: event.descriptor.map(descriptor),
            };
            if stream.outgoing.send(Ok(any::pack(&message))).await.is_err() {
                return;
            }
        }
    });
    sender
}

/// The message of a descriptor.
pub fn descriptor(descriptor: Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type,
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: hashed(descriptor.annotations),
    }
}

/// Asks the client for credentials over the stream that it named.
struct AskClient {
    stream: Mutex<Stream>,
}

impl Credentials for AskClient {
    fn get<'a>(
        &'a self,
        host: &'a str,
        reference: &'a str,
        challenges: &'a [String],
    ) -> BoxFuture<'a, Result<Credential>> {
        Box::pin(async move {
            // One question at a time, as answers carry no names.
            let mut stream = self.stream.lock().await;
            let question = transfer::AuthRequest {
                host: host.to_owned(),
                reference: reference.to_owned(),
                wwwauthenticate: challenges.to_vec(),
            };
            let gone = || Error::because(Kind::Canceled, "get credentials for", host, "the client gave up");
            stream.outgoing.send(Ok(any::pack(&question))).await.map_err(|_| gone())?;
            let answer = stream.incoming.recv().await.ok_or_else(gone)?;
            let answer: transfer::AuthResponse = any::unpack(&answer)?;
            let (kind, user, secret) = (answer.auth_type(), answer.username, answer.secret);
            Ok(match kind {
                transfer::AuthType::None => Credential::None,
                transfer::AuthType::Credentials => Credential::Password { user, secret },
                transfer::AuthType::Refresh => Credential::Refresh(secret),
                transfer::AuthType::Header => Credential::Header(secret),
            })
        })
    }
}

/// An archive that comes over a stream; blocks.
struct StreamReader {
    stream: Stream,
    /// Bytes that the client may still send.
    window: i32,
    pieces: VecDeque<Vec<u8>>,
    at: usize,
}

impl StreamReader {
    fn new(stream: Stream) -> Self {
        StreamReader { stream, window: 0, pieces: VecDeque::new(), at: 0 }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(piece) = self.pieces.front() {
                if self.at < piece.len() {
                    let length = buffer.len().min(piece.len() - self.at);
                    buffer[..length].copy_from_slice(&piece[self.at..self.at + length]);
                    self.at += length;
                    return Ok(length);
                }
                self.at = 0;
                self.pieces.pop_front();
                continue;
            }
            if self.window <= WINDOW / 2 {
                let update = WINDOW - self.window;
                let message = any::pack(&transfer::WindowUpdate { update });
                // A client that has sent everything need not listen any more.
                let _ = self.stream.outgoing.blocking_send(Ok(message));
                self.window = WINDOW;
            }
            let Some(message) = self.stream.incoming.blocking_recv() else { return Ok(0) };
            let transfer::Data { data } = any::unpack(&message).map_err(io::Error::other)?;
            self.window = self.window.saturating_sub(i32::try_from(data.len()).unwrap_or(i32::MAX));
            self.pieces.push_back(data);
        }
    }
}

/// An archive that goes out over a stream, no faster than the client reads; blocks.
struct StreamWriter {
    stream: Stream,
    /// Bytes that the client is ready for.
    window: i64,
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while self.window <= 0 {
            let message = self.stream.incoming.blocking_recv().ok_or(io::ErrorKind::BrokenPipe)?;
            let transfer::WindowUpdate { update } = any::unpack(&message).map_err(io::Error::other)?;
            self.window += i64::from(update);
        }
        let length = bytes.len().min(CHUNK).min(usize::try_from(self.window).unwrap_or(CHUNK));
        let message = any::pack(&transfer::Data { data: bytes[..length].to_vec() });
        self.stream.outgoing.blocking_send(Ok(message)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.window -= length as i64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
