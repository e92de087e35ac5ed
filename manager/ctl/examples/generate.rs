//! Writes completions and manual pages of all four programs, from the command lines themselves:
//! `cargo run -p orlop-ctl --example generate -- DIRECTORY` makes `man/`, `bash/`, `zsh/` and `fish/` there.
//!
//! A program of its own, so that none of the four carries the generators.

#[path = "../src/cli/mod.rs"]
#[allow(dead_code, reason = "only the table of the command line is used")]
mod orlopctl;

#[path = "../../src/cli.rs"]
#[allow(dead_code, reason = "only the table of the command line is used")]
mod orlopd;

#[path = "../../../runtime/src/cli/table.rs"]
#[allow(dead_code, reason = "the grammar's parts of the table are not used")]
mod orlop;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::Shell;

/// The manual's section of system administration commands.
const SECTION: &str = "8";

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: generate DIRECTORY");
        return ExitCode::FAILURE;
    };
    match generate(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate: {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn generate(directory: &Path) -> io::Result<()> {
    for folder in ["man", "bash", "zsh", "fish"] {
        fs::create_dir_all(directory.join(folder))?;
    }
    for command in [runtime(), orlopd::Arguments::command(), orlopctl::Cli::command()] {
        complete(directory, command.clone())?;
        pages(directory, command)?;
    }
    pages(directory, shim())
}

/// Completions under the names by which each shell finds them.
fn complete(directory: &Path, mut command: Command) -> io::Result<()> {
    let name = command.get_name().to_owned();
    for (shell, path) in [
        (Shell::Bash, format!("bash/{name}")),
        (Shell::Zsh, format!("zsh/_{name}")),
        (Shell::Fish, format!("fish/{name}.fish")),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, &name, &mut text);
        fs::write(directory.join(path), text)?;
    }
    Ok(())
}

/// One page for the program and one for each verb: orlopctl.8, orlopctl-run.8.
fn pages(directory: &Path, command: Command) -> io::Result<()> {
    fn each(directory: &Path, command: &Command) -> io::Result<()> {
        let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
        let mut text = Vec::new();
        clap_mangen::Man::new(command.clone()).section(SECTION).render(&mut text)?;
        fs::write(directory.join(format!("man/{name}.{SECTION}")), text)?;
        command
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
            .try_for_each(|verb| each(directory, verb))
    }
    let mut command = command.disable_help_subcommand(true);
    command.build();
    each(directory, &command)
}

/// The runtime's table of its command line, which it reads by Go's grammar and without clap.
fn runtime() -> Command {
    let arguments = |flags: &'static [orlop::Flag]| {
        flags.iter().filter(|flag| flag.name != "help").map(|flag| {
            let argument = Arg::new(flag.name).long(flag.name).help(sentence(flag.help)).hide(flag.hidden);
            let argument = match flag.short.and_then(|short| short.chars().next()) {
                Some(short) => argument.short(short),
                None => argument,
            };
            match flag.takes {
                orlop::Takes::Nothing => argument.action(ArgAction::SetTrue),
                orlop::Takes::Texts | orlop::Takes::Numbers => {
                    argument.action(ArgAction::Append).value_name(flag.value)
                }
                orlop::Takes::Path => argument.value_name(flag.value).value_hint(clap::ValueHint::AnyPath),
                _ => argument.value_name(flag.value),
            }
        })
    };
    let verbs = orlop::VERBS.iter().map(|verb| {
        let usage = format!("orlop {} [OPTIONS] {}", verb.name, verb.operands);
        Command::new(verb.name)
            .about(verb.about)
            .disable_version_flag(true)
            .override_usage(usage.trim_end().to_owned())
            .args(arguments(verb.flags))
    });
    Command::new("orlop")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A low-level container runtime: runs a bundle as the OCI runtime specification says")
        .long_about(
            "Runs a bundle, a directory with a config.json and a root file system, as the OCI runtime specification says. \
             It takes runc's command line: options may have one dash or two, and a value may follow after a space or =.",
        )
        .disable_version_flag(true)
        .args(arguments(orlop::GLOBAL))
        .subcommands(verbs)
}

/// Manual pages start their sentences with a capital.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// The shim reads its own command line; this is what its page says.
fn shim() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new("containerd-shim-orlop-v1")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keeps a container's process, streams and exit code for its manager")
        .long_about(
            "A shim for containerd (runtime io.containerd.orlop.v1) and orlopd. The manager starts it, and talks to \
             it over ttrpc; it runs the OCI runtime, copies the streams, and remembers exits while no manager runs. \
             Options may have one dash or two.",
        )
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args([
            option("address", "SOCKET", "The manager's gRPC socket"),
            option("bundle", "DIRECTORY", "The bundle, if it is not the working directory"),
            switch("debug", "Log more"),
            option("id", "ID", "The container"),
            switch("info", "Print what this shim is, as protobuf, and exit"),
            option("namespace", "NAMESPACE", "The container's namespace"),
            option("publish-binary", "PROGRAM", "Accepted for other shims' sake: events go to the manager's socket"),
            option("socket", "SOCKET", "The socket to serve"),
            switch("version", "Print the version and exit"),
        ])
        .subcommand(Command::new("start").about("Start a shim and print its address").disable_help_flag(true))
        .subcommand(
            Command::new("delete").about("Remove what a dead shim has left, and print its exit").disable_help_flag(true),
        )
}
