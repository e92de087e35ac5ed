//! The event exchange: publishers on one side, filtered subscriptions on the other.
//!
//! Every subscriber sees the events it asked for in the order in which they were published, and sees all of
//! them: one that does not read until its queue is full is cut off with an error that says so. Publishers
//! never wait. Follows containerd's package `events/exchange`.

mod fields;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_util::Stream;
use orlop_proto::containerd::types::Envelope;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use prost_types::Any;
use tokio::sync::mpsc;

use crate::filter::Filter;
use crate::identifier;

/// Events that may wait for one subscriber; their envelopes are shared between subscribers.
const QUEUE: usize = 16 * 1024;

/// Bytes of events that may wait for one subscriber: publishers choose how large their events are.
const BYTES: usize = 16 << 20;

/// Where events are published and subscribed to. Clones are handles of one exchange.
#[derive(Clone, Default)]
pub struct Exchange {
    /// Held while an event is put into the queues, which gives all subscribers one order and never waits.
    subscribers: Arc<Mutex<Vec<Subscriber>>>,
}

struct Subscriber {
    filter: Filter,
    queue: mpsc::Sender<Arc<Envelope>>,
    waiting: Arc<AtomicUsize>,
    overflowed: Arc<AtomicBool>,
}

impl Subscriber {
    /// Puts an event of that many bytes into the queue, if there is room.
    fn send(&self, envelope: &Arc<Envelope>, bytes: usize) -> Sent {
        let waiting = self.waiting.fetch_add(bytes, Ordering::AcqRel);
        // One that waits for nothing gets any event, however large.
        if waiting > 0 && waiting + bytes > BYTES {
            return Sent::Full;
        }
        match self.queue.try_send(envelope.clone()) {
            Ok(()) => Sent::Queued,
            Err(mpsc::error::TrySendError::Full(_)) => Sent::Full,
            Err(mpsc::error::TrySendError::Closed(_)) => Sent::Gone,
        }
    }
}

/// What became of an event that was sent to a subscriber.
enum Sent {
    Queued,
    Full,
    Gone,
}

/// Events as they come: a stream that ends with an error when its reader was too slow.
pub struct Subscription {
    queue: mpsc::Receiver<Arc<Envelope>>,
    waiting: Arc<AtomicUsize>,
    overflowed: Arc<AtomicBool>,
}

impl Exchange {
    /// Publishes an event of this daemon's, with the present time.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` without a namespace, `InvalidArgument` for a malformed topic.
    pub fn publish(&self, namespace: &str, topic: &str, event: Any) -> Result<()> {
        if namespace.is_empty() {
            return Err(Error::because(
                Kind::FailedPrecondition,
                "failed publishing event",
                "",
                "namespace is required: failed precondition",
            ));
        }
        identifier::validate(namespace).map_err(|error| {
            Error::because(error.kind(), "failed publishing event: namespace validation", "", error)
        })?;
        validate_topic(topic)?;
        self.dispatch(Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(event),
        });
        Ok(())
    }

    /// Publishes an event that another program (a shim) stamped.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a malformed namespace or topic, or a missing time.
    pub fn forward(&self, envelope: Envelope) -> Result<()> {
        identifier::validate(&envelope.namespace).map_err(|error| {
            Error::because(error.kind(), "event envelope has invalid namespace", "", error)
        })?;
        validate_topic(&envelope.topic)?;
        if envelope.timestamp.is_none() {
            return Err(Error::new(Kind::InvalidArgument, "timestamp must be set on forwarded event", ""));
        }
        self.dispatch(envelope);
        Ok(())
    }

    /// Subscribes to the events that one of the filters chooses, from now on; no filter chooses all.
    ///
    /// Fields: `namespace`, `topic`, and `event.…` with the fields of containerd's own event types.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a filter that cannot be parsed.
    pub fn subscribe<S: AsRef<str>>(&self, filters: &[S]) -> Result<Subscription> {
        self.subscribe_with(filters, QUEUE)
    }

    fn subscribe_with<S: AsRef<str>>(&self, filters: &[S], room: usize) -> Result<Subscription> {
        let filter = Filter::parse(filters).map_err(|error| {
            Error::because(error.kind(), "subscription error: failed parsing subscription filters", "", error)
        })?;
        let (sender, queue) = mpsc::channel(room);
        let (waiting, overflowed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| !subscriber.queue.is_closed());
        subscribers.push(Subscriber {
            filter,
            queue: sender,
            waiting: waiting.clone(),
            overflowed: overflowed.clone(),
        });
        Ok(Subscription { queue, waiting, overflowed })
    }

    fn dispatch(&self, envelope: Envelope) {
        let bytes = envelope.encoded_len();
        let envelope = Arc::new(envelope);
        let object = fields::EnvelopeFields::new(&envelope);
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| {
            if !subscriber.filter.matches(&object) {
                return true;
            }
            match subscriber.send(&envelope, bytes) {
                Sent::Queued => true,
                Sent::Full => {
                    subscriber.overflowed.store(true, Ordering::Release);
                    false
                }
                Sent::Gone => false,
            }
        });
    }
}

impl Stream for Subscription {
    type Item = Result<Arc<Envelope>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.queue.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(envelope)) => {
                self.waiting.fetch_sub(envelope.encoded_len(), Ordering::AcqRel);
                Poll::Ready(Some(Ok(envelope)))
            }
            Poll::Ready(None) if self.overflowed.swap(false, Ordering::AcqRel) => {
                Poll::Ready(Some(Err(Error::because(
                    Kind::ResourceExhausted,
                    "subscription",
                    "",
                    "the subscriber is too slow: its queue of events is full, later ones are lost to it",
                ))))
            }
            Poll::Ready(None) => Poll::Ready(None),
        }
    }
}

fn validate_topic(topic: &str) -> Result<()> {
    let refused = |words: String| {
        Err(Error::because(Kind::InvalidArgument, "envelope topic", format!("{topic:?}"), words))
    };
    let Some(components) = topic.strip_prefix('/') else {
        let words = if topic.is_empty() { "must not be empty" } else { "must start with '/'" };
        return refused(format!("{words}: {}", Kind::InvalidArgument));
    };
    if components.is_empty() {
        return refused(format!("must have at least one component: {}", Kind::InvalidArgument));
    }
    for component in components.split('/') {
        if let Err(error) = identifier::validate(component) {
            return refused(format!("failed validation on component {component:?}: {error}"));
        }
    }
    Ok(())
}
