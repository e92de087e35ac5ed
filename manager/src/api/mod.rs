//! The containerd API and our own: one service per file, which decodes, calls the domain and encodes.

pub mod admin;
pub mod containers;
pub mod content;
pub mod convert;
pub mod diff;
pub mod events;
pub mod health;
pub mod images;
pub mod introspection;
pub mod layers;
pub mod leases;
pub mod mounts;
pub mod namespaces;
pub mod reflection;
pub mod sandboxes;
pub mod snapshots;
pub mod streaming;
pub mod tasks;
pub mod transfer;
pub mod version;
