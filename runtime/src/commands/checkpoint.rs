//! `checkpoint` and `restore`: a container saved to files, and brought back.

use std::os::fd::AsFd;

use orlop_host::sys;
use orlop_proto::contract::state::Status;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::checkpoint::{self, Options};
use crate::cli::{CheckpointArgs, Global, RestoreArgs};
use crate::container::Container;
use crate::foreground::{self, Signals};
use crate::launch::Purpose;
use crate::log::Log;
use crate::rootless;

/// Saves the container, and deletes it unless it is to go on.
pub fn checkpoint(global: &Global, arguments: &CheckpointArgs, log: &Log) -> Result<()> {
    warn_users("checkpoint", log);
    let container = Container::open(&global.root, &arguments.id)?;
    let status = container.status()?;
    if matches!(status, Status::Created | Status::Stopped) {
        let why = format!("Container cannot be checkpointed in {status} state");
        return Err(Error::exactly(Kind::FailedPrecondition, why));
    }
    let options = Options::new(&arguments.given)?;
    checkpoint::dump(&container, &options, log)?;
    if !options.leave_running
        && !options.pre_dump
        && let Err(error) = container.destroy(log)
    {
        log.warning(error);
    }
    Ok(())
}

/// Brings the container back; returns its exit code, or 0 if it is left to itself.
pub fn restore(global: &Global, arguments: &RestoreArgs, log: &Log) -> Result<u8> {
    warn_users("restore", log);
    let options = Options::new(&arguments.given)?;
    let create = &arguments.run.create;
    if arguments.run.detach {
        checkpoint::restore(global, create, &options, Purpose::RunDetached, log)?;
        return Ok(0);
    }
    let signals = Signals::hold()?;
    if !arguments.run.no_subreaper {
        sys::creds::set_child_subreaper().context("become", "the parent of orphans")?;
    }
    let restored = checkpoint::restore(global, create, &options, Purpose::RunForeground, log)?;
    let main = foreground::Main { process: restored.pidfd.as_fd(), pid: restored.pid };
    let code = foreground::wait(&signals, main, restored.console, None)?;
    restored.container.destroy(log)?;
    Ok(code)
}

fn warn_users(verb: &str, log: &Log) {
    if rootless::is_user() || rootless::is_in_user_namespace() {
        log.warning(format!("orlop {verb} is untested with rootless containers"));
    }
}
