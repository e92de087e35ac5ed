//! The verbs, one file each.

mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod list;
mod pause;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::io::Write;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::cli::{Command, Global};
use crate::log::Log;

/// A failure and the exit code that callers know it by.
pub struct Failure {
    /// What went wrong.
    pub error: Error,
    /// The exit code.
    pub code: u8,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, code: 1 }
    }
}

/// Carries a verb out; returns the exit code.
pub fn run(global: &Global, command: Command, log: &Log) -> Result<u8, Failure> {
    match command {
        Command::Checkpoint(arguments) => done(checkpoint::checkpoint(global, &arguments, log)),
        Command::Create(arguments) => create::run(global, &arguments, log).map_err(named("create")),
        Command::Delete { force, id } => done(delete::run(global, &id, force, log)),
        Command::Events { interval, once, id } => done(events::run(global, &id, interval, once)),
        Command::Exec(arguments) => exec::run(global, &arguments, log).map_err(|error| Failure {
            error: Error::exactly(error.kind(), format!("exec failed: {error}")),
            code: 255,
        }),
        Command::Features => done(features::run()),
        Command::Kill(arguments) => done(kill::run(global, &arguments)),
        Command::List { format, quiet } => done(list::run(global, &format, quiet)),
        Command::Pause { id } => done(pause::pause(global, &id)),
        Command::Ps { format, id, options } => done(ps::run(global, &id, &format, &options)),
        Command::Restore(arguments) => Ok(checkpoint::restore(global, &arguments, log)?),
        Command::Resume { id } => done(pause::resume(global, &id)),
        Command::Run(arguments) => run::run(global, &arguments, log).map_err(named("run")),
        Command::Spec { bundle, rootless } => done(spec::run(bundle.as_deref(), rootless)),
        Command::Start { id } => done(start::run(global, &id, log)),
        Command::State { id } => done(state::run(global, &id)),
        Command::Update(arguments) => done(update::run(global, &arguments, log)),
    }
}

fn done(result: Result<()>) -> Result<u8, Failure> {
    Ok(result.map(|()| 0)?)
}

/// Puts runc's words for a failed verb before its error.
fn named(verb: &'static str) -> impl Fn(Error) -> Failure {
    move |error| Error::exactly(error.kind(), format!("orlop {verb} failed: {error}")).into()
}

/// Writes to standard output.
fn print(text: &[u8]) -> Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(text).and_then(|()| output.flush()).context("write", "standard output")
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::because(Kind::Internal, "encode", "the answer", error))
}

/// JSON on several lines, with a newline at the end, as Go's encoder writes it with an indent.
fn pretty(value: &impl serde::Serialize, indent: &[u8]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent);
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    value
        .serialize(&mut serializer)
        .map_err(|error| Error::because(Kind::Internal, "encode", "the answer", error))?;
    text.push(b'\n');
    Ok(text)
}
