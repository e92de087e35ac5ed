//! Images as the Docker API has them: an image is a configuration, whose digest is its ID; names are what refers to it.

mod found;
mod import;
mod list;
mod platforms;
mod remote;
mod remove;
mod route;
mod transfer;

pub use found::{DANGLING, Found, dangling, familiar, normal, platform};
pub use remote::distribution;
pub use route::answer;
pub use transfer::{AuthConfig, ToClient, pull_failure, pull_step, wanted_platform};
