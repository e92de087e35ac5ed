//! `orlopctl images`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

/// Verbs of `images`.
#[derive(Subcommand, Debug)]
pub enum Images {
    /// Check that all content of images is there
    Check {
        /// Print only the names of images that are complete and unpacked
        #[arg(short, long)]
        quiet: bool,
        #[command(flatten)]
        snapshotter: Snapshotter,
        /// Filters, any of which must match
        filters: Vec<String>,
    },
    /// Make the same image with other media types or other compression
    Convert(Convert),
    /// Write images into an OCI archive
    Export(Export),
    /// Show what an image's layers were made by, the last one first
    History {
        /// Platform of the image
        #[arg(long)]
        platform: Option<String>,
        /// Name of the image
        image: String,
    },
    /// Read images from an archive
    Import(Import),
    /// Show an image's manifest and configuration
    #[command(visible_alias = "i")]
    Inspect {
        // What it adds in ctr is always shown.
        #[arg(long, hide = true)]
        _content: bool,
        /// Name of the image
        image: String,
    },
    /// List images
    #[command(name = "list", visible_alias = "ls")]
    List {
        /// Print only the names
        #[arg(short, long)]
        quiet: bool,
        /// Filters, any of which must match
        filters: Vec<String>,
    },
    /// Mount an image on a directory
    Mount {
        #[command(flatten)]
        unused: Unused,
        #[command(flatten)]
        snapshotter: Snapshotter,
        /// Time after which the snapshot is kept no longer; 0s keeps it until it is unmounted
        #[arg(short = 'x', long, value_name = "DURATION", value_parser = super::duration, default_value = "24h")]
        expiration: Duration,
        #[command(flatten)]
        sync_fs: SyncFs,
        /// Allow writing, into a snapshot that is removed by `unmount --rm`
        #[arg(long)]
        rw: bool,
        /// Platform of the image
        #[arg(long)]
        platform: Option<String>,
        /// Name of the image
        image: String,
        /// Directory on which to mount
        target: PathBuf,
    },
    /// Unmount an image
    Unmount {
        #[command(flatten)]
        unused: Unused,
        #[command(flatten)]
        snapshotter: Snapshotter,
        /// Remove the snapshot too
        #[arg(long)]
        rm: bool,
        /// Directory that was given to `mount`
        target: PathBuf,
    },
    /// Fetch an image from a registry and unpack it
    Pull(Pull),
    /// Send an image to a registry
    Push(Push),
    /// Remove images that no container uses
    Prune {
        /// Remove them; without it nothing is removed
        #[arg(long)]
        all: bool,
    },
    /// List what refers to an image at its registry: signatures, lists of parts, provenance
    Referrers(Referrers),
    /// Remove images
    #[command(name = "delete", visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Wait until what becomes unreferenced is collected
        #[arg(long)]
        sync: bool,
        /// Names of the images
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Make an image of the same content with a single layer
    Squash(Squash),
    /// Give an image further names
    Tag {
        /// Replace targets that exist
        #[arg(long)]
        force: bool,
        // Names are taken as they are.
        #[arg(long, hide = true)]
        _skip_reference_check: bool,
        #[command(flatten)]
        in_client: InClient,
        /// Name of the image
        source: String,
        /// Further names
        #[arg(required = true)]
        targets: Vec<String>,
    },
    /// Set and clear labels of an image
    Label {
        /// Remove the labels that are not named
        #[arg(short, long)]
        replace_all: bool,
        /// Name of the image
        image: String,
        /// Labels as KEY=VALUE; without a value the label is removed
        labels: Vec<String>,
    },
    /// Show what images and their snapshots occupy
    Usage {
        #[command(flatten)]
        snapshotter: Snapshotter,
        /// Filters, any of which must match
        filters: Vec<String>,
    },
}

/// The snapshotter to use.
#[derive(Args, Debug, Default)]
pub struct Snapshotter {
    /// Snapshotter; the server's default without it
    #[arg(long, value_name = "NAME", env = "CONTAINERD_SNAPSHOTTER", hide_env_values = true)]
    pub snapshotter: Option<String>,
}

impl Snapshotter {
    /// The name to send: that of the flag, or containerd's default.
    pub fn name(&self) -> &str {
        self.snapshotter.as_deref().filter(|name| !name.is_empty()).unwrap_or("overlayfs")
    }
}

/// How to reach a registry.
#[derive(Args, Debug)]
pub struct Registry {
    /// Accept any TLS certificate
    #[arg(short = 'k', long)]
    pub skip_verify: bool,
    /// Use HTTP without TLS
    #[arg(long)]
    pub plain_http: bool,
    /// Name and password; the password is asked for when it is missing
    #[arg(short, long, value_name = "USER[:PASSWORD]")]
    pub user: Option<String>,
    /// Refresh token for the authorization server
    #[arg(long, value_name = "TOKEN")]
    pub refresh: Option<String>,
    /// Directory of the registries' configuration
    #[arg(long, value_name = "DIRECTORY")]
    pub hosts_dir: Option<String>,
    /// TLS root certificate
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// TLS client certificate
    #[arg(long, value_name = "FILE", requires = "tlskey")]
    pub tlscert: Option<PathBuf>,
    /// Key of the TLS client certificate
    #[arg(long, value_name = "FILE", requires = "tlscert")]
    pub tlskey: Option<PathBuf>,
    /// Have the server log all requests and responses
    #[arg(long)]
    pub http_dump: bool,
    /// Have the server trace the requests
    #[arg(long)]
    pub http_trace: bool,
}

/// Options for registries that ctr takes where no registry is asked.
#[derive(Args, Debug)]
pub struct Unused {
    #[arg(short = 'k', long, hide = true)]
    _skip_verify: bool,
    #[arg(long, hide = true)]
    _plain_http: bool,
    #[arg(short, long, value_name = "USER[:PASSWORD]", hide = true)]
    _user: Option<String>,
    #[arg(long, value_name = "TOKEN", hide = true)]
    _refresh: Option<String>,
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    _hosts_dir: Option<String>,
    #[arg(long, value_name = "FILE", hide = true)]
    _tlscacert: Option<PathBuf>,
    #[arg(long, value_name = "FILE", hide = true)]
    _tlscert: Option<PathBuf>,
    #[arg(long, value_name = "FILE", hide = true)]
    _tlskey: Option<PathBuf>,
    #[arg(long, hide = true)]
    _http_dump: bool,
    #[arg(long, hide = true)]
    _http_trace: bool,
    #[arg(long, value_name = "LABEL", hide = true)]
    _label: Vec<String>,
}

/// What ctr 2 takes where it can do the server's work itself, which is always the server's here.
#[derive(Args, Debug)]
pub struct InClient {
    #[arg(long, hide = true)]
    _local: bool,
}

/// What ctr 2 takes where it unpacks; here layers get to the disk in any case.
#[derive(Args, Debug)]
pub struct SyncFs {
    #[arg(long, hide = true)]
    _sync_fs: bool,
}

/// `images pull`.
#[derive(Args, Debug)]
pub struct Pull {
    #[command(flatten)]
    pub in_client: InClient,
    #[command(flatten)]
    pub sync_fs: SyncFs,
    // What ctr 2 does without it is --all-metadata.
    #[arg(long, hide = true)]
    _skip_metadata: bool,
    #[command(flatten)]
    pub registry: Registry,
    #[command(flatten)]
    pub snapshotter: Snapshotter,
    /// Labels for the image, as KEY=VALUE
    #[arg(long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// Platforms to fetch, such as linux/arm64
    #[arg(long)]
    pub platform: Vec<String>,
    /// Fetch every platform
    #[arg(long)]
    pub all_platforms: bool,
    /// Fetch the metadata of every platform
    #[arg(long)]
    pub all_metadata: bool,
    /// Print the chain ID of the unpacked image
    #[arg(long)]
    pub print_chainid: bool,
    /// Fetch without unpacking
    #[arg(long)]
    pub no_unpack: bool,
    /// Fetch what refers to the image too, which stays as long as the image
    #[arg(long)]
    pub referrers: bool,
    /// Most downloads at a time; the server decides without it
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub max_concurrent_downloads: usize,
    /// Name of the image
    pub image: String,
}

/// `images push`.
#[derive(Args, Debug)]
pub struct Push {
    #[command(flatten)]
    pub in_client: InClient,
    #[command(flatten)]
    pub registry: Registry,
    /// Digest of the manifest to send in place of the image
    #[arg(long, value_name = "DIGEST")]
    pub manifest: Option<String>,
    /// Media type of that manifest
    #[arg(long, value_name = "TYPE", default_value = "application/vnd.oci.image.manifest.v1+json")]
    pub manifest_type: String,
    /// Platforms to send
    #[arg(long)]
    pub platform: Vec<String>,
    /// Most uploads at a time; the server decides without it
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub max_concurrent_uploaded_layers: usize,
    /// Send layers that are marked as not for distribution too
    #[arg(long)]
    pub allow_non_distributable_blobs: bool,
    /// Name in the registry
    pub remote: String,
    /// Name here, if it differs
    pub local: Option<String>,
}

/// `images referrers`.
#[derive(Args, Debug)]
pub struct Referrers {
    #[command(flatten)]
    pub registry: Registry,
    /// Platforms whose manifests count as well as the image's index; this machine's without it
    #[arg(long)]
    pub platform: Vec<String>,
    /// Count the manifests of every platform
    #[arg(long)]
    pub all_platforms: bool,
    /// List those of this artifact type alone
    #[arg(long, value_name = "TYPE")]
    pub artifact_type: Option<String>,
    /// Name of the image
    pub image: String,
}

/// `images export`.
#[derive(Args, Debug)]
pub struct Export {
    #[command(flatten)]
    pub in_client: InClient,
    /// Leave out Docker's manifest.json
    #[arg(long)]
    pub skip_manifest_json: bool,
    /// Leave out layers that are marked as not for distribution
    #[arg(long)]
    pub skip_non_distributable: bool,
    /// Platforms to write
    #[arg(long)]
    pub platform: Vec<String>,
    /// Write every platform
    #[arg(long)]
    pub all_platforms: bool,
    /// File to write, or an empty directory, - for standard output
    pub out: PathBuf,
    /// Names of the images
    #[arg(required = true)]
    pub images: Vec<String>,
}

/// `images import`.
#[derive(Args, Debug)]
pub struct Import {
    #[command(flatten)]
    pub in_client: InClient,
    #[command(flatten)]
    pub sync_fs: SyncFs,
    /// Labels for the images, as KEY=VALUE
    #[arg(long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// Name before the tags of the archive; only names that start so are imported
    #[arg(long, value_name = "NAME")]
    pub base_name: Option<String>,
    /// Make names by digest too
    #[arg(long)]
    pub digests: bool,
    /// With --digests, only for what has no other name
    #[arg(long)]
    pub skip_digest_for_named: bool,
    /// Keep the archive's index as an image of this name
    #[arg(long, value_name = "NAME")]
    pub index_name: Option<String>,
    /// Import every platform
    #[arg(long)]
    pub all_platforms: bool,
    /// Platforms to import
    #[arg(long)]
    pub platform: Vec<String>,
    /// Import without unpacking
    #[arg(long)]
    pub no_unpack: bool,
    /// Compress layers that are not (Docker's format only)
    #[arg(long)]
    pub compress_blobs: bool,
    #[command(flatten)]
    pub snapshotter: Snapshotter,
    /// Archive to read, or a directory with an image layout, - for standard input
    pub input: PathBuf,
}

/// `images convert`.
#[derive(Args, Debug)]
pub struct Convert {
    /// Leave layers without compression
    #[arg(long, group = "compression")]
    pub uncompress: bool,
    /// Compress layers by gzip
    #[arg(long, group = "compression")]
    pub gzip: bool,
    /// Compress layers by zstd
    #[arg(long, group = "compression")]
    pub zstd: bool,
    /// Make each layer an EROFS image, as the snapshotter erofs keeps it
    #[arg(long, group = "compression")]
    pub erofs: bool,
    /// Replace Docker's media types by OCI's
    #[arg(long)]
    pub oci: bool,
    /// Platforms that stay
    #[arg(long)]
    pub platform: Vec<String>,
    /// Convert every platform, all of which must be here
    #[arg(long)]
    pub all_platforms: bool,
    /// Name of the image
    pub source: String,
    /// Name of the new image
    pub target: String,
}

/// `images squash`.
#[derive(Args, Debug)]
pub struct Squash {
    #[command(flatten)]
    pub snapshotter: Snapshotter,
    /// Platform of the image
    #[arg(long)]
    pub platform: Option<String>,
    /// Compress the layer by zstd
    #[arg(long)]
    pub zstd: bool,
    /// Name of the image
    pub source: String,
    /// Name of the new image
    pub target: String,
}
