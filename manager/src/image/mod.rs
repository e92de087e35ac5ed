//! Images: references, registries, layers.

pub mod manifest;
pub mod media;
pub mod platform;
pub mod reference;
pub mod unpack;
