//! `orlopctl snapshots`.

use clap::{Args, Subcommand};

use super::images::{Snapshotter, SyncFs};

/// `snapshots`.
#[derive(Args, Debug)]
pub struct Snapshots {
    #[command(flatten)]
    pub snapshotter: Snapshotter,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Verbs of `snapshots`.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Commit an active snapshot
    Commit {
        /// Name to give it
        name: String,
        /// Active snapshot
        key: String,
    },
    /// Write the layer that one snapshot is above another to standard output
    Diff {
        /// Media type of the layer
        #[arg(long, value_name = "TYPE", default_value = "application/vnd.oci.image.layer.v1.tar+gzip")]
        media_type: String,
        /// Name of the upload
        #[arg(long = "ref", value_name = "NAME")]
        reference: Option<String>,
        /// Keep the layer in the content store
        #[arg(long)]
        keep: bool,
        /// Labels of the layer, as KEY=VALUE
        #[arg(long, value_name = "LABEL")]
        label: Vec<String>,
        /// Snapshot; with another one, what is there before
        key: String,
        /// What is there after; the first one over its parent without it
        other: Option<String>,
    },
    /// Show a snapshot
    Info {
        /// Snapshot
        key: String,
    },
    /// List snapshots
    #[command(name = "list", visible_alias = "ls")]
    List {
        /// Filters, any of which must match
        filters: Vec<String>,
    },
    /// Print the commands that mount a snapshot
    #[command(visible_aliases = ["m", "mount"])]
    Mounts {
        /// Directory for the commands
        target: String,
        /// Snapshot
        key: String,
    },
    /// Make a writable snapshot
    Prepare(New),
    /// Make a read-only snapshot
    View(New),
    /// Remove snapshots
    #[command(name = "delete", visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Snapshots
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Set and clear labels of a snapshot
    Label {
        /// Snapshot
        key: String,
        /// Labels as KEY=VALUE; without a value the label is removed
        labels: Vec<String>,
    },
    /// Show snapshots below their parents
    Tree,
    /// Unpack an image's layers
    Unpack {
        #[command(flatten)]
        snapshotter: Snapshotter,
        #[command(flatten)]
        sync_fs: SyncFs,
        /// Digest of the manifest
        digest: String,
    },
    /// Show what snapshots occupy
    Usage {
        /// Print bytes
        #[arg(short = 'b')]
        bytes: bool,
        /// Snapshots; all without any
        keys: Vec<String>,
    },
}

/// A snapshot to make.
#[derive(Args, Debug)]
pub struct New {
    /// Print the commands that mount it on this directory
    #[arg(short, long, value_name = "DIRECTORY")]
    pub target: Option<String>,
    /// Print the mounts as JSON
    #[arg(long)]
    pub mounts: bool,
    /// Snapshot
    pub key: String,
    /// Committed snapshot below it
    pub parent: Option<String>,
}
