//! Processes added to containers: made, started, connected with, looked at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use orlop_proto::any;
use orlop_proto::spec::{Spec, merge_env};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use super::stream::{self, Left, Output, Pipes, Wishes};
use super::{Container, fresh_id, start};
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::message::{self, ApiVersion, MULTIPLEXED_STREAM, RAW_STREAM, Reply};
use crate::docker::route::page_not_found;
use crate::docker::spec::set_user;

/// How many processes that have ended are remembered for each container.
const REMEMBERED: usize = 16;

/// What is asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Request {
    /// Whether the client wants standard input.
    pub attach_stdin: bool,
    /// Whether the client wants standard output.
    pub attach_stdout: bool,
    /// Whether the client wants standard error.
    pub attach_stderr: bool,
    /// Keys by which the client leaves.
    pub detach_keys: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Size of the terminal.
    pub console_size: Option<[u32; 2]>,
    /// Environment beyond the container's.
    pub env: Vec<String>,
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// Whether every protection is off.
    pub privileged: bool,
    /// User, with optional group.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
}

/// What the client says when it starts one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartBody {
    detach: bool,
    tty: bool,
    console_size: Option<[u32; 2]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    begun: bool,
    running: bool,
    pid: u32,
    code: Option<i64>,
}

/// A process added to a container.
pub struct Exec {
    /// Its ID.
    pub id: String,
    /// The container.
    pub container: Arc<Container>,
    request: Request,
    progress: Mutex<Progress>,
    /// Its output.
    pub output: Arc<Output>,
    done: watch::Sender<Option<i64>>,
}

impl Exec {
    fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn end(&self, code: i64) {
        self.note(|progress| {
            progress.running = false;
            progress.code = Some(code);
        });
        self.output.end();
        self.done.send_replace(Some(code));
    }

    /// Waits for its end.
    pub async fn ended(&self) -> i64 {
        let mut done = self.done.subscribe();
        let code = done.wait_for(Option::is_some).await.ok().and_then(|code| *code);
        code.unwrap_or_default()
    }

    /// Whether it has begun and ended.
    fn is_over(&self) -> bool {
        self.progress().code.is_some()
    }
}

impl Engine {
    /// Adds a process to a running container; it is started later.
    ///
    /// # Errors
    ///
    /// 409 in dockerd's words for a container that does not run.
    pub fn add_exec(&self, container: &Arc<Container>, request: Request) -> Result<Arc<Exec>> {
        container.with(|record| match record.state.status {
            super::state::Status::Running => Ok(()),
            super::state::Status::Paused => Err(Failure::conflict(format!(
                "container {} is paused, unpause the container before exec",
                record.id
            ))),
            super::state::Status::Restarting => Err(Failure::conflict(format!(
                "container {} is restarting, wait until the container is running",
                record.id
            ))),
            _ => Err(Failure::conflict(format!("container {} is not running", record.id))),
        })?;
        if request.cmd.iter().all(String::is_empty) {
            return Err(Failure::invalid("no exec command specified"));
        }
        stream::detach_keys(Some(&request.detach_keys))?;
        let exec = Arc::new(Exec {
            id: fresh_id()?,
            container: container.clone(),
            request,
            progress: Mutex::default(),
            output: Arc::default(),
            done: watch::Sender::default(),
        });
        let mut execs = self.containers.execs.lock().unwrap_or_else(PoisonError::into_inner);
        let over: Vec<String> = execs
            .values()
            .filter(|other| other.container.id == container.id && other.is_over())
            .map(|other| other.id.clone())
            .collect();
        if over.len() > REMEMBERED {
            for id in over.iter().take(over.len() - REMEMBERED) {
                execs.remove(id);
            }
        }
        execs.insert(exec.id.clone(), exec.clone());
        drop(execs);
        let command = exec.request.cmd.join(" ");
        self.container_event(container, &format!("exec_create: {command}"), &[("execID", exec.id.clone())]);
        Ok(exec)
    }

    /// The process of an ID.
    fn exec(&self, id: &str) -> Result<Arc<Exec>> {
        let execs = self.containers.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.get(id).cloned().ok_or_else(|| Failure::not_found(format!("No such exec instance: {id}")))
    }

    /// Forgets the processes of a container that is gone.
    pub(super) fn forget_execs(&self, id: &str) {
        let mut execs = self.containers.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.retain(|_, exec| exec.container.id != id);
    }

    /// The running processes that were added to a container.
    pub(super) fn exec_ids(&self, id: &str) -> Option<Vec<String>> {
        let execs = self.containers.execs.lock().unwrap_or_else(PoisonError::into_inner);
        let own = execs.values().filter(|exec| exec.container.id == id && exec.progress().running);
        let ids: Vec<String> = own.map(|exec| exec.id.clone()).collect();
        (!ids.is_empty()).then_some(ids)
    }

    /// Starts a process that was added.
    ///
    /// # Errors
    ///
    /// 409 for one that was started before; 400 for a program that cannot be run, in the runtime's words.
    pub async fn start_exec(&self, exec: &Arc<Exec>) -> Result<()> {
        let begun = {
            let mut progress = exec.progress.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut progress.begun, true)
        };
        if begun {
            return Err(Failure::conflict(match exec.is_over() {
                true => format!("exec {} has already run", exec.id),
                false => format!("exec {} is already running", exec.id),
            }));
        }
        let (engine, owned) = (self.clone(), exec.clone());
        let started = tokio::spawn(async move { engine.try_start_exec(&owned).await });
        let result =
            started.await.map_err(|error| Failure::internal(error.to_string())).and_then(|result| result);
        if let Err(failure) = &result {
            let code = match failure.message.as_str() {
                text if text.contains("executable file not found") || text.contains("no such file") => 127,
                _ => 126,
            };
            exec.end(code);
        }
        result
    }

    async fn try_start_exec(&self, exec: &Arc<Exec>) -> Result<()> {
        let container = &exec.container;
        let process = self.exec_process(exec).await?;
        let task = self.parts.supervisor.get(&self.context.namespace, &container.id).await?;
        let short = exec.id.get(..16).unwrap_or(&exec.id);
        let directory = self.pipe_directory(&container.id);
        let pipes =
            Pipes::named(&directory, &format!("{short}-"), exec.request.attach_stdin, exec.request.tty);
        pipes.make()?;
        let ends = pipes.open()?;
        let begun = async {
            let spec = prost_types::Any { type_url: any::PROCESS_URL.to_owned(), value: process };
            task.exec(&exec.id, pipes.stdio(exec.request.tty), Some(spec)).await?;
            let copying = tokio::spawn(stream::copy(ends, exec.output.clone(), None));
            if let Some(stdin) = &pipes.stdin {
                exec.output.open_stdin(stdin.clone());
            }
            let (waiting, id) = (task.clone(), exec.id.clone());
            let exit = tokio::spawn(async move { waiting.wait(&id).await });
            match task.start(&exec.id).await {
                Ok(pid) => Ok((pid, exit, copying)),
                Err(error) => {
                    exit.abort();
                    copying.abort();
                    // Ignoring: the error that matters is there already.
                    let _ = task.delete_process(&exec.id).await;
                    Err(error)
                }
            }
        }
        .await;
        let (pid, exit, copying) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                pipes.remove();
                return Err(Failure::from(error));
            }
        };
        exec.note(|progress| {
            progress.running = true;
            progress.pid = pid;
        });
        let command = exec.request.cmd.join(" ");
        self.container_event(container, &format!("exec_start: {command}"), &[("execID", exec.id.clone())]);
        let (engine, exec) = (self.clone(), exec.clone());
        tokio::spawn(async move {
            let code = match exit.await {
                Ok(Ok(exit)) => i64::from(exit.status),
                _ => 137,
            };
            // Ignoring: it may have gone with its container.
            let _ = task.delete_process(&exec.id).await;
            let _ = tokio::time::timeout(std::time::Duration::from_secs(3), copying).await;
            pipes.remove();
            exec.end(code);
            let told = [("execID", exec.id.clone()), ("exitCode", code.to_string())];
            engine.container_event(&exec.container, "exec_die", &told);
        });
        Ok(())
    }

    /// The process as JSON: the container's own, with what was asked for.
    async fn exec_process(&self, exec: &Exec) -> Result<Vec<u8>> {
        let (id, pid) = (&exec.container.id, exec.container.with(|record| record.state.pid));
        let registered = self.parts.records.get(&self.context, id).await?;
        let bytes = registered.spec.map(|spec| spec.value).unwrap_or_default();
        let mut spec: Spec = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::internal(format!("read configuration: {error}")))?;
        let request = &exec.request;
        let process = spec.process_mut();
        process.args.clone_from(&request.cmd);
        process.terminal = request.tty;
        process.console_size = request
            .console_size
            .map(|[height, width]| orlop_proto::spec::types::ConsoleSize { height, width });
        if request.tty && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_owned());
        }
        process.env = merge_env(&process.env, &request.env);
        if !request.working_dir.is_empty() {
            process.cwd.clone_from(&request.working_dir);
        }
        if !request.user.is_empty() {
            let held = process.capabilities.clone();
            let was_root = process.user.uid == 0;
            let root = std::fs::File::open(format!("/proc/{pid}/root"))
                .map_err(|error| Failure::internal(format!("open container's root: {error}")))?;
            let accounts = start::accounts_below(&root.into());
            set_user(
                &mut spec,
                &request.user,
                &exec.container.with(|record| record.host.group_add.clone()),
                &accounts,
            )?;
            let process = spec.process_mut();
            if let Some(mut sets) = held {
                if process.user.uid == 0 && !was_root {
                    sets.effective.clone_from(&sets.bounding);
                    sets.permitted.clone_from(&sets.bounding);
                } else if process.user.uid != 0 {
                    sets.effective.clear();
                    sets.permitted.clear();
                }
                process.capabilities = Some(sets);
            }
        }
        if request.privileged {
            spec.set_capabilities(&super::devices::capabilities());
        }
        let process = spec.process_mut();
        // The container's own, also for a privileged one. It may have been unloaded meanwhile.
        self.apparmor.ensure(&process.apparmor_profile).await?;
        serde_json::to_vec(process).map_err(|error| Failure::internal(format!("encode: {error}")))
    }

    /// Ends a process by force.
    pub(super) async fn kill_exec(&self, exec: &Exec) {
        if let Ok(task) = self.parts.supervisor.get(&self.context.namespace, &exec.container.id).await {
            // Ignoring: it may have ended.
            let _ = task.kill(&exec.id, 9, false).await;
        }
    }

    /// Sets the size of a process's terminal.
    pub(super) async fn resize(
        &self,
        container: &Container,
        exec: &str,
        query: &message::Query,
    ) -> Result<Reply> {
        let (height, width) =
            (query.number::<u32>("h")?.unwrap_or(0), query.number::<u32>("w")?.unwrap_or(0));
        let task = self.parts.supervisor.get(&self.context.namespace, &container.id).await;
        let task =
            task.map_err(|_| Failure::conflict(format!("Container {} is not running", container.id)))?;
        task.resize(exec, width, height).await?;
        Ok(message::empty(StatusCode::OK))
    }
}

/// Answers a request below `/exec`.
pub async fn answer(engine: Engine, request: message::Request) -> Result<Reply> {
    let path = request.path.clone();
    let segments: Vec<&str> = path.iter().skip(1).map(String::as_str).collect();
    match (request.method.clone(), segments.as_slice()) {
        (Method::GET, [id, "json"]) => Ok(message::ok(&inspect(&*engine.exec(id)?))),
        (Method::POST, [id, "start"]) => start_and_connect(engine, id, request).await,
        (Method::POST, [id, "resize"]) => {
            let exec = engine.exec(id)?;
            if !exec.progress().running {
                return Err(Failure::conflict(format!("exec process {id} is not running")));
            }
            engine.resize(&exec.container, &exec.id, &request.query).await
        }
        _ => Err(page_not_found()),
    }
}

fn inspect(exec: &Exec) -> Value {
    let (request, progress) = (&exec.request, exec.progress());
    let (entrypoint, arguments) =
        request.cmd.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
    let user = if request.user.is_empty() {
        BTreeMap::new()
    } else {
        BTreeMap::from([("user", json!(request.user))])
    };
    let mut process = json!({
        "tty": request.tty,
        "entrypoint": entrypoint,
        "arguments": arguments,
        "privileged": request.privileged,
    });
    if let Some(user) = user.get("user") {
        process["user"] = user.clone();
    }
    json!({
        "ID": exec.id,
        "Running": progress.running,
        "ExitCode": progress.code,
        "ProcessConfig": process,
        "OpenStdin": request.attach_stdin,
        "OpenStderr": request.attach_stderr,
        "OpenStdout": request.attach_stdout,
        "CanRemove": false,
        "ContainerID": exec.container.id,
        "DetachKeys": request.detach_keys,
        "Pid": progress.pid,
    })
}

async fn start_and_connect(engine: Engine, id: &str, request: message::Request) -> Result<Reply> {
    let exec = engine.exec(id)?;
    let (version, is_upgrade, upgrade) = (request.version, request.wants_upgrade(), request.upgrade.clone());
    let body: StartBody = request.json_or_nothing().await?.unwrap_or_default();
    let _ = (body.tty, body.console_size);
    if body.detach {
        engine.start_exec(&exec).await?;
        return Ok(message::empty(StatusCode::OK));
    }
    if exec.progress().begun {
        return Err(Failure::conflict(format!("exec {} has already run", exec.id)));
    }
    let tty = exec.request.tty;
    let wishes = Wishes {
        stdin: exec.request.attach_stdin,
        stdout: exec.request.attach_stdout || tty,
        stderr: exec.request.attach_stderr,
        raw: tty,
        closes_stdin: true,
        detach: if tty { stream::detach_keys(Some(&exec.request.detach_keys))? } else { Vec::new() },
    };
    let heard = exec.output.listen();
    let kind = content_type(version, tty);
    if !is_upgrade {
        // An old client that does not say so gets the output as the body.
        let (reply, sender) = message::channel(kind);
        tokio::spawn(async move {
            let mut heard = heard;
            if let Err(failure) = engine.start_exec(&exec).await {
                let text = format!("{}\r\n", failure.message);
                let data = if wishes.raw {
                    text.into()
                } else {
                    message::frame(message::Channel::Stdout, text.as_bytes())
                };
                let _ = sender.send(Ok(data)).await;
                return;
            }
            while let Some((channel, data)) = heard.recv().await {
                let data = if wishes.raw { data } else { message::frame(channel, &data) };
                if sender.send(Ok(data)).await.is_err() {
                    return;
                }
            }
        });
        return Ok(reply);
    }
    tokio::spawn(async move {
        let Ok(connection) = upgrade.await else { return };
        let mut client = TokioIo::new(connection);
        if let Err(failure) = engine.start_exec(&exec).await {
            let text = format!("{}\r\n", failure.message);
            let data = if wishes.raw {
                text.into()
            } else {
                message::frame(message::Channel::Stdout, text.as_bytes())
            };
            // Ignoring: the client may be gone.
            let _ = client.write_all(&data).await;
            let _ = client.shutdown().await;
            return;
        }
        let closing = exec.clone();
        let supervisor = engine.parts.supervisor.clone();
        let namespace = engine.context.namespace.clone();
        let close = async move || {
            if let Ok(task) = supervisor.get(&namespace, &closing.container.id).await {
                // Ignoring: it may have ended.
                let _ = task.close_stdin(&closing.id).await;
            }
        };
        let left = stream::connect(client, &exec.output, heard, wishes, close).await;
        if left == Left::Detached {
            engine.container_event(&exec.container, "exec_detach", &[("execID", exec.id.clone())]);
        }
    });
    Ok(message::upgraded(kind))
}

/// The content type of output.
pub(super) fn content_type(version: ApiVersion, is_raw: bool) -> &'static str {
    if !is_raw && version >= ApiVersion(1, 42) { MULTIPLEXED_STREAM } else { RAW_STREAM }
}
