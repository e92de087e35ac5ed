//! OCI hooks: programs that run at points of a container's life with its state on their standard input.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::{Hook, Hooks};
use orlop_host::sys;
use orlop_proto::contract::state::HookState;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

/// How much of a failed hook's output is repeated, in bytes.
const OUTPUT: u64 = 2048;

/// The hooks that run in the runtime's namespace before the root changes, in order: `prestart`, `createRuntime`.
#[allow(deprecated, reason = "prestart is deprecated for users, but a runtime has to run it")]
pub fn before_pivot(hooks: Option<&Hooks>) -> impl Iterator<Item = &Hook> {
    let lists = hooks.map(|hooks| [hooks.prestart(), hooks.create_runtime()]);
    lists.into_iter().flatten().flatten().flatten()
}

/// Every hook, for checks.
pub fn all(hooks: Option<&Hooks>) -> impl Iterator<Item = &Hook> {
    let later = hooks.map(|h| [h.create_container(), h.start_container(), h.poststart(), h.poststop()]);
    before_pivot(hooks).chain(later.into_iter().flatten().flatten().flatten())
}

/// Runs hooks one after the other; the first failure ends the row. They get their three streams and no other descriptor: a hook
/// may be a program of the image. One without an `env` gets this process's environment, as with runc.
pub fn run<'a>(hooks: impl IntoIterator<Item = &'a Hook>, state: &HookState) -> Result<()> {
    run_with(hooks, state, None)
}

/// The same where hooks without an `env` get the environment of the container's program.
pub fn run_inside<'a>(
    hooks: impl IntoIterator<Item = &'a Hook>,
    state: &HookState,
    environment: &[CString],
) -> Result<()> {
    run_with(hooks, state, Some(environment))
}

fn run_with<'a>(
    hooks: impl IntoIterator<Item = &'a Hook>,
    state: &HookState,
    environment: Option<&[CString]>,
) -> Result<()> {
    let mut hooks = hooks.into_iter().peekable();
    if hooks.peek().is_none() {
        return Ok(());
    }
    if !crate::switches::is_off("descriptors") {
        sys::fd::close_on_exec_from(3).context("close", "descriptors")?;
    }
    let input = serde_json::to_vec(state)
        .map_err(|error| Error::because(Kind::Internal, "encode", "the state for hooks", error))?;
    for (number, hook) in hooks.enumerate() {
        run_one(hook, &input, environment).map_err(|error| {
            Error::exactly(error.kind(), format!("error running hook #{number}: {error}"))
        })?;
    }
    Ok(())
}

fn run_one(hook: &Hook, input: &[u8], environment: Option<&[CString]>) -> Result<()> {
    let shown = hook.path().display().to_string();
    let output = |what| memory_file(what).context("prepare output of", &shown);
    let (out, err) = (output(c"hook-stdout")?, output(c"hook-stderr")?);
    let clone = |file: &File| file.try_clone().context("prepare output of", &shown);
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    match (hook.env(), environment) {
        (Some(own), _) => {
            command.env_clear().envs(own.iter().filter_map(|pair| pair.split_once('=')));
        }
        (None, Some(containers)) => {
            let pairs = containers.iter().filter_map(|pair| {
                let at = pair.as_bytes().iter().position(|byte| *byte == b'=')?;
                let (name, value) = pair.as_bytes().split_at(at);
                Some((OsStr::from_bytes(name), OsStr::from_bytes(&value[1..])))
            });
            command.env_clear().envs(pairs);
        }
        (None, None) => {}
    }
    // Files, not pipes: a hook may leave a daemon behind that keeps its streams open.
    command.stdin(Stdio::piped()).stdout(clone(&out)?).stderr(clone(&err)?);
    let mut child = command.spawn().context("execute", &shown)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its input.
        let _ = stdin.write_all(input);
    }
    let status = wait(&mut child, hook.timeout()).context("wait for", &shown)?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(&shown, &describe(status), out, err)),
        None => Err(failed(&shown, "timed out", out, err)),
    }
}

fn memory_file(name: &std::ffi::CStr) -> std::io::Result<File> {
    sys::fd::memory_file(name).map(|fd: OwnedFd| File::from(fd))
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

fn failed(path: &str, how: &str, out: File, err: File) -> Error {
    let text = |mut file: File| {
        let mut bytes = Vec::new();
        let read = file.rewind().and_then(|()| file.take(OUTPUT).read_to_end(&mut bytes));
        read.map(|_| String::from_utf8_lossy(&bytes).trim_end().to_owned()).unwrap_or_default()
    };
    let words = format!("{how}, stdout: {}, stderr: {}", text(out), text(err));
    Error::because(Kind::Unknown, "error running hook", path, words)
}

/// Waits for a hook; kills it and answers `None` when its time in seconds is over.
fn wait(child: &mut Child, timeout: Option<i64>) -> std::io::Result<Option<ExitStatus>> {
    let Some(seconds) = timeout.and_then(|seconds| u64::try_from(seconds).ok()) else {
        return child.wait().map(Some);
    };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let pidfd = sys::pid::pidfd_open(child.id() as i32)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut descriptors = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)) {
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) if deadline <= Instant::now() => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(0) => {}
            Ok(_) => return child.wait().map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_proto::contract::state::Status;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let mut hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"]});
        if let Some(seconds) = timeout {
            hook["timeout"] = seconds.into();
        }
        serde_json::from_value(hook).unwrap()
    }

    fn state() -> HookState {
        HookState {
            oci_version: "1.3.0".into(),
            id: "x".into(),
            status: Status::Creating,
            pid: 7,
            bundle: "/b".into(),
            annotations: Default::default(),
        }
    }

    #[test]
    fn hooks_get_state_and_environment() {
        let script = r#"test "$A" = b && test -z "$PATH_NOT" && grep -q '"status":"creating"'"#;
        run(&[hook(script, None), hook("true", Some(5))], &state()).unwrap();
    }

    #[test]
    fn a_failure_says_which_and_repeats_the_output() {
        let hooks = [hook("true", None), hook("echo out; echo err >&2; exit 3", None)];
        let text = run(&hooks, &state()).unwrap_err().to_string();
        assert_eq!(
            text,
            "error running hook #1: error running hook /bin/sh: exit status 3, stdout: out, stderr: err"
        );
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let text = run(&[hook("exec sleep 60", Some(1))], &state()).unwrap_err().to_string();
        assert!(text.contains("timed out"), "{text}");
    }
}
