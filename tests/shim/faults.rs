//! Runtimes that fail, hang and print garbage; shims that are killed; managers that do not answer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_proto::containerd::task::v2::*;
use orlop_proto::containerd::types::Mount;
use orlop_proto::kind::Kind;
use orlop_tests::{Root, binaries, host, poll_until};

use orlop_tests::shim::Manner;
use orlop_tests::shim::{DEADLINE, Fifos, Shim};

/// A runtime that misbehaves for one verb and is runc for all others.
fn bad_runtime(root: &Root, verb: &str, behaviour: &str) -> PathBuf {
    let path = root.join("bad-runtime");
    let script = format!(
        "#!/bin/sh\nlog=; last=\nfor word; do\n  case $last in --log) log=$word;; esac\n  last=$word\ndone\n\
         for word; do\n  case $word in {verb}) {behaviour};; esac\ndone\nexec {} \"$@\"\n",
        binaries::system("runc").display()
    );
    fs::write(&path, script).expect("writing the runtime");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("making it executable");
    path
}

fn with_runtime(root: &Root, verb: &str, behaviour: &str) -> Shim {
    let runtime = bad_runtime(root, verb, behaviour);
    Shim::start_with(root, "c", &runtime, |bundle| bundle.sh("sleep 1000"))
}

#[test]
fn what_the_runtime_logs_is_the_error() {
    let root = Root::new();
    let log = r#"echo '{"level":"error","msg":"the reason"}' >>"$log"; exit 1"#;
    let mut shim = with_runtime(&root, "create", log);
    let error = shim.try_create(&Fifos::default()).unwrap_err();
    assert!(error.to_string().ends_with("OCI runtime create failed: the reason"), "{error}");
    assert_eq!(error.kind(), Kind::Unknown);
    assert_eq!(shim.state("").unwrap_err().kind(), Kind::NotFound);
    shim.shut_down();
    root.assert_clean();
}

#[test]
fn a_runtime_that_prints_garbage_and_fails_is_told_plainly() {
    let root = Root::new();
    let mut shim =
        with_runtime(&root, "create", "echo garbage >>\"$log\"; head -c 200000 /dev/urandom; exit 3");
    let error = shim.try_create(&Fifos::default()).unwrap_err();
    assert!(
        error.to_string().contains("bad-runtime did not terminate successfully: exit status 3"),
        "{error}"
    );
    shim.shut_down();
    root.assert_clean();
}

#[test]
fn a_runtime_that_claims_success_without_a_container_has_failed() {
    let root = Root::new();
    let mut shim = with_runtime(&root, "create", "exit 0");
    let error = shim.try_create(&Fifos::default()).unwrap_err();
    assert!(error.to_string().contains("init.pid: no such file"), "{error}");
    shim.shut_down();
    root.assert_clean();
}

#[test]
fn a_runtime_that_hangs_is_killed_when_the_caller_gives_up() {
    let root = Root::new();
    let mut shim = with_runtime(&root, "create", "sleep 1000; exit 1");
    let request = shim.create_request(&Fifos::default());
    let timeout = Duration::from_millis(500);
    let pending = shim.client.send_as("containerd.task.v2.Task", "Create", &request, timeout);
    let error = shim.client.receive::<CreateTaskResponse>(pending).unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
    shim.shut_down();
    root.assert_clean();
}

#[test]
fn a_hanging_exec_holds_up_nobody_else() {
    let root = Root::new();
    let mut shim = with_runtime(&root, "exec", "sleep 1000; exit 1");
    shim.run();
    shim.exec("e", "true", &Fifos::default());
    let start = StartRequest { id: shim.id.clone(), exec_id: "e".into() };
    let timeout = Duration::from_secs(2);
    let pending = shim.client.send_as("containerd.task.v2.Task", "Start", &start, timeout);
    assert!(shim.state("").is_ok());
    assert!(!shim.client.has_answered(pending));
    let error = shim.client.receive::<StartResponse>(pending).unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    shim.finish();
    root.assert_clean();
}

#[test]
fn an_exec_that_fails_leaves_the_container_alone() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    shim.run();
    let mut request = shim.exec_request("e", "", &Fifos::default());
    let text =
        String::from_utf8(request.spec.take().unwrap().value).unwrap().replace("\"sh\"", "\"nonexistent\"");
    request.spec = Some(prost_types::Any { value: text.into_bytes(), ..Default::default() });
    shim.client.call::<()>("Exec", &request).unwrap();
    let error = shim.start_process("e").unwrap_err();
    assert!(error.to_string().contains("OCI runtime exec failed: "), "{error}");
    assert_eq!(shim.wait("e"), 255);
    shim.delete("e").unwrap();
    assert!(shim.state("").is_ok());
    shim.finish();
    root.assert_clean();
}

#[test]
fn bad_requests_are_refused_before_anything_happens() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    let mut missing = shim.create_request(&Fifos::default());
    missing.stdout = "/nonexistent/fifo".into();
    let error = shim.client.call::<CreateTaskResponse>("Create", &missing).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    let mut mounts = shim.create_request(&Fifos::default());
    mounts.rootfs = vec![Mount { r#type: "nosuchfs".into(), source: "none".into(), ..Mount::default() }];
    let error = shim.client.call::<CreateTaskResponse>("Create", &mounts).unwrap_err();
    assert!(error.to_string().contains("nosuchfs"), "{error}");
    let mut named = shim.create_request(&Fifos::default());
    named.id = "../c".into();
    let error = shim.client.call::<CreateTaskResponse>("Create", &named).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    shim.run();
    let exec = shim.exec_request("../e", "true", &Fifos::default());
    assert_eq!(shim.client.call::<()>("Exec", &exec).unwrap_err().kind(), Kind::InvalidArgument);
    assert_eq!(shim.simple("Dance").unwrap_err().kind(), Kind::Unimplemented);
    shim.finish();
    root.assert_clean();
}

#[test]
fn a_killed_shim_is_cleared_away_after() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    let init = shim.run();
    shim.exec("e", "sleep 1000", &Fifos::default());
    shim.start_process("e").unwrap();
    let pid = shim.pid();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    poll_until(DEADLINE, "the shim is gone", || !host::alive(pid));
    let deleted = shim.delete_action();
    assert_eq!((deleted.pid, deleted.exit_status), (init as u32, 137));
    assert!(!host::alive(init));
    assert!(!shim.socket.exists());
    drop(shim);
    root.assert_clean();
}

#[test]
fn a_shim_killed_after_the_container_ended_keeps_its_exit_code() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "exit 44");
    shim.run();
    assert_eq!(shim.wait(""), 44);
    let pid = shim.pid();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    poll_until(DEADLINE, "the shim is gone", || !host::alive(pid));
    assert_eq!(shim.delete_action().exit_status, 44);
    drop(shim);
    root.assert_clean();
}

#[test]
fn a_manager_that_never_answers_holds_up_nothing() {
    let root = Root::new();
    let runc = binaries::system("runc");
    let mut shim = Shim::start_for(&root, "c", &runc, Manner::Silent, |bundle| bundle.sh("exit 3"));
    shim.run();
    assert_eq!(shim.wait(""), 3);
    shim.delete("").unwrap();
    let since = Instant::now();
    shim.shut_down();
    assert!(since.elapsed() < DEADLINE, "it ends although its events are not taken");
    root.assert_clean();
}
