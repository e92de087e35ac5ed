//! `orlopctl shim` and `pprof`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;

/// `shim`.
#[derive(Args, Debug)]
pub struct Shim {
    /// Container whose shim is meant
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Address of the shim; without it that which the manager has noted of the container
    #[arg(long, value_name = "SOCKET")]
    pub shim_address: Option<String>,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Verbs of `shim`.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Remove a task that has ended
    Delete {
        /// Container; that of --id without it
        container: Option<String>,
    },
    /// Run a further process in the container
    Exec(Exec),
    /// Start a task that was created
    Start {
        /// Container; that of --id without it
        container: Option<String>,
    },
    /// Print the state of a task
    State {
        /// Task; that of --id without it
        #[arg(short, long, value_name = "ID")]
        task_id: Option<String>,
        #[command(flatten)]
        version: Version,
    },
    /// End a shim that has no container
    Shutdown {
        #[command(flatten)]
        version: Version,
    },
    /// Fetch profiles, where the shim is a program that has any
    Pprof {
        #[command(subcommand)]
        profile: Profile,
    },
}

/// The version of the shim protocol.
#[derive(Args, Debug)]
pub struct Version {
    /// Version of the protocol; the newest that the shim knows without it
    #[arg(long, value_name = "2|3", value_parser = clap::value_parser!(u32).range(2..=3))]
    pub api_version: Option<u32>,
}

/// `shim exec`.
#[derive(Args, Debug)]
pub struct Exec {
    /// FIFO of the standard input; made where it is missing
    #[arg(long, value_name = "FILE", default_value = "")]
    pub stdin: String,
    /// FIFO of the standard output
    #[arg(long, value_name = "FILE", default_value = "")]
    pub stdout: String,
    /// FIFO of the standard error
    #[arg(long, value_name = "FILE", default_value = "")]
    pub stderr: String,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Copy the streams until the process ends
    #[arg(short, long)]
    pub attach: bool,
    /// Environment variables to add, as NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// Working directory
    #[arg(long, value_name = "DIRECTORY")]
    pub cwd: Option<String>,
    /// File with the process as in an OCI configuration
    #[arg(long, value_name = "FILE")]
    pub spec: PathBuf,
    /// ID of the process
    pub exec_id: String,
}

/// `pprof`.
#[derive(Args, Debug)]
pub struct Pprof {
    /// Socket on which the manager serves profiles; `debug.sock` beside its own without it
    #[arg(short, long, value_name = "SOCKET")]
    pub debug_socket: Option<PathBuf>,
    #[command(subcommand)]
    pub profile: Profile,
}

/// Profiles by Go's names. orlopd has that of the processor's time; the others are those of Go's runtime.
#[derive(Subcommand, Debug)]
pub enum Profile {
    /// Where goroutines were blocked
    Block {
        #[command(flatten)]
        form: Form,
    },
    /// The stacks of goroutines
    Goroutines {
        /// How much is told
        #[arg(long, value_name = "NUMBER", default_value_t = 2)]
        debug: u32,
    },
    /// What memory is used for
    Heap {
        #[command(flatten)]
        form: Form,
    },
    /// What the processor's time is used for
    #[command(name = "profile")]
    Processor {
        /// How long is recorded
        #[arg(short, long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
        seconds: Duration,
        #[command(flatten)]
        form: Form,
    },
    /// What made threads
    Threadcreate {
        #[command(flatten)]
        form: Form,
    },
    /// What Go's scheduler did
    Trace {
        /// How long is recorded
        #[arg(short, long, value_name = "DURATION", value_parser = duration, default_value = "5s")]
        seconds: Duration,
        #[command(flatten)]
        form: Form,
    },
}

/// The form of a profile.
#[derive(Args, Debug)]
pub struct Form {
    /// 0 for a file that `go tool pprof` reads
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub debug: u32,
}
