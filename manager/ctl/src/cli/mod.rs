//! The command line: `ctr`'s verbs, aliases and flags, and `--format` for scripts.
//!
//! Built from clap alone, so that the generator of completions and man pages can include it by path.

pub mod container;
pub mod content;
pub mod images;
pub mod leases;
pub mod namespaces;
pub mod plugins;
pub mod sandboxes;
pub mod shim;
pub mod snapshots;
pub mod tasks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Administers containers, images and their storage through the containerd API
#[derive(Parser, Debug)]
#[command(name = "orlopctl", version, args_override_self = true, disable_version_flag = true)]
pub struct Cli {
    /// Print version
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options before the verb.
#[derive(Args, Debug)]
pub struct Global {
    /// Explain what is done on standard error
    #[arg(long)]
    pub debug: bool,
    /// Address of the manager's socket
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        env = "CONTAINERD_ADDRESS",
        hide_env_values = true,
        default_value = "/run/orlopd/orlopd.sock"
    )]
    address: PathBuf,
    /// The same; before the verb alone, since `tasks kill -a` is another option
    #[arg(short = 'a', value_name = "SOCKET", overrides_with = "address")]
    short_address: Option<PathBuf>,
    /// Total time allowed for the command, such as 30s or 1m30s; 0s sets no limit
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub timeout: Duration,
    /// Time allowed for the connection; 0s sets no limit
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub connect_timeout: Duration,
    /// Namespace of the objects
    #[arg(
        short,
        long,
        global = true,
        value_name = "NAME",
        env = "CONTAINERD_NAMESPACE",
        hide_env_values = true,
        default_value = "default"
    )]
    pub namespace: String,
    /// Form of the output: a table for people, JSON for scripts
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

impl Global {
    /// The manager's socket.
    pub fn address(&self) -> &Path {
        self.short_address.as_ref().unwrap_or(&self.address)
    }
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns
    Table,
    /// One JSON document
    Json,
}

/// Verbs and groups of verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Manage images
    #[command(subcommand, visible_aliases = ["image", "i"])]
    Images(images::Images),
    /// Manage content
    #[command(subcommand)]
    Content(content::Content),
    /// Manage snapshots
    #[command(visible_alias = "snapshot")]
    Snapshots(snapshots::Snapshots),
    /// Manage containers
    #[command(subcommand, visible_aliases = ["container", "c"])]
    Containers(container::Containers),
    /// Manage tasks
    #[command(subcommand, visible_aliases = ["task", "t"])]
    Tasks(tasks::Tasks),
    /// Run a container
    Run(Box<container::Run>),
    /// Manage namespaces
    #[command(subcommand, visible_aliases = ["namespace", "ns"])]
    Namespaces(namespaces::Namespaces),
    /// Manage leases
    #[command(subcommand, visible_alias = "lease")]
    Leases(leases::Leases),
    /// Show events as they happen
    #[command(visible_alias = "event")]
    Events {
        /// Filters, any of which must match, such as 'topic~=/tasks/'
        filters: Vec<String>,
    },
    /// Remove what nothing refers to any longer, and wait until it is gone
    Gc {
        /// Say instead why something is kept: a digest or its beginning, a snapshot, image, container, lease, or a
        /// write's reference
        #[arg(long, value_name = "NAME")]
        explain: Option<String>,
    },
    /// Check that everything is as it was stored
    Fsck {
        /// Heal what a registry or a blob can bring back, and remove what is damaged beyond that
        #[arg(long)]
        repair: bool,
        /// Leave out what reads every byte: digests of blobs and contents of layers
        #[arg(long)]
        quick: bool,
    },
    /// Say what every byte below the server's root is for
    Du {
        /// Print the sums alone
        #[arg(short, long)]
        summarize: bool,
    },
    /// Print the versions of client and server
    Version,
    /// Print what the server is and what it has
    Info,
    /// Print the server's metrics in the text format of Prometheus
    Metrics,
    /// Show the server's plugins
    #[command(subcommand, visible_alias = "plugin")]
    Plugins(plugins::Plugins),
    /// Manage sandboxes
    #[command(subcommand, visible_aliases = ["sandbox", "sb", "s"])]
    Sandboxes(sandboxes::Sandboxes),
    /// Print what the server warns of because it will go
    #[command(subcommand)]
    Deprecations(Deprecations),
    /// Install programs of an image into a directory of the host
    Install(Install),
    /// Fetch profiles of the manager
    Pprof(shim::Pprof),
    /// Talk to a shim without its manager
    Shim(Box<shim::Shim>),
    /// What concerns configurations of the OCI
    #[command(subcommand)]
    Oci(Oci),
}

/// Verbs of `deprecations`.
#[derive(Subcommand, Debug)]
pub enum Deprecations {
    /// List the warnings
    List,
}

/// `install`.
#[derive(Args, Debug)]
pub struct Install {
    /// Install libraries too
    #[arg(short, long)]
    pub libs: bool,
    /// Replace files that are there
    #[arg(short, long)]
    pub replace: bool,
    /// Directory; the one that the server has for installed programs without it
    #[arg(long, value_name = "DIRECTORY")]
    pub path: Option<PathBuf>,
    /// Name of the image
    pub image: String,
}

/// Verbs of `oci`, which need no server.
#[derive(Subcommand, Debug)]
pub enum Oci {
    /// Print the configuration that containers begin with
    Spec {
        /// Platform of the containers
        #[arg(long)]
        platform: Option<String>,
    },
}

/// A duration as Go writes it: numbers with units `h`, `m`, `s`, `ms`, `us` or `ns`, one after the other.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 6] =
        [("h", 3600.0), ("ms", 1e-3), ("m", 60.0), ("us", 1e-6), ("ns", 1e-9), ("s", 1.0)];
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let wrong = || format!("invalid duration {text:?}");
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let (unit, factor) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(wrong)?;
        rest = &rest[unit.len()..];
        seconds += number * factor;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn durations_read_as_in_go() {
        assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("1.5h").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
        for text in ["", "5", "s", "1x", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_of_a_container_keeps_its_flags() {
        let cli =
            Cli::try_parse_from(["orlopctl", "run", "--rm", "image", "id", "ls", "--rm", "-l"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert!(run.rm);
        assert_eq!(run.create.words, ["image", "id", "ls", "--rm", "-l"]);
    }
}
