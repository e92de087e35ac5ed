//! Content: blobs addressed by their digest.

pub mod digest;
