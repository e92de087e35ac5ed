//! A container that exists: its state directory, its status, its end.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use oci_spec::runtime::Hooks;
use orlop_host::cgroup::{Cgroup, CgroupPaths};
use orlop_host::file;
use orlop_host::live;
use orlop_host::probe::SecurityModules;
use orlop_host::process::Stat;
use orlop_host::state::{StateDirectory, living_init};
use orlop_host::sys;
use orlop_proto::contract::OCI_VERSION;
use orlop_proto::contract::state::{ContainerState, HookState, Status, StoredConfig, StoredState};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::bundle::Bundle;
use crate::cli::Global;
use crate::host_mounts::{self, MountPoint};
use crate::log::Log;
use crate::plan::Plan;
use crate::plan::inherited::Inherited;
use crate::plan::namespaces::NAMES;
use crate::resctrl::Groups;
use crate::seccomp::Filter;
use crate::spec::Spec;
use crate::{hooks, rootless};

/// The compiled seccomp filter of a container, kept for later execs: flags and program as native numbers.
const FILTER_FILE: &str = "seccomp.bpf";

/// Members of the stored configuration: what processes inherit, that there is no process to start, groups of resctrl, mounts on
/// the host, that the container was made by `run` and waits for no `start`.
const INHERITED: &str = "inherited";
const NO_PROCESS: &str = "noProcess";
const GROUPS: &str = "intelRdtGroups";
const HOST_MOUNTS: &str = "hostMounts";
const STARTS_AT_ONCE: &str = "startsAtOnce";

/// A container that exists.
pub struct Container {
    /// Its state directory.
    pub directory: StateDirectory,
    /// What is written there.
    pub state: StoredState,
}

impl Container {
    /// A container whose state is at hand.
    pub fn new(directory: StateDirectory, state: StoredState) -> Container {
        Container { directory, state }
    }

    /// Finds a container by its id.
    pub fn open(root: &Path, id: &str) -> Result<Container> {
        let directory = StateDirectory::open(root, id)?;
        let state = directory.load()?;
        Ok(Container { directory, state })
    }

    /// Where it is in its life, as far as its init tells: not whether it is paused.
    pub fn life(&self) -> Status {
        let Some(init) = living_init(&self.state) else { return Status::Stopped };
        // What `run` made has no FIFO, and runs as soon as its init has executed the program.
        let is_created = match self.state.config.spec.get(STARTS_AT_ONCE) {
            Some(_) => !init.has_executed(),
            None => self.directory.fifo().exists(),
        };
        if is_created { Status::Created } else { Status::Running }
    }

    /// Where it is in its life.
    pub fn status(&self) -> Result<Status> {
        match self.life() {
            Status::Stopped => Ok(Status::Stopped),
            // A created container may be frozen too; runc calls it paused all the same.
            _ if self.cgroup()?.frozen()? => Ok(Status::Paused),
            life => Ok(life),
        }
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> Result<Cgroup> {
        let cgroup = Cgroup::open(&self.cgroup_paths())?;
        if !self.state.config.systemd_cgroup {
            return Ok(cgroup);
        }
        Ok(cgroup.as_unit(rootless::is_user() || rootless::is_in_user_namespace()))
    }

    /// The directories of its cgroup.
    pub fn cgroup_paths(&self) -> CgroupPaths {
        live::cgroup_paths(&self.state)
    }

    /// Its init as a descriptor; none if it has ended.
    pub fn init(&self) -> Result<Option<OwnedFd>> {
        live::init(&self.state)
    }

    /// What `state` prints.
    pub fn describe(&self, owner: String) -> Result<ContainerState> {
        let status = self.status()?;
        Ok(ContainerState {
            oci_version: self.state.config.version.clone(),
            id: self.state.id.clone(),
            pid: if status == Status::Stopped { 0 } else { self.state.init_process_pid },
            status,
            bundle: self.state.bundle().to_owned(),
            rootfs: self.state.config.rootfs.clone(),
            created: self.state.created.clone(),
            annotations: self.state.annotations(),
            owner,
        })
    }

    /// The name of the user who owns its state directory.
    pub fn owner(&self) -> String {
        let uid = std::fs::metadata(self.directory.path()).map(|metadata| metadata.uid()).unwrap_or(0);
        user_name(uid).unwrap_or_else(|| format!("#{uid}"))
    }

    /// What hooks get.
    pub fn hook_state(&self, status: Status) -> HookState {
        HookState {
            oci_version: OCI_VERSION.into(),
            id: self.state.id.clone(),
            status,
            pid: if status == Status::Stopped { 0 } else { self.state.init_process_pid },
            bundle: self.state.bundle().to_owned(),
            annotations: self.state.annotations(),
        }
    }

    /// The hooks that run after its creation.
    pub fn hooks(&self) -> Result<Hooks> {
        let hooks = self.state.config.spec.get("hooks").cloned().unwrap_or_default();
        if hooks.is_null() {
            return Ok(Hooks::default());
        }
        // Through text: reading values would be a second copy of all this code.
        serde_json::to_vec(&hooks)
            .and_then(|hooks| serde_json::from_slice(&hooks))
            .map_err(|error| Error::because(Kind::DataLoss, "read", "the container's hooks", error))
    }

    /// Whether there are hooks that run after the start of the program.
    pub fn has_poststart(&self) -> Result<bool> {
        Ok(self.hooks()?.poststart().as_ref().is_some_and(|hooks| !hooks.is_empty()))
    }

    /// Runs the poststart hooks; a failing one kills the container, as in runc.
    pub fn run_poststart(&self) -> Result<()> {
        let hooks = self.hooks()?;
        let Some(hooks) = hooks.poststart() else { return Ok(()) };
        hooks::run(hooks, &self.hook_state(Status::Running)).inspect_err(|_| {
            if let Ok(Some(init)) = self.init() {
                // The hook's failure is the error to tell; an init that has ended by itself is as good as killed.
                let _ = sys::pid::pidfd_send_signal(init.as_fd(), libc::SIGKILL);
            }
        })
    }

    /// Kills init and waits until it has ended.
    pub fn kill_init(&self) -> Result<()> {
        live::kill_init(&self.state, || self.cgroup())
    }

    /// Removes everything that a container with an ended init still holds: processes that outlived it in a shared pid
    /// namespace, its cgroup, its state directory; then runs its poststop hooks. What these fail with is a warning only.
    pub fn destroy(&self, log: &Log) -> Result<()> {
        if live::ends_with_init(&self.state) && !self.state.config.systemd_cgroup {
            // Nothing is left in it, and nothing but its removal is wanted of it.
            Cgroup::remove_at(&self.cgroup_paths())?;
        } else {
            live::leave_cgroup(&self.state, &self.cgroup()?)?;
        }
        if let Some(groups) = self.groups()? {
            groups.remove()?;
        }
        if let Some(mounts) = self.state.config.spec.get(HOST_MOUNTS) {
            let mounts: Vec<MountPoint> = serde_json::to_vec(mounts)
                .and_then(|text| serde_json::from_slice(&text))
                .map_err(|error| Error::because(Kind::DataLoss, "read", "the container's mounts", error))?;
            host_mounts::unmount(Path::new(&self.state.config.rootfs), &mounts)?;
        }
        let hooks = self.hooks();
        let state = self.hook_state(Status::Stopped);
        self.directory.remove()?;
        for hook in hooks?.poststop().iter().flatten() {
            if let Err(error) = hooks::run([hook], &state) {
                log.warning(error);
            }
        }
        Ok(())
    }

    /// Whether its configuration has a process, without which it cannot be started (runtime-spec, "Start").
    pub fn has_process(&self) -> bool {
        self.state.config.spec.get(NO_PROCESS).is_none()
    }

    /// What a process that joins it inherits.
    pub fn inherited(&self) -> Result<Inherited> {
        let Some(stored) = self.state.config.spec.get(INHERITED) else { return Ok(Inherited::default()) };
        // Through text: reading values would be a second copy of all this code.
        serde_json::to_vec(stored)
            .and_then(|text| serde_json::from_slice(&text))
            .map_err(|error| Error::because(Kind::DataLoss, "read", "what processes inherit", error))
    }

    /// Its groups of resctrl, if it has any.
    pub fn groups(&self) -> Result<Option<Groups>> {
        let Some(stored) = self.state.config.spec.get(GROUPS) else { return Ok(None) };
        serde_json::to_vec(stored).and_then(|text| serde_json::from_slice(&text)).map(Some).map_err(|error| {
            Error::because(Kind::DataLoss, "read", "the container's groups of resctrl", error)
        })
    }

    /// The compiled seccomp filter, for an exec.
    pub fn filter(&self) -> Result<Option<Filter>> {
        let path = self.directory.path().join(FILTER_FILE);
        let bytes = match file::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.context("read", path.to_string_lossy())?,
        };
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("chunks of eight bytes have eight bytes")));
        let flags = words.next().unwrap_or(0) as u32;
        let listener = self.state.config.spec.get("seccompListener").and_then(listener_from);
        Ok(Some(Filter { program: words.collect(), flags, listener }))
    }
}

fn listener_from(json: &serde_json::Value) -> Option<crate::seccomp::Listener> {
    let text = |name: &str| json.get(name).and_then(|value| value.as_str());
    Some(crate::seccomp::Listener {
        path: text("path")?.into(),
        metadata: text("metadata").unwrap_or_default().to_owned(),
    })
}

/// Keeps the compiled filter for later execs.
pub fn save_filter(directory: &StateDirectory, filter: &Filter) -> Result<()> {
    let words = std::iter::once(u64::from(filter.flags)).chain(filter.program.iter().copied());
    let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
    let path = directory.path().join(FILTER_FILE);
    std::fs::write(&path, bytes).context("write", path.to_string_lossy())
}

/// Makes the FIFO on which init waits, and opens it for init in a way that waits for nobody.
pub fn make_fifo(directory: &StateDirectory) -> Result<OwnedFd> {
    let path = directory.fifo();
    let shown = || path.to_string_lossy();
    mkfifo(&path, Mode::from_bits_truncate(0o600)).context("create", shown())?;
    // With both ends open init's read waits for a byte, never for an end of file.
    open(&path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).context("open", shown())
}

/// What hooks get while a container is being created; the pid is not known yet.
pub fn hook_state(bundle: &Bundle, id: &str) -> HookState {
    HookState {
        oci_version: OCI_VERSION.into(),
        id: id.to_owned(),
        // The hooks before the start follow the creation of the environment (runtime-spec, "Lifecycle", steps 2 to 5, and
        // "State": `created` is what follows step 2). crun says so too; runc says `creating`.
        status: Status::Created,
        pid: 0,
        bundle: bundle.path.to_string_lossy().into_owned(),
        annotations: bundle
            .spec
            .annotations()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
    }
}

/// What `state.json` says about a new container.
pub fn stored(
    bundle: &Bundle,
    plan: &Plan,
    pid: i32,
    cgroup_paths: &CgroupPaths,
    created: String,
    global: &Global,
) -> Result<StoredState> {
    let container = plan.container.as_ref();
    let mut labels: Vec<String> =
        bundle.spec.annotations().iter().flatten().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    labels.push(format!("bundle={}", bundle.path.display()));
    let text = |error| Error::because(Kind::Internal, "encode", "the configuration", error);
    let mut spec = serde_json::Map::new();
    if let Some(hooks) = bundle.spec.hooks() {
        spec.insert("hooks".into(), serde_json::to_value(hooks).map_err(text)?);
    }
    let inherited = serde_json::to_value(Inherited::of(&bundle.spec)).map_err(text)?;
    if inherited != serde_json::json!({}) {
        spec.insert(INHERITED.into(), inherited);
    }
    if bundle.spec.process().is_none() {
        spec.insert(NO_PROCESS.into(), true.into());
    }
    if let Some(process) = bundle.spec.process() {
        let capabilities = serde_json::to_value(process.capabilities()).map_err(text)?;
        spec.insert("capabilities".into(), capabilities);
        for (name, value) in
            [("apparmorProfile", process.apparmor_profile()), ("selinuxLabel", process.selinux_label())]
        {
            if let Some(value) = value {
                spec.insert(name.into(), value.clone().into());
            }
        }
    }
    if let Some(resources) = bundle.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) {
        let mut resources = serde_json::to_value(resources).map_err(text)?;
        if let Some(members) = resources.as_object_mut() {
            // An update leaves the device rules alone.
            members.remove("devices");
        }
        spec.insert("resources".into(), resources);
    }
    let seccomp = bundle.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    if let Some(path) = seccomp.and_then(|seccomp| seccomp.listener_path().as_ref()) {
        let metadata = seccomp.and_then(|seccomp| seccomp.listener_metadata().clone()).unwrap_or_default();
        spec.insert("seccompListener".into(), serde_json::json!({"path": path, "metadata": metadata}));
    }
    let stream = |number: i32| {
        std::fs::read_link(format!("/proc/self/fd/{number}"))
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    Ok(StoredState {
        id: plan.id.clone(),
        init_process_pid: pid,
        init_process_start: Stat::of(pid)?.start_time,
        created,
        config: StoredConfig {
            rootfs: container.map(|c| c.rootfs.to_string_lossy().into_owned()).unwrap_or_default(),
            labels,
            version: bundle.spec.version().clone(),
            no_new_privileges: plan.process.no_new_privileges,
            no_new_keyring: plan.keyring.is_none(),
            systemd_cgroup: global.systemd_cgroup,
            namespaces: plan.namespaces.all(),
            joined_namespaces: plan.namespaces.joined(),
            spec: serde_json::Value::Object(spec),
        },
        rootless: !nix::unistd::geteuid().is_root(),
        cgroup_paths: cgroup_paths
            .iter()
            .map(|(controller, path)| (controller.to_owned(), path.to_string_lossy().into_owned()))
            .collect(),
        namespace_paths: NAMES
            .iter()
            .map(|(_, name, file)| ((*name).to_owned(), format!("/proc/{pid}/ns/{file}")))
            .collect(),
        external_descriptors: (0..=2).map(stream).collect(),
        intel_rdt_path: String::new(),
    })
}

/// Notes that a container starts as soon as it is made.
pub fn store_starts_at_once(state: &mut StoredState) {
    state.config.spec[STARTS_AT_ONCE] = true.into();
}

/// Notes a container's groups of resctrl.
pub fn store_groups(state: &mut StoredState, groups: &Groups) -> Result<()> {
    state.intel_rdt_path = groups.class.to_string_lossy().into_owned();
    state.config.spec[GROUPS] = serde_json::to_value(groups)
        .map_err(|error| Error::because(Kind::Internal, "encode", "the groups of resctrl", error))?;
    Ok(())
}

/// Notes the mounts that a container without a mount namespace has made among the host's.
pub fn store_host_mounts(state: &mut StoredState, mounts: &[MountPoint]) -> Result<()> {
    state.config.spec[HOST_MOUNTS] = serde_json::to_value(mounts)
        .map_err(|error| Error::because(Kind::Internal, "encode", "the container's mounts", error))?;
    Ok(())
}

/// Looks for security modules only if the configuration has a label for one.
pub fn security_modules_for(spec: &Spec) -> SecurityModules {
    let process = spec.process().as_ref();
    let set = |text: Option<&String>| text.is_some_and(|text| !text.is_empty());
    let labelled = set(process.and_then(|process| process.apparmor_profile().as_ref()))
        || set(process.and_then(|process| process.selinux_label().as_ref()))
        || set(spec.linux().as_ref().and_then(|linux| linux.mount_label().as_ref()));
    // A test of what becomes of a label need not have a kernel with AppArmor.
    if crate::switches::is_off("apparmor-probe") {
        return SecurityModules { apparmor: true, ..Default::default() };
    }
    if crate::switches::is_off("selinux-probe") {
        return SecurityModules { selinux: true, ..Default::default() };
    }
    if labelled { SecurityModules::detect() } else { SecurityModules::default() }
}

/// A user's name from `/etc/passwd`, never through NSS.
fn user_name(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let uid = uid.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}
