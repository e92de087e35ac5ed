//! What orlop's containers need no program for: counted, since it is what makes a shim fast.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use orlop_proto::any;
use orlop_proto::containerd::task::v2::*;
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::kind::Kind;
use orlop_tests::shim::{DEADLINE, Fifos, Shim, runtime};
use orlop_tests::{Cmd, Root, binaries, poll_until};
use prost_types::Any;
use serde_json::{Value, json};

/// The runtime with a note of each of its starts: the verb, in `calls` below the root.
fn noted(root: &Root) -> PathBuf {
    let path = root.join("bin/orlop");
    fs::create_dir(root.join("bin")).expect("making a directory");
    let script = format!(
        "#!/bin/sh\nfor word; do case $word in create|start|exec|kill|pause|resume|update|delete|state) \
         echo $word >>{}; break;; esac; done\nexec {} \"$@\"\n",
        root.join("calls").display(),
        binaries::orlop().display()
    );
    fs::write(&path, script).expect("writing the runtime");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("making it executable");
    path
}

fn calls(root: &Root) -> Vec<String> {
    let text = fs::read_to_string(root.join("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn update(shim: &mut Shim, resources: &Value) -> orlop_proto::error::Result<()> {
    let request = UpdateTaskRequest {
        id: shim.id.clone(),
        resources: Some(Any {
            type_url: any::RESOURCES_URL.into(),
            value: resources.to_string().into_bytes(),
        }),
        ..UpdateTaskRequest::default()
    };
    shim.client.call("Update", &request)
}

/// The calls that make processes and execute programs in the shim and below it, while something is done.
fn traced(root: &Root, shim: &mut Shim, name: &str, work: impl FnOnce(&mut Shim)) -> Vec<String> {
    let (pid, trace) = (shim.pid(), root.join(name));
    let strace = Cmd::new(binaries::system("strace"))
        .args(["-f", "-e", "trace=clone3,clone,fork,vfork,execve,execveat", "-e", "signal=none", "-o"])
        .arg(&trace)
        .args(["-p", &pid.to_string()])
        .spawn();
    poll_until(DEADLINE, "strace has attached", || strace.stderr().contains("attached"));
    work(shim);
    strace.signal(Signal::SIGINT);
    strace.wait(DEADLINE);
    let text = fs::read_to_string(trace).expect("strace wrote its trace");
    // A call that another process interrupts is shown in two lines.
    let calls = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.split_once('('));
    calls.map(|(call, _)| call.to_owned()).collect()
}

#[test]
fn what_the_library_can_do_starts_no_process() {
    let root = Root::new();
    let runtime = noted(&root);
    let mut shim = Shim::start_with(&root, "c", &runtime, |bundle| {
        bundle.sh("trap '' USR1; while :; do sleep 0.1; done")
    });
    shim.create(&Fifos::default());
    let id = shim.id.clone();
    let started = traced(&root, &mut shim, "trace", |shim| {
        shim.start_process("").unwrap();
        shim.kill("", Signal::SIGUSR1).unwrap();
        for _ in 0..10 {
            shim.simple("Pause").unwrap();
            assert_eq!(shim.status(""), Status::Paused);
            shim.simple("Resume").unwrap();
        }
        let all = KillRequest {
            id: id.clone(),
            signal: Signal::SIGUSR1 as u32,
            all: true,
            ..KillRequest::default()
        };
        shim.client.call::<()>("Kill", &all).unwrap();
        update(shim, &json!({"pids": {"limit": 40}, "memory": {"limit": 256 << 20}})).unwrap();
        update(shim, &json!({"cpu": {"quota": 50_000, "period": 100_000}})).unwrap();
        shim.client.call::<StatsResponse>("Stats", &StatsRequest { id: id.clone() }).unwrap();
        shim.client.call::<PidsResponse>("Pids", &PidsRequest { id: id.clone() }).unwrap();
    });
    assert!(started.is_empty(), "{started:?}");
    shim.finish();
    assert_eq!(calls(&root), ["create"], "it is deleted without the program, too");
    root.assert_clean();
}

#[test]
fn a_frozen_container_can_be_killed_and_deleted() {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &noted(&root), |bundle| bundle.sh("sleep 1000"));
    shim.run();
    shim.simple("Pause").unwrap();
    assert_eq!(shim.simple("Pause").unwrap_err().kind(), Kind::FailedPrecondition);
    shim.kill("", Signal::SIGKILL).unwrap();
    assert_eq!(shim.wait(""), 137);
    let error = shim.kill("", Signal::SIGKILL).unwrap_err();
    assert!(error.to_string().contains("process already finished"), "{error}");
    shim.delete("").unwrap();
    shim.shut_down();

    // Never started: deletion kills it.
    let mut shim = Shim::start_with(&root, "d", &root.join("bin/orlop"), |bundle| bundle.sh("sleep 1000"));
    let init = shim.create(&Fifos::default());
    let deleted = shim.delete("").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (init as u32, 137));
    shim.shut_down();
    assert_eq!(calls(&root), ["create", "create"]);
    root.assert_clean();
}

#[test]
fn a_limit_below_what_is_used_holds_up_nobody() {
    let root = Root::new();
    let script = "head -c 30000000 /dev/zero >/dev/shm/x; sleep 1000";
    let mut shim = Shim::start_with(&root, "c", &noted(&root), |bundle| bundle.sh(script));
    shim.run();
    let used = || fs::metadata(format!("/proc/{}/root/dev/shm/x", init(&root))).map_or(0, |file| file.len());
    poll_until(DEADLINE, "it uses memory", || used() >= 30_000_000);
    // Shared memory can go nowhere: the kernel tries for a while and refuses, or kills.
    let _ = update(&mut shim, &json!({"memory": {"limit": 8 << 20}}));
    assert!(shim.state("").is_ok());
    let error = update(&mut shim, &json!([1])).unwrap_err();
    // What it is refused for depends on whether the kernel has killed.
    assert!(matches!(error.kind(), Kind::InvalidArgument | Kind::FailedPrecondition), "{error}");
    shim.finish();
    root.assert_clean();
}

/// The container's init, by the file that names it.
fn init(root: &Root) -> i32 {
    fs::read_to_string(root.join("c/init.pid")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[test]
fn hooks_still_run_through_the_program() {
    let root = Root::new();
    let hook =
        |file: &Path| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("touch {}", file.display())]}]);
    let (after_start, after_end) = (root.join("after-start"), root.join("after-end"));
    let mut shim = Shim::start_with(&root, "c", &noted(&root), |bundle| {
        bundle.sh("sleep 1000").edit(|config| {
            config["hooks"] = json!({"poststart": hook(&after_start), "poststop": hook(&after_end)});
        })
    });
    shim.run();
    assert!(after_start.exists());
    shim.finish();
    assert!(after_end.exists());
    assert_eq!(calls(&root), ["create", "start", "delete"]);
    root.assert_clean();
}

#[test]
fn another_runtime_is_driven_by_its_command_line() {
    let root = Root::new();
    let noted = noted(&root);
    let other = root.join("bin/other");
    fs::rename(noted, &other).unwrap();
    let mut shim = Shim::start_with(&root, "c", &other, |bundle| bundle.sh("sleep 1000"));
    shim.run();
    shim.simple("Pause").unwrap();
    shim.simple("Resume").unwrap();
    update(&mut shim, &json!({"pids": {"limit": 40}})).unwrap();
    shim.finish();
    assert_eq!(calls(&root), ["create", "start", "pause", "resume", "update", "kill", "delete"]);
    root.assert_clean();
}

#[test]
fn creation_and_exec_execute_the_runtime_once_and_deletion_starts_nothing() {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &runtime("orlop"), |bundle| bundle.args(["sleep", "1000"]));
    let created = traced(&root, &mut shim, "creation", |shim| {
        shim.create(&Fifos::default());
    });
    // The runtime, and the container's init.
    assert_eq!(created, ["clone3", "execveat", "clone3"]);
    shim.start_process("").unwrap();
    let exec = traced(&root, &mut shim, "exec", |shim| {
        shim.exec("e", "sleep 1000", &Fifos::default());
        shim.start_process("e").unwrap();
    });
    assert_eq!(exec[..3], ["clone3", "execveat", "clone3"]);
    assert_eq!(exec.iter().filter(|call| call.starts_with("clone")).count(), 2, "{exec:?}");
    shim.kill("", Signal::SIGKILL).unwrap();
    shim.wait("");
    let deleted = traced(&root, &mut shim, "deletion", |shim| {
        shim.delete("").unwrap();
    });
    assert!(deleted.is_empty(), "{deleted:?}");
    shim.shut_down();
    root.assert_clean();
}
