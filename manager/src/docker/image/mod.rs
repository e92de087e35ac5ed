//! Images as the Docker API has them: an image is a configuration, whose digest is its ID; names are what refers to it.

mod found;
mod list;
mod remove;
mod route;
mod transfer;

pub use found::{Found, dangling, normal};
pub use route::answer;
pub use transfer::ToClient;
