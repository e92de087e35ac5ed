//! `orlopctl content`.

use clap::{Args, Subcommand};

use super::images::{Pull, Registry};

/// Verbs of `content`.
#[derive(Subcommand, Debug)]
pub enum Content {
    /// Show content that is being written
    Active {
        #[command(flatten)]
        unused: UnusedActive,
        /// Text that the reference must contain
        reference: Option<String>,
    },
    /// Remove content for good
    #[command(name = "delete", visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Digests
        #[arg(required = true)]
        digests: Vec<String>,
    },
    /// Change content in an editor, and print the digest of what comes out of it
    Edit {
        /// The editor
        #[arg(long, env = "EDITOR")]
        editor: Option<String>,
        // ctr knows it and validates nothing.
        #[arg(long, value_name = "FORMAT", hide = true)]
        _validate: Option<String>,
        /// Digest
        digest: String,
    },
    /// Fetch an image's content without unpacking it
    Fetch(Box<Fetch>),
    /// Write blobs of a registry to standard output
    FetchBlob(Box<FetchBlob>),
    /// Write a manifest or blob of a registry to standard output
    FetchObject(Box<FetchObject>),
    /// Write content to standard output
    Get {
        /// Digest
        digest: String,
    },
    /// Store standard input
    Ingest {
        /// Refuse another size in bytes; 0 takes any
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        expected_size: u64,
        /// Refuse another digest
        #[arg(long, value_name = "DIGEST")]
        expected_digest: Option<String>,
        /// Name of the upload; one that was broken off is taken up again
        reference: String,
    },
    /// List content
    #[command(name = "list", visible_alias = "ls")]
    List {
        /// Print only the digests
        #[arg(short, long)]
        quiet: bool,
        /// Filters, any of which must match
        filters: Vec<String>,
    },
    /// Set and clear labels of content
    Label {
        /// Digest
        digest: String,
        /// Labels as KEY=VALUE; without a value the label is removed
        labels: Vec<String>,
    },
    /// Take from content what keeps other content
    #[command(subcommand)]
    Prune(Prune),
    /// Push a manifest or blob to a registry
    PushObject(Box<PushObject>),
}

/// What ctr takes with `content active` and does nothing with.
#[derive(Args, Debug)]
pub struct UnusedActive {
    #[arg(short = 't', value_name = "DURATION", hide = true)]
    _timeout: Option<String>,
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    _root: Option<String>,
}

/// `content fetch`.
#[derive(Args, Debug)]
pub struct Fetch {
    /// Fetch indexes, manifests and configurations of every platform, and no layer
    #[arg(long, conflicts_with_all = ["platform", "all_platforms"])]
    pub metadata_only: bool,
    #[command(flatten)]
    pub pull: Pull,
}

/// `content fetch-blob`.
#[derive(Args, Debug)]
pub struct FetchBlob {
    #[command(flatten)]
    pub registry: Registry,
    // The server finds out itself what kind of object it is.
    #[arg(long, value_name = "TYPE", hide = true)]
    _media_type: Option<String>,
    /// Repository, as an image's name has it
    pub remote: String,
    /// Digests
    #[arg(required = true)]
    pub digests: Vec<String>,
}

/// `content fetch-object`.
#[derive(Args, Debug)]
pub struct FetchObject {
    #[command(flatten)]
    pub registry: Registry,
    /// Name with a tag, or with the digest of a manifest or blob; words after it are not looked at, as by ctr
    #[arg(required = true, value_name = "REMOTE")]
    pub words: Vec<String>,
}

/// `content push-object`.
#[derive(Args, Debug)]
pub struct PushObject {
    #[command(flatten)]
    pub registry: Registry,
    /// Name; a manifest or index gets its tag
    pub remote: String,
    /// Digest
    pub object: String,
    /// Media type
    #[arg(default_value = "")]
    pub media_type: String,
}

/// Verbs of `content prune`.
#[derive(Subcommand, Debug)]
pub enum Prune {
    /// Let go of the layers that manifests keep: those that are unpacked are needed no more
    References {
        /// Do not wait for the collection
        #[arg(long = "async")]
        is_async: bool,
        /// Only print what would be let go of
        #[arg(long)]
        dry: bool,
    },
}
