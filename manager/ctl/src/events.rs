//! Events as JSON.

use orlop_proto::any;
use orlop_proto::containerd::events::*;
use orlop_proto::containerd::services::images::v1::{ImageCreate, ImageDelete, ImageUpdate};
use prost_types::Any;
use serde_json::Value;

use crate::metrics::sparse;

macro_rules! decode {
    ($event:expr, $($message:ty),* $(,)?) => {
        $(if any::is::<$message>($event) {
            let message = any::unpack::<$message>($event).ok()?;
            return serde_json::to_value(message).ok().map(sparse);
        })*
    };
}

/// An event's content; None for a type that is not known or does not decode.
pub fn json(event: &Any) -> Option<Value> {
    decode!(
        event,
        ContainerCreate,
        ContainerUpdate,
        ContainerDelete,
        ContentCreate,
        ContentDelete,
        ImageCreate,
        ImageUpdate,
        ImageDelete,
        NamespaceCreate,
        NamespaceUpdate,
        NamespaceDelete,
        SandboxCreate,
        SandboxStart,
        SandboxExit,
        SnapshotPrepare,
        SnapshotCommit,
        SnapshotRemove,
        TaskCreate,
        TaskStart,
        TaskDelete,
        TaskIo,
        TaskExit,
        TaskOom,
        TaskExecAdded,
        TaskExecStarted,
        TaskPaused,
        TaskResumed,
        TaskCheckpointed,
    );
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_events_become_json() {
        let event = TaskExit { container_id: "c".into(), exit_status: 3, ..TaskExit::default() };
        let json = json(&any::pack(&event)).unwrap();
        assert_eq!(json, serde_json::json!({ "container_id": "c", "exit_status": 3 }));
        assert_eq!(super::json(&Any::default()), None);
    }
}
