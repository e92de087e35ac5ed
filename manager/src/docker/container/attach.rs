//! Attaching to a container's streams: over the connection itself, or by WebSocket.

use std::sync::Arc;

use http::HeaderValue;
use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::exec::content_type;
use super::logs::Wanted;
use super::route::shown;
use super::state::Status;
use super::stream::{self, Left, Piece, Wishes};
use super::{Container, websocket};
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::message::{self, Channel, Reply, Request};

/// What a client wants of a container's streams, and what it hears of them from now on.
struct Attachment {
    wishes: Wishes,
    /// Whether it stays for what comes.
    is_streamed: bool,
    /// What of the log it wants first.
    past: Option<Wanted>,
    heard: tokio::sync::mpsc::Receiver<Piece>,
}

fn wanted(container: &Container, request: &Request) -> Result<Attachment> {
    let query = &request.query;
    let (tty, opens_stdin, once) =
        container.with(|record| (record.config.tty, record.config.open_stdin, record.config.stdin_once));
    if container.with(|record| record.state.status) == Status::Paused {
        return Err(Failure::conflict(format!(
            "container {} is paused, unpause the container before attach",
            container.id
        )));
    }
    let is_streamed = query.flag("stream");
    let detach = stream::detach_keys(query.get("detachKeys"))?;
    let wishes = Wishes {
        stdin: is_streamed && query.flag("stdin") && opens_stdin,
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        raw: tty,
        closes_stdin: once && !tty,
        // Without a terminal bytes are bytes.
        detach: if tty { detach } else { Vec::new() },
    };
    let past = Wanted { stdout: wishes.stdout, stderr: wishes.stderr, ..Wanted::default() };
    let past = query.flag("logs").then_some(past);
    Ok(Attachment { wishes, is_streamed, past, heard: container.output.listen() })
}

/// `POST /containers/ID/attach`.
pub(super) fn attach(engine: &Engine, container: Arc<Container>, request: Request) -> Result<Reply> {
    let attachment = wanted(&container, &request)?;
    let kind = content_type(request.version, attachment.wishes.raw);
    if !request.wants_upgrade() {
        let (reply, sender) = message::channel(kind);
        tokio::spawn(async move {
            let Attachment { wishes, mut heard, .. } = attachment;
            while let Some((channel, data)) = heard.recv().await {
                let is_wanted = if channel == Channel::Stdout { wishes.stdout } else { wishes.stderr };
                let data = if wishes.raw { data } else { message::frame(channel, &data) };
                if is_wanted && sender.send(Ok(data)).await.is_err() {
                    return;
                }
            }
        });
        return Ok(reply);
    }
    engine.container_event(&container, "attach", &[]);
    let engine = engine.clone();
    tokio::spawn(async move {
        let Ok(connection) = request.upgrade.await else { return };
        engine.serve_attached(container, TokioIo::new(connection), attachment).await;
    });
    Ok(message::upgraded(kind))
}

/// `GET /containers/ID/attach/ws` (RFC 6455): bare bytes in binary messages, both streams in one.
pub(super) fn attach_by_web_socket(
    engine: &Engine,
    container: Arc<Container>,
    request: Request,
) -> Result<Reply> {
    let Some(key) = request.headers.get(SEC_WEBSOCKET_KEY).filter(|_| request.wants_upgrade()) else {
        return Err(Failure::invalid("not websocket protocol"));
    };
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|error| Failure::internal(error.to_string()))?;
    let mut attachment = wanted(&container, &request)?;
    attachment.wishes.raw = true;
    engine.container_event(&container, "attach", &[]);
    let engine = engine.clone();
    tokio::spawn(async move {
        let Ok(connection) = request.upgrade.await else { return };
        let client = websocket::messages(TokioIo::new(connection)).await;
        engine.serve_attached(container, client, attachment).await;
    });
    let mut reply = message::upgraded(message::RAW_STREAM);
    let headers = reply.headers_mut();
    headers.remove(http::header::CONTENT_TYPE);
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(reply)
}

impl Engine {
    /// Serves an attached client until it leaves or the process ends.
    async fn serve_attached(
        &self,
        container: Arc<Container>,
        mut client: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        attachment: Attachment,
    ) {
        let Attachment { wishes, is_streamed, past, heard } = attachment;
        if let Some(past) = past
            && replay(&container, past, wishes.raw, &mut client).await.is_err()
        {
            return;
        }
        if !is_streamed {
            // Ignoring: the client may be gone.
            let _ = client.shutdown().await;
            return;
        }
        let (supervisor, namespace, id) =
            (self.parts.supervisor.clone(), self.context.namespace.clone(), container.id.clone());
        let output = container.output.clone();
        let close = async move || {
            if let Ok(task) = supervisor.get(&namespace, &id).await {
                // Ignoring: it may have ended.
                let _ = task.close_stdin("").await;
            }
        };
        let left = stream::connect(client, &output, heard, wishes, close).await;
        if left == Left::Detached {
            self.container_event(&container, "detach", &[]);
        }
    }
}

/// Tells an attached client what was logged before.
async fn replay(
    container: &Container,
    wanted: Wanted,
    is_raw: bool,
    client: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut reader = container.log.reader(None);
    loop {
        let Ok((next, entries)) = reader.next().await else { return Ok(()) };
        if entries.is_empty() {
            return Ok(());
        }
        reader = next;
        for entry in entries.iter().filter(|entry| wanted.accepts(entry)) {
            client.write_all(&shown(entry, is_raw, false, false)).await?;
        }
    }
}
