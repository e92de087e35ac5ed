//! A container that exists, for whoever acts on it: the runtime's commands, and the shim, which for orlop's containers starts
//! no program.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::LinuxResources;
use orlop_proto::contract::state::StoredState;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::{Value, json};

use crate::cgroup::{Cgroup, CgroupPaths};
use crate::state::{StateDirectory, init_is_alive};
use crate::sys;

/// How long a killed init may take to be gone; runc waits as long.
const KILL_TIME: Duration = Duration::from_secs(10);

/// The directories of its cgroup.
pub fn cgroup_paths(state: &StoredState) -> CgroupPaths {
    let paths = state.cgroup_paths.iter();
    paths.map(|(controller, path)| (controller.clone(), PathBuf::from(path))).collect()
}

/// Its init as a descriptor; none if it has ended.
pub fn init(state: &StoredState) -> Result<Option<OwnedFd>> {
    let pid = state.init_process_pid;
    let pidfd = match sys::pid::pidfd_open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        other => other.context("open process", pid.to_string())?,
    };
    // Only now does the start time say that it is this very process.
    Ok(init_is_alive(state).then_some(pidfd))
}

/// Kills init and waits until it has ended; a frozen one is let go on, in the cgroup that is asked for.
pub fn kill_init(state: &StoredState, cgroup: impl FnOnce() -> Result<Cgroup>) -> Result<()> {
    let Some(init) = init(state)? else { return Ok(()) };
    match sys::pid::pidfd_send_signal(init.as_fd(), libc::SIGKILL) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        other => other.context("kill", "init")?,
    }
    let cgroup = cgroup()?;
    if cgroup.frozen()? {
        cgroup.thaw()?;
    }
    let deadline = Instant::now() + KILL_TIME;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // A pidfd becomes readable when its process has ended, whether or not somebody has waited for it.
        match poll(&mut [PollFd::new(init.as_fd(), PollFlags::POLLIN)], left) {
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(Error::io("wait for", "init", error.into())),
            Ok(0) if Instant::now() >= deadline => {
                return Err(Error::new(Kind::DeadlineExceeded, "container init still running:", &*state.id));
            }
            Ok(0) => {}
            Ok(_) => return Ok(()),
        }
    }
}

/// Whether no process can have outlived an ended init: the kernel kills all of a pid namespace with its first process, which init is
/// where it did not join one.
pub fn ends_with_init(state: &StoredState) -> bool {
    state.config.namespaces & !state.config.joined_namespaces & libc::CLONE_NEWPID as u64 != 0
}

/// Ends what outlived an ended init, which only happens in a pid namespace that is not the container's own, and removes the
/// cgroup.
pub fn leave_cgroup(state: &StoredState, cgroup: &Cgroup) -> Result<()> {
    if !ends_with_init(state) {
        cgroup.kill()?;
    }
    cgroup.remove()
}

/// Sets the limits that are given as an object of the specification's, leaves the others, and keeps the whole in the
/// container's state. Returns warnings for the caller to show.
///
/// # Errors
/// Those of [`Cgroup::apply`]; `InvalidArgument` for what are no resources.
pub fn update(
    directory: &StateDirectory,
    state: &mut StoredState,
    cgroup: &Cgroup,
    mut wanted: Value,
) -> Result<Vec<String>> {
    complete(&mut wanted, &state.config.spec["resources"]);
    let warnings = cgroup.apply(&parse(&wanted)?, None)?;
    let spec = &mut state.config.spec;
    if !spec.is_object() {
        *spec = json!({});
    }
    merge(&mut spec["resources"], wanted);
    directory.save(state)?;
    Ok(warnings)
}

fn parse(json: &Value) -> Result<LinuxResources> {
    let wrong = |error| Error::because(Kind::InvalidArgument, "parse", "resources", error);
    // Through text: reading values would be a second copy of all this code.
    serde_json::from_slice(&serde_json::to_vec(json).map_err(wrong)?).map_err(wrong)
}

/// Adds what a limit needs beside it: the other half of the CPU quota, as it was last set, and what runc sets with two others.
fn complete(wanted: &mut Value, stored: &Value) {
    let is_set = |value: &Value| value.as_i64().is_some_and(|number| number != 0);
    for (given, other) in [("quota", "period"), ("period", "quota")] {
        if is_set(&wanted["cpu"][given]) && !is_set(&wanted["cpu"][other]) && is_set(&stored["cpu"][other]) {
            wanted["cpu"][other] = stored["cpu"][other].clone();
        }
    }
    if wanted["memory"]["limit"] == -1 && wanted["memory"]["swap"].is_null() {
        wanted["memory"]["swap"] = json!(-1);
    }
}

/// Puts what is in `newer` into `stored`, member by member.
fn merge(stored: &mut Value, newer: Value) {
    match (stored, newer) {
        (_, Value::Null) => {}
        (stored @ Value::Object(_), Value::Object(members)) => {
            for (name, value) in members {
                if !value.is_null() {
                    merge(&mut stored[name.as_str()], value);
                }
            }
        }
        (stored, newer) => *stored = newer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_quota_gets_its_other_half() {
        let mut wanted = json!({"cpu": {"quota": 5000}});
        complete(&mut wanted, &json!({"cpu": {"period": 20000, "quota": 1}}));
        assert_eq!(wanted["cpu"], json!({"quota": 5000, "period": 20000}));
    }

    #[test]
    fn new_limits_go_over_the_old_ones() {
        let mut stored = json!({"memory": {"limit": 1, "swap": 2}});
        merge(&mut stored, json!({"memory": {"limit": 3}, "pids": {"limit": 4}, "cpu": null}));
        assert_eq!(stored, json!({"memory": {"limit": 3, "swap": 2}, "pids": {"limit": 4}}));
    }
}
