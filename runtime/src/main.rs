//! orlop: runs a bundle as the OCI runtime specification says, in runc's place.

mod adapt;
mod bundle;
mod checkpoint;
mod cli;
mod commands;
mod console;
mod container;
mod decision;
mod foreground;
#[cfg(test)]
mod fuzz;
mod hooks;
mod host_mounts;
mod idmap;
mod init;
mod join;
mod launch;
mod log;
mod network;
mod notify;
mod plan;
mod resctrl;
mod rootless;
mod seal;
mod seccomp;
mod spec;
mod switches;
mod sync;
mod undo;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use orlop_proto::error::Error;
use orlop_proto::kind::Kind;

use cli::{Mistake, Parsed};
use commands::Failure;
use log::Log;

#[global_allocator]
static MEMORY: orlop_host::sys::memory::Arena = orlop_host::sys::memory::Arena::new();

fn main() -> ExitCode {
    let mut log = Log::to_stderr();
    match run(&mut log) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            log.fatal(failure.error);
            ExitCode::from(failure.code)
        }
    }
}

/// From the command line to the exit code. What goes wrong after the global flags is told in the log that they name.
fn run(log: &mut Log) -> Result<u8, Failure> {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_else(|| OsString::from("orlop"));
    let (global, words) = match cli::global(arguments)? {
        Parsed::Request(request) => request,
        Parsed::Answer(text) => return Ok(answer(&text)),
        Parsed::Mistake(mistake) => return Err(told(mistake)),
    };
    *log = Log::open(&global)?;
    match cli::command(&program, words)? {
        Parsed::Request(command) => {
            if seal::is_needed(&command) {
                seal::ensure()?;
            }
            commands::run(&global, command, log)
        }
        Parsed::Answer(text) => Ok(answer(&text)),
        Parsed::Mistake(mistake) => Err(told(mistake)),
    }
}

fn answer(text: &str) -> u8 {
    // Nobody is left to tell if standard output is closed.
    let _ = std::io::stdout().write_all(text.as_bytes());
    0
}

/// A mistake is told as runc tells it: the usage on standard output, what is wrong as the error.
fn told(mistake: Mistake) -> Failure {
    answer(&mistake.usage);
    Failure { error: Error::exactly(Kind::InvalidArgument, mistake.what), code: mistake.code }
}
