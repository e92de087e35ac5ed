//! Regular files, made by several threads at once: most of an unpack's time is the kernel's, one file after the other.
//!
//! The thread that reads the archive offers small files with their content; whoever is free makes them, itself
//! included. A file is only offered when its name is new in the layer, so that the order does not matter, and
//! [`Files::settle`] waits for all of them before anything whose order does.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use orlop_proto::error::{Error, Result};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::archive::{Entry, printable};
use super::attributes;
use super::directories::{Directory, failed};

/// The largest file that is offered, in bytes: larger ones are written as their data comes.
pub const MAX_SIZE: u64 = 64 << 10;
/// The data that may wait, in bytes.
const MAX_WAITING: usize = 2 << 20;
/// The files that may wait.
const MAX_FILES: usize = 256;
/// How many files wake a sleeping thread: a single one is made sooner than a thread is awake.
const WORTHWHILE: usize = 8;
/// How a file is made that must not be there.
const NEW: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A file to make.
pub struct Job {
    /// Where.
    pub parent: Arc<Directory>,
    /// Its cleaned name, for messages.
    pub path: Vec<u8>,
    /// The last component of it.
    pub base: Vec<u8>,
    /// What the archive says of it.
    pub entry: Entry,
    /// Its content.
    pub data: Vec<u8>,
    /// Whether its directory had no say in its owner and mode.
    pub is_plain: bool,
}

impl Job {
    fn run(&self) -> Result<()> {
        let fail = |error| failed(&self.path, error);
        let mode = Mode::from_raw_mode(self.entry.mode);
        let fd = match create(&self.parent.fd, &self.base, mode) {
            // Two names that the file system takes for one.
            Err(Errno::EXIST) => attributes::remove(&self.parent.fd, &self.base)
                .and_then(|()| create(&self.parent.fd, &self.base, mode)),
            result => result,
        };
        let mut file = File::from(fd.map_err(fail)?);
        file.write_all(&self.data).map_err(|error| Error::io("unpack", printable(&self.path), error))?;
        finish(&OwnedFd::from(file), &self.entry, !self.is_plain).map_err(fail)
    }
}

/// Makes a new file to write to.
pub fn create(parent: impl AsFd, base: &[u8], mode: Mode) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(parent, base, NEW, mode)
}

/// Gives a written file what its entry says of it.
pub fn finish(file: &OwnedFd, entry: &Entry, complete: bool) -> rustix::io::Result<()> {
    metadata(file, entry, complete)?;
    rustix::fs::futimens(file, &attributes::timestamps(entry.mtime))
}

/// Owner, attributes and mode of an open file, in the order in which none undoes another.
///
/// A new file of a process with umask 0 has the mode already and belongs to root, unless `complete` says that its
/// directory had a say in it.
pub fn metadata(file: &OwnedFd, entry: &Entry, complete: bool) -> rustix::io::Result<()> {
    let changes_owner = complete || entry.uid != 0 || entry.gid != 0;
    if changes_owner {
        rustix::fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    }
    for (name, value) in &entry.xattrs {
        if !attributes::is_overlay_state(name) {
            attributes::set_on_file(file, name, value)?;
        }
    }
    // chown clears the set-id bits; an access ACL may differ from the mode, which wins.
    if complete || (changes_owner && entry.mode & 0o6000 != 0) || !entry.xattrs.is_empty() {
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
    }
    Ok(())
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Bytes of their data.
    bytes: usize,
    /// How many files are being made.
    running: usize,
    error: Option<Error>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    is_closed: bool,
}

/// Lets the threads that work for it end when it is dropped.
pub struct Closing<'a>(pub &'a Files);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.wanted.notify_all();
    }
}

/// Files that wait to be made.
#[derive(Default)]
pub struct Files {
    state: Mutex<State>,
    wanted: Condvar,
    settled: Condvar,
}

impl Files {
    /// Makes a file, now or soon.
    ///
    /// # Errors
    /// That of any file made so far.
    pub fn offer(&self, job: Job) -> Result<()> {
        let mut state = self.lock();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        if state.waiting.len() >= MAX_FILES || state.bytes + job.data.len() > MAX_WAITING {
            drop(state);
            job.run()?;
            self.lock().spare.push(job.data);
            return Ok(());
        }
        state.bytes += job.data.len();
        state.waiting.push_back(job);
        if state.waiting.len() >= WORTHWHILE {
            self.wanted.notify_one();
        }
        Ok(())
    }

    /// A buffer for a file's content.
    pub fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.lock().spare.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Makes files until it is closed.
    pub fn work(&self) {
        let mut state = self.lock();
        loop {
            // The newest first: the reading thread is at work in another directory than the one it comes back to,
            // and the kernel makes one file at a time per directory.
            if let Some(job) = state.waiting.pop_back() {
                state = self.run(state, job);
            } else if state.is_closed {
                return;
            } else {
                state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Has the whole layer fail.
    pub fn fail(&self, error: Error) {
        self.lock().error.get_or_insert(error);
    }

    /// Makes what still waits and waits for what others make.
    ///
    /// # Errors
    /// That of any file made so far.
    pub fn settle(&self) -> Result<()> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                state = self.run(state, job);
            } else if state.running > 0 {
                state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                return state.error.take().map_or(Ok(()), Err);
            }
        }
    }

    fn run<'a>(&'a self, mut state: MutexGuard<'a, State>, job: Job) -> MutexGuard<'a, State> {
        state.bytes -= job.data.len();
        state.running += 1;
        let is_needed = state.error.is_none();
        drop(state);
        let result = if is_needed { job.run() } else { Ok(()) };
        let mut state = self.lock();
        state.spare.push(job.data);
        state.running -= 1;
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        if state.running == 0 {
            self.settled.notify_all();
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
