//! Making of OCI runtime configurations, pure: `runc spec`'s document, and containerd's default one with the options
//! that a client applies to it.

#[cfg(feature = "apparmor")]
pub mod apparmor;
pub mod arguments;
pub mod cdi;
#[cfg(feature = "cdi")]
pub mod cdi_files;
pub mod image;
pub mod types;

mod accounts;
mod container;
mod example;
mod isolation;
mod process;
mod seccomp;

pub use accounts::Accounts;
pub use container::{DEFAULT_CAPABILITIES, any_container, container};
pub use example::{example, rootless};
pub use process::{capabilities_of, merge_env};
pub use seccomp::default_profile;
pub use types::Spec;

use types::Namespace;

/// Paths that hide the host from a container, the same in runc's and containerd's default.
pub const MASKED_PATHS: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
];

/// Paths that a container may read but not write, the same in runc's and containerd's default.
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// New namespaces of these kinds.
fn namespaces(kinds: &[&str]) -> Vec<Namespace> {
    kinds.iter().map(|&kind| Namespace { kind: kind.to_owned(), path: String::new() }).collect()
}
