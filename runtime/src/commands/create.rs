//! `create`: a container that waits for `start`.

use orlop_proto::error::Result;

use crate::cli::{CreateArgs, Global};
use crate::launch::{self, Purpose};
use crate::log::Log;

/// Creates the container; its init stays behind, waiting.
pub fn run(global: &Global, arguments: &CreateArgs, log: &Log) -> Result<u8> {
    launch::create(global, arguments, Purpose::Create, log)?;
    Ok(0)
}
