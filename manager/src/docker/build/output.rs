//! What a client sees of a build: lines of JSON, one stage after the other.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::docker::failure::Failure;

/// How many lines of a stage may wait for the stages before it to be shown.
const QUEUE: usize = 256;
/// How much of what a quiet build says is kept for when it fails, in bytes.
const MOST_SAID: usize = 4 << 20;
/// Digits of an ID that are shown.
const SHORT: usize = 12;

/// Why a build ended early.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The failure.
    pub failure: Failure,
    /// The exit code of the command that failed.
    pub code: Option<i64>,
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Broken {
        Broken { failure, code: None }
    }
}

impl From<orlop_proto::error::Error> for Broken {
    fn from(error: orlop_proto::error::Error) -> Broken {
        Failure::from(error).into()
    }
}

impl Broken {
    /// The line that tells of it.
    pub fn line(&self) -> Value {
        let message = &self.failure.message;
        match self.code {
            Some(code) => json!({ "errorDetail": { "code": code, "message": message }, "error": message }),
            None => json!({ "errorDetail": { "message": message }, "error": message }),
        }
    }
}

/// Where a stage's lines go.
#[derive(Clone)]
pub struct Console(mpsc::Sender<Value>);

impl Console {
    /// A console, and the end at which its lines come out.
    pub fn new() -> (Console, mpsc::Receiver<Value>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Console(sender), receiver)
    }

    /// Sends a document.
    pub async fn send(&self, value: Value) {
        // Ignoring: nobody may listen any more; the build is given up elsewhere.
        let _ = self.0.send(value).await;
    }

    /// Says a text.
    pub async fn say(&self, text: impl Into<String>) {
        self.send(json!({ "stream": text.into() })).await;
    }
}

/// What is kept of what a quiet build said: lines, up to a size; the oldest go first.
#[derive(Default)]
pub struct Said {
    lines: VecDeque<Bytes>,
    size: usize,
}

impl Said {
    /// Keeps a line.
    pub fn add(&mut self, line: Bytes) {
        self.size += line.len();
        self.lines.push_back(line);
        while self.size > MOST_SAID && self.lines.len() > 1 {
            self.size -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// All that was kept.
    pub fn whole(self) -> Bytes {
        self.lines.into_iter().flatten().collect()
    }
}

/// An ID as it is shown.
pub fn short(id: &str) -> &str {
    let plain = id.strip_prefix("sha256:").unwrap_or(id);
    plain.get(..SHORT).unwrap_or(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_go_first() {
        let mut said = Said::default();
        said.add(Bytes::from_static(b"first"));
        said.add(Bytes::from(vec![b'x'; MOST_SAID - 4]));
        assert_eq!(said.whole().len(), MOST_SAID - 4);
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
    }
}
