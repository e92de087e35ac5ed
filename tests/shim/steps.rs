//! Every step of a container's life with a runtime that fails, hangs, prints garbage or is killed in it: one clear error, the
//! container as it was, and nothing left when it is taken away.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use orlop_proto::any;
use orlop_proto::containerd::task::v2::*;
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::error::Result;
use orlop_proto::kind::Kind;
use orlop_tests::shim::{DEADLINE, Fifos, Shim, runtime};
use orlop_tests::{Root, binaries, patient, poll_until};
use prost_types::Any;

/// What a runtime does instead of its work.
const FAULTS: [(&str, &str); 4] = [
    ("fails", r#"echo '{"level":"error","msg":"the reason"}' >>"$log"; exit 1"#),
    ("prints garbage", r#"head -c 100000 /dev/urandom >>"$log"; head -c 100000 /dev/urandom; exit 3"#),
    ("is killed", "kill -9 $$"),
    ("hangs", "sleep 1000; exit 1"),
];
/// How long a caller waits for a runtime that hangs; for others it waits as long as they take.
const PATIENCE: Duration = Duration::from_millis(700);

/// Runc, but for one verb as long as the file `fault` below the root names what to do.
fn faulty(root: &Root) -> PathBuf {
    let path = root.join("faulty");
    let script = format!(
        "#!/bin/sh\nlog=; last=; verb=\nfor word; do\n  case $last in --log) log=$word;; esac\n  last=$word\n\
         case $word in create|start|exec|kill|pause|resume|update|delete) verb=${{verb:-$word}};; esac\ndone\n\
         [ -e {fault}-$verb ] && . {fault}-$verb\nexec {} \"$@\"\n",
        binaries::system("runc").display(),
        fault = root.join("fault").display(),
    );
    fs::write(&path, script).expect("writing the runtime");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("making it executable");
    path
}

/// Calls a method, with a caller who may give up.
fn call(
    shim: &mut Shim,
    method: &'static str,
    message: &impl prost::Message,
    patience: Duration,
) -> Result<()> {
    let pending = shim.client.send_as("containerd.task.v2.Task", method, message, patience);
    shim.client.receive(pending)
}

fn step(shim: &mut Shim, verb: &str, patience: Duration) -> Result<()> {
    let id = shim.id.clone();
    match verb {
        "create" => {
            let request = shim.create_request(&Fifos::default());
            call(shim, "Create", &request, patience)
        }
        "start" => call(shim, "Start", &StartRequest { id, exec_id: String::new() }, patience),
        "exec" => {
            shim.exec("e", "sleep 1000", &Fifos::default());
            let result = call(shim, "Start", &StartRequest { id, exec_id: "e".into() }, patience);
            if result.is_err() {
                assert_eq!(shim.wait("e"), 255);
                shim.delete("e").expect("an exec that failed is deleted");
            }
            result
        }
        "pause" => call(shim, "Pause", &PauseRequest { id }, patience),
        "resume" => call(shim, "Resume", &ResumeRequest { id }, patience),
        "update" => {
            let value = br#"{"pids":{"limit":50}}"#.to_vec();
            let resources = Some(Any { type_url: any::RESOURCES_URL.into(), value });
            call(shim, "Update", &UpdateTaskRequest { id, resources, ..Default::default() }, patience)
        }
        "kill" => call(
            shim,
            "Kill",
            &KillRequest { id, signal: Signal::SIGKILL as u32, ..Default::default() },
            patience,
        ),
        "delete" => call(shim, "Delete", &DeleteRequest { id, exec_id: String::new() }, patience),
        other => panic!("no step {other}"),
    }
}

fn every_step(fault: usize) {
    let (name, script) = FAULTS[fault];
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &faulty(&root), |bundle| bundle.sh("sleep 1000"));
    // What the container is before a step, and after it failed.
    let steps = [
        ("create", None),
        ("start", Some(Status::Created)),
        ("exec", Some(Status::Running)),
        ("update", Some(Status::Running)),
        ("pause", Some(Status::Running)),
        ("resume", Some(Status::Paused)),
        ("kill", Some(Status::Running)),
        ("delete", Some(Status::Stopped)),
    ];
    for (verb, status) in steps {
        let file = root.join(format!("fault-{verb}"));
        fs::write(&file, script).unwrap();
        let patience = if name == "hangs" { PATIENCE } else { patient(DEADLINE) };
        let error = step(&mut shim, verb, patience).expect_err(verb);
        let told = error.to_string();
        match name {
            "fails" => assert!(told.contains("the reason"), "{verb}: {told}"),
            "hangs" => assert_eq!(error.kind(), Kind::DeadlineExceeded, "{verb}: {told}"),
            "is killed" => assert!(told.contains("signal 9"), "{verb}: {told}"),
            _ => assert!(told.contains("exit status 3"), "{verb}: {told}"),
        }
        fs::remove_file(&file).unwrap();
        match status {
            Some(status) => assert_eq!(shim.status(""), status, "{verb} that {name}"),
            None => assert_eq!(shim.state("").unwrap_err().kind(), Kind::NotFound),
        }
        step(&mut shim, verb, patient(DEADLINE))
            .unwrap_or_else(|error| panic!("{verb} after one that {name}: {error}"));
        if verb == "kill" {
            assert_eq!(shim.wait(""), 137);
        }
    }
    shim.shut_down();
    root.assert_clean();
}

#[test]
fn a_runtime_fails_in_every_step() {
    every_step(0);
}

#[test]
fn a_runtime_prints_garbage_in_every_step() {
    every_step(1);
}

#[test]
fn a_runtime_is_killed_in_every_step() {
    every_step(2);
}

#[test]
fn a_runtime_hangs_in_every_step() {
    every_step(3);
}

#[test]
fn a_full_disk_in_the_bundle_is_told_and_loses_no_exit() {
    for name in ["orlop", "runc"] {
        let root = Root::new();
        let mut shim = Shim::start_with(&root, "c", &runtime(name), |bundle| {
            let none = None::<&str>;
            mount(none, bundle.path(), Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
            orlop_tests::busybox_rootfs(&bundle.path().join("rootfs"));
            bundle.sh("trap 'exit 9' TERM; while :; do sleep 0.05; done")
        });
        let filler = shim.bundle.path().join("filler");
        let fill = || {
            // What fits, to the last byte.
            let _ = fs::write(&filler, vec![0; 8 << 20]);
        };
        fill();
        let error = shim.try_create(&Fifos::default()).unwrap_err();
        assert!(error.to_string().to_lowercase().contains("no space left on device"), "{name}: {error}");
        fs::remove_file(&filler).unwrap();
        shim.run();
        fill();
        // An exec's pid file has no room: it fails, the container goes on.
        shim.exec("e", "exit 3", &Fifos::default());
        let error = shim.start_process("e").unwrap_err();
        assert!(error.to_string().contains("OCI runtime exec failed"), "{name}: {error}");
        shim.kill("", Signal::SIGTERM).unwrap();
        assert_eq!(shim.wait(""), 9, "{name}");
        assert_eq!(shim.delete("").unwrap().exit_status, 9);
        let bundle = shim.bundle.path().to_owned();
        shim.shut_down();
        // What the kernel takes down of a process after its end may hold the mount a little longer.
        poll_until(DEADLINE, "nobody uses the bundle", || umount(&bundle).is_ok());
        root.assert_clean();
    }
}
