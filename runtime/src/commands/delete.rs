//! `delete`: everything that a container still holds.

use orlop_host::state::StateDirectory;
use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::state::Status;
use orlop_proto::error::Result;
use orlop_proto::kind::Kind;

use crate::cli::Global;
use crate::container::Container;
use crate::log::Log;

/// Deletes a container that is stopped or was never started, or any with force.
pub fn run(global: &Global, id: &str, force: bool, log: &Log) -> Result<()> {
    let container = match Container::open(&global.root, id) {
        Err(error) if error.kind() == Kind::NotFound => {
            // A creation that was cut off leaves a directory without a state.
            if let Ok(directory) = StateDirectory::open(&global.root, id) {
                directory.remove()?;
            }
            return if force { Ok(()) } else { Err(error) };
        }
        other => other?,
    };
    match container.life() {
        Status::Stopped => {}
        Status::Created => container.kill_init()?,
        _ if force => container.kill_init()?,
        _ => {
            let status = container.status()?.to_string();
            return Err(RuncError::NotStopped(id.to_owned(), status).into());
        }
    }
    container.destroy(log)
}
