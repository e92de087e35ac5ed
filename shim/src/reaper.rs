//! Ended children: all are reaped at once, and exits that nobody claims yet are kept while somebody may.

use std::collections::BTreeMap;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::task::Exit;

/// Exits of processes that a runtime which still runs may be about to name.
#[derive(Default)]
pub struct Reaper {
    unclaimed: BTreeMap<i32, Exit>,
}

impl Reaper {
    /// Reaps every child that has ended.
    pub fn reap(&mut self) -> Vec<(i32, Exit)> {
        let mut exits = Vec::new();
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code as u32),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as u32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => break,
            };
            exits.push((status.0.as_raw(), Exit { status: status.1, at: SystemTime::now() }));
        }
        exits
    }

    /// Keeps an exit for a job that may name its process later.
    pub fn keep(&mut self, pid: i32, exit: Exit) {
        self.unclaimed.insert(pid, exit);
    }

    /// The exit of a process that a job has just named, if it ended already.
    ///
    /// A pid may have been used twice since the job began; a child of ours that still has it is the one that is meant.
    pub fn claim(&mut self, pid: i32) -> Option<Exit> {
        let exit = self.unclaimed.remove(&pid)?;
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(Pid::from_raw(pid)), flags) {
            Err(Errno::ECHILD) => Some(exit),
            _ => None,
        }
    }

    /// No job is under way that could name a process: what is left belonged to nobody.
    pub fn forget_unclaimed(&mut self) {
        self.unclaimed.clear();
    }
}
