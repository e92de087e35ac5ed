//! A process in a container, from its start to its exit code, with this program as its terminal.

use orlop_proto::containerd::services::tasks::v1::*;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::signals;
use crate::stdio::Streams;
use crate::terminal;

/// A task, or one of its further processes.
#[derive(Clone)]
pub struct Process {
    /// Connection.
    pub client: Client,
    /// Container.
    pub container: String,
    /// Process; empty for the task itself.
    pub exec: String,
}

/// What may happen to a process from now on.
pub struct Watch {
    exit: JoinHandle<Result<u32>>,
    forwarded: UnboundedReceiver<u32>,
    resized: Signal,
}

impl Process {
    /// Starts it and returns its process ID.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn start(&self) -> Result<u32> {
        let request = StartRequest { container_id: self.container.clone(), exec_id: self.exec.clone() };
        Ok(self.client.tasks().start(request).await?.into_inner().pid)
    }

    /// Waits for its exit and for signals in the background: begun before the process is started, none can be missed.
    ///
    /// # Errors
    ///
    /// Those of installing handlers.
    pub fn watch(&self) -> Result<Watch> {
        let forwarded = signals::forwarded()?;
        let resized = signal(SignalKind::window_change())
            .map_err(|error| Error::io("catch signal", "SIGWINCH", error))?;
        Ok(Watch { exit: self.exit(), forwarded, resized })
    }

    /// Waits for its exit in the background.
    pub fn exit(&self) -> JoinHandle<Result<u32>> {
        let process = self.clone();
        tokio::spawn(async move { process.wait().await })
    }

    /// Waits for its exit code.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn wait(&self) -> Result<u32> {
        let request = WaitRequest { container_id: self.container.clone(), exec_id: self.exec.clone() };
        Ok(self.client.tasks().wait(request).await?.into_inner().exit_status)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn kill(&self, signal: u32, all: bool) -> Result<()> {
        let request =
            KillRequest { container_id: self.container.clone(), exec_id: self.exec.clone(), signal, all };
        self.client.tasks().kill(request).await?;
        Ok(())
    }

    /// Removes it after its exit, and returns its exit code.
    ///
    /// # Errors
    ///
    /// What the server says, `FailedPrecondition` while it runs.
    pub async fn delete(&self) -> Result<u32> {
        let mut tasks = self.client.tasks();
        let container_id = self.container.clone();
        let response = if self.exec.is_empty() {
            tasks.delete(DeleteTaskRequest { container_id }).await?
        } else {
            tasks.delete_process(DeleteProcessRequest { container_id, exec_id: self.exec.clone() }).await?
        };
        Ok(response.into_inner().exit_status)
    }

    async fn close_input(&self) {
        let request =
            CloseIoRequest { container_id: self.container.clone(), exec_id: self.exec.clone(), stdin: true };
        // A process that has ended has no input left to close.
        let _ = self.client.tasks().close_io(request).await;
    }

    async fn resize(&self) {
        let Some((height, width)) = terminal::size() else { return };
        let request = ResizePtyRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            width: width.into(),
            height: height.into(),
        };
        // A process that has ended has no terminal left to resize.
        let _ = self.client.tasks().resize_pty(request).await;
    }

    /// Attends the running process until its exit and the end of its output: input, signals, terminal size.
    ///
    /// # Errors
    ///
    /// Those of waiting for it.
    pub async fn attend(&self, watch: Watch, streams: &mut Streams, has_terminal: bool) -> Result<u32> {
        let Watch { mut exit, mut forwarded, mut resized } = watch;
        if has_terminal {
            self.resize().await;
        }
        let code = loop {
            tokio::select! {
                code = &mut exit => {
                    break code.map_err(|error| Error::because(Kind::Internal, "wait for", &self.container, error))??;
                }
                () = streams.input_ended() => self.close_input().await,
                Some(number) = forwarded.recv() => {
                    // A process that has ended needs no signal; its exit comes next.
                    let _ = self.kill(number, false).await;
                }
                Some(()) = resized.recv(), if has_terminal => self.resize().await,
            }
        };
        streams.drained().await;
        Ok(code)
    }
}
