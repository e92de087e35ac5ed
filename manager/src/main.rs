//! `orlopd`: the manager. Serves the containerd API to any of its clients.

mod api;
#[cfg(test)]
mod chance;
mod cli;
mod config;
mod content;
mod daemon;
mod db;
mod docker;
mod events;
mod external;
mod filter;
mod fsck;
mod gc;
mod identifier;
mod image;
mod labels;
mod listeners;
mod memory;
mod metrics;
mod mount;
mod network;
mod oci_hook;
mod offline;
mod owners;
mod plugins;
mod profile;
mod publish;
mod reload;
mod request;
mod restart;
mod service_manager;
mod snapshot;
mod space;
mod store;
mod stores;
mod task;
mod traces;
mod ttrpc;
mod volume;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;

use cli::{Arguments, Command, ConfigCommand, LogLevel, Options};
use config::{Config, LogFormat};
use orlop_proto::error::{Context, Result};
use reload::{LogHandle, Reload};
use traces::Traces;

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

impl Options {
    /// The configuration file with what the command line says.
    fn configuration(&self) -> Result<Config> {
        let mut config = Config::load(&self.config)?;
        if let Some(root) = &self.root {
            config.root.clone_from(root);
        }
        if let Some(state) = &self.state {
            config.state.clone_from(state);
        }
        if self.address.is_some() {
            config.grpc.address.clone_from(&self.address);
        }
        if self.docker_address.is_some() {
            config.docker.address.clone_from(&self.docker_address);
        }
        Ok(config)
    }

    /// The same for a daemon, with what Docker's daemon.json says of the log. A command that looks or tells does not fail over
    /// a file that is Docker's alone.
    fn configuration_of_daemon(&self) -> Result<Config> {
        let mut config = self.configuration()?;
        if let Some((path, must_be_there)) = config.daemon_json()
            && let Some(file) = docker::settings::File::read(&path, must_be_there)?
            && let Some(level) = file.level()?
        {
            config.debug.level = level;
        }
        config.absolute()
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

/// Logs to standard error, as JSON or in colour for a person; spans go to the collector, if there is one.
fn start_log(level: LevelFilter, format: LogFormat, traces: Option<&Traces>) -> LogHandle {
    use tracing_subscriber::prelude::*;
    let (filter, handle) = tracing_subscriber::reload::Layer::new(reload::targets(level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let spans = traces.map(|traces| {
        let layer = tracing_opentelemetry::layer().with_tracer(traces.tracer());
        layer.with_filter(reload::targets(LevelFilter::DEBUG))
    });
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).init();
    handle
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
    let command = arguments.command;
    let options = arguments.options;
    if let Some(Command::OciHook { words }) = &command {
        return oci_hook::run(words);
    }
    let config = options.configuration()?;
    if let Some(Command::Config { command: ConfigCommand::Dump }) = command {
        print!("{}", config.dump()?);
        return Ok(());
    }
    match command {
        Some(Command::Publish { namespace, topic }) => {
            return block_on_one_thread(publish::publish(config.address(), &namespace, topic));
        }
        Some(Command::Fsck { repair, quick }) => {
            let options = fsck::Options { repair, quick };
            return block_on_one_thread(offline::fsck(config.absolute()?, options));
        }
        Some(Command::Du) => return block_on_one_thread(offline::du(config.absolute()?)),
        Some(Command::Config { .. } | Command::OciHook { .. }) | None => {}
    }
    let config = options.configuration_of_daemon()?;
    let level = options.log_level.map(LevelFilter::from);
    // Before there are threads, each of which would have an arena of its own.
    orlop_host::sys::allocator::keep_little();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(config.workers())
        .max_blocking_threads(64)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .build()
        .context("start", "the runtime")?;
    // Until the end: then the last spans are sent.
    let traces = Traces::start(&config.tracing, runtime.handle())?;
    let lowest = level.unwrap_or(LevelFilter::from(config.debug.level));
    let log = start_log(lowest, config.debug.format, traces.as_ref());
    let reload = Reload {
        current: config.clone(),
        log: level.is_none().then_some(log),
        read: Box::new(move || options.configuration_of_daemon()),
    };
    runtime.block_on(daemon::serve(config, reload))
}
