//! The parent's whole procedure: from a request to a process that waits for its start.

use std::cell::RefCell;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::SystemTime;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use oci_spec::runtime::Hooks;
use orlop_host::cgroup::{CgroupPaths, Entry, Hierarchies, Part};
use orlop_host::state::StateDirectory;
use orlop_host::sys;
use orlop_host::sys::clone::{CloneRequest, Cloned, clone3};
use orlop_proto::contract::OCI_VERSION;
use orlop_proto::contract::state::{ContainerProcessState, HookState};
use orlop_proto::contract::time::rfc3339_nano;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::cli::{CreateArgs, Global};
use crate::container::{self, Container};
use crate::decision::Decision;
use crate::idmap::{self, Idmap};
use crate::init::{self, Init, Stage};
use crate::log::Log;
use crate::notify::Listener;
use crate::plan::Plan;
use crate::seccomp::Filter;
use crate::sync::{Channel, Message};
use crate::undo::Undo;
use crate::{console, hooks, host_mounts, network, rootless};

/// A container whose init waits for its start.
pub struct Created {
    /// The container.
    pub container: Container,
    /// Its init.
    pub process: Launched,
    /// Where its program says that it is ready; whoever starts a container of `create` makes it then.
    pub listener: Option<Listener>,
}

/// What becomes of a container once it is created.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It waits for `start`, which writes into its FIFO.
    Create,
    /// This process starts it over the channel and goes.
    RunDetached,
    /// This process starts it over the channel and stays with it.
    RunForeground,
}

/// What is around a process while it is set up.
pub struct Surroundings<'a> {
    /// For warnings.
    pub log: &'a Log,
    /// The container as hooks and seccomp supervisors see it.
    pub state: &'a HookState,
    /// The hooks of the configuration; none for an exec.
    pub hooks: Option<&'a Hooks>,
    /// The seccomp filter.
    pub filter: Option<&'a Filter>,
    /// Id-mapped mounts that the process asks for.
    pub later: &'a [idmap::Later],
    /// Nothing has to be done between the end of the set-up and the start.
    pub starts_at_once: bool,
}

/// Creates a container: decides everything, then does it; what was done is undone if a later step fails.
pub fn create(global: &Global, arguments: &CreateArgs, purpose: Purpose, log: &Log) -> Result<Created> {
    let mut decision = Decision::new(global, arguments, purpose, log)?;
    let joins = std::mem::take(&mut decision.joins);
    let idmap::Prepared { mounts: idmaps, later } = std::mem::take(&mut decision.idmaps);
    let network = decision.network.take();
    let mut undo = Undo::default();
    let effects = || -> Result<Created> {
        let directory = StateDirectory::reserve(&global.root, &arguments.id)?;
        undo.push({
            let directory = directory.clone();
            move || directory.remove()
        });
        let fifo = match purpose {
            Purpose::Create => Some(container::make_fifo(&directory)?),
            Purpose::RunDetached | Purpose::RunForeground => None,
        };
        let mut listener = None;
        if let Some(notify) = &decision.notify {
            notify.make_directory()?;
            if purpose != Purpose::Create {
                listener = notify.listen()?;
            }
        }
        let is_late = decision.has_late_cgroup();
        let first = if is_late { Part::Unified } else { Part::Whole };
        let cgroup = Rc::new(RefCell::new(decision.make_cgroup(first, log)?));
        undo.push({
            let cgroup = cgroup.clone();
            move || cgroup.borrow().undo()
        });
        if !is_late {
            decision.limit(&cgroup.borrow(), log)?;
        }
        let cgroup_paths = if is_late { decision.cgroup_paths.clone() } else { cgroup.borrow().paths() };
        let Decision { bundle, plan, hierarchies, filter, rdt, .. } = &decision;
        let mut hook_state = container::hook_state(bundle, &arguments.id);
        let own_mounts = plan.namespaces.is_new_or_joined(libc::CLONE_NEWNS);
        let rootfs = plan.container.as_ref().map(|container| container.rootfs.clone()).unwrap_or_default();
        let before = if own_mounts { None } else { Some(host_mounts::below(&rootfs)?) };
        if let Some(before) = before.clone() {
            let rootfs = rootfs.clone();
            undo.push(move || host_mounts::unmount(&rootfs, &host_mounts::made_since(&rootfs, &before)?));
        }
        let mut process = spawn(Launch {
            plan,
            joins,
            entry: cgroup.borrow().entry()?,
            cgroup_follows: is_late,
            hierarchies: Some(hierarchies),
            cgroup_paths: &cgroup_paths,
            fifo,
            filter: filter.as_ref(),
            idmaps,
            hook_state: hook_state.clone(),
        })?;
        let pidfd = process.pidfd.try_clone().context("keep", "the process")?;
        undo.push(move || kill_and_reap(pidfd));
        if is_late {
            cgroup.borrow_mut().add(decision.make_cgroup(Part::Legacy, log)?);
            let cgroup = cgroup.borrow();
            decision.limit(&cgroup, log)?;
            process.let_in(&cgroup.tasks()?)?;
        }
        process.await_namespaces()?;
        network::give(plan.net_devices(), network, process.pid, &mut undo)?;
        let created = rfc3339_nano(SystemTime::now());
        let mut state = container::stored(bundle, plan, process.pid, &cgroup_paths, created, global)?;
        if purpose != Purpose::Create {
            container::store_starts_at_once(&mut state);
        }
        if let Some(rdt) = rdt {
            let groups = rdt.enter(process.pid)?;
            container::store_groups(&mut state, &groups)?;
            undo.push(move || groups.remove());
        }
        directory.save(&state)?;
        if let Some(filter) = filter {
            container::save_filter(&directory, filter)?;
        }
        hook_state.pid = process.pid;
        let hooks = bundle.spec.hooks().as_ref();
        // A created container waits for its FIFO too, which nobody writes into yet.
        let starts_at_once =
            purpose == Purpose::Create || before.is_none() && arguments.console_socket.is_none();
        let filter = filter.as_ref();
        let around = Surroundings { log, state: &hook_state, hooks, filter, later: &later, starts_at_once };
        process.prepare(plan, &around)?;
        if purpose == Purpose::Create && !process.may_start {
            process.give_word();
        }
        if let Some(before) = before {
            container::store_host_mounts(&mut state, &host_mounts::made_since(&rootfs, &before)?)?;
            directory.save(&state)?;
        }
        decision.settle(&cgroup.borrow())?;
        console::deliver(
            &mut process,
            arguments.console_socket.as_deref(),
            arguments.pidfd_socket.as_deref(),
        )?;
        if let Some(path) = &arguments.pid_file {
            write_pid_file(path, process.pid)?;
        }
        Ok(Created { container: Container::new(directory, state), process, listener })
    };
    match effects() {
        Ok(created) => Ok(created),
        Err(error) => Err(undo.unwind(error)),
    }
}

/// What a new process needs.
pub struct Launch<'a> {
    /// What it does.
    pub plan: &'a Plan,
    /// Namespaces to join, each with its `CLONE_NEW…` flags.
    pub joins: Vec<(OwnedFd, u64)>,
    /// How it gets into its cgroup.
    pub entry: Entry,
    /// The cgroup has a part that is made later, and [`Launched::let_in`] lets it in.
    pub cgroup_follows: bool,
    /// Where the host's cgroups are.
    pub hierarchies: Option<&'a Hierarchies>,
    /// The container's cgroups.
    pub cgroup_paths: &'a CgroupPaths,
    /// The FIFO on which it waits for its start.
    pub fifo: Option<OwnedFd>,
    /// Its seccomp filter.
    pub filter: Option<&'a Filter>,
    /// What was prepared for id-mapped mounts.
    pub idmaps: Vec<Option<Idmap>>,
    /// For the hooks that it runs itself.
    pub hook_state: HookState,
}

/// A process that was made, seen from its parent.
pub struct Launched {
    /// Its id in our pid namespace.
    pub pid: i32,
    /// Itself.
    pub pidfd: OwnedFd,
    /// The master end of its terminal.
    pub console: Option<OwnedFd>,
    /// The word to start has been given.
    may_start: bool,
    /// It makes namespaces itself and says when it has.
    makes_namespaces: bool,
    channel: Channel,
}

/// Makes the process: with one clone3, unless it has to join namespaces before others can be made or joined.
pub fn spawn(launch: Launch) -> Result<Launched> {
    let (ours, theirs) = Channel::pair()?;
    let Launch { plan, joins, entry, .. } = launch;
    if let Some(numbers) = &plan.process.affinity.initial {
        // The process inherits it, and the kernel fits it to the CPUs of the cgroup that it then enters.
        sys::process::set_affinity(numbers).context("error setting", "initial CPU affinity")?;
    }
    let cgroup = entry.unified;
    let flags = plan.namespaces.at_clone;
    let user = libc::CLONE_NEWUSER as u64;
    let joined = |flag: u64| joins.iter().any(|(_, joined)| joined & flag != 0);
    // Who is not the machine's root may enter a pid namespace only from within the user namespace that owns it, and
    // could not come back to its own.
    let in_between = joined(user) && flags != 0
        || joined(libc::CLONE_NEWPID as u64) && (rootless::is_user() || rootless::is_in_user_namespace());
    let back = if in_between { None } else { enter_pid_namespace(&joins)? };
    // The intermediate process has a channel of its own, or init could speak before it.
    let between = if in_between { Some(Channel::pair()?) } else { None };
    let apart = if in_between { 0 } else { made_by_init(plan) };
    let first_flags = if in_between { 0 } else { flags & !apart };
    let request = CloneRequest {
        flags: first_flags,
        cgroup: cgroup.as_ref().filter(|_| !in_between).map(|directory| directory.as_fd()),
    };
    let is_inside = flags & user != 0 || joined(user);
    let own_score = if is_inside { plan.process.oom_score_adj.and_then(lend_score) } else { None };
    let cloned = clone3(request).context("clone", "a new process");
    let (pid, pidfd) = match cloned {
        Ok(Cloned::Parent { pid, pidfd }) => (pid, pidfd),
        Ok(Cloned::Child) => {
            drop(ours);
            let mut init = Init {
                plan,
                channel: theirs,
                joins,
                apart,
                tasks: (!launch.cgroup_follows).then_some(entry.tasks),
                hierarchies: launch.hierarchies,
                cgroup_paths: launch.cgroup_paths,
                fifo: launch.fifo,
                filter: launch.filter,
                idmaps: launch.idmaps,
                hook_state: launch.hook_state,
                found: Default::default(),
            };
            // Process 1 of a new pid namespace would show its own numbers to the hooks; the parent knows better.
            init.hook_state.pid = std::process::id() as i32;
            if let Some(to_parent) = between.map(|(_, theirs)| theirs) {
                make_from_within(&mut init, flags, cgroup.as_ref(), to_parent);
            }
            init::run(init)
        }
        Err(error) => return Err(error),
    };
    if let Some(own) = own_score {
        fs::write(OWN_SCORE, &own).context("write", OWN_SCORE)?;
    }
    if let Some(own) = back {
        sys::pid::setns(own.as_fd(), libc::CLONE_NEWPID).context("go back to", "our pid namespace")?;
    }
    drop(theirs);
    let launched =
        Launched { pid, pidfd, console: None, may_start: false, makes_namespaces: apart != 0, channel: ours };
    match between.map(|(ours, _)| ours) {
        Some(from_intermediate) => launched.adopt_sibling(&from_intermediate),
        None => Ok(launched),
    }
}

/// The preference of the out-of-memory killer for who reads the file (proc_pid_oom_score_adj(5)).
const OWN_SCORE: &str = "/proc/self/oom_score_adj";

/// Takes the score that the next child is to inherit; the own one. Nobody in a user namespace may take one that is lower than what
/// somebody with rights gave it, as shims do to themselves. Where we may not either, the child finds out and says so.
fn lend_score(score: i32) -> Option<String> {
    let own = fs::read_to_string(OWN_SCORE).ok()?;
    fs::write(OWN_SCORE, score.to_string()).ok()?;
    Some(own)
}

/// Namespaces that init makes itself: what takes longest, a network above all, is then done while the parent makes the cgroup.
/// Not if the parent is to put something into one.
fn made_by_init(plan: &Plan) -> u64 {
    const LEFT: i32 = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let is_empty = plan.container.is_some() && plan.net_devices().is_empty();
    if is_empty { plan.namespaces.at_clone & LEFT as u64 } else { 0 }
}

/// Lets our next child be born in the pid namespace that it joins; returns the way back.
fn enter_pid_namespace(joins: &[(OwnedFd, u64)]) -> Result<Option<OwnedFd>> {
    let flag = libc::CLONE_NEWPID as u64;
    let Some((namespace, _)) = joins.iter().find(|(_, flags)| flags & flag != 0) else { return Ok(None) };
    let own = open("/proc/self/ns/pid", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .context("open", "our pid namespace")?;
    sys::pid::setns(namespace.as_fd(), libc::CLONE_NEWPID).context("join", "pid namespace")?;
    Ok(Some(own))
}

/// In the intermediate process: joins user and pid namespaces and makes init there as a sibling. Returns only in init.
fn make_from_within(init: &mut Init, flags: u64, cgroup: Option<&OwnedFd>, to_parent: Channel) {
    let user = libc::CLONE_NEWUSER as u64;
    let make = |init: &mut Init| -> Result<Cloned> {
        if let Some((namespace, joined)) = init.joins.iter_mut().find(|(_, joined)| *joined & user != 0) {
            sys::pid::setns(namespace.as_fd(), libc::CLONE_NEWUSER).context("join", "user namespace")?;
            *joined &= !user;
        }
        enter_pid_namespace(&init.joins)?;
        let flags = flags | libc::CLONE_PARENT as u64;
        clone3(CloneRequest { flags, cgroup: cgroup.map(|fd| fd.as_fd()) }).context("clone", "a new process")
    };
    let told = match make(init) {
        Ok(Cloned::Child) => return,
        Ok(Cloned::Parent { pid, .. }) => Message::Child(pid),
        Err(error) => {
            let stage = Stage::Join as u8;
            Message::Failed { stage, kind: error.kind(), what: error.to_string() }
        }
    };
    let sent = to_parent.send(&told).is_ok();
    std::process::exit(if sent { 0 } else { 1 });
}

impl Launched {
    /// Takes the process that an intermediate one has made in its place.
    fn adopt_sibling(self, from_intermediate: &Channel) -> Result<Launched> {
        let answer = from_intermediate.receive()?;
        reap(&self.pidfd)?;
        match answer {
            Some((Message::Child(pid), _)) => {
                let pidfd = sys::pid::pidfd_open(pid).context("open", "the new process")?;
                Ok(Launched { pid, pidfd, ..self })
            }
            other => Err(self.failure(other.map(|(message, _)| message))),
        }
    }

    /// Lets the process into the version 1 part of its cgroup.
    fn let_in(&self, tasks: &[OwnedFd]) -> Result<()> {
        self.channel.send_with_all(&Message::Cgroup, tasks)
    }

    /// Waits until its namespaces are its own: who finds the container from now on may join them.
    fn await_namespaces(&self) -> Result<()> {
        if !self.makes_namespaces {
            return Ok(());
        }
        match self.channel.receive()? {
            Some((Message::Apart, _)) => Ok(()),
            other => Err(self.failure(other.map(|(message, _)| message))),
        }
    }

    /// Goes along with the process until everything is ready for the user's program.
    pub fn prepare(&mut self, plan: &Plan, around: &Surroundings) -> Result<()> {
        if plan.container.is_some() && plan.namespaces.has_user_namespace() {
            // A process in a user namespace may not raise its own.
            set_limits(self.pid, &plan.process.limits)?;
        }
        if let Some((uid, gid)) = &plan.namespaces.mappings {
            rootless::write_mappings(self.pid, uid, gid)?;
            self.give_word();
        }
        let asks_more = !around.later.is_empty()
            || hooks::before_pivot(around.hooks).next().is_some()
            || around.filter.is_some_and(|filter| filter.listener.is_some());
        if around.starts_at_once && !asks_more {
            // Given early, the word waits for the process and not the process for the word: two changes of process less.
            self.give_word();
            self.may_start = true;
        }
        loop {
            match self.channel.receive()? {
                Some((Message::Ready, _)) => break,
                Some((Message::Warning(text), _)) => around.log.warning(text),
                Some((Message::Note(text), _)) => around.log.debug(text),
                Some((Message::Console, Some(master))) => self.console = Some(master),
                Some((Message::Tree(number), _)) => {
                    let tree = idmap::make(around.later, number, plan, self.pidfd.as_fd())?;
                    self.channel.send_with(&Message::Tree(number), tree.as_fd())?;
                }
                Some((Message::Listener(number), _)) => {
                    self.pass_listener(number, around)?;
                    self.give_word();
                }
                Some((Message::Hooks, _)) => {
                    hooks::run(hooks::before_pivot(around.hooks), around.state)?;
                    self.give_word();
                }
                other => return Err(self.failure(other.map(|(message, _)| message))),
            }
        }
        Ok(())
    }

    /// Gives the word that the process waits for. One that has ended does not hear it, and what it said before is read next:
    /// that is the failure to tell, not the broken pipe.
    fn give_word(&self) {
        let _ = self.channel.send(&Message::Go);
    }

    /// Gives the descriptor of seccomp notifications to the supervisor of the configuration (runtime-spec, "The Container
    /// Process State").
    fn pass_listener(&self, number: i32, around: &Surroundings) -> Result<()> {
        let listener = sys::pid::take_descriptor(self.pidfd.as_fd(), number)
            .context("take", "the descriptor of seccomp notifications")?;
        let Some(wanted) = around.filter.and_then(|filter| filter.listener.as_ref()) else {
            return Err(Error::new(Kind::Internal, "find", "the seccomp supervisor"));
        };
        let state = ContainerProcessState {
            oci_version: OCI_VERSION.into(),
            fds: vec!["seccompFd".into()],
            pid: self.pid,
            metadata: wanted.metadata.clone(),
            state: around.state.clone(),
        };
        let text = serde_json::to_vec(&state)
            .map_err(|error| Error::because(Kind::Internal, "encode", "the process state", error))?;
        console::send_to(&wanted.path, &text, listener.as_fd())
    }

    /// Lets the process start the user's program and returns when it has.
    pub fn start(&mut self) -> Result<()> {
        if !self.may_start {
            self.channel.send(&Message::Go)?;
        }
        match self.channel.receive()? {
            None => Ok(()),
            other => Err(self.failure(other.map(|(message, _)| message))),
        }
    }

    /// Kills the process and waits until it is gone.
    pub fn end(&self) -> Result<()> {
        let pidfd = self.pidfd.try_clone().context("keep", "the process")?;
        kill_and_reap(pidfd)
    }

    /// What went wrong in the process, by its own words or by how it ended.
    fn failure(&self, message: Option<Message>) -> Error {
        match message {
            Some(Message::Failed { stage, kind, what }) => {
                let set_up = stage < Stage::EnterDirectory as u8;
                let during = if set_up { "error during container init: " } else { "" };
                Error::exactly(kind, format!("unable to start container process: {during}{what}"))
            }
            Some(other) => {
                Error::because(Kind::Internal, "hear", "the new process", format!("unexpected {other:?}"))
            }
            None => {
                let how = match waitid(
                    Id::PIDFd(self.pidfd.as_fd()),
                    WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT,
                ) {
                    Ok(status) => format!("{status:?}"),
                    Err(error) => error.to_string(),
                };
                Error::because(Kind::Aborted, "set up", "the new process", format!("it ended early: {how}"))
            }
        }
    }
}

/// Sets limits of a process: resource, soft, hard.
pub fn set_limits(pid: i32, limits: &[(u32, u64, u64)]) -> Result<()> {
    for &(resource, soft, hard) in limits {
        sys::process::set_limit(pid, resource, soft, hard)
            .context("error setting rlimit type", resource.to_string())?;
    }
    Ok(())
}

/// Kills a process of ours and waits until it is gone.
pub fn kill_and_reap(pidfd: OwnedFd) -> Result<()> {
    match sys::pid::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(Error::io("kill", "the new process", error))
        }
        _ => reap(&pidfd),
    }
}

fn reap(pidfd: &OwnedFd) -> Result<()> {
    loop {
        match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Err(nix::Error::EINTR) => continue,
            Ok(_) | Err(nix::Error::ECHILD) => return Ok(()),
            Err(error) => return Err(Error::io("wait for", "the new process", error.into())),
        }
    }
}

/// How many descriptors from 3 on a process keeps.
#[derive(Clone, Copy)]
pub struct Preserved {
    /// All of them.
    pub count: u32,
    /// Those of socket activation, which come first.
    listening: u32,
}

impl Preserved {
    /// What tells the process of socket activation, as sd_listen_fds(3) reads it.
    pub fn environment(self) -> Vec<CString> {
        let text = |text: String| CString::new(text).expect("numbers hold no NUL");
        match self.listening {
            0 => Vec::new(),
            count => vec![text(format!("LISTEN_FDS={count}")), text("LISTEN_PID=1".to_owned())],
        }
    }
}

/// How many descriptors from 3 on the process keeps: those asked for and those of socket activation that are meant for
/// us. All must be open.
pub fn preserved(asked: u32) -> Result<Preserved> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u32>().ok());
    let is_ours = number("LISTEN_PID") == Some(std::process::id());
    let listen = number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0);
    let count = asked.saturating_add(listen).min(1 << 16);
    for number in 3..3 + count {
        if !sys::fd::is_inherited(number as i32) {
            let why = "is not open: please check that preserve-fds and LISTEN_FDS are correct";
            return Err(Error::because(Kind::InvalidArgument, "keep", format!("descriptor {number}"), why));
        }
    }
    Ok(Preserved { count, listening: listen })
}

/// Writes a process id where others wait for it: whole or not at all.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}"));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .context("open", temporary.to_string_lossy())?;
    let written = file.write_all(pid.to_string().as_bytes()).and_then(|()| fs::rename(&temporary, path));
    written.context("write", path.to_string_lossy())
}
