//! Session, cgroup, namespaces and the user that the rest is done as.

use std::fs;
use std::os::fd::AsFd;

use orlop_host::sys;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::Init;
use crate::plan::namespaces::{CLONE_NEWTIME, NAMES};
use crate::plan::process::ExecLabel;
use crate::sync::Message;

/// A session of its own, out of sight of tracers, under a telling name.
pub fn session(init: &mut Init) -> Result<()> {
    if let Some(score) = init.plan.process.oom_score_adj {
        // Now, as a hidden process's files belong to root.
        let path = "/proc/self/oom_score_adj";
        fs::write(path, score.to_string()).context("write", path)?;
    }
    if !init.plan.namespaces.mapped_by_user {
        hide()?;
    }
    sys::creds::set_name(c"orlop:[INIT]").context("name", "this process")?;
    // A process that leads a session already (a session kept by exec) cannot start one, and need not.
    let _ = nix::unistd::setsid();
    // File modes of the configuration are meant exactly; the user's mask is set before the program starts.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    Ok(())
}

/// Nobody may look into this process from here on (PR_SET_DUMPABLE(2const)).
fn hide() -> Result<()> {
    sys::creds::set_dumpable(false).context("hide", "this process")
}

/// Makes namespaces that need not come with the clone, and tells the parent, which makes the cgroup meanwhile.
pub fn make_own(init: &mut Init) -> Result<()> {
    if init.apart == 0 {
        return Ok(());
    }
    sys::pid::unshare(init.apart as i32).context("leave", names(init.apart))?;
    init.channel.send(&Message::Apart)
}

/// Moves into the cgroup by itself: a single thread that writes `0` to `tasks` takes no global lock.
pub fn enter_cgroup(init: &mut Init) -> Result<()> {
    let tasks = match init.tasks.take() {
        Some(tasks) => tasks,
        None => match init.channel.receive_all()? {
            Some((Message::Cgroup, tasks)) => tasks,
            _ => return Err(parent_has_gone()),
        },
    };
    for tasks in tasks {
        nix::unistd::write(&tasks, b"0").context("enter", "the container's cgroup")?;
    }
    Ok(())
}

/// A session keyring of the container's own.
pub fn keyring(init: &mut Init) -> Result<()> {
    let Some(name) = &init.plan.keyring else { return Ok(()) };
    if let Some(ExecLabel::Selinux(label)) = &init.plan.process.exec_label {
        // The keyring is the container's as its processes are.
        let path = "/proc/self/attr/keycreate";
        fs::write(path, label).context("write", path)?;
    }
    match sys::creds::join_session_keyring(name) {
        // A kernel without keyrings, or a filter that refuses them, is no reason not to run.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES)) => {
            Ok(())
        }
        other => other.context("join", "a new session keyring"),
    }
}

/// Waits until the parent has mapped the ids of the new user namespace.
pub fn await_mapping(init: &mut Init) -> Result<()> {
    if init.plan.namespaces.mappings.is_none() {
        return Ok(());
    }
    await_go(init)?;
    if init.plan.namespaces.mapped_by_user { hide() } else { Ok(()) }
}

/// Waits for the parent's word.
pub fn await_go(init: &Init) -> Result<()> {
    match init.channel.receive()? {
        Some((Message::Go, _)) => Ok(()),
        _ => Err(parent_has_gone()),
    }
}

fn parent_has_gone() -> Error {
    Error::new(Kind::Aborted, "hear", "the parent, which has gone")
}

/// Joins namespaces by descriptor, the user namespace first, since it gives the right to join those that it owns.
pub fn join(init: &mut Init) -> Result<()> {
    // The parent has seen to the pid namespace, which only children enter.
    let pid = libc::CLONE_NEWPID as u64;
    let mut joins: Vec<_> = init.joins.drain(..).map(|(fd, flags)| (fd, flags & !pid)).collect();
    joins.sort_by_key(|(_, flags)| flags & libc::CLONE_NEWUSER as u64 == 0);
    for (namespace, flags) in joins {
        if flags == 0 {
            continue;
        }
        sys::pid::setns(namespace.as_fd(), flags as i32).with(|| names(flags))?;
    }
    Ok(())
}

trait With<T> {
    fn with(self, object: impl FnOnce() -> String) -> Result<T>;
}

impl<T> With<T> for std::io::Result<T> {
    fn with(self, object: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::io("join", object(), error))
    }
}

fn names(flags: u64) -> String {
    let names: Vec<_> =
        NAMES.iter().filter(|(flag, ..)| flags & flag != 0).map(|(_, _, name)| *name).collect();
    format!("{} namespace", names.join(", "))
}

/// Namespaces that could not be made by the clone: cgroup after the move on v1, time with its offsets.
pub fn later(init: &mut Init) -> Result<()> {
    let flags = init.plan.namespaces.later;
    if flags == 0 {
        return Ok(());
    }
    sys::pid::unshare(flags as i32).context("leave", names(flags))?;
    if flags & CLONE_NEWTIME != 0 {
        // It is entered by the exec of the user's program (Linux 6.1), until when its clocks can be set.
        if let Some(offsets) = &init.plan.namespaces.time_offsets {
            fs::write("/proc/self/timens_offsets", offsets).context("set", "the offsets of the clocks")?;
        }
    }
    Ok(())
}

/// Becomes the root user of a user namespace that was made or joined.
pub fn become_root(init: &mut Init) -> Result<()> {
    if !init.plan.namespaces.has_user_namespace() {
        return Ok(());
    }
    // Without the right to set groups (an unprivileged mapping) there are none that could be kept wrongly.
    let _ = sys::creds::set_groups(&[]);
    sys::creds::set_gid(0).context("become", "root's group of the user namespace")?;
    sys::creds::set_uid(0).context("become", "root of the user namespace")?;
    // The change of user gave the flag its default again.
    hide()
}
