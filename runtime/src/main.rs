//! orlop: runs a bundle as the OCI runtime specification says, in runc's place.

mod bundle;
mod cli;
mod commands;
mod console;
mod container;
mod foreground;
mod hooks;
mod init;
mod join;
mod launch;
mod log;
mod plan;
mod rootless;
mod seal;
mod seccomp;
mod switches;
mod sync;
mod undo;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};

use cli::Cli;
use log::Log;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if seal::is_needed(arguments.iter().skip(1))
        && let Err(error) = seal::ensure()
    {
        Log::to_stderr().fatal(error);
        return ExitCode::FAILURE;
    }
    let cli = match parse(with_long_flags(arguments)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let log = match Log::open(&cli.global) {
        Ok(log) => log,
        Err(error) => {
            Log::to_stderr().fatal(error);
            return ExitCode::FAILURE;
        }
    };
    match commands::run(cli, &log) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            log.fatal(failure.error);
            ExitCode::from(failure.code)
        }
    }
}

/// Reads the command line. Where the state lies if no flag says so depends on the user.
fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if matches.value_source("root") == Some(ValueSource::DefaultValue)
        && let Some(root) = rootless::state_root()
    {
        cli.global.root = root;
    }
    Ok(cli)
}

/// Help and version are answers; anything else is a mistake, told as runc tells it and with its exit code.
fn usage(error: &clap::Error) -> ExitCode {
    let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if is_answer {
        // Nobody is left to tell if standard output is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    eprint!("{text}");
    let lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let short = lines.join(" ");
    Log::to_stderr().fatal(short.strip_prefix("error: ").unwrap_or(&short));
    ExitCode::FAILURE
}

/// Go's flag package, which runc uses, takes `-log` for `--log`; callers do so before the verb.
fn with_long_flags(arguments: Vec<OsString>) -> Vec<OsString> {
    const GLOBAL: [&str; 8] =
        ["debug", "log", "log-format", "root", "criu", "systemd-cgroup", "rootless", "version"];
    let mut before_verb = true;
    let lengthen = |argument: OsString| {
        let Some(text) = argument.to_str() else { return argument };
        let name = text.strip_prefix('-').map(|flag| flag.split('=').next().unwrap_or(flag));
        before_verb &= text.starts_with('-') || !cli::is_verb(text);
        match name {
            Some(name) if before_verb && GLOBAL.contains(&name) => format!("-{text}").into(),
            _ => argument,
        }
    };
    arguments.into_iter().map(lengthen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dash_is_as_good_as_two_before_the_verb() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(with_long_flags(words("orlop -root=/x state c")), words("orlop --root=/x state c"));
        assert_eq!(with_long_flags(words("orlop -log /x run c")), words("orlop --log /x run c"));
        assert_eq!(with_long_flags(words("orlop exec c ls -root")), words("orlop exec c ls -root"));
        assert_eq!(with_long_flags(words("orlop -v")), words("orlop -v"));
    }
}
