//! The containerd API: one service per file, which decodes, calls the domain and encodes.

pub mod health;
pub mod version;
