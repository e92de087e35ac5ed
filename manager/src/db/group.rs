//! Changes that come together are synced together.
//!
//! Each is a transaction of its own. One that others wait behind is committed without a sync; the commit that nobody waits behind
//! is synced, and the database's order makes it sync all before it. No caller is answered before that. Where the last one is
//! given up, whoever still waits syncs for all.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::BROKEN;

/// How many commits wait for one sync at most, so that nobody waits for others without end.
const MOST: u64 = 64;

/// What is under way, and what is synced.
#[derive(Default)]
pub struct Group {
    state: Mutex<State>,
    /// Woken when a writer leaves and when the file is opened again.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Writers that have come and not left, whether or not it is their turn.
    writers: usize,
    /// Number of the last commit; commits are numbered in their order.
    made: u64,
    /// The last commit that is synced, with all before it.
    synced: u64,
    /// What was synced each time that the file had to be opened again, and why it had to: what came after is lost.
    ended: Vec<(u64, Kind)>,
    /// Why the file will have to be opened again.
    failed: Option<Kind>,
}

impl State {
    /// What became of a commit, as soon as that is certain.
    fn outcome(&self, place: Place) -> Option<Result<()>> {
        let ended = self.ended.get(place.epoch);
        if ended.map_or(self.synced, |(synced, _)| *synced) >= place.number {
            return Some(Ok(()));
        }
        let lost = |(_, kind): &(u64, Kind)| {
            Err(Error::because(*kind, BROKEN, "", "it was lost with a write that failed"))
        };
        ended.map(lost)
    }
}

/// A commit in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    number: u64,
    /// How often the file had been opened again.
    epoch: usize,
    /// Whether it is to be synced by itself: nobody waits behind it, or enough before it.
    pub is_last: bool,
}

/// A writer, until it is dropped.
pub struct Writer<'a>(&'a Group);

impl Group {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a writer, before it waits for its turn.
    pub fn enter(&self) -> Writer<'_> {
        self.state().writers += 1;
        Writer(self)
    }

    /// Notes that the file refuses work, and why: `Unavailable` where that is because of an earlier failure.
    pub fn fail(&self, kind: Kind) {
        let mut state = self.state();
        if kind != Kind::Unavailable || state.failed.is_none() {
            state.failed = Some(kind);
        }
    }

    /// Notes that the file is opened again: what is not synced is lost, for the reason that was noted. Nobody may be writing.
    pub fn end(&self) {
        let mut state = self.state();
        let (synced, kind) = (state.synced, state.failed.take().unwrap_or(Kind::Unavailable));
        state.ended.push((synced, kind));
        drop(state);
        self.changed.notify_all();
    }

    /// Notes that the file works and all commits are synced. Nobody may be writing.
    pub fn all_synced(&self) {
        let mut state = self.state();
        state.failed = None;
        state.synced = state.made;
        drop(state);
        self.changed.notify_all();
    }

    /// The last commit so far.
    pub fn last(&self) -> Place {
        let state = self.state();
        Place { number: state.made, epoch: state.ended.len(), is_last: false }
    }

    /// Waits until a commit is synced; where nobody else is about to, one of those who wait syncs for all, by an empty one. Blocks.
    ///
    /// # Errors
    ///
    /// When it is lost; those of `sync`.
    pub fn wait(&self, place: Place, sync: impl Fn(&Writer) -> Result<()>) -> Result<()> {
        let mut state = self.state();
        loop {
            if let Some(outcome) = state.outcome(place) {
                return outcome;
            }
            if state.writers > 0 {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.writers += 1;
            drop(state);
            let tried = {
                let writer = Writer(self);
                sync(&writer)
            };
            state = self.state();
            // A writer who came between may have synced it before this failed.
            if state.outcome(place).is_none() {
                tried?;
            }
        }
    }

    /// How many writers there are.
    #[cfg(test)]
    pub fn writers(&self) -> usize {
        self.state().writers
    }
}

impl Writer<'_> {
    /// The place of a commit, to be taken when nothing but the commit is left to do.
    pub fn place(&self) -> Place {
        let mut state = self.0.state();
        state.made += 1;
        let is_last = state.writers == 1 || state.made - state.synced >= MOST;
        Place { number: state.made, epoch: state.ended.len(), is_last }
    }

    /// Notes that a commit is synced.
    pub fn synced(&self, place: Place) {
        let mut state = self.0.state();
        state.synced = state.synced.max(place.number);
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.0.state().writers -= 1;
        self.0.changed.notify_all();
    }
}
