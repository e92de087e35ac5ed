//! What the loop waits for: `epoll(7)` with a typed token for each descriptor.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use orlop_proto::error::{Context, Result};

/// What became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A signal came.
    Signal,
    /// A client connects.
    Listener,
    /// A client's connection.
    Connection(u64),
    /// The connection on which events are published.
    Publisher,
    /// Output of the job that this process does.
    Job(u64),
    /// One end of a copy.
    Pump(u64),
    /// A container ran out of memory.
    OutOfMemory(u64),
}

const KINDS: u64 = 8;

impl Token {
    fn encode(self) -> u64 {
        match self {
            Token::Signal => 0,
            Token::Listener => 1,
            Token::Publisher => 2,
            Token::Connection(number) => number * KINDS + 3,
            Token::Job(number) => number * KINDS + 4,
            Token::Pump(number) => number * KINDS + 5,
            Token::OutOfMemory(number) => number * KINDS + 6,
        }
    }

    fn decode(word: u64) -> Option<Token> {
        let number = word / KINDS;
        Some(match word % KINDS {
            0 => Token::Signal,
            1 => Token::Listener,
            2 => Token::Publisher,
            3 => Token::Connection(number),
            4 => Token::Job(number),
            5 => Token::Pump(number),
            6 => Token::OutOfMemory(number),
            _ => return None,
        })
    }
}

/// For what a descriptor is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Until it is read.
    Read,
    /// Until it is read or written.
    ReadWrite,
    /// Each time that it becomes readable or writable.
    Edges,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::ReadWrite => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Interest::Edges => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
        }
    }
}

/// The set of descriptors.
pub struct Poller(Epoll);

impl Poller {
    /// An empty set.
    pub fn new() -> Result<Poller> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(Poller).context("create an epoll set", "")
    }

    /// Adds a descriptor.
    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<()> {
        self.0.add(fd, EpollEvent::new(interest.flags(), token.encode())).context("watch a descriptor", "")
    }

    /// Changes for what a descriptor is watched.
    pub fn change(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<()> {
        let mut event = EpollEvent::new(interest.flags(), token.encode());
        self.0.modify(fd, &mut event).context("watch a descriptor", "")
    }

    /// Removes a descriptor. Closing it would not do: a helper may hold a copy for a moment, which keeps the entry.
    pub fn remove(&self, fd: impl AsFd) {
        // Not there is as good as removed.
        let _ = self.0.delete(fd);
    }

    /// Waits until something is ready or the time has come; a signal that interrupts is no error.
    pub fn wait(&self, until: Option<Instant>) -> Result<Vec<Token>> {
        let timeout = match until.map(|until| until.saturating_duration_since(Instant::now())) {
            None => EpollTimeout::NONE,
            // One more, since epoll rounds down and would return early.
            Some(left) if left > Duration::ZERO => {
                EpollTimeout::try_from(left.as_millis().min(60_000) as i32 + 1).unwrap_or(EpollTimeout::ZERO)
            }
            Some(_) => EpollTimeout::ZERO,
        };
        let mut events = [EpollEvent::empty(); 32];
        let count = match self.0.wait(&mut events, timeout) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other.context("wait for events", "")?,
        };
        Ok(events[..count].iter().filter_map(|event| Token::decode(event.data())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        for token in [
            Token::Signal,
            Token::Listener,
            Token::Publisher,
            Token::Connection(0),
            Token::Connection(7),
            Token::Job(4_000_000),
            Token::Pump(1),
            Token::OutOfMemory(9),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
    }
}
