//! What a transfer has done so far, told as it happens.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::manifest::Descriptor;

/// The least time between two steps of one object that are told.
const STEP: Duration = Duration::from_millis(100);

/// How long one waits for a listener.
const PATIENCE: Duration = Duration::from_secs(2);

/// One step of a transfer.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happens, in containerd's words: `waiting`, `downloading`, `complete`, `already exists`, `extracting`, …
    pub event: String,
    /// The object: containerd's name of a blob, or an image.
    pub name: String,
    /// Names of what the object belongs to.
    pub parents: Vec<String>,
    /// Bytes done.
    pub progress: u64,
    /// Bytes to do, or 0 where that is not known.
    pub total: u64,
    /// The blob, where it is one.
    pub descriptor: Option<Descriptor>,
}

/// Where steps are told; nobody need listen.
#[derive(Default)]
pub struct Progress {
    listener: Option<mpsc::Sender<Event>>,
    told: Mutex<HashMap<String, Instant>>,
}

impl Progress {
    /// Steps go to this channel. One that is full loses steps within an object, never its first or last.
    pub fn to(listener: mpsc::Sender<Event>) -> Self {
        Progress { listener: Some(listener), told: Mutex::default() }
    }

    /// Tells a step without a blob.
    pub async fn note(&self, event: &str, name: &str) {
        let (event, name) = (event.to_owned(), name.to_owned());
        self.tell(Event { event, name, parents: Vec::new(), progress: 0, total: 0, descriptor: None }).await;
    }

    /// Tells that a blob is in a new phase.
    pub async fn blob(&self, event: &str, descriptor: &Descriptor, parent: &str, progress: u64) {
        self.tell(blob_event(event, descriptor, parent, progress)).await;
    }

    /// Tells how far a blob has come, when there is something new to say.
    pub fn step(&self, event: &str, descriptor: &Descriptor, parent: &str, progress: u64) {
        let Some(listener) = &self.listener else { return };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let key = descriptor.digest.as_str();
        if told.get(key).is_none_or(|last| now.duration_since(*last) >= STEP)
            && listener.try_send(blob_event(event, descriptor, parent, progress)).is_ok()
        {
            told.insert(key.to_owned(), now);
        }
    }

    async fn tell(&self, event: Event) {
        if let Some(listener) = &self.listener {
            // Whoever has gone away, or does not read, is not told.
            let _ = listener.send_timeout(event, PATIENCE).await;
        }
    }
}

fn blob_event(event: &str, descriptor: &Descriptor, parent: &str, progress: u64) -> Event {
    Event {
        event: event.to_owned(),
        name: super::ingest_name(descriptor),
        parents: if parent.is_empty() { Vec::new() } else { vec![parent.to_owned()] },
        progress,
        total: descriptor.size,
        descriptor: Some(descriptor.clone()),
    }
}
