//! Stopping, signalling and listing the processes of a cgroup.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::Cgroup;
use super::group::Group;

/// How long the kernel may take to stop all processes: one in an uninterruptible call delays the rest.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait on version 1 before freezing anew: a process that forks meanwhile can keep a group from freezing.
const REFREEZE: Duration = Duration::from_millis(50);
/// The first and the longest pause between looks at a version 1 freezer, which tells of changes in no other way.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(5));

/// Asks every process to stop, or to go on, and waits for none.
pub(super) fn ask(cgroup: &Cgroup, stop: bool) -> Result<()> {
    match (cgroup.legacy("freezer"), cgroup.unified()) {
        (Some(group), _) => group.write("freezer.state", if stop { "FROZEN" } else { "THAWED" }),
        (None, Some(group)) => group.write("cgroup.freeze", if stop { "1" } else { "0" }),
        (None, None) => Err(no_freezer()),
    }
}

/// Whether every process has done what it was asked for.
pub(super) fn has_answered(cgroup: &Cgroup, stop: bool) -> Result<bool> {
    match (cgroup.legacy("freezer"), cgroup.unified()) {
        (Some(group), _) => Ok((group.read("freezer.state")?.trim() == "FROZEN") == stop),
        (None, Some(group)) => Ok(group.read("cgroup.events")?.lines().any(|line| line == answer(stop))),
        (None, None) => Err(no_freezer()),
    }
}

/// The line in `cgroup.events` that answers.
fn answer(stop: bool) -> &'static str {
    if stop { "frozen 1" } else { "frozen 0" }
}

pub(super) fn freeze(cgroup: &Cgroup) -> Result<()> {
    match (cgroup.legacy("freezer"), cgroup.unified()) {
        (Some(group), _) => freeze_legacy(group),
        (None, Some(group)) => {
            ask(cgroup, true)?;
            await_event(group, answer(true))
        }
        (None, None) => Err(no_freezer()),
    }
}

pub(super) fn thaw(cgroup: &Cgroup) -> Result<()> {
    ask(cgroup, false)?;
    match (cgroup.legacy("freezer"), cgroup.unified()) {
        (None, Some(group)) => await_event(group, answer(false)),
        _ => Ok(()),
    }
}

pub(super) fn frozen(cgroup: &Cgroup) -> Result<bool> {
    let (group, file) = match (cgroup.legacy("freezer"), cgroup.unified()) {
        (Some(group), _) => (group, "freezer.self_freezing"),
        (None, Some(group)) => (group, "cgroup.freeze"),
        (None, None) => return Ok(false),
    };
    match group.try_read(file) {
        Ok(text) => Ok(text.trim() == "1"),
        // Removed meanwhile, so nothing is stopped in it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(false),
        Err(error) => Err(group.error("read", file, error)),
    }
}

/// Signals every process. SIGKILL goes through the kernel's own switch where there is one, so that nothing escapes by
/// forking; else the group is stopped meanwhile.
pub(super) fn signal(cgroup: &Cgroup, signal: Signal) -> Result<()> {
    let mut killed = BTreeSet::new();
    if let (Signal::SIGKILL, Some(group)) = (signal, cgroup.unified()) {
        killed.extend(pids(&group.path)?);
        match group.try_write("cgroup.kill", "1") {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => killed.clear(),
            Err(error) => return Err(group.error("write \"1\" to", "cgroup.kill", error)),
        }
    }
    let left = |cgroup: &Cgroup| -> Result<Vec<i32>> {
        Ok(cgroup.pids()?.into_iter().filter(|pid| !killed.contains(pid)).collect())
    };
    if left(cgroup)?.is_empty() {
        return if killed.is_empty() { Ok(()) } else { thaw_killed(cgroup) };
    }
    let was_frozen = frozen(cgroup)?;
    // Without a freezer the signal is still worth sending, only less sure to meet every process.
    let is_stopped = was_frozen || freeze(cgroup).is_ok();
    let sent = left(cgroup).and_then(|pids| pids.into_iter().try_for_each(|pid| send(pid, signal)));
    // A process stopped by the version 1 freezer dies only when it is let go.
    if is_stopped && (!was_frozen || signal == Signal::SIGKILL) {
        thaw(cgroup)?;
    }
    sent
}

/// On a hybrid host what was killed by the version 2 switch may hang in the version 1 freezer.
fn thaw_killed(cgroup: &Cgroup) -> Result<()> {
    if cgroup.legacy("freezer").is_some() && frozen(cgroup)? { thaw(cgroup) } else { Ok(()) }
}

fn send(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(Error::io("signal process", pid.to_string(), error.into())),
    }
}

fn freeze_legacy(group: &Group) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        group.write("freezer.state", "FROZEN")?;
        let mut pause = PAUSES.0;
        let again = Instant::now() + REFREEZE;
        while Instant::now() < again {
            if group.read("freezer.state")?.trim() == "FROZEN" {
                return Ok(());
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
        group.write("freezer.state", "THAWED")?;
        if Instant::now() > deadline {
            return Err(too_slow(group));
        }
    }
}

/// Waits for a line in a version 2 group's `cgroup.events`, which wakes whoever polls it.
fn await_event(group: &Group, line: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let name = "cgroup.events";
    let file = group.file(name, OFlag::O_RDONLY).map_err(|error| group.error("open", name, error))?;
    loop {
        let text = read_again(&file).map_err(|error| group.error("read", name, error))?;
        if text.lines().any(|one| one == line) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(too_slow(group));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(group.error("poll", name, error.into())),
        }
    }
}

/// Reads a control file from its start.
fn read_again(file: impl AsFd) -> io::Result<String> {
    let mut bytes = [0; 512];
    let count = nix::sys::uio::pread(file, &mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

/// The processes in a directory and those below it.
pub(super) fn pids(path: &Path) -> Result<Vec<i32>> {
    let mut all = BTreeSet::new();
    collect(path, &mut all)?;
    Ok(all.into_iter().collect())
}

fn collect(path: &Path, all: &mut BTreeSet<i32>) -> Result<()> {
    let is_gone = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV));
    let file = path.join("cgroup.procs");
    match fs::read_to_string(&file) {
        // Zero stands for a process that the caller's pid namespace cannot see.
        Ok(text) => {
            all.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 0))
        }
        Err(error) if is_gone(&error) => return Ok(()),
        // A threaded group lists its processes in its domain, which is an ancestor.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(Error::io("read", file.to_string_lossy(), error)),
    }
    let entries = match fs::read_dir(path) {
        Err(error) if is_gone(&error) => return Ok(()),
        entries => entries.context("list", path.to_string_lossy())?,
    };
    for entry in entries {
        let entry = entry.context("list", path.to_string_lossy())?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), all)?;
        }
    }
    Ok(())
}

fn too_slow(group: &Group) -> Error {
    let why = "unable to freeze: some process does not stop";
    Error::because(Kind::DeadlineExceeded, "freeze", group.path.to_string_lossy(), why)
}

fn no_freezer() -> Error {
    Error::because(Kind::FailedPrecondition, "freeze", "the container", "its cgroup has no freezer")
}
