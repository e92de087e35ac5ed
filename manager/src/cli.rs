//! The command line, from clap alone: completions and manual pages are generated from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where the configuration is without an option; it need not be there.
pub const DEFAULT_CONFIG: &str = "/etc/orlop/config.toml";

/// Command line of `orlopd`; flags are containerd's.
#[derive(Parser)]
#[command(
    name = "orlopd",
    about = "Manages images, snapshots, containers and tasks; serves the containerd API",
    disable_version_flag = true
)]
pub struct Arguments {
    #[command(flatten)]
    pub options: Options,
    /// Print the version
    #[arg(short, long)]
    pub version: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What stands before the configuration file's own.
#[derive(Args)]
pub struct Options {
    /// Path of the configuration file
    #[arg(short, long, global = true, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// Level of the log
    #[arg(short, long, global = true, value_enum, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
    /// Address of the containerd API's unix socket
    #[arg(short, long, global = true, value_name = "SOCKET")]
    pub address: Option<PathBuf>,
    /// Address of the Docker Engine API's unix socket
    #[arg(long, global = true, value_name = "SOCKET")]
    pub docker_address: Option<PathBuf>,
    /// Directory of everything that outlives a reboot
    #[arg(long, global = true, value_name = "DIRECTORY")]
    pub root: Option<PathBuf>,
    /// Directory of what a reboot may remove
    #[arg(long, global = true, value_name = "DIRECTORY")]
    pub state: Option<PathBuf>,
}

/// What `orlopd` does besides serving.
#[derive(Subcommand)]
pub enum Command {
    /// Information on the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Check what is stored while no daemon serves; orlopctl fsck asks one that does
    Fsck {
        /// Heal what a registry or a blob can bring back
        #[arg(long)]
        repair: bool,
        /// Leave out what reads every byte: digests of blobs and contents of layers
        #[arg(long)]
        quick: bool,
    },
    /// Say what every byte below the root is for, while no daemon serves
    Du,
    /// Run a program as a hook of the OCI runtime: {{id}}, {{pid}}, {{bundle}}, {{rootfs}}, {{status}} and {{annotation "NAME"}}
    /// in its words and variables are what the container's state says
    OciHook {
        /// Program and arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Publish an event read from standard input; shims call this
    Publish {
        /// Namespace to publish to
        #[arg(long, default_value = "")]
        namespace: String,
        /// Topic of the event
        #[arg(long, default_value = "")]
        topic: String,
    },
}

/// Verbs of `orlopd config`.
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Print the commented default configuration
    Default,
    /// Print what holds: the file, the command line and the defaults of what neither names
    #[command(visible_alias = "migrate")]
    Dump,
}

/// Log levels by containerd's names; `fatal` and `panic` mean errors only.
#[derive(Clone, Copy, ValueEnum)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
    Panic,
}
