//! The serving shim, whole: what it is set up with, what it waits for, and what it does when something comes.
//!
//! One thread waits for clients, signals, output and time. Requests become [`Input`]s of a container's state machine
//! (`task`), whose effects are performed by `containers`; jobs and exits come back as inputs. Nothing here waits for
//! anything but [`Poller::wait`].

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use orlop_host::sys::{creds, fd};
use orlop_proto::containerd::task::v2 as api;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc;
use prost::Message;

use crate::cli::Arguments;
use crate::connection::Connection;
use crate::containers::{Active, Container, Drain};
use crate::direct::Asked;
use crate::events::Publisher;
use crate::jobs::Running;
use crate::log;
use crate::poll::{Interest, Poller, Token};
use crate::reaper::Reaper;
use crate::sandbox::{self, Sandbox};
use crate::sealed::Sealed;
use crate::service::{self, Request};
use crate::stdio::Copies;
use crate::task::{Call, Input};

/// How long events may take to reach the manager after the last container is gone.
const FLUSH: Duration = Duration::from_secs(3);
/// The descriptor on which the start action leaves the listening socket.
const INHERITED_SOCKET: i32 = 3;

/// Everything that the shim has to do with.
pub struct Shim {
    pub namespace: String,
    pub poller: Poller,
    pub containers: BTreeMap<String, Container>,
    /// What happened and has not been taken in yet.
    pub inputs: VecDeque<(String, Input)>,
    pub jobs: BTreeMap<u64, Active>,
    pub drains: Vec<Drain>,
    pub asked: Vec<Asked>,
    pub copies: Copies,
    pub publisher: Publisher,
    pub reaper: Reaper,
    /// The runtime's binary, once it was needed.
    pub sealed: Option<Sealed>,
    sandbox: Sandbox,
    connections: BTreeMap<u64, Connection>,
    /// Numbers for jobs, containers and connections, none of which is used twice.
    numbers: u64,
    /// When to end at the latest, once asked to.
    ending: Option<Instant>,
}

/// Serves until the last container is deleted and the manager says so.
pub fn serve(arguments: &Arguments) -> Result<()> {
    let listener = listen(arguments)?;
    log::open(
        std::path::absolute("log").context("find", "log")?.display().to_string(),
        arguments.debug,
        format!("id={} namespace={} pid={}", arguments.id, arguments.namespace, std::process::id()),
    );
    let address = crate::boot::address_of_manager(arguments);
    let signals = set_up_process()?;
    let mut shim = Shim::new(&arguments.namespace, &address)?;
    shim.poller.add(&signals, Token::Signal, Interest::Read)?;
    shim.poller.add(&listener, Token::Listener, Interest::Read)?;
    while !shim.is_over() {
        for token in shim.poller.wait(shim.wakes_at())? {
            match token {
                Token::Signal => shim.take_signals(&signals),
                Token::Listener => shim.accept(&listener),
                Token::Connection(number) => shim.hear(number),
                Token::Publisher => shim.publisher.advance(&shim.poller),
                Token::Job(number) => shim.read_output(number),
                Token::Pump(number) => shim.copies.run(&shim.poller, number),
                Token::OutOfMemory(number) => shim.out_of_memory(number),
            }
            shim.settle();
        }
        shim.copies.run_ready(&shim.poller);
        shim.check_time();
        shim.settle();
    }
    crate::boot::remove_own_socket(&listener);
    Ok(())
}

/// The socket that the start action made, or one at a path of the caller's choice.
fn listen(arguments: &Arguments) -> Result<UnixListener> {
    let listener: UnixListener = if arguments.socket.is_empty() {
        fd::adopt(INHERITED_SOCKET).map(Into::into).context("take over", "the listening socket")?
    } else {
        UnixListener::bind(&arguments.socket).context("bind", &arguments.socket)?
    };
    listener.set_nonblocking(true).context("set up", "the listening socket")?;
    // Over exec it had to stay open; from here on it must not.
    fd::close_on_exec_from(INHERITED_SOCKET as u32).context("set up", "descriptors")?;
    Ok(listener)
}

/// Leaves the caller's streams, adopts orphans, gives up huge pages, and takes signals by descriptor.
fn set_up_process() -> Result<SignalFd> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null: OwnedFd = null.context("open", "/dev/null")?.into();
    for number in 0..=2 {
        fd::put_at_standard(null.as_fd(), number).context("leave", "the standard streams")?;
    }
    creds::set_child_subreaper().context("become", "a subreaper")?;
    // A shim is small; a huge page would be most of it. Without the option it merely uses more.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let signals: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("block", "signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("open", "a signal descriptor")
}

impl Shim {
    fn new(namespace: &str, manager: &str) -> Result<Shim> {
        Ok(Shim {
            namespace: namespace.to_owned(),
            poller: Poller::new()?,
            containers: BTreeMap::new(),
            inputs: VecDeque::new(),
            jobs: BTreeMap::new(),
            drains: Vec::new(),
            asked: Vec::new(),
            copies: Copies::default(),
            publisher: Publisher::new(manager, namespace),
            reaper: Reaper::default(),
            sealed: None,
            sandbox: Sandbox::default(),
            connections: BTreeMap::new(),
            numbers: 0,
            ending: None,
        })
    }

    /// A number that was not used before.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn is_over(&self) -> bool {
        let answered = !self.connections.values().any(Connection::wants_to_write);
        self.ending.is_some_and(|latest| {
            (self.publisher.is_idle() && self.jobs.is_empty() && answered) || latest <= Instant::now()
        })
    }

    /// When something is to be done although nothing comes.
    fn wakes_at(&self) -> Option<Instant> {
        let jobs =
            self.jobs.values().filter(|job| !job.running.timed_out).filter_map(|job| job.running.deadline);
        let drains = self.drains.iter().map(|drain| drain.until);
        let others = [self.publisher.wakes_at(), self.copies.wakes_at(), self.ending];
        let asked = self.asked.iter().map(|asked| asked.look);
        others.into_iter().flatten().chain(jobs).chain(drains).chain(asked).min()
    }

    fn check_time(&mut self) {
        let now = Instant::now();
        for job in self.jobs.values_mut() {
            job.running.check_deadline(now);
        }
        self.check_drains(now);
        self.check_asked(now);
        if self.publisher.wakes_at().is_some_and(|time| time <= now) {
            self.publisher.advance(&self.poller);
        }
    }

    fn take_signals(&mut self, signals: &SignalFd) {
        while let Ok(Some(info)) = signals.read_signal() {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                if self.containers.is_empty() {
                    self.end();
                } else {
                    log::warn("asked to end while containers need a shim: going on");
                }
            }
        }
        for (pid, exit) in self.reaper.reap() {
            let job = self.jobs.iter().find(|(_, job)| job.running.pid == pid).map(|(number, _)| *number);
            if let Some(number) = job {
                self.finish(number, exit.status);
            } else if let Some(id) = self.owner(pid) {
                // The kernel counts the lack of memory before it kills, but its notice may come after the process's end.
                if let Some(container) = self.containers.get(&id) {
                    self.out_of_memory(container.number);
                }
                self.inputs.push_back((id, Input::Exited(pid, exit)));
            } else if self.jobs.values().any(Active::names_a_process) {
                self.reaper.keep(pid, exit);
            }
            // The next exit may be of the process that a finished job has just named.
            self.settle();
        }
    }

    fn owner(&self, pid: i32) -> Option<String> {
        self.containers.iter().find(|(_, container)| container.task.owns(pid)).map(|(id, _)| id.clone())
    }

    fn accept(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            let number = self.number();
            let connection = Connection::new(stream).and_then(|connection| {
                self.poller.add(connection.stream(), Token::Connection(number), Interest::Read)?;
                Ok(connection)
            });
            match connection {
                Ok(connection) => drop(self.connections.insert(number, connection)),
                Err(error) => log::warn(error),
            }
        }
    }

    /// Takes a client's requests.
    fn hear(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let received = match connection.flush() {
            Ok(()) => connection.receive(),
            Err(error) => Err(error),
        };
        let requests = match received {
            Ok(requests) => requests,
            Err(error) => {
                log::debug(error);
                return self.hang_up(number);
            }
        };
        for (stream, request) in requests {
            let call = Call { connection: number, stream, deadline: None };
            match request.and_then(|request| Ok((deadline(&request), service::decode(&request)?))) {
                Ok((deadline, request)) => self.take_request(Call { deadline, ..call }, request),
                Err(error) => self.answer(call, Err(error)),
            }
        }
        self.watch(number);
    }

    fn take_request(&mut self, call: Call, request: Request) {
        match request {
            Request::Create(request) => {
                if let Err(error) = self.create(call, *request) {
                    self.answer(call, Err(error));
                }
            }
            Request::Task { id, command } => {
                if self.containers.contains_key(&id) {
                    self.inputs.push_back((id, Input::Request(call, command)));
                } else {
                    let error = Error::new(Kind::NotFound, "container not created", "");
                    self.answer(call, Err(error));
                }
            }
            Request::Connect { id } => {
                let task_pid = self.containers.get(&id).map_or(0, |container| container.task.pid());
                let response = api::ConnectResponse {
                    shim_pid: std::process::id(),
                    task_pid: task_pid as u32,
                    version: String::new(),
                };
                self.answer(call, Ok(response.encode_to_vec()));
            }
            Request::Shutdown => {
                if self.containers.is_empty() {
                    self.end();
                }
                self.answer(call, Ok(Vec::new()));
            }
            Request::Sandbox(command) => {
                let entered = self.sandbox.wants_place(&command).map_or(Ok(()), sandbox::Place::enter);
                if let Err(error) = entered {
                    return self.answer(call, Err(error));
                }
                let ends = command == sandbox::Command::Shutdown;
                for (call, reply) in self.sandbox.step(call, command, SystemTime::now()) {
                    self.answer(call, reply);
                }
                if ends && self.containers.is_empty() {
                    self.end();
                }
            }
        }
    }

    fn end(&mut self) {
        self.ending.get_or_insert_with(|| Instant::now() + FLUSH);
    }

    /// Answers a caller, who may be gone.
    pub fn answer(&mut self, call: Call, result: Result<Vec<u8>>) {
        if let Err(error) = &result {
            log::debug(format_args!("answer: {error}"));
        }
        let Some(connection) = self.connections.get_mut(&call.connection) else { return };
        match connection.answer(call.stream, result) {
            Ok(()) => self.watch(call.connection),
            Err(error) => {
                log::debug(error);
                self.hang_up(call.connection);
            }
        }
    }

    fn watch(&mut self, number: u64) {
        let Some(connection) = self.connections.get(&number) else { return };
        let interest = if connection.wants_to_write() { Interest::ReadWrite } else { Interest::Read };
        if let Err(error) = self.poller.change(connection.stream(), Token::Connection(number), interest) {
            log::warn(error);
        }
    }

    fn hang_up(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            self.poller.remove(connection.stream());
        }
        self.sandbox.forget(number);
        for id in self.containers.keys() {
            self.inputs.push_back((id.clone(), Input::Disconnected(number)));
        }
    }

    fn read_output(&mut self, number: u64) {
        if let Some(job) = self.jobs.get_mut(&number)
            && !job.running.read()
        {
            self.poller.remove(Running::output(&job.running));
        }
    }

    /// Takes in all that happened, and does what follows from it, until nothing follows any more.
    pub fn settle(&mut self) {
        while let Some((id, input)) = self.inputs.pop_front() {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            for effect in container.task.step(input) {
                self.perform(&id, effect);
            }
        }
    }
}

/// When a caller gives up.
fn deadline(request: &ttrpc::Request) -> Option<Instant> {
    let timeout = u64::try_from(request.timeout_nano).ok().filter(|timeout| *timeout > 0)?;
    Instant::now().checked_add(Duration::from_nanos(timeout))
}
