//! `orlopctl namespaces`.

use clap::Subcommand;

/// Verbs of `namespaces`.
#[derive(Subcommand, Debug)]
pub enum Namespaces {
    /// Make a namespace
    #[command(visible_alias = "c")]
    Create {
        /// Name
        name: String,
        /// Labels as KEY=VALUE
        labels: Vec<String>,
    },
    /// List namespaces
    #[command(name = "list", visible_alias = "ls")]
    List {
        /// Print only the names
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove namespaces
    #[command(name = "remove", visible_alias = "rm")]
    Remove {
        /// Remove the namespace's cgroup too
        #[arg(short, long)]
        cgroup: bool,
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Set and clear labels of a namespace
    Label {
        /// Name
        name: String,
        /// Labels as KEY=VALUE; without a value the label is removed
        labels: Vec<String>,
    },
}
