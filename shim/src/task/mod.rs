//! One container as the shim knows it: a pure state machine, `(state, input) → (state, effects)`.
//!
//! Nothing here touches the system. Requests, ended jobs and exits come in as [`Input`]; what is to be done comes out
//! as [`Effect`], in order. The rules that clients rely on are held here: TaskStart is published before TaskExit, the
//! exits of execs before that of the container, one job at a time per process, and every caller gets one answer.
//!
//! Long for one file, since the transitions are only understood together.

mod process;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

pub use process::{Exit, State, Stdio};
use process::{Job as ProcessJob, Process};

/// Who asked, and until when the answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The connection, numbered over the shim's life.
    pub connection: u64,
    /// The call on that connection.
    pub stream: u32,
    /// When the caller gives up.
    pub deadline: Option<Instant>,
}

/// A request about an existing container. `exec` names a process; empty means the container's init.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of the shim protocol's requests")]
pub enum Command {
    Start { exec: String },
    Delete { exec: String },
    Exec { exec: String, stdio: Stdio, spec: Vec<u8> },
    State { exec: String },
    Kill { exec: String, signal: i32, all: bool },
    Wait { exec: String },
    Pids,
    Stats,
    ResizePty { exec: String, rows: u16, columns: u16 },
    CloseStdin { exec: String },
    Pause,
    Resume,
    Update { resources: Vec<u8> },
    Checkpoint(Checkpoint),
}

/// What a container is to be saved as, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// The directory of CRIU's images.
    pub images: String,
    /// The directory of CRIU's logs; empty for one in the bundle.
    pub work: String,
    /// End the container once it is saved.
    pub exit: bool,
    /// The runtime's further flags.
    pub flags: Vec<String>,
}

impl Command {
    /// The process that the command is about.
    fn exec(&self) -> &str {
        match self {
            Command::Start { exec }
            | Command::Delete { exec }
            | Command::State { exec }
            | Command::Kill { exec, .. }
            | Command::Wait { exec }
            | Command::ResizePty { exec, .. }
            | Command::CloseStdin { exec } => exec,
            _ => "",
        }
    }

    /// Whether it must wait until the process has no other job.
    fn is_exclusive(&self) -> bool {
        matches!(
            self,
            Command::Start { .. }
                | Command::Delete { .. }
                | Command::Kill { .. }
                | Command::Pause
                | Command::Resume
                | Command::Update { .. }
                | Command::Checkpoint(_)
        )
    }
}

/// Work that ends later and reports back with [`Input::Finished`].
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// Write the bundle's files and mount the root file system, for a container that is restored when it is started.
    Prepare,
    /// The same, and then `create` of the OCI runtime.
    Create,
    /// Take back what a failed creation left: `delete --force`, then unmount.
    Undo,
    /// `start`, or `exec` for a named process.
    Start {
        /// The process; empty for init.
        exec: String,
    },
    /// `kill` of the container's init, or of all of it.
    Kill {
        /// The signal's number.
        signal: i32,
        /// Every process of the container.
        all: bool,
    },
    /// `kill --all` with SIGKILL after the init of a container without a pid namespace of its own ended.
    KillRest,
    /// `delete --force`.
    Delete,
    /// Let the output that a process left reach its reader.
    Drain {
        /// The process; empty for init.
        exec: String,
    },
    /// Unmount the root file system.
    Unmount,
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `update` with these resources, as JSON.
    Update {
        /// LinuxResources.
        resources: Vec<u8>,
    },
    /// `checkpoint`.
    Checkpoint(Checkpoint),
}

impl Job {
    fn exec(&self) -> &str {
        match self {
            Job::Start { exec } | Job::Drain { exec } => exec,
            _ => "",
        }
    }
}

/// What a job found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The process that `create` or `exec` made.
    pub pid: Option<i32>,
    /// Whether the container shares its pid namespace with others, from `config.json`.
    pub shares_pids: bool,
}

/// What happens to a container.
#[derive(Debug)]
pub enum Input {
    /// A client asks for something.
    Request(Call, Command),
    /// A job ended.
    Finished(Job, Result<Report>),
    /// A process of ours ended.
    Exited(i32, Exit),
    /// The kernel killed a process of the container for lack of memory.
    OutOfMemory,
    /// A client is gone; nobody waits for its answers.
    Disconnected(u64),
}

/// What is to be published.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the events of containerd's API")]
pub enum Event {
    Create { pid: i32 },
    Start { pid: i32 },
    ExecAdded { exec: String },
    ExecStarted { exec: String, pid: i32 },
    Exit { exec: String, pid: i32, exit: Exit },
    Delete { pid: i32, exit: Exit },
    OutOfMemory,
    Paused,
    Resumed,
    Checkpointed { images: String },
}

/// An answer to a request.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of the shim protocol's responses")]
pub enum Reply {
    Empty,
    Pid(i32),
    Deleted { pid: i32, exit: Option<Exit> },
    Waited(Exit),
    State(Snapshot),
}

/// A process as `State` shows it.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of the shim protocol's StateResponse")]
pub struct Snapshot {
    pub id: String,
    pub exec: String,
    pub bundle: String,
    pub pid: i32,
    pub state: State,
    pub stdio: Stdio,
    pub exit: Option<Exit>,
}

/// What the machine wants done.
#[derive(Debug)]
pub enum Effect {
    /// Answer a caller.
    Reply(Call, Result<Reply>),
    /// Publish an event.
    Publish(Event),
    /// Begin a job, and give it up at the deadline.
    Run(Job, Option<Instant>),
    /// Send a signal to a process that is surely ours, and answer with how it went.
    Signal(Call, i32, i32),
    /// Answer with the pids of the container, those of execs named.
    Pids(Call),
    /// Answer with the container's use of resources.
    Stats(Call),
    /// Set a terminal's size, and answer.
    Resize { call: Call, exec: String, rows: u16, columns: u16 },
    /// Let a process see the end of its input once what came before is read, and answer.
    CloseStdin { call: Call, exec: String },
    /// Begin to watch the container for lack of memory.
    Watch(i32),
    /// Note init's exit in the bundle, for the delete action after a shim that died.
    Record(i32, Exit),
    /// A process is gone: close what belongs to it.
    Release {
        /// The process; empty for init.
        exec: String,
    },
    /// The container is gone.
    Forget,
}

/// What a container is created with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Creation {
    /// The container's id.
    pub id: String,
    /// The bundle's directory.
    pub bundle: String,
    /// Init's standard streams.
    pub stdio: Stdio,
    /// The directory of CRIU's images that the container is restored from when it is started; empty for a new one.
    pub images: String,
}

/// One container.
#[derive(Debug)]
pub struct Task {
    creation: Creation,
    init: Process,
    execs: BTreeMap<String, Process>,
    /// False until `create` succeeded; until then the container does not exist for anyone.
    created: bool,
    shares_pids: bool,
    /// Init ended, and its exit waits for the exits of execs.
    init_exit: Option<Exit>,
    /// `kill --all` after init's end is under way.
    killing_rest: bool,
    /// Why the creation failed, while it is being undone.
    failure: Option<Error>,
}

impl Task {
    /// A container to be created for this caller.
    pub fn create(call: Call, creation: Creation) -> (Task, Vec<Effect>) {
        let mut init = Process::new(creation.stdio.clone(), Vec::new());
        let job = if creation.images.is_empty() { Job::Create } else { Job::Prepare };
        init.begin(job.clone(), Some(call));
        let task = Task {
            creation,
            init,
            execs: BTreeMap::new(),
            created: false,
            shares_pids: false,
            init_exit: None,
            killing_rest: false,
            failure: None,
        };
        (task, vec![Effect::Run(job, call.deadline)])
    }

    /// Init's pid; 0 while there is none.
    pub fn pid(&self) -> i32 {
        self.init.pid
    }

    /// Whether init has run and ended.
    pub fn has_ended(&self) -> bool {
        self.init.pid != 0 && (self.init_exit.is_some() || self.init.exit.is_some())
    }

    /// The container's bundle directory.
    pub fn bundle(&self) -> &str {
        &self.creation.bundle
    }

    /// Whether this running process is one of the container's.
    pub fn owns(&self, pid: i32) -> bool {
        self.find(pid).is_some()
    }

    /// The exec that runs as this process.
    pub fn exec_of(&self, pid: i32) -> Option<&str> {
        self.execs.iter().find(|(_, p)| p.pid == pid && p.exit.is_none()).map(|(exec, _)| exec.as_str())
    }

    /// The directory of CRIU's images that it is restored from; empty for a new container.
    pub fn images(&self) -> &str {
        &self.creation.images
    }

    /// An exec's process specification, as JSON.
    pub fn exec_spec(&self, exec: &str) -> &[u8] {
        self.execs.get(exec).map(|p| p.spec.as_slice()).unwrap_or_default()
    }

    /// A process' standard streams.
    pub fn stdio(&self, exec: &str) -> Option<&Stdio> {
        self.process(exec).map(|p| &p.stdio)
    }

    /// Takes one step.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Request(call, command) => self.request(call, command, &mut effects),
            Input::Finished(job, result) => self.finished(job, result, &mut effects),
            Input::Exited(pid, exit) => self.exited(pid, exit, &mut effects),
            Input::OutOfMemory => effects.push(Effect::Publish(Event::OutOfMemory)),
            Input::Disconnected(connection) => {
                for process in self.execs.values_mut().chain([&mut self.init]) {
                    process.forget_caller(connection);
                }
            }
        }
        effects
    }

    fn process(&self, exec: &str) -> Option<&Process> {
        if exec.is_empty() { Some(&self.init) } else { self.execs.get(exec) }
    }

    fn process_mut(&mut self, exec: &str) -> Option<&mut Process> {
        if exec.is_empty() { Some(&mut self.init) } else { self.execs.get_mut(exec) }
    }

    /// The process with this pid that has not ended; the empty name is init's.
    fn find(&self, pid: i32) -> Option<String> {
        let lives = |p: &Process| p.pid == pid && p.exit.is_none() && p.held.is_none();
        if lives(&self.init) && self.init_exit.is_none() {
            return Some(String::new());
        }
        self.execs.iter().find(|(_, p)| lives(p)).map(|(exec, _)| exec.clone())
    }

    fn request(&mut self, call: Call, command: Command, effects: &mut Vec<Effect>) {
        if !self.created {
            effects.push(refuse(call, Kind::NotFound, "container not created"));
            return;
        }
        let exec = command.exec().to_owned();
        let Some(process) = self.process_mut(&exec) else {
            effects.push(refuse(call, Kind::NotFound, format!("process does not exist {exec}")));
            return;
        };
        if command.is_exclusive() && process.is_busy() {
            process.queue(call, command);
            return;
        }
        if let Err(error) = self.begin(call, command, effects) {
            effects.push(Effect::Reply(call, Err(error)));
        }
    }

    /// Begins a command whose process is there and, if the command needs that, free.
    fn begin(&mut self, call: Call, command: Command, effects: &mut Vec<Effect>) -> Result<()> {
        match command {
            Command::Start { exec } => {
                let init_ended = self.init_exit.is_some() || self.init.state == State::Stopped;
                if !exec.is_empty() && init_ended {
                    let id = &self.creation.id;
                    return Err(precondition(format!("container {id} init process is not running")));
                }
                let Some(process) = self.process(&exec) else { return Err(gone(&exec)) };
                if process.state != State::Created {
                    return Err(precondition(format!("cannot start a {} process", process.state.name())));
                }
                self.run(Job::Start { exec }, call, effects);
            }
            Command::Delete { exec } => {
                let Some(process) = self.process(&exec) else { return Err(gone(&exec)) };
                match process.state {
                    State::Created | State::Stopped => {}
                    state => return Err(precondition(format!("cannot delete a {} process", state.name()))),
                }
                let job = if exec.is_empty() { Job::Delete } else { Job::Drain { exec } };
                self.run(job, call, effects);
            }
            Command::Exec { exec, stdio, spec } => {
                match self.init.state {
                    State::Created | State::Running if self.init_exit.is_none() => {}
                    State::Paused => return Err(unknown("cannot exec in a paused state")),
                    _ => return Err(unknown("cannot exec in a stopped state")),
                }
                if self.execs.contains_key(&exec) {
                    return Err(Error::new(Kind::AlreadyExists, format!("id {exec}"), ""));
                }
                self.execs.insert(exec.clone(), Process::new(stdio, spec));
                effects.push(Effect::Publish(Event::ExecAdded { exec }));
                effects.push(Effect::Reply(call, Ok(Reply::Empty)));
            }
            Command::State { exec } => {
                let snapshot = self.snapshot(&exec)?;
                effects.push(Effect::Reply(call, Ok(Reply::State(snapshot))));
            }
            Command::Kill { exec, signal, all } => {
                let Some(process) = self.process(&exec) else { return Err(gone(&exec)) };
                if process.state == State::Stopped || (exec.is_empty() && self.init_exit.is_some()) {
                    return Err(finished());
                }
                if exec.is_empty() {
                    self.run(Job::Kill { signal, all }, call, effects);
                } else if process.pid == 0 {
                    return Err(precondition("process not created".into()));
                } else {
                    effects.push(Effect::Signal(call, process.pid, signal));
                }
            }
            Command::Wait { exec } => {
                let Some(process) = self.process_mut(&exec) else { return Err(gone(&exec)) };
                match process.exit {
                    Some(exit) => effects.push(Effect::Reply(call, Ok(Reply::Waited(exit)))),
                    None => process.waiters.push(call),
                }
            }
            Command::Pids => effects.push(Effect::Pids(call)),
            Command::Stats => effects.push(Effect::Stats(call)),
            Command::ResizePty { exec, rows, columns } => {
                effects.push(Effect::Resize { call, exec, rows, columns });
            }
            Command::CloseStdin { exec } => effects.push(Effect::CloseStdin { call, exec }),
            Command::Pause => match self.init.state {
                State::Running => self.run(Job::Pause, call, effects),
                state => return Err(precondition(format!("cannot pause a {} container", state.name()))),
            },
            Command::Resume => match self.init.state {
                State::Paused => self.run(Job::Resume, call, effects),
                state => return Err(precondition(format!("cannot resume a {} container", state.name()))),
            },
            Command::Update { resources } => match self.init.state {
                State::Stopped => return Err(precondition("cannot update a stopped container".into())),
                _ => self.run(Job::Update { resources }, call, effects),
            },
            Command::Checkpoint(checkpoint) => match self.init.state {
                State::Running | State::Paused => self.run(Job::Checkpoint(checkpoint), call, effects),
                state => return Err(precondition(format!("cannot checkpoint a {} container", state.name()))),
            },
        }
        Ok(())
    }

    fn snapshot(&self, exec: &str) -> Result<Snapshot> {
        let process = self.process(exec).ok_or_else(|| gone(exec))?;
        let pausing = self.init.job() == Some(&Job::Pause);
        let state = match (self.init.state, process.state) {
            // A frozen container freezes its execs too.
            (State::Running, State::Running) if pausing => State::Pausing,
            (State::Paused, State::Created | State::Running) => State::Paused,
            (_, state) => state,
        };
        Ok(Snapshot {
            id: if exec.is_empty() { self.creation.id.clone() } else { exec.to_owned() },
            exec: exec.to_owned(),
            bundle: self.creation.bundle.clone(),
            pid: process.pid,
            state,
            stdio: process.stdio.clone(),
            exit: process.exit,
        })
    }

    fn run(&mut self, job: Job, call: Call, effects: &mut Vec<Effect>) {
        if let Some(process) = self.process_mut(job.exec()) {
            process.begin(job.clone(), Some(call));
            effects.push(Effect::Run(job, call.deadline));
        }
    }

    fn finished(&mut self, job: Job, result: Result<Report>, effects: &mut Vec<Effect>) {
        if job == Job::KillRest {
            // Whether or not it could kill all: what is left cannot hold the exit back for ever by an error here.
            self.killing_rest = false;
            self.settle(effects);
            return;
        }
        let exec = job.exec().to_owned();
        let Some(ProcessJob { call, .. }) = self.process_mut(&exec).and_then(Process::end) else { return };
        match (job, result) {
            (Job::Prepare, Ok(report)) => {
                self.shares_pids = report.shares_pids;
                // It is there when it is started; until then it has no process.
                self.created = true;
                effects.push(Effect::Publish(Event::Create { pid: 0 }));
                answer(call, Ok(Reply::Pid(0)), effects);
            }
            (Job::Create, Ok(Report { pid: Some(pid), shares_pids })) => {
                self.shares_pids = shares_pids;
                self.created = true;
                self.init.pid = pid;
                answer(call, Ok(Reply::Pid(pid)), effects);
                // No request and no exit is taken in before these are done, so nobody has to wait for them: the first event also
                // makes the connection to the manager.
                effects.push(Effect::Publish(Event::Create { pid }));
                effects.push(Effect::Watch(pid));
            }
            (Job::Prepare | Job::Create, result) => {
                self.failure = Some(result.err().unwrap_or_else(|| no_pid("create")));
                self.go_on(Job::Undo, call.map(|call| Call { deadline: None, ..call }), effects);
            }
            (Job::Undo, result) => {
                let error = match (self.failure.take(), result.err()) {
                    (Some(failure), Some(undo)) => Error::because(
                        failure.kind(),
                        failure.to_string(),
                        "",
                        format!("cleaning up failed too: {undo}"),
                    ),
                    (Some(error), None) | (None, Some(error)) => error,
                    (None, None) => return,
                };
                answer(call, Err(error), effects);
                effects.push(Effect::Release { exec });
                effects.push(Effect::Forget);
                return;
            }
            (Job::Start { .. }, result) => self.started(&exec, call, result, effects),
            (Job::Kill { .. }, Err(_)) if self.init_exit.is_some() || self.init.exit.is_some() => {
                answer(call, Err(finished()), effects);
            }
            (Job::Delete, Ok(_)) => self.go_on(Job::Drain { exec: String::new() }, call, effects),
            (Job::Drain { .. }, Ok(_)) if exec.is_empty() => self.go_on(Job::Unmount, call, effects),
            (Job::Drain { .. }, Ok(_)) => {
                if let Some(process) = self.execs.remove(&exec) {
                    process.abandon(effects);
                    let reply = Reply::Deleted { pid: process.pid, exit: process.exit };
                    answer(call, Ok(reply), effects);
                }
                effects.push(Effect::Release { exec });
                return;
            }
            (Job::Unmount, Ok(_)) => {
                if self.init.pid == 0 {
                    // It was never restored: there is no process whose exit could come.
                    let exit = Exit { status: 0, at: SystemTime::now() };
                    self.init.stop(exit, effects);
                }
                // A container that never started was killed by `delete`; its exit is on the way.
                self.init.deleting = Some(call);
                self.settle_deletion(effects);
                return;
            }
            (Job::Pause, Ok(_)) => {
                if self.init.state == State::Running {
                    self.init.state = State::Paused;
                }
                effects.push(Effect::Publish(Event::Paused));
                answer(call, Ok(Reply::Empty), effects);
            }
            (Job::Resume, Ok(_)) => {
                if self.init.state == State::Paused {
                    self.init.state = State::Running;
                }
                effects.push(Effect::Publish(Event::Resumed));
                answer(call, Ok(Reply::Empty), effects);
            }
            (Job::Checkpoint(Checkpoint { images, .. }), Ok(_)) => {
                effects.push(Effect::Publish(Event::Checkpointed { images }));
                answer(call, Ok(Reply::Empty), effects);
            }
            (_, Ok(_)) => answer(call, Ok(Reply::Empty), effects),
            (_, Err(error)) => answer(call, Err(error), effects),
        }
        self.next(&exec, effects);
    }

    /// Goes from one job of a request to the next.
    fn go_on(&mut self, job: Job, call: Option<Call>, effects: &mut Vec<Effect>) {
        let deadline = call.and_then(|call| call.deadline);
        if let Some(process) = self.process_mut(job.exec()) {
            process.begin(job.clone(), call);
            effects.push(Effect::Run(job, deadline));
        }
    }

    /// `start` or `exec` of the runtime ended.
    fn started(&mut self, exec: &str, call: Option<Call>, result: Result<Report>, effects: &mut Vec<Effect>) {
        let is_init = exec.is_empty();
        let Some(process) = self.process_mut(exec) else { return };
        match result.and_then(|report| match report.pid {
            None if !is_init => Err(no_pid("exec")),
            pid => Ok(pid),
        }) {
            Ok(pid) => {
                let restored = is_init && process.pid == 0;
                process.pid = pid.unwrap_or(process.pid);
                process.state = State::Running;
                process.spec = Vec::new();
                let pid = process.pid;
                if restored {
                    effects.push(Effect::Watch(pid));
                }
                effects.push(Effect::Publish(match is_init {
                    true => Event::Start { pid },
                    false => Event::ExecStarted { exec: exec.to_owned(), pid },
                }));
                answer(call, Ok(Reply::Pid(pid)), effects);
            }
            Err(error) => {
                answer(call, Err(error), effects);
                if !is_init {
                    // It never ran: there is no exit to publish, but who waits must not wait for ever.
                    let exit = Exit { status: Exit::UNKNOWN, at: SystemTime::now() };
                    process.stop(exit, effects);
                    effects.push(Effect::Release { exec: exec.to_owned() });
                }
            }
        }
        if let Some(exit) = self.process_mut(exec).and_then(|p| p.held.take()) {
            self.ended(exec, exit, effects);
        }
        self.settle(effects);
    }

    fn exited(&mut self, pid: i32, exit: Exit, effects: &mut Vec<Effect>) {
        let Some(exec) = self.find(pid) else { return };
        let Some(process) = self.process_mut(&exec) else { return };
        match process.job() {
            // Its start is not announced yet.
            Some(Job::Start { .. }) => process.held = Some(exit),
            _ => self.ended(&exec, exit, effects),
        }
    }

    /// A process ended whose start is announced.
    fn ended(&mut self, exec: &str, exit: Exit, effects: &mut Vec<Effect>) {
        if exec.is_empty() {
            self.init_exit = Some(exit);
            if self.shares_pids {
                self.killing_rest = true;
                effects.push(Effect::Run(Job::KillRest, None));
            }
        } else if let Some(process) = self.execs.get_mut(exec) {
            let event = Event::Exit { exec: exec.to_owned(), pid: process.pid, exit };
            effects.push(Effect::Publish(event));
            process.stop(exit, effects);
        }
        self.settle(effects);
    }

    /// Publishes init's exit once no exec runs or is being started any more.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        let runs = |p: &Process| p.state == State::Running || matches!(p.job(), Some(Job::Start { .. }));
        if self.killing_rest || self.execs.values().any(runs) {
            return;
        }
        let Some(exit) = self.init_exit.take() else { return };
        let pid = self.init.pid;
        effects.push(Effect::Record(pid, exit));
        effects.push(Effect::Publish(Event::Exit { exec: String::new(), pid, exit }));
        self.init.stop(exit, effects);
        self.settle_deletion(effects);
    }

    /// Ends a deletion once the container's exit is known.
    fn settle_deletion(&mut self, effects: &mut Vec<Effect>) {
        let Some(exit) = self.init.exit else { return };
        let Some(call) = self.init.deleting.take() else { return };
        let pid = self.init.pid;
        effects.push(Effect::Publish(Event::Delete { pid, exit }));
        answer(call, Ok(Reply::Deleted { pid, exit: Some(exit) }), effects);
        self.init.abandon(effects);
        for (exec, process) in std::mem::take(&mut self.execs) {
            process.abandon(effects);
            effects.push(Effect::Release { exec });
        }
        effects.push(Effect::Release { exec: String::new() });
        effects.push(Effect::Forget);
    }

    /// Begins the commands that waited for the process, until one keeps it busy.
    fn next(&mut self, exec: &str, effects: &mut Vec<Effect>) {
        while let Some((call, command)) = self.process_mut(exec).and_then(Process::dequeue) {
            if let Err(error) = self.begin(call, command, effects) {
                effects.push(Effect::Reply(call, Err(error)));
            }
        }
    }
}

fn answer(call: Option<Call>, reply: Result<Reply>, effects: &mut Vec<Effect>) {
    if let Some(call) = call {
        effects.push(Effect::Reply(call, reply));
    }
}

fn refuse(call: Call, kind: Kind, text: impl Into<String>) -> Effect {
    Effect::Reply(call, Err(Error::new(kind, text.into(), "")))
}

fn precondition(text: String) -> Error {
    Error::new(Kind::FailedPrecondition, text, "")
}

/// What containerd's shim refuses without a kind of its own; clients show it.
fn unknown(text: &str) -> Error {
    Error::exactly(Kind::Unknown, text)
}

fn finished() -> Error {
    Error::new(Kind::NotFound, "process already finished", "")
}

fn gone(exec: &str) -> Error {
    Error::new(Kind::NotFound, format!("process does not exist {exec}"), "")
}

fn no_pid(verb: &str) -> Error {
    Error::because(Kind::Internal, format!("OCI runtime {verb} failed"), "", "it left no pid file")
}
