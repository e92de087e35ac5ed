//! What the state machine of a container wants done: jobs begun and ended, answers, events, streams.

mod cgroup;

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_host::cgroup::{Cgroup, OomWatch};
use orlop_host::mounting;
use orlop_host::sys::fd::memory_file;
use orlop_host::sys::pid::{pidfd_open, pidfd_send_signal};
use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::containerd::task::v2 as api;
use orlop_proto::containerd::types::Mount;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::boot::record;
use crate::events::{self, Subject};
use crate::jobs::{self, Program, Running};
use crate::log;
use crate::options;
use crate::poll::{Interest, Token};
use crate::remains;
use crate::runtime::{self, Ended, Runtime, Spec, Verb};
use crate::serve::Shim;
use crate::service;
use crate::stdio::{self, Connected, Owner, Streams};
use crate::task::{Call, Creation, Effect, Event, Input, Job, Report, Stdio, Task};

/// How long output that a process left may take to reach its reader before the process is deleted.
const DRAIN: Duration = Duration::from_secs(2);
/// What [`preparation`] says when the container's processes may outlive init.
const SHARES_PIDS: &str = "shares-pids";
/// What it says when the container has nothing that only the runtime's program starts and deletes.
const PLAIN: &str = "plain";

/// One container with all that belongs to it.
pub struct Container {
    /// Its state.
    pub task: Task,
    pub number: u64,
    pub runtime: Runtime,
    /// It has nothing that only the runtime's program starts and deletes.
    pub is_plain: bool,
    options: Options,
    rootfs: Vec<Mount>,
    /// Streams of processes that the runtime is making.
    opening: Vec<(String, Streams)>,
    /// Streams of processes that run, or ran.
    connected: Vec<(String, Connected)>,
    pub cgroup: Option<Cgroup>,
    out_of_memory: Option<OomWatch>,
}

/// A job under way.
pub struct Active {
    /// The child that does it.
    pub running: Running,
    container: String,
    job: Job,
    /// What a failure is called; a helper tells by itself.
    failure: Option<&'static str>,
    log_since: u64,
    /// What the child reads, which must stay until it ended.
    _input: Option<File>,
}

impl Active {
    /// Whether a process that nobody knows yet may turn out to be of this job.
    pub fn names_a_process(&self) -> bool {
        matches!(self.job, Job::Create | Job::Start { .. })
    }
}

/// What a start of the runtime takes beside its command line.
#[derive(Default)]
struct Begin<'a> {
    /// The streams of the process that it makes, and its name.
    streams: Option<(String, Streams)>,
    /// What it reads.
    input: Option<File>,
    /// Done by the child before.
    first: Option<&'a dyn Fn() -> Result<String>>,
}

/// A process whose output is on its way.
pub struct Drain {
    /// When to give up.
    pub until: Instant,
    container: String,
    exec: String,
}

impl Container {
    fn bundle(&self) -> PathBuf {
        PathBuf::from(self.task.bundle())
    }

    fn rootfs_directory(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// Where CRIU logs, unless a client says otherwise; it goes with the bundle.
    fn criu_directory(&self) -> PathBuf {
        match self.options.criu_work_path.as_str() {
            "" => self.bundle().join("criu"),
            path => PathBuf::from(path),
        }
    }

    fn pid_file(&self, exec: &str) -> PathBuf {
        self.bundle().join(if exec.is_empty() { "init.pid".to_owned() } else { format!("{exec}.pid") })
    }

    /// Takes in what [`preparation`] found out.
    fn prepared(&mut self, words: &str) -> Report {
        let says = |word: &str| words.split(' ').any(|one| one == word);
        self.is_plain = says(PLAIN);
        Report { shares_pids: says(SHARES_PIDS), ..Report::default() }
    }

    fn connected(&mut self, exec: &str) -> Option<&mut Connected> {
        self.connected.iter_mut().find(|(name, _)| name == exec).map(|(_, connected)| connected)
    }
}

/// Takes what belongs to a name out of a list.
fn take<T>(list: &mut Vec<(String, T)>, name: &str) -> Option<T> {
    let at = list.iter().position(|(other, _)| other == name)?;
    Some(list.swap_remove(at).1)
}

impl Shim {
    /// Begins to make a container.
    pub fn create(&mut self, call: Call, request: api::CreateTaskRequest) -> Result<()> {
        service::check_name("container id", &request.id)?;
        if self.containers.contains_key(&request.id) {
            return Err(Error::new(Kind::AlreadyExists, format!("container {}", request.id), ""));
        }
        let bundle = Path::new(&request.bundle);
        if !bundle.is_absolute() {
            let text = "the bundle's path is not absolute";
            return Err(Error::because(Kind::InvalidArgument, "create", request.id, text));
        }
        let options = options::read(request.options.as_ref())?;
        let runtime = Runtime::new(&options, &self.namespace, bundle)?;
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let creation =
            Creation { id: request.id.clone(), bundle: request.bundle, stdio, images: request.checkpoint };
        let (task, effects) = Task::create(call, creation);
        let container = Container {
            task,
            number: self.number(),
            runtime,
            is_plain: false,
            options,
            rootfs: request.rootfs,
            opening: Vec::new(),
            connected: Vec::new(),
            cgroup: None,
            out_of_memory: None,
        };
        self.containers.insert(request.id.clone(), container);
        for effect in effects {
            self.perform(&request.id, effect);
        }
        Ok(())
    }

    /// Does one thing that a container's state machine wants.
    pub fn perform(&mut self, id: &str, effect: Effect) {
        match effect {
            Effect::Reply(call, reply) => self.answer(call, reply.map(service::encode)),
            Effect::Publish(event) => self.publish(id, &event),
            Effect::Run(job, deadline) => {
                if let Err(error) = self.begin(id, &job, deadline) {
                    self.inputs.push_back((id.to_owned(), Input::Finished(job, Err(error))));
                }
            }
            Effect::Signal(call, pid, signal) => self.answer(call, send_signal(pid, signal)),
            Effect::Pids(call) => {
                let answer = self.pids(id);
                self.answer(call, answer);
            }
            Effect::Stats(call) => {
                let answer = self.stats(id);
                self.answer(call, answer);
            }
            Effect::Resize { call, exec, rows, columns } => {
                let connected = self.containers.get_mut(id).and_then(|container| container.connected(&exec));
                let result = connected.map_or(Ok(()), |connected| connected.resize(rows, columns));
                self.answer(call, result.map(|()| Vec::new()));
            }
            Effect::CloseStdin { call, exec } => {
                let connected = self.containers.get_mut(id).and_then(|container| container.connected(&exec));
                if let Some(connected) = connected {
                    self.copies.close_stdin(&self.poller, connected);
                }
                self.answer(call, Ok(Vec::new()));
            }
            Effect::Watch(pid) => self.watch_memory(id, pid),
            Effect::Record(pid, exit) => {
                if let Some(container) = self.containers.get(id)
                    && let Err(error) = record::write_exit(&container.bundle(), pid, exit)
                {
                    log::warn(error);
                }
            }
            Effect::Release { exec } => self.release(id, &exec),
            Effect::Forget => {
                if let Some(container) = self.containers.remove(id)
                    && let Some(watch) = container.out_of_memory
                {
                    self.poller.remove(&watch);
                }
            }
        }
    }

    fn publish(&mut self, id: &str, event: &Event) {
        let Some(container) = self.containers.get(id) else { return };
        let none = Stdio::default();
        let subject = Subject {
            container: id,
            bundle: container.task.bundle(),
            stdio: container.task.stdio("").unwrap_or(&none),
            rootfs: &container.rootfs,
            checkpoint: container.task.images(),
        };
        let (topic, event) = events::encode(event, subject);
        self.publisher.publish(&self.poller, topic, event);
    }

    /// Begins a job; it ends in [`Shim::finish`], or at once if there is nothing to do.
    fn begin(&mut self, id: &str, job: &Job, deadline: Option<Instant>) -> Result<()> {
        if self.begin_directly(id, job, deadline)? {
            return Ok(());
        }
        let namespace = self.namespace.clone();
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        match job {
            Job::Prepare => {
                let first = preparation(container);
                let running = Running::helper(deadline, first)?;
                self.track(id, job, running, None, 0, None)
            }
            Job::Undo => {
                drop(take(&mut container.opening, ""));
                let target = (!container.rootfs.is_empty()).then(|| container.rootfs_directory());
                let (runtime, id, bundle) = (container.runtime.clone(), id.to_owned(), container.bundle());
                let name = id.clone();
                let running = Running::helper(None, move || {
                    // What it says matters less than why the creation failed.
                    let _ = remains::clear(&runtime, &name, &bundle);
                    target.map_or(Ok(()), |target| mounting::unmount_all(&target))?;
                    Ok(String::new())
                })?;
                self.track(&id, job, running, None, 0, None)
            }
            Job::Unmount => {
                if container.rootfs.is_empty() {
                    let done = Input::Finished(job.clone(), Ok(Report::default()));
                    self.inputs.push_back((id.to_owned(), done));
                    return Ok(());
                }
                let target = container.rootfs_directory();
                let running =
                    Running::helper(None, move || mounting::unmount_all(&target).map(|()| String::new()))?;
                self.track(id, job, running, None, 0, None)
            }
            Job::Drain { exec } => {
                let until = Instant::now() + DRAIN;
                self.drains.push(Drain { until, container: id.to_owned(), exec: exec.clone() });
                Ok(())
            }
            Job::Create => {
                let (bundle, pid_file) = (container.bundle(), container.pid_file(""));
                let owner = owner(container, id, &namespace);
                let stdio = container.task.stdio("").cloned().unwrap_or_default();
                let streams = stdio::open(&stdio, owner, &bundle, "init")?;
                let console = streams.console.as_ref().map(|console| console.path());
                let console = console.as_deref();
                let verb = Verb::Create { bundle: &bundle, pid_file: &pid_file, console };
                let first = preparation(container);
                let streams = Some((String::new(), streams));
                self.run(id, job, verb, Begin { streams, first: Some(&first), ..Begin::default() }, deadline)
            }
            Job::Start { exec } if !exec.is_empty() => {
                let (bundle, pid_file) = (container.bundle(), container.pid_file(exec));
                let owner = owner(container, id, &namespace);
                let stdio = container.task.stdio(exec).cloned().unwrap_or_default();
                let streams = stdio::open(&stdio, owner, &bundle, exec)?;
                let console = streams.console.as_ref().map(|console| console.path());
                let spec = in_memory(container.task.exec_spec(exec))?;
                let process = format!("/proc/{}/fd/{}", std::process::id(), spec.as_raw_fd());
                let console = console.as_deref();
                let verb = Verb::Exec { process: &process, pid_file: &pid_file, console };
                let streams = Some((exec.clone(), streams));
                self.run(id, job, verb, Begin { streams, input: Some(spec), ..Begin::default() }, deadline)
            }
            Job::Start { .. } if !container.task.images().is_empty() => {
                let (bundle, pid_file, work) =
                    (container.bundle(), container.pid_file(""), container.criu_directory());
                let images = container.task.images().to_owned();
                let owner = owner(container, id, &namespace);
                let stdio = container.task.stdio("").cloned().unwrap_or_default();
                let streams = stdio::open(&stdio, owner, &bundle, "init")?;
                let console = streams.console.as_ref().map(|console| console.path());
                let verb = Verb::Restore {
                    images: &images,
                    work: &work,
                    bundle: &bundle,
                    pid_file: &pid_file,
                    console: console.as_deref(),
                };
                let streams = Some((String::new(), streams));
                self.run(id, job, verb, Begin { streams, ..Begin::default() }, deadline)
            }
            Job::Start { .. } => self.run(id, job, Verb::Start, Begin::default(), deadline),
            Job::Checkpoint(checkpoint) => {
                let work = match checkpoint.work.as_str() {
                    "" => container.criu_directory(),
                    path => PathBuf::from(path),
                };
                let verb = Verb::Checkpoint {
                    images: &checkpoint.images,
                    work: &work,
                    leave_running: !checkpoint.exit,
                    flags: &checkpoint.flags,
                };
                self.run(id, job, verb, Begin::default(), deadline)
            }
            Job::Kill { signal, all } => {
                self.run(id, job, Verb::Kill { signal: *signal, all: *all }, Begin::default(), deadline)
            }
            Job::KillRest => {
                let verb = Verb::Kill { signal: Signal::SIGKILL as i32, all: true };
                self.run(id, job, verb, Begin::default(), deadline)
            }
            Job::Delete => self.run(id, job, Verb::Delete, Begin::default(), deadline),
            Job::Pause => self.run(id, job, Verb::Pause, Begin::default(), deadline),
            Job::Resume => self.run(id, job, Verb::Resume, Begin::default(), deadline),
            Job::Update { resources } => {
                let resources = in_memory(resources)?;
                let begin = Begin { input: Some(resources), ..Begin::default() };
                self.run(id, job, Verb::Update, begin, deadline)
            }
        }
    }

    /// Starts the runtime.
    fn run(
        &mut self,
        id: &str,
        job: &Job,
        verb: Verb,
        begin: Begin,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let Begin { streams, input, first } = begin;
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        let command = container.runtime.command(id, &verb)?;
        let log_since = container.runtime.log_length();
        let child = match streams.as_ref().and_then(|(_, streams)| streams.child.as_ref()) {
            Some(child) => child.each_ref().map(|stream| Some(stream.as_fd())),
            // Without streams of the container's, or with a terminal, the runtime's own output is for us.
            None => [input.as_ref().map(AsFd::as_fd), None, None],
        };
        let running = Running::program(&Program {
            command: &command,
            environment: &runtime::environment(),
            executable: container.runtime.executable(&verb, &mut self.sealed),
            streams: child,
            first,
            // A logging program that is not ready yet might never be, and what a container says would be lost.
            after: streams.as_ref().and_then(|(_, streams)| streams.ready()),
            deadline,
        })?;
        if let Some((exec, mut streams)) = streams {
            // The container has its ends now; ours would keep it from seeing the end of them.
            streams.child = None;
            container.opening.push((exec, streams));
        }
        self.track(id, job, running, Some(verb.failure()), log_since, input)
    }

    /// Waits for a child that does a job.
    pub fn track(
        &mut self,
        id: &str,
        job: &Job,
        running: Running,
        failure: Option<&'static str>,
        log_since: u64,
        input: Option<File>,
    ) -> Result<()> {
        let number = self.number();
        // Unwatched, its output is read when it ended.
        if let Err(error) = self.poller.add(running.output(), Token::Job(number), Interest::Read) {
            log::warn(error);
        }
        let (container, job) = (id.to_owned(), job.clone());
        self.jobs.insert(number, Active { running, container, job, failure, log_since, _input: input });
        Ok(())
    }

    /// Takes in how a job ended.
    pub fn finish(&mut self, number: u64, status: u32) {
        let Some(active) = self.jobs.remove(&number) else { return };
        self.poller.remove(active.running.output());
        let Active { running, container: id, job, failure, log_since, .. } = active;
        let timed_out = running.timed_out;
        let output = running.into_output();
        let mut named = None;
        if let Some(container) = self.containers.get_mut(&id) {
            let result = match (Ended::from_status(status), failure) {
                _ if timed_out => {
                    let text = failure.unwrap_or("prepare the container");
                    Err(Error::because(Kind::DeadlineExceeded, text, "", "context deadline exceeded"))
                }
                (ended, Some(failure)) if job == Job::Create => {
                    let (prepared, printed) = jobs::split(status, &output);
                    match (prepared, ended) {
                        (Err(error), _) => Err(error),
                        (Ok(_), Some(ended)) => {
                            Err(container.runtime.error(failure, ended, printed, log_since))
                        }
                        (Ok(words), None) => {
                            let report = container.prepared(&words);
                            self.made(&id, "").map(|made| Report { pid: made.pid, ..report })
                        }
                    }
                }
                (Some(ended), Some(failure)) => {
                    Err(container.runtime.error(failure, ended, &output, log_since))
                }
                (_, None) => jobs::helped(status, &output).map(|words| match job {
                    Job::Prepare => container.prepared(&words),
                    _ => Report::default(),
                }),
                (None, Some(_)) => match &job {
                    Job::Start { exec } if !exec.is_empty() => self.made(&id, exec),
                    Job::Start { .. } if !container.task.images().is_empty() => {
                        let made = self.made(&id, "");
                        self.let_input_in(&id, "");
                        made
                    }
                    Job::Start { .. } => {
                        self.let_input_in(&id, "");
                        Ok(Report::default())
                    }
                    Job::Delete => {
                        container.runtime.leave_root();
                        Ok(Report::default())
                    }
                    _ => Ok(Report::default()),
                },
            };
            named = result.as_ref().ok().and_then(|report| report.pid);
            if result.is_err()
                && let (Job::Start { exec }, Some(container)) = (&job, self.containers.get_mut(&id))
            {
                drop(take(&mut container.opening, exec));
            }
            self.inputs.push_back((id.clone(), Input::Finished(job, result)));
        }
        if let Some(pid) = named
            && let Some(exit) = self.reaper.claim(pid)
        {
            self.inputs.push_back((id, Input::Exited(pid, exit)));
        }
        if !self.jobs.values().any(Active::names_a_process) {
            self.reaper.forget_unclaimed();
        }
    }

    /// The runtime made a process: which one, and its streams are connected.
    fn made(&mut self, id: &str, exec: &str) -> Result<Report> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(Report::default()) };
        let pid = runtime::read_pid(&container.pid_file(exec))?;
        if let Some(streams) = take(&mut container.opening, exec) {
            match self.copies.connect(&self.poller, streams) {
                Ok(connected) => container.connected.push((exec.to_owned(), connected)),
                Err(error) => {
                    // Nobody would ever hear of it.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                    return Err(error);
                }
            }
        }
        if !exec.is_empty() {
            self.let_input_in(id, exec);
        }
        Ok(Report { pid: Some(pid), ..Report::default() })
    }

    /// A process has started: from here on it may read.
    pub fn let_input_in(&mut self, id: &str, exec: &str) {
        let connected = self.containers.get_mut(id).and_then(|container| container.connected(exec));
        if let Some(connected) = connected
            && let Err(error) = self.copies.open_stdin(&self.poller, connected)
        {
            // The client took its FIFO away; the process runs all the same.
            log::warn(error);
        }
    }

    /// Ends the waits for output that are over.
    pub fn check_drains(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(drain) = self.drains.get(at) {
            let connected = self
                .containers
                .get_mut(&drain.container)
                .and_then(|container| container.connected(&drain.exec));
            let drained = connected.is_none_or(|connected| self.copies.is_drained(connected));
            if drained || drain.until <= now {
                let Drain { container, exec, .. } = self.drains.swap_remove(at);
                let done = Input::Finished(Job::Drain { exec }, Ok(Report::default()));
                self.inputs.push_back((container, done));
            } else {
                at += 1;
            }
        }
    }

    fn release(&mut self, id: &str, exec: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        drop(take(&mut container.opening, exec));
        if let Some(connected) = take(&mut container.connected, exec) {
            self.copies.release(&self.poller, connected);
        }
        if !exec.is_empty() {
            // It may never have been written.
            let _ = fs::remove_file(container.pid_file(exec));
        }
    }
}

/// The mounts of a message.
fn decode(mounts: &[Mount]) -> Vec<mounting::Mount> {
    let plain = |Mount { r#type, source, target, options }: Mount| mounting::Mount {
        kind: r#type,
        source,
        target,
        options,
    };
    mounts.iter().cloned().map(plain).collect()
}

/// What precedes the creation of a container, in a child of its own: notes in the bundle, the mounts of the root file system.
fn preparation(container: &Container) -> impl Fn() -> Result<String> + use<> {
    let (bundle, options) = (container.bundle(), container.options.clone());
    let (rootfs, target) = (decode(&container.rootfs), container.rootfs_directory());
    move || {
        record::write_options(&bundle, &options)?;
        let spec = Spec::read(&bundle)?;
        if !rootfs.is_empty() {
            fs::create_dir_all(&target).context("make", target.display().to_string())?;
            mounting::mount_all(&rootfs, &target)?;
        }
        let words = [(spec.shares_pids(), SHARES_PIDS), (spec.is_plain(), PLAIN)];
        Ok(words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect::<Vec<_>>().join(" "))
    }
}

fn owner<'a>(container: &Container, id: &'a str, namespace: &'a str) -> Owner<'a> {
    let Options { io_uid, io_gid, .. } = container.options;
    Owner { uid: io_uid, gid: io_gid, container: id, namespace }
}

/// A file in memory that holds these bytes, to be read from its start.
fn in_memory(bytes: &[u8]) -> Result<File> {
    let mut file = File::from(memory_file(c"orlop").context("make", "a file in memory")?);
    file.write_all(bytes).and_then(|()| file.rewind()).context("write", "a file in memory")?;
    Ok(file)
}

/// Signals a process that we have not reaped, so that the number is surely its own.
fn send_signal(pid: i32, signal: i32) -> Result<Vec<u8>> {
    match pidfd_open(pid).and_then(|process| pidfd_send_signal(process.as_fd(), signal)) {
        Ok(()) => Ok(Vec::new()),
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {
            Err(Error::new(Kind::NotFound, "exec kill error: process already finished", ""))
        }
        Err(error) => Err(Error::io("exec kill error", "", error)),
    }
}
