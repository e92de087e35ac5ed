//! The fields of events that filters may name, as containerd's own event types have them.
//!
//! Strings, label maps and nested messages are fields; numbers and times are not.

use std::cell::OnceCell;

use orlop_proto::any;
use orlop_proto::containerd::events::{
    ContainerCreate, ContainerDelete, ContainerUpdate, ContentCreate, ContentDelete, NamespaceCreate,
    NamespaceDelete, NamespaceUpdate, SnapshotCommit, SnapshotPrepare, SnapshotRemove, TaskCheckpointed,
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOom, TaskPaused, TaskResumed,
    TaskStart,
};
use orlop_proto::containerd::services::images::v1::{ImageCreate, ImageDelete, ImageUpdate};
use orlop_proto::containerd::types::Envelope;
use prost::{Message, Name};
use prost_types::Any;

use crate::filter::{Adaptor, label, text};

/// An envelope as filters see it; the event is decoded when the first filter asks for one of its fields.
pub struct EnvelopeFields<'a> {
    envelope: &'a Envelope,
    event: OnceCell<Box<dyn Fields>>,
}

impl<'a> EnvelopeFields<'a> {
    pub fn new(envelope: &'a Envelope) -> Self {
        EnvelopeFields { envelope, event: OnceCell::new() }
    }
}

impl Adaptor for EnvelopeFields<'_> {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["namespace", ..] => text(&self.envelope.namespace),
            ["topic", ..] => text(&self.envelope.topic),
            ["event", rest @ ..] => {
                let any = self.envelope.event.as_ref()?;
                self.event.get_or_init(|| decode(any)).field(rest)
            }
            _ => None,
        }
    }
}

trait Fields {
    fn field(&self, path: &[&str]) -> Option<String>;
}

/// An event of a type that has no fields for filters, or that does not decode.
struct Opaque;

impl Fields for Opaque {
    fn field(&self, _path: &[&str]) -> Option<String> {
        None
    }
}

/// Decodes an event if it is of one certain type.
type Decode = fn(&Any) -> Option<Box<dyn Fields>>;

fn decode(any: &Any) -> Box<dyn Fields> {
    const DECODERS: [Decode; 24] = [
        decode_as::<TaskCreate>,
        decode_as::<TaskStart>,
        decode_as::<TaskExit>,
        decode_as::<TaskDelete>,
        decode_as::<TaskOom>,
        decode_as::<TaskExecAdded>,
        decode_as::<TaskExecStarted>,
        decode_as::<TaskPaused>,
        decode_as::<TaskResumed>,
        decode_as::<TaskCheckpointed>,
        decode_as::<ContainerCreate>,
        decode_as::<ContainerUpdate>,
        decode_as::<ContainerDelete>,
        decode_as::<ContentCreate>,
        decode_as::<ContentDelete>,
        decode_as::<ImageCreate>,
        decode_as::<ImageUpdate>,
        decode_as::<ImageDelete>,
        decode_as::<NamespaceCreate>,
        decode_as::<NamespaceUpdate>,
        decode_as::<NamespaceDelete>,
        decode_as::<SnapshotPrepare>,
        decode_as::<SnapshotCommit>,
        decode_as::<SnapshotRemove>,
    ];
    DECODERS.iter().find_map(|decode| decode(any)).unwrap_or_else(|| Box::new(Opaque))
}

fn decode_as<M: Message + Name + Default + Fields + 'static>(any: &Any) -> Option<Box<dyn Fields>> {
    any::is::<M>(any).then(|| any::unpack::<M>(any).ok())?.map(|event| Box::new(event) as _)
}

/// The string fields of an event, and after a semicolon its label map.
macro_rules! fields {
    ($event:ty: $($name:ident),* $(; $map:ident)?) => {
        impl Fields for $event {
            fn field(&self, path: &[&str]) -> Option<String> {
                match path {
                    $([stringify!($name), ..] => text(&self.$name),)*
                    $([stringify!($map), rest @ ..] => label(&self.$map, rest),)?
                    _ => None,
                }
            }
        }
    };
}

fields!(TaskStart: container_id);
fields!(TaskExit: container_id, id);
fields!(TaskDelete: container_id, id);
fields!(TaskOom: container_id);
fields!(TaskExecAdded: container_id, exec_id);
fields!(TaskExecStarted: container_id, exec_id);
fields!(TaskPaused: container_id);
fields!(TaskResumed: container_id);
fields!(TaskCheckpointed: container_id, checkpoint);
fields!(ContainerUpdate: id, image, snapshot_key; labels);
fields!(ContainerDelete: id);
fields!(ContentCreate: digest);
fields!(ContentDelete: digest);
fields!(ImageCreate: name; labels);
fields!(ImageUpdate: name; labels);
fields!(ImageDelete: name);
fields!(NamespaceCreate: name; labels);
fields!(NamespaceUpdate: name; labels);
fields!(NamespaceDelete: name);
fields!(SnapshotPrepare: key, parent, snapshotter);
fields!(SnapshotCommit: key, name, snapshotter);
fields!(SnapshotRemove: key, snapshotter);

impl Fields for TaskCreate {
    fn field(&self, path: &[&str]) -> Option<String> {
        let io = self.io.as_ref();
        match path {
            ["container_id", ..] => text(&self.container_id),
            ["bundle", ..] => text(&self.bundle),
            ["checkpoint", ..] => text(&self.checkpoint),
            ["io", "stdin", ..] => text(&io?.stdin),
            ["io", "stdout", ..] => text(&io?.stdout),
            ["io", "stderr", ..] => text(&io?.stderr),
            ["io", "terminal", ..] => Some(io?.terminal.to_string()),
            _ => None,
        }
    }
}

impl Fields for ContainerCreate {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["id", ..] => text(&self.id),
            ["image", ..] => text(&self.image),
            ["runtime", "name", ..] => text(&self.runtime.as_ref()?.name),
            _ => None,
        }
    }
}
