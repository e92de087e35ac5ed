//! The shim as a program: its actions `start` and `delete`, as containerd calls them.
//!
//! `start` gets the runtime options on its standard input, alone or among other parameters, and answers with the address
//! of the shim's socket, bare, as JSON or as a message; `delete` removes what a shim left and answers with the
//! container's exit.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use orlop_host::sys::pid::{pidfd_open, pidfd_send_signal};
use orlop_proto::containerd::runtime::bootstrap::v1::{
    BootstrapParams, BootstrapResult, Extension, LogLevel,
};
use orlop_proto::containerd::task::v2::DeleteResponse;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use prost_types::Any;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::Exit;
use super::bundle::Bundle;
use super::dialect::Dialect;
use super::sockets::Sockets;
use crate::api::version::version;

/// Protocols that shims speak.
pub const TTRPC: &str = "ttrpc";
/// The same.
pub const GRPC: &str = "grpc";
/// The newest version of the shim protocol that is spoken here.
const MAX_VERSION: u32 = 3;
/// What the service manager tells the daemon alone (sd_notify(3), sd_listen_fds(3)).
const SERVICE_MANAGER: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];
/// The most that is kept of each of a shim's outputs, in bytes.
const MAX_OUTPUT: usize = 4 << 10;
/// How long the output may stay open after the program has ended: a careless shim leaves it to its server.
const TRAILING: Duration = Duration::from_millis(200);

/// What shims are told about the daemon.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// Path of the gRPC socket.
    pub address: PathBuf,
    /// Path of the ttrpc socket.
    pub ttrpc_address: PathBuf,
    /// The daemon's own binary, which publishes events for shims that do not speak ttrpc.
    pub binary: PathBuf,
    /// Whether shims log what helps to find a fault.
    pub debug: bool,
    /// Where shims that can be told so have their sockets.
    pub sockets: Sockets,
    /// The directory of programs that clients installed.
    pub installed: PathBuf,
}

/// Where a shim listens, and what it speaks.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Bootstrap {
    /// Version of the task service.
    #[serde(default = "first_version")]
    pub version: u32,
    /// `unix:///path`.
    pub address: String,
    /// `ttrpc` or `grpc`.
    #[serde(default)]
    pub protocol: String,
}

fn first_version() -> u32 {
    2
}

impl Bootstrap {
    /// Reads a shim's answer to `start`: a bare address up to containerd 1.6's, then JSON, a message from 2.3's on.
    ///
    /// # Errors
    ///
    /// `Unknown` for what is neither; `Unimplemented` for a version or protocol that is not spoken here.
    pub fn parse(answer: &[u8]) -> Result<Bootstrap> {
        let garbage = || {
            let shown = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
            let reason = format!("the shim answered {shown:?}, which is no address");
            Error::because(Kind::Unknown, "start failed", "", reason)
        };
        let text = std::str::from_utf8(answer).map_err(|_| garbage())?.trim();
        // The first field's number; neither an address nor JSON begins with a control character.
        let bootstrap = if answer.first() == Some(&0x08) {
            let result = BootstrapResult::decode(answer).map_err(|_| garbage())?;
            let version = u32::try_from(result.version).map_err(|_| garbage())?;
            Bootstrap { version, address: result.address, protocol: result.protocol }
        } else if text.starts_with('{') {
            serde_json::from_str::<Bootstrap>(text).map_err(|_| garbage())?
        } else {
            Bootstrap { version: first_version(), address: text.to_owned(), protocol: TTRPC.to_owned() }
        };
        let is_address =
            bootstrap.address.starts_with(['/', '@']) || bootstrap.address.starts_with("unix://");
        if !is_address || bootstrap.address.contains(char::is_control) {
            return Err(garbage());
        }
        let refused = |what: String| {
            let reason = format!("{what}: {}", Kind::Unimplemented);
            Err(Error::because(Kind::Unimplemented, "start failed", "", reason))
        };
        if !(first_version()..=MAX_VERSION).contains(&bootstrap.version) {
            return refused(format!("unsupported shim version ({})", bootstrap.version));
        }
        if !matches!(bootstrap.protocol.as_str(), "" | TTRPC | GRPC) {
            return refused(format!("unsupported shim protocol {:?}", bootstrap.protocol));
        }
        Ok(bootstrap)
    }
}

/// A shim's binary for one bundle.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// Absolute path of the binary.
    pub shim: PathBuf,
    /// The container's bundle, in which the shim works.
    pub bundle: Bundle,
    /// The daemon.
    pub daemon: Arc<Daemon>,
    /// Whether the shim is a sandbox's, which outlives the container.
    pub sandboxed: bool,
}

impl Launcher {
    /// Starts the shim's server.
    ///
    /// # Errors
    ///
    /// With what the shim printed when it fails; `DeadlineExceeded` when it neither answers nor ends.
    pub async fn start(
        &self,
        options: Option<&Any>,
        dialect: Dialect,
        deadline: Duration,
    ) -> Result<Bootstrap> {
        let mut command = self.command();
        command.args(["-id", &self.bundle.id]);
        if self.daemon.debug {
            command.arg("-debug");
        }
        command.arg("start");
        let input = match dialect {
            Dialect::Options => options.map(Message::encode_to_vec).unwrap_or_default(),
            Dialect::Parameters => self.parameters(options).encode_to_vec(),
        };
        let output = self.run(command, &input, MAX_OUTPUT, deadline, "start failed").await?;
        if !output.success {
            let reason = format!("{}: {}", output.all(), output.status);
            return Err(Error::because(Kind::Unknown, "start failed", "", reason));
        }
        Bootstrap::parse(&output.stdout)
    }

    fn parameters(&self, options: Option<&Any>) -> BootstrapParams {
        let Daemon { address, ttrpc_address, binary, debug, sockets, .. } = self.daemon.as_ref();
        let log_level = if *debug { LogLevel::Debug } else { LogLevel::Info };
        BootstrapParams {
            instance_id: self.bundle.id.clone(),
            namespace: self.bundle.namespace.as_str().to_owned(),
            log_level: log_level as i32,
            containerd_version: version(),
            containerd_ttrpc_address: ttrpc_address.display().to_string(),
            containerd_grpc_address: address.display().to_string(),
            containerd_binary: binary.display().to_string(),
            extensions: options
                .map(|options| Extension { value: Some(options.clone()) })
                .into_iter()
                .collect(),
            socket_dir: Some(sockets.path().display().to_string()),
        }
    }

    /// Removes what a shim that is gone left behind: container, mounts, socket.
    ///
    /// # Errors
    ///
    /// With what the shim printed when it fails; `DeadlineExceeded` when it does not end.
    pub async fn delete(&self, deadline: Duration) -> Result<Exit> {
        let mut command = self.command();
        command.args(["-id", &self.bundle.id, "-bundle"]).arg(&self.bundle.path);
        if self.daemon.debug {
            command.arg("-debug");
        }
        command.arg("delete");
        let output = self.run(command, &[], MAX_OUTPUT, deadline, "shim delete").await?;
        if !output.success {
            let reason = format!("{}: {}", output.all(), output.status);
            return Err(Error::because(Kind::Unknown, "shim delete", self.bundle.id.clone(), reason));
        }
        if !output.stderr.is_empty() {
            tracing::warn!(id = %self.bundle.id, "cleanup warnings: {}", lossy(&output.stderr));
        }
        let answer = DeleteResponse::decode(output.stdout.as_slice())
            .map_err(|error| Error::because(Kind::Unknown, "decode answer of", "shim delete", error))?;
        Ok(Exit { pid: answer.pid, status: answer.exit_status, at: answer.exited_at })
    }

    fn command(&self) -> Command {
        let mut command = self.daemon.command(&self.shim, self.bundle.namespace.as_str());
        command.current_dir(&self.bundle.path);
        command
    }

    async fn run(
        &self,
        command: Command,
        input: &[u8],
        keep: usize,
        deadline: Duration,
        operation: &'static str,
    ) -> Result<Output> {
        run(&self.shim, command, input, keep, deadline, operation).await
    }
}

impl Daemon {
    /// A shim's binary with what each of its actions is told.
    pub fn command(&self, shim: &Path, namespace: &str) -> Command {
        let mut command = Command::new(shim);
        command.arg("-namespace").arg(namespace);
        command.arg("-address").arg(&self.address);
        command.arg("-publish-binary").arg(&self.binary);
        for variable in SERVICE_MANAGER {
            command.env_remove(variable);
        }
        command.env("TTRPC_ADDRESS", &self.ttrpc_address);
        command.env("GRPC_ADDRESS", &self.address);
        command.env("NAMESPACE", namespace);
        command.env("MAX_SHIM_VERSION", MAX_VERSION.to_string());
        command.env("GOMAXPROCS", "2");
        // Where shims find runtimes, and those libraries, that clients installed.
        for (variable, directory) in [("PATH", "bin"), ("LD_LIBRARY_PATH", "lib")] {
            let directory = self.installed.join(directory);
            if directory.is_dir() {
                let others = std::env::var_os(variable).unwrap_or_default();
                // An empty one would mean the working directory.
                let rest = std::env::split_paths(&others).filter(|path| !path.as_os_str().is_empty());
                if let Ok(all) = std::env::join_paths([directory].into_iter().chain(rest)) {
                    command.env(variable, all);
                }
            }
        }
        // A group of its own, so that it is not hit by signals meant for the daemon's.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }
}

/// Runs one of a shim's actions.
///
/// # Errors
///
/// When it cannot be run, and `DeadlineExceeded` when it does not end.
pub async fn run(
    shim: &Path,
    mut command: Command,
    input: &[u8],
    keep: usize,
    deadline: Duration,
    operation: &'static str,
) -> Result<Output> {
    let child = command.spawn().context(operation, shim.display().to_string())?;
    let group = Group(child.id());
    match tokio::time::timeout(deadline, converse(child, input, keep)).await {
        Ok(output) => {
            group.keep();
            output.context(operation, shim.display().to_string())
        }
        Err(_) => {
            let reason = format!("{} neither answered nor ended within {deadline:?}", shim.display());
            Err(Error::because(Kind::DeadlineExceeded, operation, "", reason))
        }
    }
}

/// A process group that is killed when its run is given up.
struct Group(Option<u32>);

impl Group {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            // The leader is not reaped yet, so the number is still its own. Failing means that it has ended.
            let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        }
    }
}

/// What an action left.
pub struct Output {
    /// Whether it exited with 0.
    pub success: bool,
    /// How it ended, in words.
    pub status: String,
    /// The first of what it printed.
    pub stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    /// What containerd shows: both outputs as they came.
    pub fn all(&self) -> String {
        format!("{}{}", lossy(&self.stdout), lossy(&self.stderr))
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// Feeds a program and reads its outputs until it has ended.
async fn converse(mut child: Child, input: &[u8], keep: usize) -> io::Result<Output> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program may end without reading its input.
            let _ = stdin.write_all(input).await;
        }
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = {
        let read = async {
            tokio::join!(feed, read_some(stdout, &mut out, keep), read_some(stderr, &mut err, MAX_OUTPUT))
        };
        tokio::pin!(read);
        tokio::select! {
            biased;
            _ = &mut read => child.wait().await?,
            status = child.wait() => {
                // What was written before the end is still in the pipes.
                let _ = tokio::time::timeout(TRAILING, &mut read).await;
                status?
            }
        }
    };
    let text = match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    };
    Ok(Output { success: status.success(), status: text, stdout: out, stderr: err })
}

/// Reads to the end and keeps the first `keep` bytes.
async fn read_some(stream: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>, keep: usize) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 1024];
    // A torn pipe counts as the end of the output.
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = keep - into.len();
        into.extend_from_slice(&buffer[..count.min(room)]);
    }
}

/// Kills every process that works in a directory: a shim that was started and can be reached in no other way.
pub fn kill_in(directory: &Path) {
    // A process that forks while it is being looked for is found by the next round.
    for _ in 0..100 {
        let Ok(processes) = std::fs::read_dir("/proc") else { return };
        let mut found = false;
        for process in processes.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let works_here =
                |path: &Path| std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd == directory);
            if !works_here(&process.path()) {
                continue;
            }
            let Ok(handle) = pidfd_open(pid) else { continue };
            // The number may have been given away between the two looks.
            if works_here(&process.path()) {
                found |= pidfd_send_signal(handle.as_fd(), Signal::SIGKILL as i32).is_ok();
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind_of_answer() {
        let plain = Bootstrap::parse(b"unix:///run/s/1\n").unwrap();
        assert_eq!((plain.version, plain.address.as_str()), (2, "unix:///run/s/1"));
        let json = br#"{"version":3,"address":"unix:///run/s/1","protocol":"ttrpc","capabilities":["x"]}"#;
        assert_eq!(Bootstrap::parse(json).unwrap().version, 3);
        assert_eq!(Bootstrap::parse(br#"{"address":"/s"}"#).unwrap().version, 2);
        let message = BootstrapResult {
            version: 3,
            address: "unix:///s".into(),
            protocol: "ttrpc".into(),
            ..Default::default()
        };
        let told = Bootstrap::parse(&message.encode_to_vec()).unwrap();
        assert_eq!((told.version, told.address.as_str(), told.protocol.as_str()), (3, "unix:///s", "ttrpc"));
        for (bad, kind) in [
            (&b""[..], Kind::Unknown),
            (b"hello world", Kind::Unknown),
            (b"/a\n/b", Kind::Unknown),
            (b"\xff\xfe", Kind::Unknown),
            (b"\x08\x03", Kind::Unknown),
            (b"\x08", Kind::Unknown),
            (b"{", Kind::Unknown),
            (br#"{"version":3}"#, Kind::Unknown),
            (br#"{"version":4,"address":"/s"}"#, Kind::Unimplemented),
            (br#"{"version":2,"address":"/s","protocol":"http"}"#, Kind::Unimplemented),
        ] {
            assert_eq!(Bootstrap::parse(bad).unwrap_err().kind(), kind, "{bad:?}");
        }
    }
}
