//! Metadata that clients make and name: namespaces, containers, images, leases.
//!
//! Each store is a cheap handle. A change is one transaction; its event goes out after the commit. Errors have
//! containerd's texts, which clients show and some compare.

pub mod containers;
pub mod images;
pub mod leases;
pub mod namespaces;
pub mod sandboxes;

use std::time::SystemTime;

use orlop_proto::any;
use orlop_proto::error::Result;
use prost::{Message, Name};
pub use prost_types::{Any, Timestamp};

use crate::events::Exchange;
use crate::labels::Labels;
use crate::request::Namespace;

/// The present time.
pub fn now() -> Timestamp {
    SystemTime::now().into()
}

/// Packs and publishes the event of a committed change.
pub fn publish<M: Message + Name>(
    exchange: &Exchange,
    namespace: &Namespace,
    topic: &str,
    event: &M,
) -> Result<()> {
    exchange.publish(namespace.as_str(), topic, any::pack(event))
}

/// Labels as they are stored: one with an empty value is none.
pub fn stored(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

/// Applies the field path `labels.KEY`, if it is one: the key's value, or its absence, is taken over.
pub fn update_label(path: &str, labels: &mut Labels, from: &Labels) -> bool {
    update_entry(path, "labels.", labels, from)
}

/// Applies a field path below a map's prefix, if it is one.
fn update_entry(path: &str, prefix: &str, map: &mut Labels, from: &Labels) -> bool {
    let Some(key) = path.strip_prefix(prefix) else { return false };
    match from.get(key) {
        Some(value) => map.insert(key.to_owned(), value.clone()),
        None => map.remove(key),
    };
    true
}

/// The value that a filter's path `labels.…` names.
pub fn label_field(labels: &Labels, path: &[&str]) -> Option<String> {
    crate::filter::label(labels, path)
}
