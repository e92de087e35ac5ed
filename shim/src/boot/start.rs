//! `start`: makes a serving shim for the bundle in the working directory, or finds the one of its group, and prints its
//! address.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use orlop_host::sys::spawn::{Spawn, spawn};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::json;

use super::address::{self, Bound};
use super::params::{self, Params};
use super::record;
use crate::cli::Arguments;
use crate::runtime::Spec;
use crate::service::check_name;

/// The version of the protocol that the JSON answer announces.
const VERSION: u32 = 3;

/// Starts a shim and prints where it listens.
pub fn start(arguments: &Arguments) -> Result<()> {
    check_name("id", &arguments.id)?;
    let input = params::read_stdin()?;
    let params = params::parse(&input, arguments, std::env::var("MAX_SHIM_VERSION").ok().as_deref());
    let spec = match Spec::read(&std::env::current_dir().context("find", "the bundle")?) {
        // A pod's own directory has none: its shim is asked for by the Sandbox service.
        Err(error) if error.kind() == Kind::NotFound => Spec::default(),
        other => other?,
    };
    let group = address::group(&spec.annotations, &arguments.id);
    let directory = params.socket_directory.as_deref().unwrap_or(Path::new(address::SOCKETS));
    let socket = address::socket(directory, &arguments.address, &arguments.namespace, group);
    let url = format!("unix://{}", socket.display());
    // Written before there is a socket: whoever cleans up after a kill at any moment finds it.
    fs::write(record::ADDRESS_DRAFT, &url).context("write", record::ADDRESS_DRAFT)?;
    if let Bound::Ours(listener) = address::bind(&socket)? {
        let made = serve_on(&listener, arguments, &params).and_then(|pid| {
            let settled = settle(pid, &params).and_then(|()| write_file("shim.pid", &pid.to_string()));
            settled.inspect_err(|_| {
                // Nobody will ever connect to it.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            })
        });
        if let Err(error) = made {
            super::remove_own_socket(&listener);
            return Err(error);
        }
    }
    fs::rename(record::ADDRESS_DRAFT, record::ADDRESS).context("write", record::ADDRESS)?;
    let answer = if params.answer_in_json {
        json!({ "version": VERSION, "address": url, "protocol": "ttrpc" }).to_string()
    } else {
        url
    };
    std::io::stdout().write_all(answer.as_bytes()).context("write", "the address")
}

/// Starts this program again, to serve on the listening socket.
fn serve_on(
    listener: &std::os::unix::net::UnixListener,
    arguments: &Arguments,
    params: &Params,
) -> Result<i32> {
    let executable = std::env::current_exe().context("find", "this program")?;
    let mut words = vec![executable.display().to_string()];
    for (flag, value) in
        [("-namespace", &arguments.namespace), ("-id", &arguments.id), ("-address", &arguments.address)]
    {
        words.extend([flag.to_owned(), value.clone()]);
    }
    if params.debug {
        words.push("-debug".to_owned());
    }
    let words: Vec<CString> = words
        .into_iter()
        .map(|word| CString::new(word).map_err(|_| Error::new(Kind::InvalidArgument, "start", "a shim")))
        .collect::<Result<_>>()?;
    let null = File::options().read(true).write(true).open("/dev/null").context("open", "/dev/null")?;
    spawn(&Spawn {
        program: &words[0],
        executable: None,
        arguments: &words,
        environment: &crate::runtime::environment(),
        descriptors: &[null.as_fd(), null.as_fd(), null.as_fd(), listener.as_fd()],
        report: null.as_fd(),
        first: None,
        after: None,
        process_group: true,
        dies_with_us: false,
    })
    .context("start", words[0].to_string_lossy())
}

/// Gives a new shim its place: its cgroup, if one was asked for, and its rank among what the kernel kills.
fn settle(pid: i32, params: &Params) -> Result<()> {
    if !params.options.shim_cgroup.is_empty() {
        join_cgroup(pid, &params.options.shim_cgroup)?;
    }
    // One above the manager's, so that the shim goes first. A kernel or sandbox that forbids it changes nothing else.
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", getppid())).unwrap_or_default();
    if let Ok(score) = score.trim().parse::<i32>()
        && score < 1000
    {
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), (score + 1).to_string());
    }
    Ok(())
}

/// Moves a process into an existing cgroup, in every hierarchy that has it.
fn join_cgroup(pid: i32, path: &str) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let path = path.trim_start_matches('/');
    let hierarchies = fs::read_dir(root).context("list", "/sys/fs/cgroup")?;
    let groups = hierarchies.flatten().map(|entry| entry.path()).chain([root.to_owned()]);
    let mut joined = false;
    for processes in groups.map(|hierarchy| hierarchy.join(path).join("cgroup.procs")) {
        if processes.exists() {
            let shown = processes.display().to_string();
            fs::write(&processes, pid.to_string()).context("move the shim into", shown)?;
            joined = true;
        }
    }
    if joined { Ok(()) } else { Err(Error::new(Kind::NotFound, "shim cgroup", path)) }
}

/// Writes a file of the bundle whole or not at all.
fn write_file(name: &str, text: &str) -> Result<()> {
    let draft = format!(".{name}");
    fs::write(&draft, text).and_then(|()| fs::rename(&draft, name)).context("write", name)
}
