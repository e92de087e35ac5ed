//! The write protocol that clients speak: STAT, WRITE and COMMIT on one write.
//!
//! The rules are those of containerd's package `contentserver`: each answer carries the offset; data goes to the
//! current end, data at offset 0 of a write that has some starts over; a blob that turns out to be known ends
//! the write with `AlreadyExists`.

use bytes::Bytes;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::ingest::Status;
use super::{ContentStore, Writer};
use crate::content::digest::Digest;
use crate::labels::Labels;
use crate::request::RequestContext;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// How far is it?
    Stat,
    /// Append this.
    Write,
    /// Append this, verify, and finish.
    Commit,
}

/// One message of a client.
pub struct Step {
    /// What is asked for.
    pub action: Action,
    /// Reference of the write; only the first message needs it.
    pub reference: String,
    /// Expected number of bytes, or 0.
    pub total: u64,
    /// Expected digest.
    pub expected: Option<Digest>,
    /// Where the data goes; 0 is where the write is, or the start.
    pub offset: u64,
    /// Data.
    pub data: Bytes,
    /// Labels of the blob, for a commit.
    pub labels: Labels,
}

/// The answer to one message.
pub struct Answer {
    /// What was asked for.
    pub action: Action,
    /// How far the write is, with times for a `Stat` alone.
    pub status: Status,
    /// Digest of the bytes so far.
    pub digest: Option<Digest>,
}

/// One client's write.
pub struct Session {
    store: ContentStore,
    context: RequestContext,
    reference: String,
    total: u64,
    expected: Option<Digest>,
    /// Nothing before the first message and after the last.
    writer: Option<Writer>,
}

impl Session {
    /// A session that waits for its first message.
    pub fn new(store: ContentStore, context: RequestContext) -> Session {
        Session { store, context, reference: String::new(), total: 0, expected: None, writer: None }
    }

    /// Whether the write is finished.
    pub fn is_finished(&self) -> bool {
        self.writer.is_none()
    }

    /// Does what a message asks for. After an error the session is over.
    pub async fn step(&mut self, step: Step) -> Result<Answer> {
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.begin(&step).await?,
        };
        if let Some(expected) = &step.expected {
            self.expected = Some(expected.clone());
            if self.store.info(&self.context, expected).await.is_ok() {
                drop(writer);
                match self.store.abort(&self.context, &self.reference).await {
                    Err(error) if error.kind() != Kind::NotFound => return Err(error),
                    _ => {}
                }
                let text = format!("blob with expected digest {expected} exists");
                return Err(Error::because(Kind::AlreadyExists, "", "", text));
            }
        }
        if step.total > 0 {
            self.total = step.total;
        }
        if step.action != Action::Stat {
            let offset = writer.status().offset;
            if step.offset > 0 && step.offset != offset {
                let text = format!("write @{} must occur at current offset {offset}", step.offset);
                return Err(Error::because(Kind::OutOfRange, "", "", text));
            }
            if step.offset == 0 && offset > 0 {
                writer.truncate(0).await?;
            }
            if !step.data.is_empty() {
                writer.write(step.data).await?;
            }
        }
        let mut status = writer.status();
        status.total = self.total;
        let digest = if step.action == Action::Commit {
            Some(writer.commit(self.total, self.expected.as_ref(), step.labels).await?)
        } else {
            let digest = writer.digest();
            self.writer = Some(writer);
            digest
        };
        Ok(Answer { action: step.action, status, digest })
    }

    async fn begin(&mut self, step: &Step) -> Result<Writer> {
        if step.reference.is_empty() {
            let text = "first message must have a reference";
            return Err(Error::because(Kind::InvalidArgument, "", "", text));
        }
        self.reference.clone_from(&step.reference);
        self.total = step.total;
        self.store.writer(&self.context, &step.reference, step.total, step.expected.as_ref()).await
    }
}
