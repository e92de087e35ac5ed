//! `orlopctl run`: make a container, run it, and answer with its exit code.

use std::path::Path;

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options as RuncOptions;
use orlop_proto::containerd::services::snapshots::v1::MountsRequest;
use orlop_proto::containerd::services::tasks::v1::CreateTaskRequest;
use orlop_proto::containerd::types::Mount;
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;

use super::network::{self, Namespace};
use super::{Context, containers};
use crate::cli::container::Run;
use crate::cli::tasks::Stdio;
use crate::cni::Network;
use crate::create;
use crate::image::Descriptor;
use crate::process::Process;
use crate::stdio::{Fifos, Paths, Streams};
use crate::terminal::Raw;

/// The CPU share that `ctr run` gives every container.
const CPU_SHARES: u64 = 1024;

pub async fn run(context: &Context<'_>, options: Run) -> Result<u32> {
    if options.rm && options.detach {
        let reason = "flags --detach and --rm cannot be specified together";
        return Err(Error::because(Kind::InvalidArgument, "run", "", reason));
    }
    let tty = options.create.process.tty;
    if tty && options.stdio.null_io {
        let reason = "tty and null-io cannot be used together";
        return Err(Error::because(Kind::InvalidArgument, "run", "", reason));
    }
    let cni = &options.cni;
    let network = cni.cni.then(|| Network::load(&cni.cni_conf_dir, &cni.cni_plugin_dir)).transpose()?;
    let id = create::create(context.client, context.global, &options.create, Some(CPU_SHARES)).await?;
    context.explain(|| format!("made container {id}"));
    let pid_file = options.create.pid_file.as_deref();
    let network = network.as_ref();
    let started = Start { pid_file, network, ..Start::new(&options.stdio, tty, options.detach) };
    let outcome = async {
        if let Some(path) = &options.dump_config {
            dump_config(context, &id, path).await?;
        }
        start(context, &id, started).await
    }
    .await;
    if options.rm {
        let removed = containers::delete(context, &id, false).await;
        return outcome.and_then(|code| removed.map(|()| code));
    }
    outcome
}

/// Writes the configuration of a container into a file, as `ctr` does.
async fn dump_config(context: &Context<'_>, id: &str, path: &Path) -> Result<()> {
    let shown = path.display().to_string();
    let spec = containers::spec_json(&containers::get(context, id).await?)?;
    let text = serde_json::to_string_pretty(&spec)
        .map_err(|error| Error::because(Kind::Internal, "encode", "configuration", error))?;
    std::fs::write(path, text).context("write", shown)
}

/// How a container's task is started.
pub struct Start<'a> {
    /// Its standard streams.
    pub stdio: &'a Stdio,
    /// Whether its process has a terminal.
    pub tty: bool,
    /// Whether it is left to itself.
    pub detach: bool,
    /// Where its process ID is written.
    pub pid_file: Option<&'a Path>,
    /// The network that it joins.
    pub network: Option<&'a Network>,
    /// What it is restored from.
    pub checkpoint: Option<&'a Descriptor>,
    /// Whether the runtime does without pivot_root(2), whatever the container's own options say.
    pub no_pivot: bool,
}

impl<'a> Start<'a> {
    /// With nothing but standard streams.
    pub fn new(stdio: &'a Stdio, tty: bool, detach: bool) -> Start<'a> {
        Start { stdio, tty, detach, pid_file: None, network: None, checkpoint: None, no_pivot: false }
    }
}

/// Makes and starts the task of a container, and unless detached attends it until its end and removes it.
///
/// # Errors
///
/// What the server says; a task that cannot be started is removed again.
pub async fn start(context: &Context<'_>, id: &str, options: Start<'_>) -> Result<u32> {
    let Start { tty, detach, pid_file, .. } = options;
    let process = Process { client: context.client.clone(), container: id.to_owned(), exec: String::new() };
    let rootfs = rootfs(context, id).await?;
    let mut stdio = Connection::open(context, options.stdio, id, tty, detach)?;
    let _raw = if tty && !detach { Raw::enter()? } else { None };
    let paths = stdio.paths.clone();
    let request = CreateTaskRequest {
        container_id: id.to_owned(),
        rootfs,
        stdin: paths.stdin,
        stdout: paths.stdout,
        stderr: paths.stderr,
        terminal: paths.terminal,
        checkpoint: options.checkpoint.map(Into::into),
        options: options
            .no_pivot
            .then(|| any::pack(&RuncOptions { no_pivot_root: true, ..RuncOptions::default() })),
        ..CreateTaskRequest::default()
    };
    let pid = match context.client.tasks().create(request).await {
        Ok(response) => response.into_inner().pid,
        Err(status) => {
            stdio.close();
            return Err(status.into());
        }
    };
    stdio.opened();
    let mut joined = None;
    let started = async {
        if let Some(path) = pid_file {
            write_pid(path, pid)?;
        }
        if let Some(network) = options.network {
            let namespace = Namespace::of(pid)?;
            network::join(context, id, network, &namespace).await?;
            joined = Some(namespace);
        }
        let watch = (!detach).then(|| process.watch()).transpose()?;
        process.start().await?;
        Ok(watch)
    }
    .await;
    let watch = match started {
        Ok(watch) => watch,
        Err(error) => {
            // What went wrong before is what is reported.
            let _ = leave(context, id, joined).await;
            let _ = process.delete().await;
            stdio.close();
            return Err(error);
        }
    };
    let Some(watch) = watch else { return Ok(0) };
    let code = process.attend(watch, &mut stdio.streams, tty).await;
    let left = leave(context, id, joined).await;
    let deleted = process.delete().await;
    stdio.close();
    let code = code?;
    deleted?;
    left.map(|()| code)
}

async fn leave(context: &Context<'_>, id: &str, joined: Option<Namespace>) -> Result<()> {
    match joined {
        Some(namespace) => network::leave(context, id, Some(&namespace)).await,
        None => Ok(()),
    }
}

/// The mounts of a container's root, as its snapshotter gives them.
async fn rootfs(context: &Context<'_>, id: &str) -> Result<Vec<Mount>> {
    let container = containers::get(context, id).await?;
    if container.snapshot_key.is_empty() {
        return Ok(Vec::new());
    }
    let request = MountsRequest { snapshotter: container.snapshotter, key: container.snapshot_key };
    Ok(context.client.snapshots().mounts(request).await?.into_inner().mounts)
}

/// Writes a process ID in one step, so that a reader sees all of it or nothing.
pub fn write_pid(path: &Path, pid: u32) -> Result<()> {
    let shown = path.display().to_string();
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let draft = path.with_file_name(name);
    std::fs::write(&draft, pid.to_string()).context("write", &shown)?;
    std::fs::rename(&draft, path).context("rename to", shown)
}

/// A process's standard streams and where they lead.
pub struct Connection {
    /// For the task API.
    pub paths: Paths,
    /// Our ends, if there are any.
    pub streams: Streams,
    fifos: Option<Fifos>,
}

impl Connection {
    /// Makes what the options ask for: nothing, a log, or FIFOs; a detached process keeps its FIFOs for `attach`.
    ///
    /// # Errors
    ///
    /// Those of making FIFOs.
    pub fn open(
        context: &Context<'_>,
        options: &Stdio,
        id: &str,
        tty: bool,
        detach: bool,
    ) -> Result<Connection> {
        if options.null_io {
            let paths = Paths { terminal: tty, ..Paths::default() };
            return Ok(Connection { paths, streams: Streams::none(), fifos: None });
        }
        if let Some(uri) = &options.log_uri {
            let stderr = if tty { String::new() } else { uri.clone() };
            let paths = Paths { stdin: String::new(), stdout: uri.clone(), stderr, terminal: tty };
            return Ok(Connection { paths, streams: Streams::none(), fifos: None });
        }
        let root = options.fifo_dir.clone().unwrap_or_else(|| context.fifo_directory());
        let fifos = Fifos::create(&root, id, tty)?;
        let paths = fifos.paths.clone();
        let streams = if detach { Streams::hold(&paths) } else { Streams::open(&paths) };
        match streams {
            Ok(streams) => Ok(Connection { paths, streams, fifos: Some(fifos) }),
            Err(error) => {
                fifos.remove();
                Err(error)
            }
        }
    }

    /// To be called when the shim has opened its ends.
    pub fn opened(&mut self) {
        self.streams.opened();
    }

    /// Removes the FIFOs.
    pub fn close(self) {
        if let Some(fifos) = self.fifos {
            fifos.remove();
        }
    }
}
