//! `start`: let a created container's init go on.

use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::state::Status;
use orlop_proto::error::Result;

use crate::cli::Global;
use crate::container::{self, Container};

/// Starts the user's program.
pub fn run(global: &Global, id: &str) -> Result<()> {
    let container = Container::open(&global.root, id)?;
    match container.life() {
        Status::Created => {}
        Status::Stopped => return Err(RuncError::StartStopped.into()),
        _ => return Err(RuncError::AlreadyRunning.into()),
    }
    container::release(&container)?;
    container.run_poststart()
}
