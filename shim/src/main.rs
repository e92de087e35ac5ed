//! containerd-shim-orlop-v1: the guardian of a container, for containerd and orlopd alike.
//!
//! Speaks containerd's shim protocol (runtime v2): `start` makes a shim that serves the Task service over ttrpc on a unix
//! socket, drives an OCI runtime by its command line, keeps the container's streams and exit codes, and publishes its
//! events; `delete` clears away what a dead shim left.

mod boot;
mod cli;
mod connection;
mod containers;
mod direct;
mod events;
mod jobs;
mod log;
mod options;
mod poll;
mod reaper;
mod remains;
mod runtime;
mod sandbox;
mod sealed;
mod serve;
mod service;
mod stats;
mod stdio;
mod task;

use std::process::ExitCode;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use cli::{Arguments, Refusal};

fn main() -> ExitCode {
    let arguments = match cli::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(Refusal::Help) => {
            eprint!("{}", cli::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(Refusal::Usage(text)) => {
            eprint!("{text}\n{}", cli::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("io.containerd.orlop.v1: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.version {
        let name = std::env::args().next().unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or_default();
        println!("{name}:\n  Version:  {}\n", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if arguments.info {
        return boot::info();
    }
    if arguments.namespace.is_empty() {
        return Err(Error::exactly(Kind::InvalidArgument, "shim namespace cannot be empty"));
    }
    match arguments.action.as_deref() {
        Some("start") => boot::start(arguments),
        Some("delete") => boot::delete(arguments),
        _ => serve::serve(arguments),
    }
}
