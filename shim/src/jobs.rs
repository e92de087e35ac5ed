//! Programs and helpers that run for the shim: started, listened to, given up at a deadline, never waited for.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use orlop_host::sys::spawn::{Spawn, helper, spawn};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

/// How much of a program's output is kept; the rest is read and dropped.
const OUTPUT_LIMIT: usize = 16 << 10;
/// What separates a helper's error code from its text.
const HELPER_FAILED: i32 = 1;

/// A child that does something for us.
pub struct Running {
    /// Its process id.
    pub pid: i32,
    /// When it is killed.
    pub deadline: Option<Instant>,
    /// Whether the deadline has come.
    pub timed_out: bool,
    output: File,
    kept: Vec<u8>,
}

impl Running {
    /// Starts a program; `streams` are its standard streams, of which missing outputs are ours. It is executed
    /// when `after` can be read or has ended; its deadline does not wait for that.
    pub fn program(
        command: &[CString],
        environment: &[CString],
        streams: [Option<BorrowedFd>; 3],
        after: Option<BorrowedFd>,
        deadline: Option<Instant>,
    ) -> Result<Running> {
        let (output, report) = output()?;
        let null = File::options().read(true).write(true).open("/dev/null").context("open", "/dev/null")?;
        let [stdin, stdout, stderr] = streams;
        let pid = spawn(&Spawn {
            program: &command[0],
            arguments: command,
            environment,
            descriptors: &[
                stdin.unwrap_or(null.as_fd()),
                stdout.unwrap_or(report.as_fd()),
                stderr.unwrap_or(report.as_fd()),
            ],
            report: report.as_fd(),
            after,
            process_group: true,
            dies_with_us: true,
        })
        .context("start", command[0].to_string_lossy())?;
        Ok(Running { pid, deadline, timed_out: false, output, kept: Vec::new() })
    }

    /// Runs a function in a child of its own; what it returns comes out of [`helped`].
    pub fn helper(deadline: Option<Instant>, work: impl FnOnce() -> Result<String>) -> Result<Running> {
        let (output, report) = output()?;
        let null = File::options().read(true).write(true).open("/dev/null").context("open", "/dev/null")?;
        let pid = helper([null.as_fd(), report.as_fd(), null.as_fd()], || {
            let (code, text) = match work() {
                Ok(text) => (0, text),
                Err(error) => (HELPER_FAILED, format!("{} {error}", error.kind().code())),
            };
            let mut stdout = std::io::stdout();
            // Without a parent that reads there is nobody to tell.
            let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
            code
        })
        .context("start", "a helper")?;
        Ok(Running { pid, deadline, timed_out: false, output, kept: Vec::new() })
    }

    /// What it prints, to be watched.
    pub fn output(&self) -> &File {
        &self.output
    }

    /// Reads what it printed; false at the end.
    pub fn read(&mut self) -> bool {
        let mut chunk = [0; 4096];
        loop {
            match self.output.read(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => {
                    let room = OUTPUT_LIMIT.saturating_sub(self.kept.len()).min(count);
                    self.kept.extend_from_slice(&chunk[..room]);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Kills it if its time is over.
    pub fn check_deadline(&mut self, now: Instant) {
        if !self.timed_out && self.deadline.is_some_and(|deadline| deadline <= now) {
            self.timed_out = true;
            // It has a process group of its own; it cannot be gone, as only we reap it.
            let _ = kill(Pid::from_raw(-self.pid), Signal::SIGKILL);
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// All that it printed, as far as kept.
    pub fn into_output(mut self) -> Vec<u8> {
        self.read();
        self.kept
    }
}

/// What a helper's end and output mean.
pub fn helped(status: u32, output: &[u8]) -> Result<String> {
    let text = String::from_utf8_lossy(output).into_owned();
    if status == 0 {
        return Ok(text);
    }
    let told = text.split_once(' ').and_then(|(code, text)| Some((code.parse().ok()?, text)));
    Err(match told {
        Some((code, text)) => Error::exactly(Kind::from_code(code), text),
        None => Error::because(Kind::Internal, "run", "a helper", format!("it ended with status {status}")),
    })
}

/// A pipe whose reading end does not wait.
fn output() -> Result<(File, std::os::fd::OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("make a pipe", "")?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("set the flags of", "a pipe")?;
    Ok((read.into(), write))
}
