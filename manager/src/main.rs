//! `orlopd`: the manager. Serves the containerd API to any of its clients.

mod api;
mod cli;
mod config;
mod content;
mod daemon;
mod db;
mod docker;
mod events;
mod filter;
mod fsck;
mod gc;
mod identifier;
mod image;
mod labels;
#[allow(dead_code, reason = "the Docker API, which uses it, comes next")]
mod network;
mod offline;
mod plugins;
mod publish;
mod request;
mod restart;
mod snapshot;
mod space;
mod store;
mod stores;
mod task;
mod ttrpc;
#[allow(dead_code, reason = "the Docker API, which uses it, comes next")]
mod volume;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;

use cli::{Arguments, Command, ConfigCommand, LogLevel};
use config::Config;
use orlop_proto::error::{Context, Result};

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> LevelFilter {
        match level {
            LogLevel::Trace => LevelFilter::TRACE,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Error | LogLevel::Fatal | LogLevel::Panic => LevelFilter::ERROR,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlopd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Logs to standard error, in colour for a person; what the libraries below say only as far as it is a warning.
fn start_log(level: LevelFilter) {
    use tracing_subscriber::prelude::*;
    let targets = tracing_subscriber::filter::Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_CRATE_NAME"), level);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    tracing_subscriber::registry().with(lines).with(targets).init();
}

/// Runs what serves nobody.
fn block_on_one_thread(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start", "the runtime")?.block_on(work)
}

fn run(arguments: Arguments) -> Result<()> {
    if arguments.version {
        println!("orlopd {} {}", api::version::PACKAGE, api::version::version());
        return Ok(());
    }
    if let Some(Command::Config { command: ConfigCommand::Default }) = arguments.command {
        print!("{}", config::DEFAULT_TEXT);
        return Ok(());
    }
    let mut config = Config::load(&arguments.config)?;
    if let Some(root) = arguments.root {
        config.root = root;
    }
    if let Some(state) = arguments.state {
        config.state = state;
    }
    if let Some(address) = arguments.address {
        config.grpc.address = Some(address);
    }
    if let Some(address) = arguments.docker_address {
        config.docker.address = Some(address);
    }
    match arguments.command {
        Some(Command::Publish { namespace, topic }) => {
            return block_on_one_thread(publish::publish(config.address(), &namespace, topic));
        }
        Some(Command::Fsck { repair, quick }) => {
            let options = fsck::Options { repair, quick };
            return block_on_one_thread(offline::fsck(config.absolute()?, options));
        }
        Some(Command::Du) => return block_on_one_thread(offline::du(config.absolute()?)),
        Some(Command::Config { .. }) | None => {}
    }
    let level = arguments.log_level.map_or(LevelFilter::from(config.debug.level), LevelFilter::from);
    start_log(level);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(config.workers())
        .max_blocking_threads(64)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .build()
        .context("start", "the runtime")?
        .block_on(daemon::serve(config))
}
