//! Tasks: running containers, each in the care of a shim.
//!
//! The [`Supervisor`] knows every task; a [`Task`] is one shim's connection and carries the calls on it. Calls on
//! different containers never wait for each other, and what brings a container up or down runs to its end or
//! is undone whether or not the caller still waits. The messages of the shim protocol are the terms of this module.
//!
//! Follows containerd's `core/runtime/v2` (`TaskManager`, `ShimManager`) in procedure and error texts.

mod bundle;
mod dialect;
mod grpc;
mod launch;
mod log;
mod recovery;
mod registry;
mod runtime;
mod sandbox;
mod shim;
mod sockets;
mod supervisor;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use orlop_proto::containerd::task::v2::task_ttrpc as method;
use orlop_proto::containerd::task::v2::{
    CheckpointTaskRequest, CloseIoRequest, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use orlop_proto::containerd::types::Mount;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use prost_types::{Any, Timestamp};
use tokio::sync::{Mutex, SetOnce};

pub use bundle::{TASKS, WorkDirectory};
pub use sandbox::CreateSandbox;
pub use supervisor::Supervisor;

use crate::db::blocking;
use crate::identifier;
use launch::Launcher;
use shim::Shim;

/// How long a shim may take to tell what it knows already, before it counts as deaf.
const ANSWER: Duration = Duration::from_secs(2);
/// The same for one that was deaf the last time: who asks for many tasks waits for it once only.
const DEAF_ANSWER: Duration = Duration::from_millis(50);
/// How long a waiting caller is kept while the container of a shim that died is cleaned up.
const CLEANUP: Duration = Duration::from_secs(10);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exit {
    /// Its number on the host.
    pub pid: u32,
    /// Exit code, or 128 and the signal's number.
    pub status: u32,
    /// When.
    pub at: Option<Timestamp>,
}

impl From<DeleteResponse> for Exit {
    fn from(answer: DeleteResponse) -> Exit {
        Exit { pid: answer.pid, status: answer.exit_status, at: answer.exited_at }
    }
}

/// Where a process's standard streams go: paths of fifos, URIs, or nothing.
#[derive(Clone, Debug, Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: String,
    /// Standard output, and the terminal's.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// CRIU's images of a container that was saved.
#[derive(Clone, Default)]
pub enum Images {
    /// The container is new.
    #[default]
    None,
    /// In this directory.
    In(String),
    /// To be unpacked from somewhere.
    Saved(Arc<dyn Saved>),
}

/// A saved container that is not in a directory yet.
pub trait Saved: Send + Sync {
    /// Puts CRIU's images into an empty directory.
    fn unpack<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, Result<()>>;
}

/// A container to be brought up.
#[derive(Clone)]
pub struct Create {
    /// Name of the container.
    pub id: String,
    /// OCI runtime specification; its bytes reach the runtime unchanged.
    pub spec: Vec<u8>,
    /// Name of the runtime.
    pub runtime: String,
    /// Options of the runtime.
    pub options: Option<Any>,
    /// Mounts that make the root file system.
    pub rootfs: Vec<Mount>,
    /// Standard streams.
    pub stdio: Stdio,
    /// What it is restored from.
    pub images: Images,
    /// The sandbox that it belongs to, whose shim serves it; empty for none.
    pub sandbox: String,
    /// Where that sandbox's shim listens, and its version, if an external controller runs it.
    pub endpoint: Option<(String, u32)>,
}

/// A running container: the connection to its shim.
pub struct Task {
    launcher: Launcher,
    shim: Shim,
    /// True once the container was deleted, or its shim was found dead: then nobody else cleans up. Held while
    /// either is being done.
    retired: Mutex<bool>,
    /// Whether the shim left the last question that must be answered soon without an answer.
    deaf: AtomicBool,
    /// The container's exit, as soon as it is known from an event or from cleaning up.
    exit: SetOnce<Exit>,
}

impl Task {
    fn new(launcher: Launcher, shim: Shim) -> Arc<Task> {
        let (retired, deaf) = (Mutex::new(false), AtomicBool::new(false));
        Arc::new(Task { launcher, shim, retired, deaf, exit: SetOnce::new() })
    }

    /// Name of the container.
    pub fn id(&self) -> &str {
        &self.launcher.bundle.id
    }

    /// Namespace of the container.
    pub fn namespace(&self) -> &str {
        self.launcher.bundle.namespace.as_str()
    }

    /// Starts the container's process, or that of an exec; returns its number.
    pub async fn start(&self, exec: &str) -> Result<u32> {
        let request = StartRequest { id: self.id().to_owned(), exec_id: exec.to_owned() };
        let answer: StartResponse = self.shim.call(method::START, &request).await?;
        Ok(answer.pid)
    }

    /// What is known of the container's process, or of an exec's.
    pub async fn state(&self, exec: &str) -> Result<StateResponse> {
        let request = StateRequest { id: self.id().to_owned(), exec_id: exec.to_owned() };
        self.shim.call(method::STATE, &request).await
    }

    /// As [`Task::state`], but a deaf shim costs only a moment.
    pub async fn state_soon(&self) -> Result<StateResponse> {
        self.ask(method::STATE, &StateRequest { id: self.id().to_owned(), exec_id: String::new() }).await
    }

    /// Asks what a shim can tell at once.
    async fn ask<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A> {
        let deadline = if self.deaf.load(Ordering::Relaxed) { DEAF_ANSWER } else { ANSWER };
        let answer = self.shim.call_within(method, request, deadline).await;
        let late = answer.as_ref().is_err_and(|error| error.kind() == Kind::DeadlineExceeded);
        self.deaf.store(late, Ordering::Relaxed);
        answer
    }

    /// Removes an exec that has ended.
    pub async fn delete_process(&self, exec: &str) -> Result<Exit> {
        let request = DeleteRequest { id: self.id().to_owned(), exec_id: exec.to_owned() };
        let answer: DeleteResponse = self.shim.call(method::DELETE, &request).await?;
        Ok(answer.into())
    }

    /// Sends a signal to the container's process, an exec's, or all of the container's.
    pub async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<()> {
        let request = KillRequest { id: self.id().to_owned(), exec_id: exec.to_owned(), signal, all };
        self.shim.call(method::KILL, &request).await
    }

    /// Adds a process to the container; [`Task::start`] starts it.
    pub async fn exec(&self, exec: &str, stdio: Stdio, spec: Option<Any>) -> Result<()> {
        identifier::validate(exec)
            .map_err(|error| Error::because(error.kind(), "invalid exec id", exec.to_owned(), error))?;
        let Stdio { stdin, stdout, stderr, terminal } = stdio;
        let (id, exec_id) = (self.id().to_owned(), exec.to_owned());
        let request = ExecProcessRequest { id, exec_id, terminal, stdin, stdout, stderr, spec };
        self.shim.call(method::EXEC, &request).await
    }

    /// Sets the size of a process's terminal, in characters.
    pub async fn resize(&self, exec: &str, width: u32, height: u32) -> Result<()> {
        let request = ResizePtyRequest { id: self.id().to_owned(), exec_id: exec.to_owned(), width, height };
        self.shim.call(method::RESIZE_PTY, &request).await
    }

    /// Closes a process's standard input.
    pub async fn close_stdin(&self, exec: &str) -> Result<()> {
        let request = CloseIoRequest { id: self.id().to_owned(), exec_id: exec.to_owned(), stdin: true };
        self.shim.call(method::CLOSE_IO, &request).await
    }

    /// Freezes the container.
    pub async fn pause(&self) -> Result<()> {
        self.shim.call(method::PAUSE, &PauseRequest { id: self.id().to_owned() }).await
    }

    /// Thaws the container.
    pub async fn resume(&self) -> Result<()> {
        self.shim.call(method::RESUME, &ResumeRequest { id: self.id().to_owned() }).await
    }

    /// The container's processes.
    pub async fn pids(&self) -> Result<PidsResponse> {
        self.shim.call(method::PIDS, &PidsRequest { id: self.id().to_owned() }).await
    }

    /// Changes the container's limits.
    pub async fn update(&self, update: UpdateTaskRequest) -> Result<()> {
        self.shim.call(method::UPDATE, &UpdateTaskRequest { id: self.id().to_owned(), ..update }).await
    }

    /// A new directory beside the bundle that a checkpoint can be made in; it goes with the bundle at the latest.
    pub async fn checkpoint_directory(&self) -> Result<WorkDirectory> {
        let bundle = self.launcher.bundle.clone();
        blocking(move || bundle.work_directory(SAVED)).await
    }

    /// Saves the container's processes to a directory, as the options say.
    pub async fn checkpoint(&self, path: &str, options: Option<Any>) -> Result<()> {
        let request = CheckpointTaskRequest { id: self.id().to_owned(), path: path.to_owned(), options };
        self.shim.call(method::CHECKPOINT, &request).await
    }

    /// What the container uses, in the shim's own type; a deaf shim costs only a moment.
    pub async fn stats(&self) -> Result<Option<Any>> {
        let answer: StatsResponse =
            self.ask(method::STATS, &StatsRequest { id: self.id().to_owned() }).await?;
        Ok(answer.stats)
    }

    /// Waits for the end of the container's process, or an exec's. The container's exit is told even if its shim
    /// dies meanwhile.
    pub async fn wait(&self, exec: &str) -> Result<Exit> {
        let request = WaitRequest { id: self.id().to_owned(), exec_id: exec.to_owned() };
        match self.shim.call::<WaitResponse>(method::WAIT, &request).await {
            Ok(answer) => Ok(Exit { pid: 0, status: answer.exit_status, at: answer.exited_at }),
            Err(error) if exec.is_empty() && self.shim.has_ended() => self.cleaned_up().await.ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// The exit that cleaning up after a dead shim brings to light.
    async fn cleaned_up(&self) -> Option<Exit> {
        tokio::time::timeout(CLEANUP, self.exit.wait()).await.ok().copied()
    }
}

/// Beginning of the names of directories that containers are saved to.
const SAVED: &str = "saved";

/// The error of a task that does not exist, in containerd's words.
fn no_task(id: &str) -> Error {
    Error::new(Kind::NotFound, format!("task {id} not found"), "")
}
