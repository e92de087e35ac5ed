//! `start`: let a created container's init go on.

use std::os::fd::AsFd;

use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::state::Status;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use crate::cli::Global;
use crate::container::Container;
use crate::log::Log;
use crate::notify::Notify;

/// Starts the user's program.
pub fn run(global: &Global, id: &str, log: &Log) -> Result<()> {
    let container = Container::open(&global.root, id)?;
    match container.life() {
        Status::Created => {}
        Status::Stopped => return Err(RuncError::StartStopped.into()),
        _ => match container.status()? {
            Status::Running => return Err(RuncError::AlreadyRunning.into()),
            status => return Err(RuncError::CannotStart(status.to_string()).into()),
        },
    }
    if !container.has_process() {
        return Err(Error::exactly(Kind::FailedPrecondition, "process property must not be empty"));
    }
    let notify = Notify::asked(container.directory.path())?;
    let listener = notify.map(|notify| notify.listen()).transpose()?.flatten();
    let init = if listener.is_some() { container.init()? } else { None };
    let released = container.directory.release()?;
    if container.has_poststart()? {
        // They follow the start of the program (runtime-spec, "Lifecycle", step 9); without them nobody need wait for it.
        released.await_program()?;
    }
    container.run_poststart()?;
    match (listener, init) {
        (Some(listener), Some(init)) => {
            listener.hand_over(init.as_fd(), container.state.init_process_pid, log)
        }
        _ => Ok(()),
    }
}
