//! `orlopctl plugins`.

use clap::Subcommand;

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
}
