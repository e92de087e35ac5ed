//! The command line: runc's verbs and flags.
//!
//! Uses clap alone, so that completions and manual pages can be generated from it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// What `--version` prints after the program's name, in runc's form, which go-runc parses.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0");

/// A low-level container runtime: runs a bundle with a `config.json` as the OCI runtime specification says.
#[derive(Debug, Parser)]
#[command(name = "orlop", version = VERSION, disable_version_flag = true, args_override_self = true, max_term_width = 100)]
pub struct Cli {
    /// Flags before the verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags before the verb.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Enable debug logging
    #[arg(long)]
    pub debug: bool,
    /// File to write log lines to, instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Format of log lines
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Directory for the state of containers, best on a tmpfs
    #[arg(long, value_name = "DIR", default_value = orlop_proto::contract::RUNTIME_ROOT)]
    pub root: PathBuf,
    /// Path of the criu program (checkpoint and restore find it by themselves)
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<PathBuf>,
    /// Let systemd manage cgroups; cgroupsPath then has the form "slice:prefix:name"
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Ignore cgroup permission errors
    #[arg(long, value_name = "BOOL", default_value = "auto", value_parser = ["true", "false", "auto"])]
    pub rootless: String,
    /// Print the version
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `time="…" level=error msg="…"`
    Text,
    /// One JSON object per line
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container and leave it waiting for start
    Create(CreateArgs),
    /// Start the user's program in a created container
    Start {
        /// The container
        id: String,
    },
    /// Print a container's state as JSON
    State {
        /// The container
        id: String,
    },
    /// Send a signal to a container's init process (SIGTERM unless another is named)
    Kill(KillArgs),
    /// Delete what a stopped container still holds
    Delete {
        /// Kill the container first if it is alive; one that does not exist is no error
        #[arg(short, long)]
        force: bool,
        /// The container
        id: String,
    },
    /// Create and start a container
    Run(RunArgs),
    /// Run another process in a running container
    Exec(Box<ExecArgs>),
    /// List the containers below the root directory
    List {
        /// How to print them
        #[arg(short, long, default_value = "table")]
        format: String,
        /// Print only ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show the processes in a container
    Ps {
        /// How to print them
        #[arg(short, long, default_value = "table")]
        format: String,
        /// The container
        id: String,
        /// Options for ps(1)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Stop all processes of a container until resume
    Pause {
        /// The container
        id: String,
    },
    /// Let the processes of a paused container go on
    Resume {
        /// The container
        id: String,
    },
    /// Change a container's limits
    Update(Box<UpdateArgs>),
    /// Write a config.json to start from
    Spec {
        /// Directory to write it to
        #[arg(short, long, value_name = "DIR")]
        bundle: Option<PathBuf>,
        /// For a user without root's rights
        #[arg(long)]
        rootless: bool,
    },
    /// Print what this runtime supports as JSON
    Features,
}

/// Flags that create and run share.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// The bundle directory, the current one by default
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Unix socket that gets the master end of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets a pidfd of the container's init
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Move the root over instead of pivot_root, for a root file system on a ramdisk
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass this many descriptors beyond stdio and LISTEN_FDS
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Name of the container: letters, digits and _+-.
    pub id: String,
}

/// Flags of run.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Do not wait for the container
    #[arg(short, long)]
    pub detach: bool,
    /// Do not delete the container when it ends
    #[arg(long)]
    pub keep: bool,
    /// Do not become the parent of orphaned processes
    #[arg(long)]
    pub no_subreaper: bool,
    /// The rest, as for create
    #[command(flatten)]
    pub create: CreateArgs,
}

/// Flags of exec.
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// Unix socket that gets the master end of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets a pidfd of the process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User, as UID[:GID]
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Additional group ids
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File with the process as JSON
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Do not wait for the process
    #[arg(short, long)]
    pub detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// The process may not gain privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Pass this many descriptors beyond stdio and LISTEN_FDS
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Existing cgroup below the container's, as [CONTROLLER:]PATH
    #[arg(long, value_name = "[CONTROLLER:]PATH")]
    pub cgroup: Vec<String>,
    /// Do not refuse a paused container
    #[arg(long)]
    pub ignore_paused: bool,
    /// Do not become the parent of orphaned processes
    #[arg(long)]
    pub no_subreaper: bool,
    /// The container
    pub id: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Flags of kill.
#[derive(Args, Clone, Debug)]
pub struct KillArgs {
    /// Signal every process of the container
    #[arg(short, long)]
    pub all: bool,
    /// The container
    pub id: String,
    /// Name or number
    #[arg(allow_hyphen_values = true)]
    pub signal: Option<String>,
}

/// Flags of update.
#[derive(Args, Clone, Debug)]
pub struct UpdateArgs {
    /// File with the resources as JSON, - for standard input; all other flags are ignored then
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Relative weight of block I/O, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// Period of the CPU quota in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_period: Option<u64>,
    /// CPU time allowed in a period in microseconds
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_burst: Option<u64>,
    /// Relative weight of CPU time
    #[arg(long, value_name = "N", visible_alias = "cpu-share")]
    pub cpu_shares: Option<u64>,
    /// Period of realtime CPU time in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_rt_period: Option<u64>,
    /// Realtime CPU time in a period in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_rt_runtime: Option<i64>,
    /// CPUs to run on
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Memory limit in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Memory reservation in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together in bytes, -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Highest number of processes
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// SCHED_IDLE for the whole cgroup
    #[arg(long, value_name = "N")]
    pub cpu_idle: Option<i64>,
    /// The container
    pub id: String,
}

/// Whether a word is a verb.
pub fn is_verb(word: &str) -> bool {
    const VERBS: [&str; 14] = [
        "create", "start", "state", "kill", "delete", "run", "exec", "list", "ps", "pause", "resume",
        "update", "spec", "features",
    ];
    VERBS.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        for verb in Cli::command().get_subcommands() {
            assert!(is_verb(verb.get_name()), "{}", verb.get_name());
        }
    }

    #[test]
    fn flags_after_the_container_belong_to_the_program() {
        let line = ["orlop", "exec", "-t", "--env", "A=b", "c", "ls", "-l", "--env", "x"];
        let Command::Exec(exec) = Cli::try_parse_from(line).unwrap().command else { panic!("another verb") };
        assert_eq!((exec.id.as_str(), exec.tty), ("c", true));
        assert_eq!(exec.command, ["ls", "-l", "--env", "x"]);
    }
}
