//! `run`: create and start; unless detached, stay until the end and clean up.

use std::os::fd::AsFd;

use orlop_host::sys;
use orlop_proto::error::{Context, Error, Result};

use crate::cli::{Global, RunArgs};
use crate::foreground::{self, Main, Signals};
use crate::launch::{self, Created, Purpose};
use crate::log::Log;

/// Runs the container; returns its exit code, or 0 if it is left to itself.
pub fn run(global: &Global, arguments: &RunArgs, log: &Log) -> Result<u8> {
    if arguments.detach {
        let created = start(launch::create(global, &arguments.create, Purpose::RunDetached, log)?, log)?;
        if let Some(listener) = &created.listener {
            listener.hand_over(created.process.pidfd.as_fd(), created.process.pid, log)?;
        }
        return Ok(0);
    }
    let signals = Signals::hold()?;
    if !arguments.no_subreaper {
        sys::creds::set_child_subreaper().context("become", "the parent of orphans")?;
    }
    let mut created = start(launch::create(global, &arguments.create, Purpose::RunForeground, log)?, log)?;
    let console = created.process.console.take();
    let main = Main { process: created.process.pidfd.as_fd(), pid: created.process.pid };
    let code = foreground::wait(&signals, main, console, created.listener.as_ref())?;
    if !arguments.keep {
        created.container.destroy(log)?;
    }
    // The end of this process closes at once what would be closed one by one.
    std::process::exit(i32::from(code))
}

/// Starts the program; a container whose program cannot be started is removed again.
fn start(mut created: Created, log: &Log) -> Result<Created> {
    let started = created.process.start().and_then(|()| created.container.run_poststart());
    match started {
        Ok(()) => Ok(created),
        Err(error) => Err(remove(created, error, log)),
    }
}

fn remove(created: Created, error: Error, log: &Log) -> Error {
    let removed = created.process.end().and_then(|()| created.container.destroy(log));
    match removed {
        Ok(()) => error,
        Err(problem) => Error::exactly(error.kind(), format!("{error} (and while removing it: {problem})")),
    }
}
