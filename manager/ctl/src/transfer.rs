//! Transfers: pull, push, import and export through containerd's Transfer service, with the byte streams that go
//! with them (Streaming service).

use orlop_proto::any;
use orlop_proto::containerd::services::streaming::v1::StreamInit;
use orlop_proto::containerd::services::transfer::v1::{TransferOptions, TransferRequest};
use orlop_proto::containerd::types::transfer::{
    AuthRequest, AuthResponse, AuthType, Data, Progress, WindowUpdate,
};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prost_types::Any;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::client::{Client, random_id};
use crate::docker_config::{self, Stored};
use crate::progress::Display;

/// Bytes that the other side may send ahead, and the size of one part, containerd's numbers.
const WINDOW: i32 = 64 << 10;
const PART: usize = 32 << 10;

/// How long streams may take to end after their transfer has.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(5);

/// An open stream: what we send, and what the server sends.
pub struct Stream {
    /// The name under which a transfer refers to it.
    pub id: String,
    send: mpsc::Sender<Any>,
    receive: Streaming<Any>,
}

impl Stream {
    /// Opens a stream for a purpose, which becomes part of its name.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn open(client: &Client, purpose: &str) -> Result<Stream> {
        let id = format!("{purpose}-{}", random_id());
        let (send, outgoing) = mpsc::channel(4);
        let init = any::pack(&StreamInit { id: id.clone() });
        // The channel is new and has room.
        let _ = send.send(init).await;
        let mut receive = client.streaming().stream(ReceiverStream::new(outgoing)).await?.into_inner();
        // The server acknowledges the name before it can be used.
        receive.message().await?;
        Ok(Stream { id, send, receive })
    }

    async fn next(&mut self) -> Result<Option<Any>> {
        match self.receive.message().await {
            Ok(message) => Ok(message),
            Err(status) if matches!(status.code(), Code::Cancelled | Code::Unavailable) => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    async fn send(&mut self, message: Any) -> Result<()> {
        let sent = self.send.send(message).await;
        sent.map_err(|_| Error::because(Kind::Unavailable, "stream", &self.id, "closed by the server"))
    }

    /// Shows the progress that the server reports until it closes the stream.
    async fn show(mut self, display: &mut Display) -> Result<()> {
        while let Some(message) = self.next().await? {
            display.update(&any::unpack::<Progress>(&message)?);
        }
        Ok(())
    }

    /// Answers the server's requests for credentials until it closes the stream.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn authenticate(mut self, credentials: &Credentials) -> Result<()> {
        while let Some(message) = self.next().await? {
            let request = any::unpack::<AuthRequest>(&message)?;
            let answer = credentials.answer(&request.host).await;
            self.send(any::pack(&answer)).await?;
        }
        Ok(())
    }

    /// Answers the server's requests for credentials while a call is under way.
    ///
    /// # Errors
    ///
    /// Those of the call, and what the server says.
    pub async fn authenticate_during<T>(
        self,
        credentials: &Credentials,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let answering = self.authenticate(credentials);
        tokio::pin!(call, answering);
        tokio::select! {
            outcome = &mut call => outcome,
            // It may end first; the answer comes all the same.
            answered = &mut answering => {
                answered?;
                call.await
            }
        }
    }

    /// Sends bytes as far as the server's window allows, until they end.
    async fn upload(mut self, mut source: impl AsyncRead + Unpin) -> Result<()> {
        let mut window = 0i64;
        let mut buffer = vec![0; PART];
        loop {
            while window <= 0 {
                let Some(message) = self.next().await? else { return Ok(()) };
                window += i64::from(any::unpack::<WindowUpdate>(&message)?.update);
            }
            let room = usize::try_from(window).unwrap_or(PART).min(PART);
            let read = source.read(&mut buffer[..room]).await.context("read", "archive")?;
            if read == 0 {
                break;
            }
            window -= read as i64;
            self.send(any::pack(&Data { data: buffer[..read].to_vec() })).await?;
        }
        let Stream { send, mut receive, .. } = self;
        // Only our side ends here: leaving now would take back what the server has not read yet.
        drop(send);
        while let Ok(Some(_)) = receive.message().await {}
        Ok(())
    }

    /// Receives bytes until the server closes the stream.
    async fn download(mut self, mut sink: impl AsyncWrite + Unpin) -> Result<()> {
        self.send(any::pack(&WindowUpdate { update: WINDOW })).await?;
        let mut consumed = 0i32;
        while let Some(message) = self.next().await? {
            let data = any::unpack::<Data>(&message)?.data;
            sink.write_all(&data).await.context("write", "archive")?;
            consumed += i32::try_from(data.len()).unwrap_or(WINDOW);
            if consumed >= WINDOW / 2 {
                let update = any::pack(&WindowUpdate { update: std::mem::take(&mut consumed) });
                // After its last part the server listens no longer.
                let _ = self.send.send(update).await;
            }
        }
        sink.flush().await.context("write", "archive")
    }
}

/// Who we are to a registry.
#[derive(Clone, Debug, PartialEq)]
pub enum Credentials {
    /// Whoever docker's configuration says.
    Stored,
    /// A name and a password.
    Password(String, String),
    /// A refresh token.
    Token(String),
}

impl Credentials {
    async fn answer(&self, host: &str) -> AuthResponse {
        let found = match self {
            Credentials::Password(name, secret) => Stored::Password(name.clone(), secret.clone()),
            Credentials::Token(secret) => Stored::Refresh(secret.clone()),
            Credentials::Stored => {
                let host = host.to_owned();
                // Reads files and runs programs.
                let found = tokio::task::spawn_blocking(move || docker_config::credentials(&host)).await;
                found.unwrap_or(Ok(Stored::Nothing)).unwrap_or_else(|error| {
                    // The registry may let us in all the same.
                    eprintln!("orlopctl: warning: {error}");
                    Stored::Nothing
                })
            }
        };
        let (kind, username, secret) = match found {
            Stored::Nothing => (AuthType::None, String::new(), String::new()),
            Stored::Password(name, secret) => (AuthType::Credentials, name, secret),
            Stored::Refresh(secret) => (AuthType::Refresh, String::new(), secret),
            Stored::Bearer(token) => (AuthType::Header, String::new(), format!("Bearer {token}")),
        };
        AuthResponse { auth_type: kind as i32, username, secret, ..AuthResponse::default() }
    }
}

/// What flows beside a transfer.
pub enum Flow<'a> {
    /// Credentials for a registry.
    Credentials(Stream, &'a Credentials),
    /// An archive to the server.
    Upload(Stream, Box<dyn AsyncRead + Unpin + 'a>),
    /// An archive from the server.
    Download(Stream, Box<dyn AsyncWrite + Unpin + 'a>),
}

/// Carries out a transfer, showing its progress.
///
/// # Errors
///
/// What the server says about the transfer; otherwise those of the archive.
pub async fn transfer(
    client: &Client,
    source: Any,
    destination: Any,
    flow: Flow<'_>,
    display: &mut Display,
) -> Result<()> {
    let progress = Stream::open(client, "progress").await?;
    let request = TransferRequest {
        source: Some(source),
        destination: Some(destination),
        options: Some(TransferOptions { progress_stream: progress.id.clone() }),
    };
    let mut service = client.transfer();
    let shown = progress.show(display);
    let flowing = async {
        match flow {
            Flow::Credentials(stream, credentials) => stream.authenticate(credentials).await,
            Flow::Upload(stream, archive) => stream.upload(archive).await,
            Flow::Download(stream, archive) => stream.download(archive).await,
        }
    };
    let beside = async { tokio::join!(shown, flowing) };
    tokio::pin!(beside);
    let mut ended = None;
    let outcome = {
        let call = service.transfer(request);
        tokio::pin!(call);
        loop {
            tokio::select! {
                outcome = &mut call => break outcome,
                results = &mut beside, if ended.is_none() => ended = Some(results),
            }
        }
    };
    outcome?;
    // The last parts of an archive may still be under way; a server that leaves its streams open is not waited for.
    let (shown, flowed) = match ended {
        Some(results) => results,
        None => match tokio::time::timeout(SETTLE, beside).await {
            Ok(results) => results,
            Err(_) => return Ok(()),
        },
    };
    shown.and(flowed)
}
