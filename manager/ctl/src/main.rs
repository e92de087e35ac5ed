//! `orlopctl`: the manager from the command line, as `ctr` is for containerd.

mod blob;
mod cli;
mod client;
mod cni;
mod commands;
mod create;
mod directory;
mod docker_config;
mod events;
mod host;
mod image;
mod labels;
mod media;
mod metrics;
mod mounts;
mod output;
mod platform;
mod process;
mod progress;
mod registry;
mod shim;
mod signals;
mod stdio;
mod terminal;
mod transfer;
mod unpack;

use std::process::exit;

use clap::Parser;
use clap::error::ErrorKind;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use cli::{Cli, Command};
use client::Client;
use commands::Context;

/// Exit code of an error, as `ctr` has it; also of a wrong option.
const FAILURE: i32 = 1;
/// Exit code of an unknown verb.
const UNKNOWN_VERB: i32 = 3;

fn main() {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        // Nobody is left to tell that standard error is gone.
        let _ = error.print();
        exit(match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
            ErrorKind::InvalidSubcommand => UNKNOWN_VERB,
            _ => FAILURE,
        })
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime
        .map_err(|error| Error::io("start", "runtime", error))
        .and_then(|runtime| runtime.block_on(run(cli)));
    // Leaving at once: a thread may wait for standard input for ever.
    exit(match outcome {
        Ok(code) => code as i32,
        Err(error) => {
            eprintln!("{} {error}", console::style("orlopctl:").for_stderr().red());
            FAILURE
        }
    })
}

/// Connects, carries out the command within its time, and returns the exit code.
async fn run(cli: Cli) -> Result<u32> {
    let Cli { global, command, .. } = cli;
    let work = async {
        let client = match command {
            Command::Oci(_) | Command::Pprof(_) | Command::Shim(_) => Client::unconnected(&global.namespace)?,
            _ => Client::connect(global.address(), &global.namespace, global.connect_timeout).await?,
        };
        let context = Context { client: &client, global: &global };
        context.explain(|| format!("connected to {}", global.address().display()));
        commands::execute(&context, command).await
    };
    if global.timeout.is_zero() {
        return work.await;
    }
    match tokio::time::timeout(global.timeout, work).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let limit = format!("{:?}", global.timeout);
            Err(Error::because(Kind::DeadlineExceeded, "command", "", format!("not done within {limit}")))
        }
    }
}
