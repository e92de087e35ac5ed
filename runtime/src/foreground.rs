//! Staying with a process: signals go to it, its terminal is copied, its exit code becomes ours.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, isatty};
use orlop_host::sys;
use orlop_proto::error::{Context, Result};

use crate::notify::Listener;

/// Signals held back from now on, to be passed on to a process that is yet to be made.
pub struct Signals(SignalFd);

impl Signals {
    /// Starts to hold signals back; those that mean a fault of our own still do.
    pub fn hold() -> Result<Signals> {
        let mut mask = SigSet::all();
        for own in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
            Signal::SIGTRAP,
            Signal::SIGABRT,
            Signal::SIGSYS,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
        ] {
            mask.remove(own);
        }
        mask.thread_block().context("hold back", "signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Signals(SignalFd::with_flags(&mask, flags).context("create", "a descriptor for signals")?))
    }
}

/// Our own terminal in raw mode, put back at the end.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Option<Raw> {
        let input = std::io::stdin();
        if !isatty(&input).unwrap_or(false) {
            return None;
        }
        let before = tcgetattr(&input).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&input, SetArg::TCSANOW, &raw).ok()?;
        Some(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may have gone, and then needs no mode.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// The process that we stay with.
#[derive(Clone, Copy)]
pub struct Main<'a> {
    /// Itself.
    pub process: BorrowedFd<'a>,
    /// Its id in our pid namespace.
    pub pid: i32,
}

/// Waits for a child of ours; passes signals and the word that it is ready on, and copies its terminal meanwhile. Returns its exit
/// code, 128 and the signal's number if one ended it.
pub fn wait(
    signals: &Signals,
    main: Main,
    console: Option<OwnedFd>,
    listener: Option<&Listener>,
) -> Result<u8> {
    let Main { process, pid } = main;
    let mut console = console.map(File::from);
    let raw = console.as_ref().and_then(|console| {
        resize(console.as_fd());
        Raw::enter()
    });
    let mut input_open = console.is_some();
    loop {
        let input = std::io::stdin();
        let mut watched =
            vec![PollFd::new(process, PollFlags::POLLIN), PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)];
        if let Some(console) = &console {
            watched.push(PollFd::new(console.as_fd(), PollFlags::POLLIN));
            if input_open {
                watched.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
            }
        }
        let heard = watched.len();
        watched.extend(listener.map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
        match poll(&mut watched, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            other => other.context("wait for", "the process")?,
        };
        let is_ready =
            |at: usize| watched.get(at).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        let (ended, signalled) = (is_ready(0), is_ready(1));
        let (output, typed) = (heard > 2 && is_ready(2), heard > 3 && is_ready(3));
        if let Some(listener) = listener.filter(|_| is_ready(heard)) {
            // A manager that has gone is no reason to leave the container alone.
            let _ = listener.pass_on();
        }
        if signalled {
            pass_on(signals, process, pid, console.as_ref());
        }
        if let Some(terminal) = &mut console {
            if typed {
                input_open = copy(&mut std::io::stdin(), terminal);
            }
            if output && !copy(terminal, &mut std::io::stdout()) {
                console = None;
            }
        }
        if ended {
            break;
        }
    }
    if let Some(terminal) = &mut console {
        drain(terminal);
    }
    drop(raw);
    exit_code(process)
}

/// Copies what is there; false at the end of the file.
fn copy(from: &mut impl Read, to: &mut impl Write) -> bool {
    let mut buffer = [0u8; 32 << 10];
    match from.read(&mut buffer) {
        Ok(0) => false,
        Ok(length) => to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_ok(),
        Err(error) => error.kind() == std::io::ErrorKind::Interrupted,
    }
}

/// What the process wrote just before its end.
fn drain(terminal: &mut File) {
    loop {
        let mut watched = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
        let is_ready = poll(&mut watched, PollTimeout::ZERO).is_ok_and(|count| count > 0)
            && watched[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
        if !is_ready || !copy(terminal, &mut std::io::stdout()) {
            return;
        }
    }
}

fn pass_on(signals: &Signals, process: BorrowedFd, pid: i32, console: Option<&File>) {
    while let Ok(Some(signal)) = signals.0.read_signal() {
        match signal.ssi_signo as i32 {
            libc::SIGCHLD => reap_others(pid),
            libc::SIGURG => {}
            libc::SIGWINCH => console.iter().for_each(|console| resize(console.as_fd())),
            // A process that has ended meanwhile is noticed right away.
            number => drop(sys::pid::pidfd_send_signal(process, number)),
        }
    }
}

/// Orphans of the container whose parent we have become.
fn reap_others(main: i32) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let ended = match waitid(Id::All, flags) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => pid,
            _ => return,
        };
        // The main process is left for the end, and hides others until then; they are reaped with us.
        if ended.as_raw() == main || waitpid(Pid::from_raw(ended.as_raw()), None).is_err() {
            return;
        }
    }
}

fn resize(console: BorrowedFd) {
    // Without a terminal of our own there is no size to pass on.
    if let Ok((rows, columns)) = sys::tty::size(std::io::stdin().as_fd()) {
        let _ = sys::tty::set_size(console, rows, columns);
    }
}

fn exit_code(process: BorrowedFd) -> Result<u8> {
    loop {
        match waitid(Id::PIDFd(process), WaitPidFlag::WEXITED) {
            Err(nix::Error::EINTR) => continue,
            Ok(WaitStatus::Exited(_, code)) => return Ok(code as u8),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as u8),
            Ok(_) => continue,
            Err(error) => return Err(error).context("wait for", "the process"),
        }
    }
}
