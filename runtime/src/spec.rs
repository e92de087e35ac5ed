//! The two outermost types of a configuration: `config.json` as a whole and its `process`.
//!
//! What they consist of are oci-spec's types. These two are our own since that crate's bring along a regular expression engine,
//! for one check of `execCPUAffinity`, and the sections of four other systems: a third of the binary, and of what a start
//! holds in memory (docs/decisions/0100-runtime.md). The getters have the crate's names.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    Box as ConsoleSize, Hooks, Linux, LinuxCapabilities, LinuxIOPriority, Mount, PosixRlimit, Root,
    Scheduler, User,
};
use serde::{Deserialize, Serialize};

/// Lets a type be read as the crate's are: through getters that lend their members, or copy small ones.
macro_rules! getters {
    ($type:ident { $($name:ident: $member:ty, $about:literal;)* } $(copies { $($small:ident: $copied:ty, $what:literal;)* })?) => {
        impl $type {
            $(#[doc = $about]
            pub fn $name(&self) -> &$member {
                &self.$name
            })*
            $($(#[doc = $what]
            pub fn $small(&self) -> $copied {
                self.$small
            })*)?
        }
    };
}

/// A configuration (runtime-spec, "config.json").
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    #[serde(rename = "ociVersion")]
    version: String,
    root: Option<Root>,
    mounts: Option<Vec<Mount>>,
    process: Option<Process>,
    hostname: Option<String>,
    domainname: Option<String>,
    hooks: Option<Hooks>,
    annotations: Option<HashMap<String, String>>,
    linux: Option<Linux>,
}

getters!(Spec {
    version: String, "Version of the specification.";
    root: Option<Root>, "The root file system.";
    mounts: Option<Vec<Mount>>, "Mounts beyond the root, in their order.";
    process: Option<Process>, "The container's process.";
    hostname: Option<String>, "Host name.";
    domainname: Option<String>, "Domain name.";
    hooks: Option<Hooks>, "Programs to run at certain points.";
    annotations: Option<HashMap<String, String>>, "What others want to know.";
    linux: Option<Linux>, "What only Linux has.";
});

impl Spec {
    /// Adds a mount after the others.
    pub fn add_mount(&mut self, mount: Mount) {
        self.mounts.get_or_insert_default().push(mount);
    }

    /// Adds a variable to the environment of the process, if there is one.
    pub fn add_variable(&mut self, assignment: String) {
        if let Some(process) = &mut self.process {
            process.env.get_or_insert_default().push(assignment);
        }
    }
}

/// A process of a container (runtime-spec, "Process").
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Process {
    /// Whether it gets a terminal.
    pub terminal: Option<bool>,
    /// The terminal's size.
    pub console_size: Option<ConsoleSize>,
    /// User and groups.
    pub user: User,
    /// The program and its arguments.
    pub args: Option<Vec<String>>,
    /// Environment variables.
    pub env: Option<Vec<String>>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Capabilities.
    pub capabilities: Option<LinuxCapabilities>,
    /// Resource limits.
    pub rlimits: Option<Vec<PosixRlimit>>,
    /// Whether it may not gain privileges.
    pub no_new_privileges: Option<bool>,
    /// AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// Preference of the out-of-memory killer.
    pub oom_score_adj: Option<i32>,
    /// SELinux label.
    pub selinux_label: Option<String>,
    /// I/O priority.
    pub io_priority: Option<LinuxIOPriority>,
    /// Scheduling.
    pub scheduler: Option<Scheduler>,
    /// CPUs to run on.
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<ExecCPUAffinity>,
}

getters!(Process {
    user: User, "User and groups.";
    args: Option<Vec<String>>, "The program and its arguments.";
    env: Option<Vec<String>>, "Environment variables.";
    cwd: PathBuf, "Working directory.";
    capabilities: Option<LinuxCapabilities>, "Capabilities.";
    rlimits: Option<Vec<PosixRlimit>>, "Resource limits.";
    apparmor_profile: Option<String>, "AppArmor profile.";
    selinux_label: Option<String>, "SELinux label.";
    io_priority: Option<LinuxIOPriority>, "I/O priority.";
    scheduler: Option<Scheduler>, "Scheduling.";
    exec_cpu_affinity: Option<ExecCPUAffinity>, "CPUs to run on.";
} copies {
    terminal: Option<bool>, "Whether it gets a terminal.";
    console_size: Option<ConsoleSize>, "The terminal's size.";
    no_new_privileges: Option<bool>, "Whether it may not gain privileges.";
    oom_score_adj: Option<i32>, "Preference of the out-of-memory killer.";
});

/// CPUs to run on, as lists like `0-3,7`, which the plan checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecCPUAffinity {
    #[serde(skip_serializing_if = "Option::is_none")]
    initial: Option<String>,
    #[serde(rename = "final", skip_serializing_if = "Option::is_none")]
    cpu_affinity_final: Option<String>,
}

getters!(ExecCPUAffinity {
    initial: Option<String>, "Until the process is in the container's cgroup.";
    cpu_affinity_final: Option<String>, "From then on.";
});
