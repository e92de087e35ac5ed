//! Programs run with a deadline, their output kept in files.
//!
//! Output goes to files and not to pipes because what a program leaves running (a detached container, a shim) inherits
//! its streams: reading a pipe to its end would wait for the container.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::poll::patient;

const DEADLINE: Duration = Duration::from_secs(60);

/// A program to run: like [`Command`], with a deadline (60 s unless set), no input unless given, and captured output.
#[derive(Debug)]
pub struct Cmd {
    inner: Command,
    input: Option<Vec<u8>>,
    deadline: Duration,
    own_stdio: bool,
}

impl Cmd {
    /// A call of `program` without arguments.
    pub fn new(program: impl AsRef<OsStr>) -> Cmd {
        let mut inner = Command::new(program);
        // A group of its own, so that a deadline ends helpers too.
        inner.process_group(0);
        Cmd { inner, input: None, deadline: DEADLINE, own_stdio: false }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Cmd {
        self.inner.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Cmd {
        self.inner.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Cmd {
        self.inner.env(key, value);
        self
    }

    /// Removes an environment variable.
    pub fn without_env(mut self, key: &str) -> Cmd {
        self.inner.env_remove(key);
        self
    }

    /// Runs in `dir`.
    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Cmd {
        self.inner.current_dir(dir);
        self
    }

    /// Gives `input` on the standard input, then its end.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Cmd {
        self.input = Some(input.into());
        self
    }

    /// Replaces the deadline.
    pub fn deadline(mut self, deadline: Duration) -> Cmd {
        self.deadline = deadline;
        self
    }

    /// Changes the underlying command in ways that this type has no method for. Standard streams set here are lost
    /// unless [`Cmd::keep_stdio`] is called too.
    pub fn with(mut self, change: impl FnOnce(&mut Command)) -> Cmd {
        change(&mut self.inner);
        self
    }

    /// Leaves the standard streams as [`Cmd::with`] set them: output is then not captured.
    pub fn keep_stdio(mut self) -> Cmd {
        self.own_stdio = true;
        self
    }

    /// The program and its arguments, for a program that runs others.
    pub fn words(&self) -> Vec<OsString> {
        let program = std::iter::once(self.inner.get_program());
        program.chain(self.inner.get_args()).map(OsStr::to_owned).collect()
    }

    /// Runs to the end.
    ///
    /// # Panics
    /// When the program cannot be started, or does not end before the deadline (it is killed, and what it had printed is
    /// in the message).
    pub fn run(self) -> Output {
        let deadline = self.deadline;
        self.spawn().wait(deadline)
    }

    /// Starts the program; the guard kills it (and its process group) when dropped.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn spawn(mut self) -> Process {
        let line = self.to_string();
        let stdout = tempfile::tempfile().expect("a temporary file");
        let stderr = tempfile::tempfile().expect("a temporary file");
        if !self.own_stdio {
            let stdin = match &self.input {
                Some(bytes) => {
                    let mut file = tempfile::tempfile().expect("a temporary file");
                    file.write_all(bytes)
                        .and_then(|()| file.seek(SeekFrom::Start(0)))
                        .expect("writing the input");
                    Stdio::from(file)
                }
                None => Stdio::null(),
            };
            self.inner.stdin(stdin).stdout(appending(&stdout)).stderr(appending(&stderr));
        }
        let child = self.inner.spawn().unwrap_or_else(|e| panic!("cannot start {line}: {e}"));
        Process { child, line, stdout, stderr, ended: None }
    }
}

/// A second descriptor for `file` would share its offset with the reader here; opened anew in append mode it does not.
fn appending(file: &File) -> File {
    use std::os::fd::AsRawFd;
    File::options()
        .append(true)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .expect("reopening a file")
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Path::new(self.inner.get_program()).display())?;
        self.inner.get_args().try_for_each(|arg| write!(f, " {}", arg.to_string_lossy()))
    }
}

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    line: String,
    stdout: File,
    stderr: File,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Whether it is still running.
    pub fn running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("waiting for a child");
        }
        self.ended.is_none()
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Sends a signal to the process alone; one that has ended is no error.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            let _ = kill(Pid::from_raw(self.pid()), signal);
        }
    }

    /// Waits for its end, with a deadline that is [`patient`].
    ///
    /// # Panics
    /// When it does not end before the deadline: it is killed and what it had printed is in the message.
    pub fn wait(mut self, deadline: Duration) -> Output {
        let deadline = patient(deadline);
        let Some(status) = self.wait_in_kernel(deadline) else {
            let (stdout, stderr) = (self.stdout(), self.stderr());
            panic!("not ended within {deadline:?}: {}\nstdout:\n{stdout}\nstderr:\n{stderr}", self.line);
        };
        Output {
            line: self.line.clone(),
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
            stdout_bytes: bytes(&self.stdout),
        }
    }

    /// Waits without polling, so that the time of the end is exact; kills the group when it does not come in time.
    fn wait_in_kernel(&mut self, deadline: Duration) -> Option<ExitStatus> {
        if self.ended.is_some() {
            return self.ended;
        }
        let group = Pid::from_raw(self.pid());
        let child = &mut self.child;
        let (sender, receiver) = mpsc::channel();
        let (in_time, status) = thread::scope(|scope| {
            scope.spawn(move || sender.send(child.wait().expect("waiting for a child")));
            match receiver.recv_timeout(deadline) {
                Ok(status) => (true, Some(status)),
                Err(_) => {
                    let _ = killpg(group, Signal::SIGKILL);
                    (false, receiver.recv().ok())
                }
            }
        });
        self.ended = status;
        status.filter(|_| in_time)
    }

    /// Kills the process and its group, and reaps it.
    pub fn end(&mut self) {
        if self.running() {
            let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to its standard output, lossily decoded.
    pub stdout: String,
    /// What it wrote to its standard error, lossily decoded.
    pub stderr: String,
    /// What it wrote to its standard output.
    pub stdout_bytes: Vec<u8>,
}

impl Output {
    /// The exit code; a program killed by signal N counts as 128 + N, as a shell says it.
    pub fn code(&self) -> i32 {
        self.status.code().or(self.status.signal().map(|signal| 128 + signal)).expect("an exit or a signal")
    }

    /// Returns itself.
    ///
    /// # Panics
    /// When the exit code is not 0: the message holds the command and its output.
    #[track_caller]
    pub fn success(self) -> Output {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Returns itself.
    ///
    /// # Panics
    /// When the exit code is 0.
    #[track_caller]
    pub fn failure(self) -> Output {
        assert!(!self.status.success(), "succeeded against expectation: {self}");
        self
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stdout, stderr) = (without_progress(&self.stdout), without_progress(&self.stderr));
        write!(f, "{}: {}\nstdout:\n{stdout}\nstderr:\n{stderr}", self.line, self.status)
    }
}

/// Progress bars are drawn many times and say nothing afterwards.
fn without_progress(text: &str) -> String {
    text.lines()
        .filter(|line| !line.contains("\u{1b}[") && !line.starts_with("elapsed:"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn bytes(file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = file;
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut bytes))
        .expect("reading captured output");
    bytes
}

fn text(file: &File) -> String {
    String::from_utf8_lossy(&bytes(file)).into_owned()
}

/// A `PATH` with `dirs` in front of the current one.
pub(crate) fn path_with(dirs: &[PathBuf]) -> OsString {
    let current = std::env::var_os("PATH").unwrap_or_default();
    let all = dirs
        .iter()
        .cloned()
        .chain(std::env::split_paths(&current))
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(all).expect("no directory of PATH holds a colon")
}
