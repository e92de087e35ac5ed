//! What to do, decided before anything is done: a configuration, a request and the host become a checked [`Plan`].
//!
//! Pure code. Whatever can be refused is refused here, before the first side effect.

pub mod capabilities;
pub mod devices;
pub mod inherited;
pub mod mounts;
pub mod namespaces;
pub mod network;
pub mod process;
pub mod user;

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Hook, Linux};
use orlop_host::probe::SecurityModules;
use orlop_proto::contract::sysctl::{self, Owner};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use devices::Device;
use inherited::Inherited;
use mounts::Mount;
use namespaces::Namespaces;
use network::NetDevice;
use process::{Affinity, Process};

use crate::spec::Spec;

/// What of the host matters for a plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host {
    /// Only cgroup v2 is there.
    pub unified: bool,
    /// The caller is not root.
    pub user: bool,
    /// Which security modules take labels.
    pub security: SecurityModules,
}

/// What the command line adds to the configuration.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The container's id.
    pub id: String,
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// Move the root over instead of pivot_root.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Descriptors from 3 on that the process keeps.
    pub preserved: u32,
    /// The same command starts the container, which then needs a process.
    pub starts: bool,
}

/// Everything that init does for a process, and the parent around it.
#[derive(Debug)]
pub struct Plan {
    /// The container's id.
    pub id: String,
    /// Which namespaces are new and which are joined.
    pub namespaces: Namespaces,
    /// The container's own set-up; none for a process that enters an existing one.
    pub container: Option<Container>,
    /// The user's program.
    pub process: Process,
    /// Descriptors from 3 on that the process keeps.
    pub preserved: u32,
    /// Session keyring to make; none to keep or to join.
    pub keyring: Option<String>,
}

/// The part of a plan that makes a container what it is.
#[derive(Debug)]
pub struct Container {
    /// The root file system on the host, absolute.
    pub rootfs: PathBuf,
    /// Make the root read-only at the end.
    pub readonly: bool,
    /// Propagation of the root: `MS_…` and whether for the whole tree.
    pub propagation: (u64, bool),
    /// The root becomes unbindable or shared only after everything is in place.
    pub final_propagation: Option<(u64, bool)>,
    /// Move the root over instead of pivot_root.
    pub no_pivot: bool,
    /// Mounts in order.
    pub mounts: Vec<Mount>,
    /// Device nodes; empty when `/dev` is the host's.
    pub devices: Vec<Device>,
    /// Whether `/dev` is ours to fill.
    pub owns_dev: bool,
    /// Make device nodes by mounting the host's, as a user namespace may not make any.
    pub bind_devices: bool,
    /// Paths to hide.
    pub masked: Vec<PathBuf>,
    /// Paths to make read-only.
    pub readonly_paths: Vec<PathBuf>,
    /// Name below `/proc/sys` with slashes, and value.
    pub sysctl: Vec<(PathBuf, String)>,
    /// Host name.
    pub hostname: Option<String>,
    /// NIS domain name.
    pub domainname: Option<String>,
    /// SELinux context of the mounts.
    pub mount_label: Option<String>,
    /// Hooks that init itself runs before the root changes.
    pub create_container: Vec<Hook>,
    /// Hooks that init itself runs just before the user's program.
    pub start_container: Vec<Hook>,
    /// Network devices that move in.
    pub net_devices: Vec<NetDevice>,
    /// There are hooks that the parent runs before the root changes.
    pub runtime_hooks: bool,
}

/// An `InvalidArgument` with words of its own.
fn refuse(why: impl Into<String>) -> Error {
    Error::exactly(Kind::InvalidArgument, why)
}

/// A path of the configuration without `.`, doubled slashes and a way above the root.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            _ => {}
        }
    }
    cleaned
}

impl Plan {
    /// Network devices that go into the container; none for a process that enters an existing one.
    pub fn net_devices(&self) -> &[NetDevice] {
        self.container.as_ref().map(|container| &*container.net_devices).unwrap_or_default()
    }

    /// The plan for a new container.
    pub fn for_container(spec: &Spec, request: &Request, host: &Host) -> Result<(Plan, Vec<String>)> {
        let mut warnings = Vec::new();
        check_version(spec.version())?;
        let root = spec.root().as_ref().ok_or_else(|| refuse("root must be specified"))?;
        let nothing = Linux::default_empty();
        let linux = spec.linux().as_ref().unwrap_or(&nothing);
        let namespaces = Namespaces::for_container(linux, host, &mut warnings)?;
        let process = match spec.process() {
            Some(own) => {
                let mut process = Process::plan(own, host)?;
                Inherited::of(spec).complete(&mut process, own)?;
                // These are for processes that are added.
                process.affinity = Affinity::default();
                process
            }
            None if request.starts => return Err(refuse("process property must not be empty")),
            None => Process::absent(),
        };
        let hooks = spec.hooks().as_ref();
        check_hooks(hooks)?;
        let mounts = mounts::plan(spec, linux, &mut warnings)?;
        let owns_dev = !mounts.iter().any(|mount| mount.is_bind_at(Path::new("/dev")));
        let (propagation, final_propagation) = root_propagation(linux)?;
        let bind_devices = namespaces.has_user_namespace();
        let net_devices = network::plan(linux, &namespaces, host)?;
        let sysctl = plan_sysctl(linux, &namespaces)?;
        let paths =
            |paths: &Option<Vec<String>>| paths.iter().flatten().map(|path| clean(Path::new(path))).collect();
        let is_given = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(|paths| !paths.is_empty());
        if (is_given(linux.masked_paths()) || is_given(linux.readonly_paths()))
            && !namespaces.is_new_or_joined(libc::CLONE_NEWNS)
        {
            return Err(refuse("unable to restrict sys entries without a private MNT namespace"));
        }
        let is_readonly = root.readonly().unwrap_or(false);
        if (is_readonly || final_propagation.is_some()) && !namespaces.is_new_or_joined(libc::CLONE_NEWNS) {
            // The root is no mount of its own then.
            return Err(refuse(
                "unable to make the root read-only or share it without a private MNT namespace",
            ));
        }
        for (name, value) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
            let is_set = value.as_ref().is_some_and(|value| !value.is_empty());
            if is_set && !namespaces.is_new_or_joined(libc::CLONE_NEWUTS) {
                return Err(refuse(format!("unable to set {name} without a private UTS namespace")));
            }
        }
        let mount_label = linux.mount_label().clone().filter(|label| !label.is_empty());
        if mount_label.is_some() && !host.security.selinux {
            return Err(refuse(
                "mountLabel is specified in config, but selinux is disabled or not supported",
            ));
        }
        let container = Container {
            rootfs: request.bundle.join(root.path()),
            readonly: is_readonly,
            propagation,
            final_propagation,
            no_pivot: request.no_pivot,
            mounts,
            devices: if owns_dev { devices::plan(linux)? } else { Vec::new() },
            owns_dev,
            bind_devices,
            masked: paths(linux.masked_paths()),
            readonly_paths: paths(linux.readonly_paths()),
            sysctl,
            hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
            domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
            mount_label,
            create_container: hooks.and_then(|h| h.create_container().clone()).unwrap_or_default(),
            start_container: hooks.and_then(|h| h.start_container().clone()).unwrap_or_default(),
            net_devices,
            runtime_hooks: crate::hooks::before_pivot(hooks).next().is_some(),
        };
        let plan = Plan {
            id: request.id.clone(),
            namespaces,
            container: Some(container),
            process,
            preserved: request.preserved,
            keyring: (!request.no_new_keyring).then(|| format!("_ses.{}", request.id)),
        };
        Ok((plan, warnings))
    }
}

/// A `Linux` section with nothing in it, unlike oci-spec's default.
trait DefaultEmpty {
    fn default_empty() -> Self;
}

impl DefaultEmpty for Linux {
    fn default_empty() -> Linux {
        serde_json::from_slice(b"{}").expect("an empty object is a whole Linux section")
    }
}

/// Refuses another major version of the specification than 1, as the JSON could mean anything.
fn check_version(version: &str) -> Result<()> {
    match version.split('.').next() {
        Some("1" | "") => Ok(()),
        _ => Err(refuse(format!("ociVersion {version:?} is not supported: only 1.x is"))),
    }
}

fn check_hooks(hooks: Option<&oci_spec::runtime::Hooks>) -> Result<()> {
    for hook in crate::hooks::all(hooks) {
        if !hook.path().is_absolute() {
            return Err(refuse(format!("hook path {:?} is not absolute", hook.path())));
        }
        if hook.timeout().is_some_and(|seconds| seconds <= 0) {
            return Err(refuse(format!("timeout of hook {:?} must be greater than zero", hook.path())));
        }
    }
    Ok(())
}

/// The propagation that everything gets at first, and what the root gets at the end.
#[allow(clippy::type_complexity, reason = "two pairs of a flag and whether it goes down the tree")]
fn root_propagation(linux: &Linux) -> Result<((u64, bool), Option<(u64, bool)>)> {
    let word = linux.rootfs_propagation().as_deref().unwrap_or("");
    if word.is_empty() {
        return Ok(((libc::MS_SLAVE, true), None));
    }
    match orlop_host::mounts::propagation(word) {
        // An unbindable mount could not be bound onto itself, which the root has to be first.
        Some((libc::MS_UNBINDABLE, tree)) => {
            Ok(((libc::MS_PRIVATE, true), Some((libc::MS_UNBINDABLE, tree))))
        }
        Some((libc::MS_SHARED, tree)) => Ok(((libc::MS_SHARED, tree), Some((libc::MS_SHARED, tree)))),
        Some(other) => Ok((other, None)),
        None => Err(refuse(format!("rootfsPropagation={word} is not supported"))),
    }
}

/// Sysctls that a namespace keeps to itself; runc's rules.
fn plan_sysctl(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<(PathBuf, String)>> {
    let mut planned = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let has = |flag| namespaces.is_new_or_joined(flag);
        let path = sysctl::path(name).ok_or_else(|| refuse(format!("sysctl {name:?} is not a name")))?;
        let (flag, kind) = match sysctl::owner(&path) {
            Some(Owner::Ipc) => (libc::CLONE_NEWIPC, "ipc"),
            Some(Owner::Network) => (libc::CLONE_NEWNET, "network"),
            Some(Owner::Uts) => (libc::CLONE_NEWUTS, "uts"),
            Some(Owner::User) if has(libc::CLONE_NEWUSER) => (libc::CLONE_NEWUSER, "user"),
            Some(Owner::HostName) => {
                return Err(refuse(format!(
                    "sysctl {name:?} is not allowed as it conflicts with the OCI \"hostname\" field"
                )));
            }
            None | Some(Owner::User) => {
                return Err(refuse(format!("sysctl {name:?} is not in a separate kernel namespace")));
            }
        };
        if !has(flag) {
            return Err(refuse(format!("sysctl {name:?} is not allowed in the hosts {kind} namespace")));
        }
        planned.push((PathBuf::from(path), value.clone()));
    }
    planned.sort();
    Ok(planned)
}

#[cfg(test)]
mod tests;
