//! The standard streams of processes: what the runtime hands to the container, and the copies that connect it with the
//! client's FIFOs.

pub mod pump;
pub mod uri;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::unistd::{Gid, Uid, fchown, pipe2};
use orlop_host::sys::pass::receive_descriptor;
use orlop_host::sys::spawn::{Spawn, helper, spawn};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::poll::{Interest, Poller, Token};
use crate::task::Stdio;
use pump::{Progress, Pump};
use uri::Target;

/// How long a FIFO may take nothing before it is asked whether it has a reader.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Who owns what is made for a process, and for whom a logging program works.
#[derive(Clone, Copy)]
pub struct Owner<'a> {
    /// The owner of the pipes that the container gets.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// The container's id.
    pub container: &'a str,
    /// Its containerd namespace.
    pub namespace: &'a str,
}

/// A process' streams, opened but not yet connected.
pub struct Streams {
    /// What the runtime gets as its standard streams, which become the container's; none with a terminal.
    pub child: Option<[OwnedFd; 3]>,
    /// The socket on which the runtime hands over a terminal.
    pub console: Option<ConsoleSocket>,
    copies: Vec<Pump>,
    stdin: Option<Input>,
    output: Option<Output>,
    kept: Vec<OwnedFd>,
}

/// A client's stdin FIFO, not opened yet.
///
/// It is opened when the process starts, not when it is made: a client whose input ends at once says so by a request that
/// it can only make once it knows that the process exists.
struct Input {
    path: PathBuf,
    /// The container's end; none with a terminal, which comes later.
    pipe: Option<File>,
}

/// Where output goes.
enum Output {
    Null,
    /// A FIFO's writing end, and a reading end to hold.
    Fifo(File, File),
    /// A pipe to a helper or a logging program.
    Pipe(OwnedFd),
}

/// Opens everything that a process needs before the runtime makes it.
pub fn open(stdio: &Stdio, owner: Owner, directory: &Path, name: &str) -> Result<Streams> {
    let mut kept = Vec::new();
    let stdin = match uri::parse(&stdio.stdin)? {
        Target::Null => None,
        Target::Path(path) => {
            fs::metadata(&path).context("open", path.display().to_string())?;
            Some(Input { path, pipe: None })
        }
        _ => return Err(Error::because(Kind::InvalidArgument, "open stdin", &stdio.stdin, "not a FIFO")),
    };
    let stdout_target = uri::parse(&stdio.stdout)?;
    let (stdout, stderr) = match &stdout_target {
        // One program, or one file, takes both streams.
        Target::Program(program, arguments) => {
            let [stdout, stderr, ready] = log_to(program, arguments, owner)?;
            kept.push(ready);
            (Output::Pipe(stdout), Output::Pipe(stderr))
        }
        Target::File(path) => {
            let stdout = append_to(path)?;
            let stderr = stdout.try_clone().context("copy a descriptor", "")?;
            (Output::Pipe(stdout), Output::Pipe(stderr))
        }
        _ => (Output::open(&stdout_target)?, Output::open(&uri::parse(&stdio.stderr)?)?),
    };
    if stdio.terminal {
        let console = Some(ConsoleSocket::bind(directory, name)?);
        let output = Some(stdout);
        return Ok(Streams { child: None, console, copies: Vec::new(), stdin, output, kept });
    }
    let mut copies = Vec::new();
    let (child_stdin, stdin) = match stdin {
        None => (null()?, None),
        Some(mut input) => {
            let (read, write) = pipe(owner)?;
            do_not_wait(&write)?;
            input.pipe = Some(write.into());
            (read, Some(input))
        }
    };
    let mut connect = |output: Output| -> Result<OwnedFd> {
        match output {
            Output::Null => null(),
            Output::Pipe(write) => Ok(write),
            Output::Fifo(sink, hold) => {
                let (read, write) = pipe(owner)?;
                do_not_wait(&read)?;
                copies.push(Pump::new(read.into(), sink, Some(hold)));
                Ok(write)
            }
        }
    };
    let child = Some([child_stdin, connect(stdout)?, connect(stderr)?]);
    Ok(Streams { child, console: None, copies, stdin, output: None, kept })
}

impl Streams {
    /// What can be read, or has ended, when a logging program is ready for output.
    pub fn ready(&self) -> Option<BorrowedFd<'_>> {
        self.kept.first().map(AsFd::as_fd)
    }
}

impl Output {
    fn open(target: &Target) -> Result<Output> {
        match target {
            Target::Null => Ok(Output::Null),
            Target::Path(path) => {
                let kind = fs::metadata(path).context("open", path.display().to_string())?.file_type();
                if !kind.is_fifo() {
                    return Ok(Output::Pipe(append_to(path)?));
                }
                let hold = open_fifo(path, false)?;
                Ok(Output::Fifo(open_fifo(path, true)?, hold))
            }
            Target::File(path) => Ok(Output::Pipe(append_to(path)?)),
            Target::Program(path, _) => Err(Error::because(
                Kind::InvalidArgument,
                "open stderr",
                path.display().to_string(),
                "a logging program is named by stdout",
            )),
        }
    }
}

fn open_fifo(path: &Path, write: bool) -> Result<File> {
    let mut options = File::options();
    options
        .read(!write)
        .write(write)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .context("open", path.display().to_string())
}

fn null() -> Result<OwnedFd> {
    let null = File::options().read(true).write(true).open("/dev/null");
    null.map(OwnedFd::from).context("open", "/dev/null")
}

/// A pipe whose ends belong to the container's user, who may open them again by `/dev/stdout`.
fn pipe(owner: Owner) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("make a pipe", "")?;
    if (owner.uid, owner.gid) != (0, 0) {
        let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
        fchown(&read, uid, gid).context("change the owner of", "a pipe")?;
    }
    Ok((read, write))
}

fn do_not_wait(fd: &impl AsFd) -> Result<()> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).context("read the flags of", "a descriptor")?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).context("set the flags of", "a descriptor")?;
    Ok(())
}

/// A pipe whose bytes a helper appends to a file, since a disk may keep its writer waiting.
fn append_to(path: &Path) -> Result<OwnedFd> {
    let shown = || path.display().to_string();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context("create directory", parent.display().to_string())?;
    }
    let file = File::options().append(true).create(true).open(path).context("open", shown())?;
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("make a pipe", "")?;
    let null = null()?;
    helper([read.as_fd(), file.as_fd(), null.as_fd()], || {
        let (mut source, mut chunk) = (std::io::stdin().lock(), [0; 8192]);
        let Ok(sink) = std::io::stdout().as_fd().try_clone_to_owned() else { return 1 };
        let mut sink = File::from(sink);
        loop {
            match source.read(&mut chunk) {
                Ok(0) => return 0,
                // A full disk costs the line; the container goes on.
                Ok(count) => drop(sink.write_all(&chunk[..count])),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return 1,
            }
        }
    })
    .context("start a helper for", shown())?;
    Ok(write)
}

/// Starts a logging program: its descriptors 3 and 4 read stdout and stderr, and it closes 5 when it is ready.
///
/// Returns the writing ends of both and our end of the third, which it may still write to.
fn log_to(program: &Path, arguments: &[String], owner: Owner) -> Result<[OwnedFd; 3]> {
    let (stdout_read, stdout) = pipe(owner)?;
    let (stderr_read, stderr) = pipe(owner)?;
    let (ready, ready_write) = pipe(owner)?;
    let null = null()?;
    let c = |text: &str| {
        CString::new(text).map_err(|_| Error::new(Kind::InvalidArgument, "start", text.to_owned()))
    };
    let path = program.to_string_lossy();
    let arguments: Vec<CString> =
        [c(&path)].into_iter().chain(arguments.iter().map(|a| c(a))).collect::<Result<_>>()?;
    let mut environment = crate::runtime::environment();
    environment.push(c(&format!("CONTAINER_ID={}", owner.container))?);
    environment.push(c(&format!("CONTAINER_NAMESPACE={}", owner.namespace))?);
    fs::metadata(program).context("start", path.clone())?;
    spawn(&Spawn {
        program: &arguments[0],
        executable: None,
        arguments: &arguments,
        environment: &environment,
        descriptors: &[
            null.as_fd(),
            null.as_fd(),
            null.as_fd(),
            stdout_read.as_fd(),
            stderr_read.as_fd(),
            ready_write.as_fd(),
        ],
        report: null.as_fd(),
        first: None,
        after: None,
        process_group: true,
        dies_with_us: false,
    })
    .context("start", path)?;
    Ok([stdout, stderr, ready])
}

/// The socket on which a runtime hands over a terminal's master; removed when dropped.
pub struct ConsoleSocket {
    listener: UnixListener,
    /// Reaches the socket by a short path, whatever the length of the bundle's: socket names hold 108 bytes.
    directory: File,
    path: PathBuf,
    name: String,
}

impl ConsoleSocket {
    fn bind(directory: &Path, name: &str) -> Result<ConsoleSocket> {
        let name = format!("{name}.pty");
        let path = directory.join(&name);
        let shown = || path.display().to_string();
        let directory = File::open(directory).context("open", directory.display().to_string())?;
        // Left by an attempt that died.
        let _ = fs::remove_file(&path);
        let short = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
        let listener = UnixListener::bind(short).context("bind", shown())?;
        listener.set_nonblocking(true).context("set up", shown())?;
        Ok(ConsoleSocket { listener, directory, path, name })
    }

    /// The path to give to the runtime.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}/{}", std::process::id(), self.directory.as_raw_fd(), self.name)
    }

    /// The terminal that the runtime sent before it ended.
    fn receive(&self) -> Result<File> {
        let failed = |error| Error::io("receive the terminal from", "the OCI runtime", error);
        let (stream, _) = self.listener.accept().map_err(failed)?;
        let master: File = receive_descriptor(stream.as_fd()).map_err(failed)?.into();
        do_not_wait(&master)?;
        Ok(master)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // The bundle goes too, if this fails.
        let _ = fs::remove_file(&self.path);
    }
}

/// The copies of all processes.
#[derive(Default)]
pub struct Copies {
    pumps: BTreeMap<u64, Pump>,
    next: u64,
    /// Those with more to copy than one turn allowed.
    ready: Vec<u64>,
    /// Those whose far end takes no more, and since when.
    stalled: BTreeMap<u64, Instant>,
}

/// A process' connected streams.
#[derive(Default)]
pub struct Connected {
    outputs: Vec<u64>,
    /// Where input comes from and goes to, until it is opened.
    input: Option<(PathBuf, File)>,
    stdin: Option<u64>,
    /// A writing end of our own: no end of input before the client says so.
    stdin_hold: Option<File>,
    stdin_closed: bool,
    console: Option<File>,
    /// Open as long as the process is there.
    _kept: Vec<OwnedFd>,
}

impl Copies {
    /// Connects a process' streams once the runtime has made it.
    pub fn connect(&mut self, poller: &Poller, streams: Streams) -> Result<Connected> {
        let mut connected = Connected { _kept: streams.kept, ..Connected::default() };
        let console = streams.console.as_ref().map(ConsoleSocket::receive).transpose()?;
        let copy = |file: &File| file.try_clone().context("copy a descriptor", "");
        for pump in streams.copies {
            connected.outputs.push(self.add(poller, pump)?);
        }
        if let Some(master) = &console {
            let (sink, hold) = match streams.output {
                Some(Output::Fifo(sink, hold)) => (sink, Some(hold)),
                Some(Output::Pipe(write)) => {
                    do_not_wait(&write)?;
                    (write.into(), None)
                }
                _ => (null()?.into(), None),
            };
            let pump = Pump::new(copy(master)?, sink, hold);
            connected.outputs.push(self.add(poller, pump)?);
        }
        if let Some(Input { path, pipe }) = streams.stdin {
            let sink = match (pipe, &console) {
                (Some(pipe), _) => pipe,
                (None, Some(master)) => copy(master)?,
                (None, None) => null()?.into(),
            };
            connected.input = Some((path, sink));
        }
        connected.console = console;
        Ok(connected)
    }

    /// Lets a process that starts have its input.
    pub fn open_stdin(&mut self, poller: &Poller, connected: &mut Connected) -> Result<()> {
        if let Some((path, sink)) = connected.input.take() {
            let fifo = open_fifo(&path, false)?;
            if !connected.stdin_closed {
                connected.stdin_hold = Some(open_fifo(&path, true)?);
            }
            connected.stdin = Some(self.add(poller, Pump::new(fifo, sink, None))?);
        }
        Ok(())
    }

    fn add(&mut self, poller: &Poller, pump: Pump) -> Result<u64> {
        let number = self.next;
        self.next += 1;
        for end in pump.ends() {
            if let Err(error) = poller.add(end, Token::Pump(number), Interest::Edges)
                // /dev/null and plain files are always ready and cannot be watched.
                && error.kind() != Kind::PermissionDenied
            {
                return Err(error);
            }
        }
        self.pumps.insert(number, pump);
        self.ready.push(number);
        Ok(number)
    }

    /// Lets one copy have a turn.
    pub fn run(&mut self, poller: &Poller, number: u64) {
        let Some(pump) = self.pumps.get_mut(&number) else { return };
        let progress = pump.run();
        if progress != Progress::Stalled {
            self.stalled.remove(&number);
        }
        match progress {
            Progress::Waiting => {}
            Progress::More => self.ready.push(number),
            Progress::Stalled => {
                self.stalled.entry(number).or_insert_with(|| Instant::now() + LOOK_AFTER);
            }
            Progress::Finished => self.remove(poller, number),
        }
    }

    /// Lets all copies that have more have their turn, and looks for readers that are gone.
    pub fn run_ready(&mut self, poller: &Poller) {
        for number in std::mem::take(&mut self.ready) {
            self.run(poller, number);
        }
        let now = Instant::now();
        let due: Vec<u64> = self.stalled.iter().filter(|(_, at)| **at <= now).map(|(n, _)| *n).collect();
        for number in due {
            self.stalled.insert(number, now + LOOK_AFTER);
            if let Some(pump) = self.pumps.get_mut(&number) {
                pump.look_for_reader();
            }
            self.run(poller, number);
        }
    }

    /// When [`Copies::run_ready`] is to be called although nothing became ready.
    pub fn wakes_at(&self) -> Option<Instant> {
        if self.ready.is_empty() { self.stalled.values().min().copied() } else { Some(Instant::now()) }
    }

    fn remove(&mut self, poller: &Poller, number: u64) {
        self.stalled.remove(&number);
        if let Some(pump) = self.pumps.remove(&number) {
            for end in pump.ends() {
                poller.remove(end);
            }
        }
    }

    /// Whether all output of a process has reached its far end.
    pub fn is_drained(&self, connected: &Connected) -> bool {
        !connected.outputs.iter().any(|number| self.pumps.contains_key(number))
    }

    /// Lets a process see the end of its input once all that was written before is read.
    pub fn close_stdin(&mut self, poller: &Poller, connected: &mut Connected) {
        connected.stdin_closed = true;
        connected.stdin_hold = None;
        if let Some(number) = connected.stdin {
            self.run(poller, number);
        }
    }

    /// Closes everything of a process.
    pub fn release(&mut self, poller: &Poller, connected: Connected) {
        for number in connected.outputs.into_iter().chain(connected.stdin) {
            self.remove(poller, number);
        }
    }
}

impl Connected {
    /// Sets the size of the process' terminal; without one there is nothing to set.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        match &self.console {
            Some(master) => orlop_host::sys::tty::set_size(master.as_fd(), rows, columns)
                .context("set the size of", "the terminal"),
            None => Ok(()),
        }
    }
}
