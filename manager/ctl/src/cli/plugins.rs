//! `orlopctl plugins`.

use clap::Subcommand;

use super::container::Runtime;

/// Verbs of `plugins`.
#[derive(Subcommand, Debug)]
pub enum Plugins {
    /// List plugins
    #[command(name = "list", visible_alias = "ls")]
    List {
        /// Print only the IDs
        #[arg(short, long)]
        quiet: bool,
        /// Print everything known about each
        #[arg(short, long)]
        detailed: bool,
        /// Filters, any of which must match
        filters: Vec<String>,
    },
    /// Show what a shim says of itself and of its runtime
    InspectRuntime(Box<Runtime>),
}
