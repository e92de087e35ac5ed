//! `orlopctl tasks`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Verbs of `tasks`.
#[derive(Subcommand, Debug)]
pub enum Tasks {
    /// Connect to a container's standard streams
    Attach {
        /// Container
        container: String,
    },
    /// Checkpoint a container
    Checkpoint {
        /// Stop the container afterwards
        #[arg(long)]
        exit: bool,
        /// Directory of the checkpoint
        #[arg(long, value_name = "DIRECTORY")]
        image_path: Option<PathBuf>,
        /// Directory of CRIU's work files
        #[arg(long, value_name = "DIRECTORY")]
        work_path: Option<PathBuf>,
        /// Container
        container: String,
    },
    /// Remove tasks that have ended
    #[command(name = "delete", visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Kill the task first
        #[arg(short, long)]
        force: bool,
        /// Remove this process rather than the task
        #[arg(long, value_name = "ID")]
        exec_id: Option<String>,
        /// Containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Run a further process in a container
    Exec(Exec),
    /// List tasks
    #[command(name = "list", visible_alias = "ls")]
    List {
        /// Print only the containers' IDs
        #[arg(short, long)]
        quiet: bool,
    },
    /// Send a signal to a container
    Kill {
        /// Signal by name or number; the container's stop signal without it
        #[arg(short, long)]
        signal: Option<String>,
        /// Signal this process rather than the task
        #[arg(long, value_name = "ID")]
        exec_id: Option<String>,
        /// Signal every process of the container
        #[arg(short, long)]
        all: bool,
        /// Container
        container: String,
    },
    /// Show a container's resource usage
    #[command(visible_alias = "metric")]
    Metrics {
        /// Container
        container: String,
    },
    /// Suspend a container
    Pause {
        /// Container
        container: String,
    },
    /// List a container's processes
    Ps {
        /// Container
        container: String,
    },
    /// Continue a suspended container
    Resume {
        /// Container
        container: String,
    },
    /// Start a container that was created
    Start {
        #[command(flatten)]
        stdio: Stdio,
        /// File to which the task's process ID is written
        #[arg(long, value_name = "FILE")]
        pid_file: Option<PathBuf>,
        /// Return once the task runs
        #[arg(short, long)]
        detach: bool,
        /// Do without pivot_root(2)
        #[arg(long)]
        no_pivot: bool,
        /// Container
        container: String,
    },
    /// Wait until a container or one of its processes ends, and print its exit code
    Wait {
        /// Wait for this process rather than the task
        #[arg(long, value_name = "ID")]
        exec_id: Option<String>,
        /// Container
        container: String,
    },
}

/// Where the standard streams of a process lead.
#[derive(Args, Debug, Default)]
pub struct Stdio {
    /// Lead the standard streams nowhere
    #[arg(long)]
    pub null_io: bool,
    /// Have the shim write the output there: file:///PATH or binary:///PROGRAM
    #[arg(long, value_name = "URI", conflicts_with = "null_io")]
    pub log_uri: Option<String>,
    /// Directory of the streams' FIFOs; `fifo` beside the manager's socket without it
    #[arg(long, value_name = "DIRECTORY")]
    pub fifo_dir: Option<PathBuf>,
}

/// `tasks exec`.
#[derive(Args, Debug)]
pub struct Exec {
    /// Working directory of the process
    #[arg(long, value_name = "DIRECTORY")]
    pub cwd: Option<String>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Return once it runs
    #[arg(short, long)]
    pub detach: bool,
    /// ID of the process
    #[arg(long, value_name = "ID", required = true)]
    pub exec_id: String,
    #[command(flatten)]
    pub stdio: Stdio,
    /// User, as a name or a number, with an optional group
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Environment variables to add, as NAME=VALUE
    #[arg(long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// Container, then the command and its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true,
          value_names = ["CONTAINER", "COMMAND"])]
    pub words: Vec<String>,
}
