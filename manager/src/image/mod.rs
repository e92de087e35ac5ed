//! Images: references, registries, layers.

pub mod reference;
pub mod unpack;
