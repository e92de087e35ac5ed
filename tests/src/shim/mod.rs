//! A shim started as a manager starts it, and a container in it.

mod client;
mod events;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::containerd::task::v2::*;
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::error::Result;
use prost::Message;
use prost_types::Any;
use serde_json::json;

use crate::{Bundle, Cmd, Root, binaries, host, poll_until, poll_value};

pub use client::{Client, Pending};
pub use events::{Events, Manner};

/// How long anything may take that a shim does.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A runtime by the name that tests use for it.
pub fn runtime(name: &str) -> PathBuf {
    if name == "orlop" { binaries::orlop() } else { binaries::system(name) }
}

/// A serving shim with its bundle.
pub struct Shim {
    /// The container's id: the test's tag and a name.
    pub id: String,
    /// What it is made from.
    pub bundle: Bundle,
    /// Where the shim listens.
    pub socket: PathBuf,
    /// The manager that takes its events.
    pub events: Events,
    /// What a creation asks for.
    pub options: Options,
    /// Its client.
    pub client: Client,
    program: PathBuf,
    namespace: String,
    _log: File,
}

/// Everything that a shim needs before it is started.
#[derive(Debug)]
pub struct Prepared {
    id: String,
    bundle: Bundle,
    events: Events,
    options: Options,
    namespace: String,
}

impl Prepared {
    /// For the container of a saved bundle, whose id is the root's tag and a name.
    pub fn new(root: &Root, name: &str, bundle: Bundle, runtime: &Path, events: Events) -> Prepared {
        let options = Options {
            binary_name: runtime.display().to_string(),
            root: root.join("runtime").display().to_string(),
            ..Options::default()
        };
        let id = format!("{}-{name}", root.tag());
        Prepared { id, bundle, events, options, namespace: root.tag().to_owned() }
    }

    /// Starts a shim by its program's start action and connects to it.
    pub fn start(self, program: &Path) -> Shim {
        let Prepared { id, bundle, events, options, namespace } = self;
        // Managers make a FIFO for the shim's log and hold it; containerd's shim does not serve without.
        let log = bundle.path().join("log");
        mkfifo(&log, Mode::S_IRWXU).expect("making the log's FIFO");
        let log = reader(&log.display().to_string());
        let start = action_of(program, &bundle, &id, &namespace, events.path()).arg("start");
        let output = start.run().success();
        let path = output.stdout.trim().strip_prefix("unix://").expect("the answer is a unix socket's URL");
        let socket = PathBuf::from(path);
        let client = Client::connect(&socket);
        Shim {
            id,
            bundle,
            socket,
            events,
            options,
            client,
            namespace,
            program: program.to_owned(),
            _log: log,
        }
    }
}

impl Shim {
    /// A shim for a container that runs a shell script, driven through runc.
    pub fn start(root: &Root, script: &str) -> Shim {
        Shim::start_with(root, "c", &runtime("runc"), |bundle| bundle.sh(script))
    }

    /// A shim for a container named after the test's tag, whose configuration can be changed.
    pub fn start_with(
        root: &Root,
        name: &str,
        runtime: &Path,
        change: impl FnOnce(Bundle) -> Bundle,
    ) -> Shim {
        Shim::start_for(root, name, runtime, Manner::Answering, change)
    }

    /// A shim whose manager has manners of its own.
    pub fn start_for(
        root: &Root,
        name: &str,
        runtime: &Path,
        manner: Manner,
        change: impl FnOnce(Bundle) -> Bundle,
    ) -> Shim {
        let bundle = change(Bundle::new(root, name)).save();
        let prepared = Prepared::new(root, name, bundle, runtime, Events::listen(manner));
        prepared.start(&binaries::shim())
    }

    /// A second client, as a manager that was started again is.
    pub fn connect(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// The shim's pid, as it tells it.
    pub fn pid(&mut self) -> i32 {
        let request = ConnectRequest { id: self.id.clone() };
        self.client.call::<ConnectResponse>("Connect", &request).expect("Connect").shim_pid as i32
    }

    /// The request that creates the container.
    pub fn create_request(&self, stdio: &Fifos) -> CreateTaskRequest {
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.path().display().to_string(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            options: Some(any::pack(&self.options)),
            ..CreateTaskRequest::default()
        }
    }

    /// Asks for the container; its pid.
    pub fn try_create(&mut self, stdio: &Fifos) -> Result<i32> {
        let request = self.create_request(stdio);
        self.client.call::<CreateTaskResponse>("Create", &request).map(|response| response.pid as i32)
    }

    /// Creates the container; its pid.
    pub fn create(&mut self, stdio: &Fifos) -> i32 {
        self.try_create(stdio).expect("Create")
    }

    /// Creates and starts the container without streams.
    pub fn run(&mut self) -> i32 {
        let pid = self.create(&Fifos::default());
        self.start_process("").expect("Start");
        pid
    }

    /// Starts init (an empty name) or an exec; its pid.
    pub fn start_process(&mut self, exec: &str) -> Result<i32> {
        let request = StartRequest { id: self.id.clone(), exec_id: exec.into() };
        self.client.call::<StartResponse>("Start", &request).map(|response| response.pid as i32)
    }

    /// The request that adds an exec of a shell script.
    pub fn exec_request(&self, exec: &str, script: &str, stdio: &Fifos) -> ExecProcessRequest {
        let mut process = self.bundle.config()["process"].clone();
        process["args"] = json!(["sh", "-c", script]);
        let spec = Any { type_url: any::PROCESS_URL.into(), value: process.to_string().into_bytes() };
        ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            spec: Some(spec),
        }
    }

    /// Adds an exec of a shell script.
    pub fn exec(&mut self, exec: &str, script: &str, stdio: &Fifos) {
        let request = self.exec_request(exec, script, stdio);
        self.client.call::<()>("Exec", &request).expect("Exec");
    }

    /// Begins to wait for a process.
    pub fn send_wait(&mut self, exec: &str) -> Pending {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec.into() };
        self.client.send("Wait", &request)
    }

    /// Waits for a process; its exit status.
    pub fn wait(&mut self, exec: &str) -> u32 {
        let pending = self.send_wait(exec);
        self.client.receive::<WaitResponse>(pending).expect("Wait").exit_status
    }

    /// Asks for the state of a process.
    pub fn state(&mut self, exec: &str) -> Result<StateResponse> {
        let request = StateRequest { id: self.id.clone(), exec_id: exec.into() };
        self.client.call("State", &request)
    }

    /// The status of a process.
    pub fn status(&mut self, exec: &str) -> Status {
        self.state(exec).expect("State").status()
    }

    /// Signals a process.
    pub fn kill(&mut self, exec: &str, signal: Signal) -> Result<()> {
        let request =
            KillRequest { id: self.id.clone(), exec_id: exec.into(), signal: signal as u32, all: false };
        self.client.call("Kill", &request)
    }

    /// Deletes a process.
    pub fn delete(&mut self, exec: &str) -> Result<DeleteResponse> {
        let request = DeleteRequest { id: self.id.clone(), exec_id: exec.into() };
        self.client.call("Delete", &request)
    }

    /// Calls a method that takes nothing but the container's id.
    pub fn simple(&mut self, method: &'static str) -> Result<()> {
        // All of them have the same form on the wire.
        self.client.call(method, &PauseRequest { id: self.id.clone() })
    }

    /// Asks the shim to end, and waits until it and its socket are gone.
    pub fn shut_down(mut self) {
        let pid = self.pid();
        let request = ShutdownRequest { id: self.id.clone(), now: true };
        let answered = self.client.call::<()>("Shutdown", &request);
        // containerd's shim may end before it answers.
        assert!(answered.is_ok() || self.program != binaries::shim(), "Shutdown: {answered:?}");
        poll_until(DEADLINE, "the shim ends", || !host::alive(pid));
        assert!(!self.socket.exists(), "the shim's socket is left");
    }

    /// Kills the container, deletes it, and ends the shim.
    pub fn finish(mut self) {
        let _ = self.kill("", Signal::SIGKILL);
        self.wait("");
        self.delete("").expect("Delete");
        self.shut_down();
    }

    /// The delete action, as a manager calls it when a shim is gone.
    pub fn delete_action(&self) -> DeleteResponse {
        let output = action_of(&self.program, &self.bundle, &self.id, &self.namespace, self.events.path())
            .args(["-bundle", self.bundle.path().to_str().unwrap(), "delete"])
            .run()
            .success();
        DeleteResponse::decode(output.stdout_bytes.as_slice()).expect("a DeleteResponse")
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // A test that failed leaves its shim, which nobody else would find by the test's tag in time.
        if std::thread::panicking()
            && let Ok(pid) = fs::read_to_string(self.bundle.path().join("shim.pid"))
            && let Ok(pid) = pid.trim().parse()
            && self.socket.exists()
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = fs::remove_file(&self.socket);
        }
    }
}

/// The shim's binary with the flags and environment that containerd gives it.
pub fn action(bundle: &Bundle, id: &str, namespace: &str, manager: &Path) -> Cmd {
    action_of(&binaries::shim(), bundle, id, namespace, manager)
}

/// Any shim's binary with the flags and environment that containerd gives it.
fn action_of(program: &Path, bundle: &Bundle, id: &str, namespace: &str, manager: &Path) -> Cmd {
    Cmd::new(program)
        .args(["-namespace", namespace, "-address", "/nonexistent/manager.sock", "-publish-binary", "true"])
        .args(["-id", id])
        .env("TTRPC_ADDRESS", manager)
        .env("MAX_SHIM_VERSION", "2")
        .cwd(bundle.path())
}

/// A client's FIFOs. Empty names are no streams.
#[derive(Debug, Default)]
pub struct Fifos {
    /// Where input comes from.
    pub stdin: String,
    /// Where output goes.
    pub stdout: String,
    /// Where complaints go.
    pub stderr: String,
    /// Whether all of it is a terminal's.
    pub terminal: bool,
}

impl Fifos {
    /// FIFOs for all three streams.
    pub fn make(root: &Root, name: &str) -> Fifos {
        let make = |stream: &str| {
            let path = root.join(format!("{name}-{stream}"));
            mkfifo(&path, Mode::S_IRWXU).expect("making a FIFO");
            path.display().to_string()
        };
        Fifos { stdin: make("stdin"), stdout: make("stdout"), stderr: make("stderr"), terminal: false }
    }

    /// FIFOs for output alone.
    pub fn output(root: &Root, name: &str) -> Fifos {
        Fifos { stdin: String::new(), ..Fifos::make(root, name) }
    }

    /// FIFOs for a terminal.
    pub fn terminal(root: &Root, name: &str) -> Fifos {
        Fifos { terminal: true, stderr: String::new(), ..Fifos::make(root, name) }
    }
}

/// A FIFO's reading end, which does not wait for a writer.
pub fn reader(path: &str) -> File {
    File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).expect("opening a FIFO to read")
}

/// A FIFO's writing end, once the shim reads it.
pub fn writer(path: &str) -> File {
    let mut options = File::options();
    let options = options.write(true).custom_flags(nix::libc::O_NONBLOCK);
    poll_value(DEADLINE, "the shim opens stdin", || options.open(path).ok())
}

/// Reads a FIFO until all its writers are gone.
pub fn read_to_end(mut reader: File) -> String {
    let mut all = Vec::new();
    poll_until(DEADLINE, "the end of the output", || read_available(&mut reader, &mut all));
    String::from_utf8(all).expect("text")
}

/// Reads what is there; true at the end.
pub fn read_available(reader: &mut File, all: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 65536];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return true,
            Ok(count) => all.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
            Err(error) => panic!("reading a FIFO: {error}"),
        }
    }
}
