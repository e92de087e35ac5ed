//! Shapes that several services decode and encode.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;

use orlop_proto::containerd::types;
use orlop_proto::error::Result;
use prost_types::FieldMask;
use tokio_stream::Stream;
use tonic::Status;

use crate::content::digest::Digest;
use crate::image::manifest::Descriptor;
use crate::snapshot::Mount;

/// What a service streams to its client.
pub type Streamed<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

/// Streams what is all there already.
pub fn stream<T: Send + 'static>(items: Vec<T>) -> Streamed<T> {
    Box::pin(tokio_stream::iter(items.into_iter().map(Ok)))
}

/// A map as the domain has it.
pub fn sorted<V>(map: HashMap<String, V>) -> BTreeMap<String, V> {
    map.into_iter().collect()
}

/// A map as messages have it.
pub fn hashed<V>(map: BTreeMap<String, V>) -> HashMap<String, V> {
    map.into_iter().collect()
}

/// The paths of a field mask, which may be missing.
pub fn paths(mask: Option<FieldMask>) -> Vec<String> {
    mask.map(|mask| mask.paths).unwrap_or_default()
}

/// A digest that may be missing.
pub fn digest(text: &str) -> Result<Option<Digest>> {
    if text.is_empty() { Ok(None) } else { Digest::parse(text).map(Some) }
}

/// A descriptor as a message.
pub fn descriptor(descriptor: Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type,
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: hashed(descriptor.annotations),
    }
}

/// Mounts of messages.
pub fn decode_mounts(mounts: Vec<types::Mount>) -> Vec<Mount> {
    mounts
        .into_iter()
        .map(|types::Mount { r#type, source, target, options }| Mount {
            kind: r#type,
            source,
            target,
            options,
        })
        .collect()
}

/// Mounts as messages.
pub fn mounts(mounts: Vec<Mount>) -> Vec<types::Mount> {
    mounts
        .into_iter()
        .map(|Mount { kind, source, target, options }| types::Mount { r#type: kind, source, target, options })
        .collect()
}
