//! A process of a container: init or an exec.

use std::collections::VecDeque;
use std::time::SystemTime;

use orlop_proto::error::Error;
use orlop_proto::kind::Kind;

use super::{Call, Command, Effect, Reply};

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 plus the signal's number.
    pub status: u32,
    /// When the shim saw it.
    pub at: SystemTime,
}

impl Exit {
    /// The status of a process of which nothing is known.
    pub const UNKNOWN: u32 = 255;
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are those of containerd's task status")]
pub enum State {
    Created,
    Running,
    Pausing,
    Paused,
    Stopped,
}

impl State {
    /// The word that clients know.
    pub fn name(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Running => "running",
            State::Pausing => "pausing",
            State::Paused => "paused",
            State::Stopped => "stopped",
        }
    }
}

/// Where a process' standard streams lead: FIFO paths or URIs, empty for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the shim protocol's requests")]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// The job that a process is busy with, and who waits for it.
#[derive(Debug)]
pub struct Job {
    pub job: super::Job,
    pub call: Option<Call>,
}

/// A process of a container.
#[derive(Debug)]
pub struct Process {
    pub stdio: Stdio,
    /// An exec's process specification, kept until it is started.
    pub spec: Vec<u8>,
    /// 0 before it exists.
    pub pid: i32,
    pub state: State,
    pub exit: Option<Exit>,
    /// It ended before its start was announced.
    pub held: Option<Exit>,
    /// Everything of a deletion is done but for the exit; the caller to answer, if one is left.
    pub deleting: Option<Option<Call>>,
    pub waiters: Vec<Call>,
    busy: Option<Job>,
    queue: VecDeque<(Call, Command)>,
}

impl Process {
    pub fn new(stdio: Stdio, spec: Vec<u8>) -> Process {
        Process {
            stdio,
            spec,
            pid: 0,
            state: State::Created,
            exit: None,
            held: None,
            deleting: None,
            waiters: Vec::new(),
            busy: None,
            queue: VecDeque::new(),
        }
    }

    pub fn is_busy(&self) -> bool {
        self.busy.is_some() || self.deleting.is_some()
    }

    pub fn job(&self) -> Option<&super::Job> {
        self.busy.as_ref().map(|busy| &busy.job)
    }

    pub fn begin(&mut self, job: super::Job, call: Option<Call>) {
        debug_assert!(self.busy.is_none(), "one job at a time per process");
        self.busy = Some(Job { job, call });
    }

    pub fn end(&mut self) -> Option<Job> {
        self.busy.take()
    }

    pub fn queue(&mut self, call: Call, command: Command) {
        self.queue.push_back((call, command));
    }

    /// The next command that waited, unless the process is busy.
    pub fn dequeue(&mut self) -> Option<(Call, Command)> {
        if self.is_busy() { None } else { self.queue.pop_front() }
    }

    /// Notes the end and answers those who wait for it.
    pub fn stop(&mut self, exit: Exit, effects: &mut Vec<Effect>) {
        self.state = State::Stopped;
        self.exit = Some(exit);
        let waiters = std::mem::take(&mut self.waiters);
        effects.extend(waiters.into_iter().map(|call| Effect::Reply(call, Ok(Reply::Waited(exit)))));
    }

    /// Answers all who wait for a process that is being removed.
    pub fn abandon(&self, effects: &mut Vec<Effect>) {
        let queued = self.queue.iter().map(|(call, _)| call);
        for call in self.waiters.iter().chain(queued) {
            let error = Error::new(Kind::NotFound, "process was deleted", "");
            effects.push(Effect::Reply(*call, Err(error)));
        }
    }

    /// Nobody on this connection waits for an answer any more; what is under way goes on.
    pub fn forget_caller(&mut self, connection: u64) {
        self.waiters.retain(|call| call.connection != connection);
        self.queue.retain(|(call, _)| call.connection != connection);
    }
}
