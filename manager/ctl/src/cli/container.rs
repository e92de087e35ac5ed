//! `orlopctl containers` and `orlopctl run`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::images::{Snapshotter, SyncFs};
use super::tasks::Stdio;

/// Verbs of `containers`.
#[derive(Subcommand, Debug)]
pub enum Containers {
    /// Save a container into an image that it can be restored from
    Checkpoint(Checkpoint),
    /// Make an image of a container's changes on top of its image
    Commit(Commit),
    /// Make a container without running it
    Create(Box<Create>),
    /// Remove containers
    #[command(name = "delete", visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Keep the containers' snapshots
        #[arg(long)]
        keep_snapshot: bool,
        /// Containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Show a container
    Info {
        /// Print only the OCI configuration
        #[arg(long)]
        spec: bool,
        /// Container
        container: String,
    },
    /// List containers
    #[command(name = "list", visible_alias = "ls")]
    List {
        /// Print only the IDs
        #[arg(short, long)]
        quiet: bool,
        /// Filters, any of which must match
        filters: Vec<String>,
    },
    /// Set and clear labels of a container
    Label {
        /// Container
        container: String,
        /// Labels as KEY=VALUE; without a value the label is removed
        labels: Vec<String>,
    },
    /// Make a container of an image that one was saved into, and run it
    Restore(Restore),
}

/// `run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Remove the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Return once the container runs
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    pub stdio: Stdio,
    #[command(flatten)]
    pub cni: Cni,
    #[command(flatten)]
    pub sync_fs: SyncFs,
    /// Write the container's OCI configuration into this file
    #[arg(long, value_name = "FILE")]
    pub dump_config: Option<PathBuf>,
    #[command(flatten)]
    pub create: Create,
}

/// A network by plugins.
#[derive(Args, Debug)]
#[command(next_help_heading = "Network")]
pub struct Cni {
    /// Join the network that the first file of a directory configures, by plugins (CNI)
    #[arg(long)]
    pub cni: bool,
    /// The directory
    #[arg(long, value_name = "DIRECTORY", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Directories of the plugins
    #[arg(long, value_name = "DIRECTORY", default_values = ["/opt/cni/bin", "/usr/lib/cni"])]
    pub cni_plugin_dir: Vec<PathBuf>,
}

/// A container to make.
#[derive(Args, Debug)]
pub struct Create {
    /// Platform of the image
    #[arg(long)]
    pub platform: Option<String>,
    #[command(flatten)]
    pub snapshotter: Snapshotter,
    /// Labels for the new snapshot, as KEY=VALUE
    #[arg(long, value_name = "LABEL")]
    pub snapshotter_label: Vec<String>,
    /// Use this OCI configuration as it is; only the container's ID is given besides
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The first word is a directory to use as root file system, not an image
    #[arg(long)]
    pub rootfs: bool,
    /// Labels for the container, as KEY=VALUE
    #[arg(long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// OCI annotations, as KEY=VALUE
    #[arg(long, value_name = "ANNOTATION")]
    pub annotation: Vec<String>,
    /// Sandbox in which the container is made
    #[arg(long, value_name = "ID")]
    pub sandbox: Option<String>,
    /// File to which the task's process ID is written
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    #[command(flatten)]
    pub process: Process,
    #[command(flatten)]
    pub isolation: Isolation,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub runtime: Runtime,
    /// Image or root file system, container ID, then the command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE|ROOTFS", "ID", "COMMAND"])]
    pub words: Vec<String>,
}

/// The container's process.
#[derive(Args, Debug)]
#[command(next_help_heading = "Process")]
pub struct Process {
    /// Working directory
    #[arg(long, value_name = "DIRECTORY")]
    pub cwd: Option<String>,
    /// Environment variables, as NAME=VALUE; a bare NAME removes one
    #[arg(long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// File with a variable on each line
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// User, as a name or a number, with an optional group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Let programs gain privileges, as by set-user-ID
    #[arg(long)]
    pub allow_new_privs: bool,
    /// Capabilities to add, such as CAP_SYS_PTRACE
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Capabilities to take away
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// Limits of setrlimit(2), as NAME=SOFT[:HARD], such as nofile=1024
    #[arg(long, value_name = "LIMIT")]
    pub ulimit: Vec<String>,
    /// Limit of open files
    #[arg(long, value_name = "SOFT[:HARD]")]
    pub rlimit_nofile: Option<String>,
    /// Value for /proc/PID/oom_score_adj
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub oom_score_adj: Option<i32>,
}

/// What the container shares with its host.
#[derive(Args, Debug)]
#[command(next_help_heading = "Isolation")]
pub struct Isolation {
    /// Host name
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Mounts, such as type=bind,src=/tmp,dst=/host,options=rbind:ro
    #[arg(long, value_name = "MOUNT")]
    pub mount: Vec<String>,
    /// Use the host's network
    #[arg(long)]
    pub net_host: bool,
    /// Lift the protections: all capabilities, all devices, nothing masked
    #[arg(long)]
    pub privileged: bool,
    /// Leave the host's devices out of a privileged container
    #[arg(long)]
    pub privileged_without_host_devices: bool,
    /// Make the root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// Namespaces to join, as KIND:PATH
    #[arg(long, value_name = "NAMESPACE")]
    pub with_ns: Vec<String>,
    /// User IDs of a user namespace
    #[arg(long, value_name = "CONTAINER:HOST:LENGTH", requires = "gidmap")]
    pub uidmap: Vec<String>,
    /// Group IDs of a user namespace
    #[arg(long, value_name = "CONTAINER:HOST:LENGTH", requires = "uidmap")]
    pub gidmap: Vec<String>,
    /// Have the snapshotter shift the owners of files into the user namespace
    #[arg(long, requires = "uidmap")]
    pub remap_labels: bool,
    /// Devices to make in the container: a device file, a directory of them, or a device of a vendor (CDI) as
    /// VENDOR/CLASS=NAME
    #[arg(long, value_name = "PATH")]
    pub device: Vec<PathBuf>,
    /// GPUs by their index or UUID, or all of them: devices nvidia.com/gpu of CDI
    #[arg(long, value_name = "all|GPU,…")]
    pub gpus: Vec<String>,
    /// Directories of CDI's files, a later one's devices in place of an earlier one's
    #[arg(long, value_name = "DIRECTORY", default_values = ["/etc/cdi", "/var/run/cdi"])]
    pub cdi_spec_dir: Vec<PathBuf>,
    /// Filter system calls by the default profile
    #[arg(long)]
    pub seccomp: bool,
    /// Filter system calls by this profile; needs --seccomp
    #[arg(long, value_name = "FILE")]
    pub seccomp_profile: Option<PathBuf>,
    /// AppArmor profile, which must be loaded
    #[arg(long, value_name = "NAME")]
    pub apparmor_profile: Option<String>,
    /// AppArmor profile; unless one of that name is loaded, the default one is loaded under it
    #[arg(long, value_name = "NAME")]
    pub apparmor_default_profile: Option<String>,
    /// Propagation of the root mount
    #[arg(long, value_name = "KIND")]
    pub rootfs_propagation: Option<String>,
    /// Kernel parameters, as NAME=VALUE
    #[arg(long, value_name = "PARAMETER")]
    pub sysctl: Vec<String>,
}

/// Resource limits.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Path of the cgroup; empty for none
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Memory in bytes; 0 sets no limit
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub memory_limit: u64,
    /// CPUs' worth of time, such as 1.5; 0 sets no limit
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0)]
    pub cpus: f64,
    /// CPU time in a period, in microseconds; -1 sets no limit
    #[arg(long, value_name = "MICROSECONDS", default_value_t = -1, allow_negative_numbers = true)]
    pub cpu_quota: i64,
    /// Length of the period in microseconds
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub cpu_period: u64,
    /// Relative share of CPU time
    #[arg(long, value_name = "NUMBER")]
    pub cpu_shares: Option<u64>,
    /// CPUs to run on, such as 0-2,5
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Number of tasks; 0 sets no limit
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_negative_numbers = true)]
    pub pids_limit: i64,
    /// Class of Intel RDT
    #[arg(long, value_name = "NAME")]
    pub rdt_class: Option<String>,
}

/// The runtime.
#[derive(Args, Debug)]
#[command(next_help_heading = "Runtime")]
pub struct Runtime {
    /// Runtime of the container
    #[arg(long, value_name = "NAME", default_value = "io.containerd.runc.v2")]
    pub runtime: String,
    /// Configuration file of the runtime
    #[arg(long, value_name = "FILE")]
    pub runtime_config_path: Option<String>,
    /// OCI runtime to use, such as runc
    #[arg(long, value_name = "PROGRAM")]
    pub runc_binary: Option<String>,
    /// State directory of the OCI runtime
    #[arg(long, value_name = "DIRECTORY")]
    pub runc_root: Option<String>,
    /// Have the OCI runtime ask systemd for the cgroup; needs --cgroup
    #[arg(long)]
    pub runc_systemd_cgroup: bool,
    /// Do without pivot_root(2)
    #[arg(long)]
    pub no_pivot: bool,
}

/// `containers commit`.
#[derive(Args, Debug)]
pub struct Commit {
    /// Leave the container running meanwhile
    #[arg(long)]
    pub no_pause: bool,
    /// Who made the image
    #[arg(long, value_name = "NAME")]
    pub author: Option<String>,
    /// What was changed
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Compress the layer by zstd
    #[arg(long)]
    pub zstd: bool,
    /// Platform of the container's image
    #[arg(long)]
    pub platform: Option<String>,
    /// Container
    pub container: String,
    /// Name of the new image
    pub image: String,
}

/// `containers checkpoint`.
#[derive(Args, Debug)]
pub struct Checkpoint {
    /// Save what the container has written
    #[arg(long)]
    pub rw: bool,
    /// Save the image of the container
    #[arg(long)]
    pub image: bool,
    /// Save its processes, which run on
    #[arg(long)]
    pub task: bool,
    /// Container
    pub container: String,
    /// Name of the new image
    #[arg(value_name = "IMAGE")]
    pub image_name: String,
}

/// `containers restore`.
#[derive(Args, Debug)]
pub struct Restore {
    /// Restore what it had written
    #[arg(long)]
    pub rw: bool,
    /// Restore its processes, rather than starting anew
    #[arg(long)]
    pub live: bool,
    #[command(flatten)]
    pub stdio: Stdio,
    /// ID of the new container
    pub container: String,
    /// Name of the image
    pub image: String,
}
