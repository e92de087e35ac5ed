//! The verbs, one file for each group.

mod admin;
mod checkpoint;
mod commit;
mod containers;
mod content;
mod convert;
mod history;
mod images;
mod install;
mod leases;
mod namespaces;
mod network;
mod objects;
mod oci;
mod pprof;
mod referrers;
mod restore;
mod run;
mod runtime;
mod sandboxes;
mod server;
mod shim;
mod snapshots;
mod tasks;
mod transfers;

use orlop_proto::error::Result;

use crate::cli::{Command, Deprecations, Format, Global};
use crate::client::Client;

/// The connection and the options before the verb.
pub struct Context<'a> {
    /// Connection.
    pub client: &'a Client,
    /// Options before the verb.
    pub global: &'a Global,
}

impl Context<'_> {
    /// Whether scripts read the output.
    pub fn json(&self) -> bool {
        self.global.format == Format::Json
    }

    /// Says on standard error what is being done, if that is wanted.
    pub fn explain(&self, text: impl FnOnce() -> String) {
        if self.global.debug {
            eprintln!("orlopctl: {}", text());
        }
    }

    /// The directory for FIFOs without an option: below the state directory, in which the socket is.
    pub fn fifo_directory(&self) -> std::path::PathBuf {
        self.global.address().parent().unwrap_or(std::path::Path::new("/run/orlopd")).join("fifo")
    }
}

/// Carries out a command and returns the exit code of the process it ran, or 0.
///
/// # Errors
///
/// Those of the command.
pub async fn execute(context: &Context<'_>, command: Command) -> Result<u32> {
    match command {
        Command::Images(verb) => images::execute(context, verb).await.map(|()| 0),
        Command::Content(verb) => content::execute(context, verb).await.map(|()| 0),
        Command::Snapshots(group) => snapshots::execute(context, group).await.map(|()| 0),
        Command::Containers(verb) => containers::execute(context, verb).await,
        Command::Tasks(verb) => tasks::execute(context, verb).await,
        Command::Run(options) => run::run(context, *options).await,
        Command::Namespaces(verb) => namespaces::execute(context, verb).await.map(|()| 0),
        Command::Leases(verb) => leases::execute(context, verb).await.map(|()| 0),
        Command::Events { filters } => server::events(context, filters).await.map(|()| 0),
        Command::Gc { explain: None } => admin::collect(context).await.map(|()| 0),
        Command::Gc { explain: Some(name) } => admin::explain(context, name).await.map(|()| 0),
        Command::Fsck { repair, quick } => admin::check(context, repair, quick).await,
        Command::Du { summarize } => admin::usage(context, summarize).await.map(|()| 0),
        Command::Version => server::version(context).await.map(|()| 0),
        Command::Info => server::info(context).await.map(|()| 0),
        Command::Metrics => admin::metrics(context).await.map(|()| 0),
        Command::Plugins(verb) => server::plugins(context, verb).await.map(|()| 0),
        Command::Sandboxes(verb) => sandboxes::execute(context, verb).await.map(|()| 0),
        Command::Deprecations(Deprecations::List) => server::deprecations(context).await.map(|()| 0),
        Command::Install(options) => install::install(context, &options).await.map(|()| 0),
        Command::Pprof(options) => pprof::execute(context, &options).await.map(|()| 0),
        Command::Shim(options) => shim::execute(context, *options).await.map(|()| 0),
        Command::Oci(verb) => oci::execute(context, verb).map(|()| 0),
    }
}
