//! `orlopctl sandboxes`.

use std::path::PathBuf;

use clap::Subcommand;

/// Verbs of `sandboxes`.
#[derive(Subcommand, Debug)]
pub enum Sandboxes {
    /// Make a sandbox and start it
    #[command(visible_aliases = ["create", "c", "r"])]
    Run {
        /// Runtime of the sandbox
        #[arg(long, value_name = "NAME", default_value = "io.containerd.runc.v2")]
        runtime: String,
        /// File with its configuration as JSON
        config: PathBuf,
        /// ID of the sandbox
        id: String,
    },
    /// List sandboxes
    #[command(name = "list", visible_alias = "ls")]
    List {
        /// Filters, any of which must match
        #[arg(long, value_name = "FILTER")]
        filters: Vec<String>,
    },
    /// Stop sandboxes and remove them
    #[command(name = "remove", visible_alias = "rm")]
    Remove {
        /// Remove one that cannot be stopped, too
        #[arg(short, long)]
        force: bool,
        /// Sandboxes
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Show a sandbox
    #[command(visible_alias = "i")]
    Info {
        /// Sandbox
        id: String,
    },
}
