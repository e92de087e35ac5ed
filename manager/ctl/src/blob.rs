//! Writing blobs: an upload in parts, a document, and a blob made of another one while both are under way.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use orlop_proto::containerd::services::content::v1::*;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost_types::FieldMask;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::client::{Client, random_id};
use crate::image::Descriptor;

/// Bytes in one message of an upload.
pub const PART: usize = 1 << 20;
/// How many parts wait on either side of a transformation.
const WAITING: usize = 4;

/// A blob being written.
pub struct Upload {
    reference: String,
    send: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    /// Up to where the server has it from before.
    known: i64,
    hash: Sha256,
    offset: i64,
}

impl Upload {
    /// Begins a write, or goes on with one of the same name; nothing where the blob is there already.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn begin(
        client: &Client,
        reference: &str,
        total: i64,
        expected: &str,
    ) -> Result<Option<Upload>> {
        let (send, outgoing) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: reference.to_owned(),
            total,
            expected: expected.to_owned(),
            ..WriteContentRequest::default()
        };
        // The channel is new and has room.
        let _ = send.send(first).await;
        let is_there = |status: Status| match status.code() {
            Code::AlreadyExists => Ok(None),
            _ => Err(status.into()),
        };
        let mut answers = match client.content().write(ReceiverStream::new(outgoing)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return is_there(status),
        };
        let begun = match answers.message().await {
            Ok(answer) => answer.ok_or_else(|| closed(reference))?,
            Err(status) => return is_there(status),
        };
        let (reference, known) = (reference.to_owned(), begun.offset);
        Ok(Some(Upload { reference, send, answers, known, hash: Sha256::new(), offset: 0 }))
    }

    /// Adds bytes; of those that the server has already, nothing is sent.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn write(&mut self, mut data: Vec<u8>) -> Result<()> {
        self.hash.update(&data);
        let start = self.offset;
        self.offset += data.len() as i64;
        if self.offset <= self.known {
            return Ok(());
        }
        let known = usize::try_from(self.known - start).unwrap_or(0);
        let request = WriteContentRequest {
            action: WriteAction::Write as i32,
            r#ref: self.reference.clone(),
            offset: start + known as i64,
            data: data.split_off(known).into(),
            ..WriteContentRequest::default()
        };
        self.send.send(request).await.map_err(|_| closed(&self.reference))?;
        self.answers.message().await?.ok_or_else(|| closed(&self.reference))?;
        Ok(())
    }

    /// Makes a blob of what was written; its digest and size. `expected` is its digest, where that is known.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn finish(
        mut self,
        total: Option<i64>,
        expected: Option<String>,
        labels: HashMap<String, String>,
    ) -> Result<(String, i64)> {
        let digest = expected.unwrap_or_else(|| named(&self.hash.finalize()));
        let request = WriteContentRequest {
            action: WriteAction::Commit as i32,
            r#ref: self.reference.clone(),
            offset: self.offset,
            total: total.unwrap_or(self.offset),
            expected: digest.clone(),
            labels,
            ..WriteContentRequest::default()
        };
        self.send.send(request).await.map_err(|_| closed(&self.reference))?;
        match self.answers.message().await {
            Ok(_) => Ok((digest, self.offset)),
            Err(status) if status.code() == Code::AlreadyExists => Ok((digest, self.offset)),
            Err(status) => Err(status.into()),
        }
    }
}

fn closed(reference: &str) -> Error {
    Error::because(Kind::Unavailable, "upload", reference, "closed by the server")
}

/// A digest as it is written: `sha256:` and hexadecimal digits.
pub fn named(hash: &[u8]) -> String {
    hash.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// The labels of a blob.
///
/// # Errors
///
/// `NotFound` and what the server says.
pub async fn labels(client: &Client, digest: &str) -> Result<HashMap<String, String>> {
    let info = client.content().info(InfoRequest { digest: digest.to_owned() }).await?.into_inner().info;
    Ok(info.unwrap_or_default().labels)
}

/// Sets labels of a blob that is there.
async fn set_labels(client: &Client, digest: &str, labels: HashMap<String, String>) -> Result<()> {
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let info = Some(Info { digest: digest.to_owned(), labels, ..Info::default() });
    let request = UpdateRequest { info, update_mask: Some(FieldMask { paths }) };
    client.content().update(request).await?;
    Ok(())
}

/// Stores a document, whose labels keep what it refers to; `like` gives what of its descriptor is not said here.
///
/// # Errors
///
/// What the server says.
pub async fn write_document(
    client: &Client,
    document: &Value,
    labels: HashMap<String, String>,
    like: &Descriptor,
) -> Result<Descriptor> {
    // The keys of a map come in order: the same document is the same bytes.
    let (digest, size) = store(client, document.to_string().into_bytes(), labels).await?;
    Ok(Descriptor { digest, size, ..like.clone() })
}

/// Stores a small blob.
///
/// # Errors
///
/// What the server says.
pub async fn write_blob(client: &Client, data: Vec<u8>, media_type: &str) -> Result<Descriptor> {
    let (digest, size) = store(client, data, HashMap::new()).await?;
    Ok(Descriptor { media_type: media_type.to_owned(), digest, size, ..Descriptor::default() })
}

async fn store(client: &Client, data: Vec<u8>, labels: HashMap<String, String>) -> Result<(String, i64)> {
    let (digest, size) = (named(&Sha256::digest(&data)), data.len() as i64);
    let reference = format!("document-{digest}");
    if let Some(mut upload) = Upload::begin(client, &reference, size, &digest).await? {
        upload.write(data).await?;
        upload.finish(None, Some(digest.clone()), labels.clone()).await?;
    }
    // One that was there has its own.
    set_labels(client, &digest, labels).await?;
    Ok((digest, size))
}

/// Makes a blob of another: `work` reads one and writes the other, on a thread of its own. Returns digest, size and what
/// `work` returned; the labels of the new blob may depend on that.
///
/// # Errors
///
/// What `work` and the server say.
pub async fn transform<T: Send + 'static>(
    client: &Client,
    digest: &str,
    work: impl FnOnce(&mut dyn Read, &mut dyn Write) -> io::Result<T> + Send + 'static,
    labels: impl FnOnce(&T) -> HashMap<String, String>,
) -> Result<(String, i64, T)> {
    let (to_work, incoming) = mpsc::channel(WAITING);
    let (outgoing, made) = mpsc::channel::<Vec<u8>>(WAITING);
    let object = digest.to_owned();
    let failed = move |error: io::Error| Error::io("convert", object, error);
    let working = tokio::task::spawn_blocking(move || {
        let mut input = Incoming { incoming, part: Vec::new(), at: 0, has_ended: false };
        let mut output = Outgoing { outgoing, part: Vec::with_capacity(PART) };
        let result = work(&mut input, &mut output)?;
        output.flush()?;
        Ok(result)
    });
    // Both ends go with whoever holds them, so that the thread never waits for one that has given up.
    let reading = send(client, digest, to_work);
    let writing = async move {
        let mut made = made;
        let reference = format!("convert-{}-{digest}", random_id());
        let mut upload = Upload::begin(client, &reference, 0, "").await?.ok_or_else(|| closed(&reference))?;
        while let Some(part) = made.recv().await {
            upload.write(part).await?;
        }
        Ok::<_, Error>(upload)
    };
    let joined = async {
        working.await.map_err(|error| Error::because(Kind::Internal, "convert", digest, error.to_string()))
    };
    let (read, upload, result) = tokio::join!(reading, writing, joined);
    // Who stopped first knows why: the work only saw its input break off.
    read?;
    let upload = upload?;
    let result = result?.map_err(failed)?;
    let labels = labels(&result);
    let (digest, size) = upload.finish(None, None, labels.clone()).await?;
    set_labels(client, &digest, labels).await?;
    Ok((digest, size, result))
}

/// Has `work` read a blob, on a thread of its own.
///
/// # Errors
///
/// What `work` and the server say.
pub async fn consume<T: Send + 'static>(
    client: &Client,
    digest: &str,
    work: impl FnOnce(&mut dyn Read) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (to_work, incoming) = mpsc::channel(WAITING);
    let working = tokio::task::spawn_blocking(move || {
        work(&mut Incoming { incoming, part: Vec::new(), at: 0, has_ended: false })
    });
    let (read, result) = tokio::join!(send(client, digest, to_work), working);
    // Who stopped first knows why: the work only saw its input break off.
    read?;
    result.map_err(|error| Error::because(Kind::Internal, "read", digest, error.to_string()))?
}

/// Sends a blob to a thread that reads it.
async fn send(client: &Client, digest: &str, to_work: mpsc::Sender<Option<Vec<u8>>>) -> Result<()> {
    let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let mut stream = client.content().read(request).await?.into_inner();
    while let Some(part) = stream.message().await? {
        // Whoever has read enough stops listening.
        if to_work.send(Some(part.data.to_vec())).await.is_err() {
            return Ok(());
        }
    }
    // Without this it broke off.
    let _ = to_work.send(None).await;
    Ok(())
}

/// What the server sends, for a thread that reads; `None` is the end.
struct Incoming {
    incoming: mpsc::Receiver<Option<Vec<u8>>>,
    part: Vec<u8>,
    at: usize,
    has_ended: bool,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() && !self.has_ended {
            (self.part, self.at) = match self.incoming.blocking_recv() {
                Some(Some(part)) => (part, 0),
                Some(None) => {
                    self.has_ended = true;
                    (Vec::new(), 0)
                }
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            };
        }
        let length = buffer.len().min(self.part.len() - self.at);
        buffer[..length].copy_from_slice(&self.part[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// What a thread writes, for the server.
struct Outgoing {
    outgoing: mpsc::Sender<Vec<u8>>,
    part: Vec<u8>,
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PART - self.part.len());
        self.part.extend_from_slice(&bytes[..length]);
        if self.part.len() == PART {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART));
        self.outgoing.blocking_send(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
