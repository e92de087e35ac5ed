//! typeurl: typed values inside `google.protobuf.Any`, as containerd packs them.
//!
//! containerd writes the bare message name as the URL (`containerd.events.TaskExit`), while protobuf's own rule
//! has a prefix (`type.googleapis.com/…`). Both are read; the bare name is written. Values that are not protobuf
//! (an OCI spec) are JSON under `types.containerd.io/…`.

use std::time::SystemTime;

use prost::{Message, Name};
use prost_types::{Any, Timestamp};
use serde::ser::{SerializeMap, Serializer};

use crate::contract::time::rfc3339_nano;
use crate::error::{Error, Result};
use crate::kind::Kind;

/// URL of an OCI runtime spec, whose value is JSON.
pub const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// URL of the process of an exec, whose value is JSON.
pub const PROCESS_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// URL of resources for an update, whose value is JSON.
pub const RESOURCES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Packs a message under its bare full name.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// The message name of a URL, without a host and path prefix.
pub fn name(type_url: &str) -> &str {
    match type_url.rsplit_once('/') {
        Some((prefix, name)) if !prefix.starts_with("types.containerd.io") => name,
        _ => type_url,
    }
}

/// Whether the value is a message of this type.
pub fn is<M: Name>(any: &Any) -> bool {
    name(&any.type_url) == M::full_name()
}

/// Unpacks a message of the expected type.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M> {
    if !is::<M>(any) {
        return Err(Error::because(
            Kind::InvalidArgument,
            "decode",
            &any.type_url,
            format!("expected {}", M::full_name()),
        ));
    }
    M::decode(any.value.as_slice())
        .map_err(|e| Error::because(Kind::InvalidArgument, "decode", &any.type_url, e))
}

/// Writes a timestamp as RFC 3339, as protobuf's JSON does.
///
/// # Errors
///
/// The serializer's own.
pub fn timestamp_json<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time.and_then(|time| SystemTime::try_from(time).ok()) {
        Some(time) => serializer.serialize_str(&rfc3339_nano(time)),
        None => serializer.serialize_none(),
    }
}

/// Writes a packed value by its type; the value itself only where it is JSON.
///
/// # Errors
///
/// The serializer's own.
pub fn any_json<S: Serializer>(any: &Option<Any>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(any) = any else { return serializer.serialize_none() };
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("type_url", &any.type_url)?;
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(&any.value) {
        map.serialize_entry("value", &value)?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::events::TaskExit;

    #[test]
    fn writes_the_bare_name_and_reads_both() {
        let exit = TaskExit { container_id: "c".into(), exit_status: 3, ..Default::default() };
        let mut any = pack(&exit);
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        assert_eq!(unpack::<TaskExit>(&any).unwrap(), exit);
        any.type_url = format!("type.googleapis.com/{}", any.type_url);
        assert_eq!(unpack::<TaskExit>(&any).unwrap(), exit);
    }

    #[test]
    fn an_event_becomes_json() {
        let exit = TaskExit {
            container_id: "c".into(),
            exited_at: Some(Timestamp { seconds: 1, nanos: 500_000_000 }),
            ..Default::default()
        };
        let json = serde_json::to_value(&exit).unwrap();
        assert_eq!(json["container_id"], "c");
        assert_eq!(json["exited_at"], "1970-01-01T00:00:01.5Z");
    }

    #[test]
    fn refuses_another_type() {
        let any = Any { type_url: SPEC_URL.into(), value: b"{}".to_vec() };
        assert_eq!(unpack::<TaskExit>(&any).unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(name(SPEC_URL), SPEC_URL);
    }
}
