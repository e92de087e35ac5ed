//! `pause` and `resume`.

use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::state::Status;
use orlop_proto::error::Result;

use crate::cli::Global;
use crate::container::Container;

/// Stops every process of the container.
pub fn pause(global: &Global, id: &str) -> Result<()> {
    let container = Container::open(&global.root, id)?;
    match container.status()? {
        Status::Running | Status::Created => container.cgroup()?.freeze(),
        _ => Err(RuncError::NotRunning.into()),
    }
}

/// Lets every process of the container go on.
pub fn resume(global: &Global, id: &str) -> Result<()> {
    let container = Container::open(&global.root, id)?;
    match container.status()? {
        Status::Paused => container.cgroup()?.thaw(),
        _ => Err(RuncError::NotPaused.into()),
    }
}
