//! `orlopctl leases`.

use std::time::Duration;

use clap::Subcommand;

/// Verbs of `leases`.
#[derive(Subcommand, Debug)]
pub enum Leases {
    /// List leases
    #[command(name = "list", visible_alias = "ls")]
    List {
        /// Print only the IDs
        #[arg(short, long)]
        quiet: bool,
        /// Filters, any of which must match
        filters: Vec<String>,
    },
    /// Make a lease
    Create {
        /// ID; made up without it
        #[arg(long)]
        id: Option<String>,
        /// Time after which the lease expires; 0s for never
        #[arg(short = 'x', long, value_name = "DURATION", value_parser = super::duration, default_value = "24h")]
        expires: Duration,
        /// Labels as KEY=VALUE
        labels: Vec<String>,
    },
    /// Remove leases
    #[command(name = "delete", visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Wait until what becomes unreferenced is collected
        #[arg(long)]
        sync: bool,
        /// IDs
        #[arg(required = true)]
        ids: Vec<String>,
    },
}
