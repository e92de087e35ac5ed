//! `orlopctl shim`: a shim without its manager.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use orlop_proto::any::PROCESS_URL;
use orlop_proto::containerd::task::v2::{
    DeleteRequest, DeleteResponse, ExecProcessRequest, ResizePtyRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse,
};
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::orlop::admin::v1::InfoRequest;
use prost_types::Any;
use serde::Serialize;
use serde_json::Value;

use super::Context;
use super::pprof;
use crate::cli::Global;
use crate::cli::shim::{Exec, Shim as Options, Verb};
use crate::client::Client;
use crate::output;
use crate::shim::{Shim, computed};
use crate::stdio::{Paths, Streams};
use crate::terminal::{self, Raw};

pub async fn execute(context: &Context<'_>, options: Options) -> Result<()> {
    let Options { id, shim_address, verb } = options;
    let (address, namespace) = (context.global.address(), context.global.namespace.as_str());
    if let Verb::Pprof { profile } = &verb {
        let id = id.ok_or_else(|| missing("container id"))?;
        let socket = computed(address, namespace, &id, true);
        // orlop's shim has none.
        return pprof::fetch(&socket, profile).await;
    }
    let state = state_directory(context).await;
    let (given, state) = (shim_address.as_deref(), state.as_deref());
    let mut shim = Shim::connect(given, id.as_deref(), address, state, namespace).await?;
    let named = |word: Option<String>| word.or(id.clone()).ok_or_else(|| missing("container id"));
    match verb {
        Verb::Start { container } => {
            let request = StartRequest { id: named(container)?, ..StartRequest::default() };
            shim.call::<StartResponse>("Start", &request).await.map(drop)
        }
        Verb::Delete { container } => {
            let request = DeleteRequest { id: named(container)?, ..DeleteRequest::default() };
            let code = shim.call::<DeleteResponse>("Delete", &request).await?.exit_status;
            output::print(&format!("container deleted and returned exit status {code}\n"))
        }
        Verb::State { task_id, version } => {
            shim.speak(version.api_version);
            let request = StateRequest { id: named(task_id)?, ..StateRequest::default() };
            output::document(&State::of(shim.call("State", &request).await?))
        }
        Verb::Shutdown { version } => {
            shim.speak(version.api_version);
            shim.call::<()>("Shutdown", &ShutdownRequest::default()).await
        }
        Verb::Exec(options) => exec(&mut shim, named(None)?, &options).await,
        // It was answered before.
        Verb::Pprof { .. } => Ok(()),
    }
}

/// The state directory of the manager, if one is there that tells it. A shim answers without it too.
async fn state_directory(context: &Context<'_>) -> Option<PathBuf> {
    let Global { namespace, connect_timeout, .. } = context.global;
    let client = Client::connect(context.global.address(), namespace, *connect_timeout).await.ok()?;
    let info = client.admin().info(InfoRequest {}).await.ok()?.into_inner();
    Some(PathBuf::from(info.state)).filter(|state| !state.as_os_str().is_empty())
}

fn missing(what: &'static str) -> Error {
    Error::because(Kind::InvalidArgument, what, "", "must be provided")
}

async fn exec(shim: &mut Shim, id: String, options: &Exec) -> Result<()> {
    let stderr = if options.tty { String::new() } else { options.stderr.clone() };
    let (stdin, stdout) = (options.stdin.clone(), options.stdout.clone());
    let paths = Paths { stdin, stdout, stderr, terminal: options.tty };
    let shown = options.spec.display().to_string();
    let text = std::fs::read(&options.spec).context("read", &shown)?;
    let mut process: Value = serde_json::from_slice(&text)
        .map_err(|error| Error::because(Kind::InvalidArgument, "parse", shown, error))?;
    if let Some(directory) = &options.cwd {
        process["cwd"] = directory.as_str().into();
    }
    if !options.env.is_empty() {
        let env = process["env"].as_array().cloned().unwrap_or_default();
        process["env"] = env.into_iter().chain(options.env.iter().map(|word| word.as_str().into())).collect();
    }
    for path in [&paths.stdin, &paths.stdout, &paths.stderr].into_iter().filter(|path| !path.is_empty()) {
        match nix::unistd::mkfifo(path.as_str(), Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(Error::io("create FIFO", path, error.into())),
        }
    }
    let _raw = if options.tty && options.attach { Raw::enter()? } else { None };
    let mut streams = if options.attach { Streams::open(&paths)? } else { Streams::hold(&paths)? };
    let request = ExecProcessRequest {
        id: id.clone(),
        exec_id: options.exec_id.clone(),
        terminal: paths.terminal,
        stdin: paths.stdin,
        stdout: paths.stdout,
        stderr: paths.stderr,
        spec: Some(Any { type_url: PROCESS_URL.to_owned(), value: process.to_string().into_bytes() }),
    };
    shim.call::<()>("Exec", &request).await?;
    let exec_id = options.exec_id.clone();
    let request = StartRequest { id: id.clone(), exec_id: exec_id.clone() };
    let pid = shim.call::<StartResponse>("Start", &request).await?.pid;
    streams.opened();
    output::print(&format!("exec running with pid {pid}\n"))?;
    if !options.attach {
        return Ok(());
    }
    if let (true, Some((height, width))) = (options.tty, terminal::size()) {
        let request = ResizePtyRequest { id, exec_id, width: width.into(), height: height.into() };
        shim.call::<()>("ResizePty", &request).await?;
    }
    streams.drained().await;
    Ok(())
}

/// A state as Go prints the message: what is empty is left out.
#[derive(Serialize)]
struct State {
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    bundle: String,
    #[serde(skip_serializing_if = "is_zero")]
    pid: u32,
    #[serde(skip_serializing_if = "is_zero")]
    status: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    stdin: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    stdout: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    stderr: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    terminal: bool,
    #[serde(skip_serializing_if = "is_zero")]
    exit_status: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    exited_at: Option<Time>,
    #[serde(skip_serializing_if = "String::is_empty")]
    exec_id: String,
}

#[derive(Serialize)]
struct Time {
    #[serde(skip_serializing_if = "is_zero")]
    seconds: i64,
    #[serde(skip_serializing_if = "is_zero")]
    nanos: i32,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

impl State {
    fn of(state: StateResponse) -> State {
        State {
            id: state.id,
            bundle: state.bundle,
            pid: state.pid,
            status: state.status.unsigned_abs(),
            stdin: state.stdin,
            stdout: state.stdout,
            stderr: state.stderr,
            terminal: state.terminal,
            exit_status: state.exit_status,
            exited_at: state.exited_at.map(|time| Time { seconds: time.seconds, nanos: time.nanos }),
            exec_id: state.exec_id,
        }
    }
}
