//! What a container of orlop's needs no program for, since the host library does it: start, kill, pause, resume and update
//! in the loop, and deletion too once init has ended; before that, or if something is left, in a helper. Processes that are asked to
//! stop take a moment; the loop looks again now and then.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use orlop_host::cgroup::Cgroup;
use orlop_host::live;
use orlop_host::state::{StateDirectory, init_is_alive};
use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use serde_json::Value;

use crate::jobs::Running;
use crate::log;
use crate::runtime::{Runtime, Verb};
use crate::serve::Shim;
use crate::task::{Input, Job, Report};

/// How long the processes of a container may take to stop: one in an uninterruptible call delays the rest.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before asking anew: a process that forks meanwhile can keep a group from freezing.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// The first and the longest pause between looks.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(8));

/// A container whose processes have been asked to stop or to go on.
pub struct Asked {
    container: String,
    job: Job,
    stop: bool,
    /// When to look whether they have.
    pub look: Instant,
    pause: Duration,
    again: Instant,
    until: Instant,
}

impl Shim {
    /// Does a job without a program, if it is one that can be done so; false if it is not.
    pub fn begin_directly(&mut self, id: &str, job: &Job, deadline: Option<Instant>) -> Result<bool> {
        let Some(container) = self.containers.get(id) else { return Ok(false) };
        let Some(directory) = container.runtime.state_of(id) else { return Ok(false) };
        let (pid, cgroup) = (container.task.pid(), container.cgroup.as_ref());
        let failure = failure(job);
        let done = match (job, cgroup) {
            (Job::Start { exec }, _)
                if exec.is_empty() && container.is_plain && container.task.images().is_empty() =>
            {
                directory.and_then(|directory| directory.release().map(drop))
            }
            (Job::Kill { signal, all: false }, Some(cgroup)) if pid != 0 => kill(pid, *signal, cgroup),
            (Job::Kill { all: true, .. } | Job::KillRest, Some(cgroup)) if cgroup.frozen()? => {
                finish(cgroup, job, true)
            }
            (Job::Pause, Some(cgroup)) if cgroup.frozen()? => Err(RuncError::NotRunning.into()),
            (Job::Resume, Some(cgroup)) if !cgroup.frozen()? => Err(RuncError::NotPaused.into()),
            (Job::Kill { .. } | Job::KillRest | Job::Pause | Job::Resume, Some(cgroup))
                if cgroup.can_freeze() =>
            {
                let stop = *job != Job::Resume;
                let asked = cgroup.ask(stop);
                return asked.map_err(|error| told(failure, error)).map(|()| {
                    let now = Instant::now();
                    let until = deadline.map_or(now + PATIENCE, |deadline| deadline.min(now + PATIENCE));
                    let (container, job) = (id.to_owned(), job.clone());
                    let again = now + ASK_AGAIN;
                    self.asked.push(Asked { container, job, stop, look: now, pause: PAUSES.0, again, until });
                    self.check_asked(now);
                    true
                });
            }
            (Job::Update { resources }, Some(cgroup)) if !container.runtime.is_systemd() => {
                let wanted = resources_of(resources)?;
                if may_wait(&wanted, cgroup) {
                    let directory = directory?;
                    let work = move || update(&directory, wanted).map_err(|error| told(failure, error));
                    let running = Running::helper(deadline, move || work().map(|()| String::new()))?;
                    self.track(id, job, running, None, 0, None)?;
                    return Ok(true);
                }
                directory.and_then(|directory| update(&directory, wanted))
            }
            (Job::Delete, _) if container.is_plain && !container.runtime.is_systemd() => {
                if !container.task.has_ended() || !directory.as_ref().is_ok_and(delete_at_once) {
                    let (runtime, id) = (container.runtime.clone(), id.to_owned());
                    let name = id.clone();
                    let work = move || delete(&runtime, &name).map_err(|error| told(failure, error));
                    let running = Running::helper(deadline, move || work().map(|()| String::new()))?;
                    self.track(&id, job, running, None, 0, None)?;
                    return Ok(true);
                }
                container.runtime.leave_root();
                Ok(())
            }
            _ => return Ok(false),
        };
        done.map_err(|error| told(failure, error))?;
        if matches!(job, Job::Start { .. }) {
            self.let_input_in(id, "");
        }
        self.inputs.push_back((id.to_owned(), Input::Finished(job.clone(), Ok(Report::default()))));
        Ok(true)
    }

    /// Looks which processes have done what they were asked for, and goes on with what waited for it.
    pub fn check_asked(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(asked) = self.asked.get_mut(at) {
            let cgroup =
                self.containers.get(&asked.container).and_then(|container| container.cgroup.as_ref());
            let step = match cgroup {
                _ if asked.look > now => None,
                Some(cgroup) => asked.step(cgroup, now),
                None => Some(Err(RuncError::NotRunning.into())),
            };
            match step {
                Some(result) => {
                    let Asked { container, job, .. } = self.asked.swap_remove(at);
                    let result = result.map_err(|error| told(failure(&job), error));
                    self.inputs
                        .push_back((container, Input::Finished(job, result.map(|()| Report::default()))));
                }
                None => at += 1,
            }
        }
    }
}

impl Asked {
    /// Looks once; how it went, if that is known.
    fn step(&mut self, cgroup: &Cgroup, now: Instant) -> Option<Result<()>> {
        match cgroup.has_answered(self.stop) {
            Ok(true) => return Some(finish(cgroup, &self.job, false)),
            Ok(false) if now >= self.until => {
                let why = "unable to freeze: some process does not stop";
                let late = Error::because(Kind::DeadlineExceeded, "freeze", "the container", why);
                return Some(cgroup.ask(!self.stop).and(Err(late)));
            }
            Ok(false) if now >= self.again => {
                self.again = now + ASK_AGAIN;
                if let Err(error) = cgroup.ask(!self.stop).and_then(|()| cgroup.ask(self.stop)) {
                    return Some(Err(error));
                }
            }
            Ok(false) => {}
            Err(error) => return Some(Err(error)),
        }
        self.look = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSES.1);
        None
    }
}

/// What is left to do when all processes have stopped; `stay` leaves them so.
fn finish(cgroup: &Cgroup, job: &Job, stay: bool) -> Result<()> {
    let signal = match job {
        Job::Kill { signal, .. } => *signal,
        Job::KillRest => Signal::SIGKILL as i32,
        _ => return Ok(()),
    };
    let sent = cgroup.signal_number(signal);
    if stay { sent } else { cgroup.ask(false).and(sent) }
}

/// Signals init, which nobody but us reaps, so that the number is surely its own.
fn kill(pid: i32, signal: i32, cgroup: &Cgroup) -> Result<()> {
    use std::os::fd::AsFd;

    use orlop_host::sys::pid::{pidfd_open, pidfd_send_signal};

    match pidfd_open(pid).and_then(|process| pidfd_send_signal(process.as_fd(), signal)) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {
            Err(RuncError::ProcessFinished.into())
        }
        Err(error) => Err(Error::io("unable to signal", "init", error)),
        // Nothing else would let a frozen process die.
        Ok(()) if signal == Signal::SIGKILL as i32 && cgroup.frozen()? => cgroup.ask(false),
        Ok(()) => Ok(()),
    }
}

fn resources_of(resources: &[u8]) -> Result<Value> {
    let wrong = |why: String| Error::because(Kind::InvalidArgument, "parse", "resources", why);
    let value: Value = serde_json::from_slice(resources).map_err(|error| wrong(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(wrong("they are no object".to_owned())) }
}

/// Whether the kernel may have to make room first: that takes as long as it takes.
fn may_wait(wanted: &Value, cgroup: &Cgroup) -> bool {
    let limit = wanted["memory"]["limit"].as_u64();
    limit.is_some_and(|limit| cgroup.memory_in_use().is_some_and(|used| limit <= used))
}

fn update(directory: &StateDirectory, wanted: Value) -> Result<()> {
    let mut state = directory.load()?;
    if !init_is_alive(&state) {
        return Err(RuncError::NotRunning.into());
    }
    let cgroup = Cgroup::open(&live::cgroup_paths(&state))?;
    for warning in live::update(directory, &mut state, &cgroup, wanted)? {
        log::warn(warning);
    }
    Ok(())
}

/// Deletes what an ended container without hooks leaves, if it goes without waiting. What is left otherwise is for [`delete`].
fn delete_at_once(directory: &StateDirectory) -> bool {
    let Ok(state) = directory.load() else { return false };
    live::ends_with_init(&state)
        && Cgroup::try_remove_at(&live::cgroup_paths(&state))
        && directory.remove().is_ok()
}

/// `delete --force` of a container without hooks.
fn delete(runtime: &Runtime, id: &str) -> Result<()> {
    let Some(directory) = runtime.state_of(id) else { return Ok(()) };
    let directory = match directory {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    let state = match directory.load() {
        // Left by a creation that was cut off.
        Err(error) if error.kind() == Kind::NotFound => return directory.remove(),
        other => other?,
    };
    let cgroup = || Cgroup::open(&live::cgroup_paths(&state));
    live::kill_init(&state, cgroup)?;
    live::leave_cgroup(&state, &cgroup()?)?;
    directory.remove()?;
    runtime.leave_root();
    Ok(())
}

/// What the failure of a job is called, as if the runtime had been started for it.
fn failure(job: &Job) -> &'static str {
    match job {
        Job::Start { .. } => Verb::Start.failure(),
        Job::Pause => Verb::Pause.failure(),
        Job::Resume => Verb::Resume.failure(),
        Job::Update { .. } => Verb::Update.failure(),
        Job::Delete => Verb::Delete.failure(),
        _ => Verb::Kill { signal: 0, all: false }.failure(),
    }
}

fn told(failure: &'static str, error: Error) -> Error {
    Error::because(error.kind(), failure, "", error)
}
