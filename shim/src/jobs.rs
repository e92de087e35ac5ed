//! Programs and helpers that run for the shim: started, listened to, given up at a deadline, never waited for.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use orlop_host::sys::spawn::{CANNOT_BEGIN, First, Spawn, helper, spawn};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

/// How much of a program's output is kept; the rest is read and dropped.
const OUTPUT_LIMIT: usize = 16 << 10;
/// Exit code of a helper that failed; why is in its output.
const HELPER_FAILED: i32 = 1;

/// A program to be run.
pub struct Program<'a> {
    /// Its path and arguments.
    pub command: &'a [CString],
    /// Its environment.
    pub environment: &'a [CString],
    /// The same program by descriptor, if there is one.
    pub executable: Option<BorrowedFd<'a>>,
    /// Its standard streams, of which missing outputs are ours.
    pub streams: [Option<BorrowedFd<'a>>; 3],
    /// Done by the child before it executes the program; what it returns comes out of [`split`]. It must not use descriptors that it
    /// captured.
    pub first: Option<&'a dyn Fn() -> Result<String>>,
    /// Execute it only when this can be read or has ended; its deadline does not wait for that.
    pub after: Option<BorrowedFd<'a>>,
    /// When it is killed.
    pub deadline: Option<Instant>,
}

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
    /// Starts a program.
    pub fn program(program: &Program) -> Result<Running> {
        let (output, report) = output()?;
        let null = File::options().read(true).write(true).open("/dev/null").context("open", "/dev/null")?;
        let [stdin, stdout, stderr] = program.streams;
        let first = program.first.map(|first| {
            move || match first() {
                Ok(words) => Ok(format!("{words}\n").into_bytes()),
                // The end of a line is the end of what comes first.
                Err(error) => Err(told(&error).replace('\n', " ").into_bytes()),
            }
        });
        let pid = spawn(&Spawn {
            program: &program.command[0],
            executable: program.executable,
            arguments: program.command,
            environment: program.environment,
            descriptors: &[
                stdin.unwrap_or(null.as_fd()),
                stdout.unwrap_or(report.as_fd()),
                stderr.unwrap_or(report.as_fd()),
            ],
            report: report.as_fd(),
            first: first.as_ref().map(|first| first as First),
            after: program.after,
            process_group: true,
            dies_with_us: true,
        })
        .context("start", program.command[0].to_string_lossy())?;
        Ok(Running { pid, deadline: program.deadline, timed_out: false, output, kept: Vec::new() })
    }

    /// Runs a function in a child of its own; what it returns comes out of [`helped`].
    pub fn helper(deadline: Option<Instant>, work: impl FnOnce() -> Result<String>) -> Result<Running> {
        let (output, report) = output()?;
        let null = File::options().read(true).write(true).open("/dev/null").context("open", "/dev/null")?;
        let pid = helper([null.as_fd(), report.as_fd(), null.as_fd()], || {
            let (code, text) = match work() {
                Ok(text) => (0, text),
                Err(error) => (HELPER_FAILED, told(&error)),
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
    if status == 0 { Ok(String::from_utf8_lossy(output).into_owned()) } else { Err(failed(status, output)) }
}

/// Parts the output of a [`Program`] from what was done before it: that, or its failure, and what the program printed.
pub fn split(status: u32, output: &[u8]) -> (Result<String>, &[u8]) {
    match output.iter().position(|byte| *byte == b'\n') {
        _ if status == CANNOT_BEGIN as u32 && !output.contains(&b'\n') => (Err(failed(status, output)), &[]),
        Some(end) => (Ok(String::from_utf8_lossy(&output[..end]).into_owned()), &output[end + 1..]),
        // It was killed before it came to an end.
        None => (Ok(String::new()), output),
    }
}

/// A failure as a child of ours tells it: the error's code, a blank, and its text.
fn told(error: &Error) -> String {
    format!("{} {error}", error.kind().code())
}

/// Why a child of ours failed, as it [`told`].
fn failed(status: u32, output: &[u8]) -> Error {
    let text = String::from_utf8_lossy(output);
    match text.split_once(' ').and_then(|(code, text)| Some((code.parse().ok()?, text))) {
        Some((code, text)) => Error::exactly(Kind::from_code(code), text),
        None => Error::because(Kind::Internal, "run", "a helper", format!("it ended with status {status}")),
    }
}

/// A pipe whose reading end does not wait.
fn output() -> Result<(File, std::os::fd::OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("make a pipe", "")?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("set the flags of", "a pipe")?;
    Ok((read.into(), write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_is_parted_from_what_the_program_prints() {
        let (first, printed) = split(1, b"plain\noops\nagain");
        assert_eq!((first.unwrap().as_str(), printed), ("plain", &b"oops\nagain"[..]));
        let (first, printed) = split(0, b"\n");
        assert_eq!((first.unwrap().as_str(), printed), ("", &b""[..]));
        // A program may end with the same status.
        assert!(split(CANNOT_BEGIN as u32, b"\n").0.is_ok());
        assert!(split(137, b"").0.is_ok());
        let error = split(CANNOT_BEGIN as u32, b"5 mount /x: not found").0.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::NotFound, "mount /x: not found"));
    }
}
