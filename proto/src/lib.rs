//! Contracts between orlop's binaries and with their clients.
//!
//! - `contract` (default): types that every binary shares; serde only.
//! - `ttrpc`: messages of the shim protocol, events and the ttrpc framing.
//! - `grpc`: clients and servers of the containerd API v1.

pub mod contract;
pub mod error;
pub mod kind;
pub mod spec;

#[cfg(feature = "ttrpc")]
pub mod any;
#[cfg(feature = "ttrpc")]
pub mod ttrpc;

#[cfg(feature = "ttrpc")]
#[allow(missing_docs, clippy::all, reason = "generated from proto/schema")]
mod generated {
    include!("../gen/mod.rs");
}

#[cfg(feature = "ttrpc")]
pub use generated::{containerd, google, grpc, io, orlop, runtime, runtimeoptions};

/// The schema of the gRPC API, an encoded `google.protobuf.FileDescriptorSet`, for gRPC's reflection.
#[cfg(feature = "grpc")]
pub const DESCRIPTORS: &[u8] = include_bytes!("../gen/descriptors.bin");
