//! From create to delete: states, exit codes, signals, what is left.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_tests::{Bundle, Cmd, host, poll_until};

use super::support::{PATIENCE, Runtime, cgroup_file, content};

#[test]
fn run_prints_and_leaves_nothing() {
    let runtime = Runtime::new();
    let out = runtime.run(&runtime.sh("echo out; echo err >&2").save()).success();
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("out\n", "err\n"));
    runtime.assert_clean();
}

#[test]
fn run_reads_its_standard_input() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("cat").save();
    let out = runtime.cmd().args(["run", "-b"]).arg(bundle.path()).arg("c1").input("hello\n").run().success();
    assert_eq!(out.stdout, "hello\n");
    runtime.assert_clean();
}

#[test]
fn exit_codes() {
    let runtime = Runtime::new();
    for (script, code) in [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("exit 255", 255)] {
        assert_eq!(runtime.run(&runtime.sh(script).save()).code(), code, "{script}");
    }
    // A first process does not die of its own signals unless it wants to; a child's death is told by the shell.
    assert_eq!(runtime.run(&runtime.sh("sh -c 'kill -TERM $$'; exit $?").save()).code(), 143);
    runtime.assert_clean();
}

#[test]
fn a_killed_container_counts_as_128_and_the_signal() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().save();
    let mut process = runtime.cmd().args(["run", "-b"]).arg(bundle.path()).arg("c1").spawn();
    poll_until(PATIENCE, "the container runs", || {
        assert!(process.running(), "{}", process.stderr());
        runtime.call(&["state", "c1"]).status.success() && runtime.status("c1") == "running"
    });
    runtime.call(&["kill", "c1", "KILL"]).success();
    assert_eq!(process.wait(PATIENCE).code(), 137);
    runtime.assert_clean();
}

#[test]
fn signals_to_a_foreground_run_reach_the_container() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.01; done").save();
    let process = runtime.cmd().args(["run", "-b"]).arg(bundle.path()).arg("c1").spawn();
    poll_until(PATIENCE, "the container is ready", || process.stdout().contains("ready"));
    process.signal(Signal::SIGTERM);
    let out = process.wait(PATIENCE);
    assert_eq!((out.code(), out.stdout.as_str()), (7, "ready\ngot\n"));
    runtime.assert_clean();
}

#[test]
fn created_started_stopped_deleted() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("echo $$ >/ran; exec sleep 1000").save();
    runtime.create(&bundle, "c1");
    let state = runtime.state("c1");
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], "c1");
    assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
    assert_eq!(state["rootfs"], bundle.path().join("rootfs").to_str().unwrap());
    assert!(state["ociVersion"].is_string() && state["created"].is_string() && state["owner"] == "");
    let pid = runtime.pid("c1");
    assert!(host::alive(pid));
    assert!(!bundle.rootfs("/ran").exists(), "nothing of the user's runs before start");
    runtime.call(&["start", "c1"]).success();
    assert_eq!(content(&bundle.rootfs("/ran")), "1\n");
    assert_eq!(runtime.pid("c1"), pid);
    assert_eq!(runtime.status("c1"), "running");
    runtime.call(&["start", "c1"]).failure();
    runtime.call(&["delete", "c1"]).failure();
    assert_eq!(runtime.status("c1"), "running", "a running container is not deleted without force");
    runtime.call(&["kill", "c1", "9"]).success();
    runtime.wait_for("c1", "stopped");
    assert_eq!(runtime.state("c1")["pid"], 0);
    runtime.call(&["start", "c1"]).failure();
    runtime.call(&["delete", "c1"]).success();
    runtime.call(&["state", "c1"]).failure();
    runtime.assert_clean();
}

#[test]
fn a_created_container_can_be_deleted_by_force() {
    let runtime = Runtime::new();
    runtime.create(&runtime.sleeper().save(), "c1");
    runtime.finish("c1");
}

#[test]
fn deleting_what_is_not_there() {
    let runtime = Runtime::new();
    let out = runtime.call(&["delete", "none"]).failure();
    assert!(out.stderr.contains("container does not exist"), "{out}");
    runtime.call(&["delete", "--force", "none"]).success();
    for verb in ["state", "start", "kill", "pause", "resume", "ps"] {
        let out = runtime.call(&[verb, "none"]).failure();
        assert!(out.stderr.contains("container does not exist"), "{out}");
    }
}

#[test]
fn signals_have_names_and_numbers() {
    let runtime = Runtime::new();
    let script = "for s in HUP INT USR1 TERM; do trap \"echo $s >>/got\" $s; done; touch /ready; while :; do sleep 0.01; done";
    let bundle = runtime.sh(script).save();
    // A shell cannot trap what is ignored from the start, as HUP is below nohup(1) and INT in a script's background.
    let run = runtime.cmd().args(["run", "--detach", "--bundle"]).arg(bundle.path()).arg("c1");
    Cmd::new("env").arg("--default-signal=HUP,INT").args(run.words()).run().success();
    poll_until(PATIENCE, "traps are set", || bundle.rootfs("/ready").exists());
    for (count, (signal, name)) in
        [("HUP", "HUP"), ("SIGINT", "INT"), ("usr1", "USR1"), ("15", "TERM")].into_iter().enumerate()
    {
        runtime.call(&["kill", "c1", signal]).success();
        poll_until(PATIENCE, name, || {
            let text = fs::read_to_string(bundle.rootfs("/got")).unwrap_or_default();
            text.lines().nth(count) == Some(name)
        });
    }
    runtime.call(&["kill", "c1", "NOSUCH"]).failure();
    assert_eq!(runtime.status("c1"), "running");
    runtime.finish("c1");
}

#[test]
fn kill_of_a_stopped_container_says_so() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sh("true").save(), "c1");
    runtime.wait_for("c1", "stopped");
    let out = runtime.call(&["kill", "c1", "KILL"]).failure();
    assert!(out.stderr.contains("container not running"), "{out}");
    runtime.finish("c1");
}

#[test]
fn kill_all_without_a_pid_namespace() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("sleep 1000 & sleep 1000 & wait").edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let bundle = bundle.save();
    runtime.detach(&bundle, "c1");
    poll_until(PATIENCE, "all are there", || {
        let out = runtime.call(&["ps", "--format", "json", "c1"]).success();
        serde_json::from_str::<Vec<i32>>(&out.stdout).unwrap().len() == 3
    });
    runtime.call(&["kill", "--all", "c1", "KILL"]).success();
    runtime.wait_for("c1", "stopped");
    runtime.call(&["delete", "c1"]).success();
    runtime.assert_clean();
}

#[test]
fn what_outlives_init_in_a_joined_pid_namespace_goes_with_the_container() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sleeper().save(), "c1");
    let joined = format!("/proc/{}/ns/pid", runtime.pid("c1"));
    let bundle = runtime.sh("sleep 1000 & sleep 1000 &").edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        let own = namespaces.iter_mut().find(|namespace| namespace["type"] == "pid").unwrap();
        own["path"] = joined.into();
    });
    let bundle = bundle.save();
    runtime.detach(&bundle, "c2");
    runtime.wait_for("c2", "stopped");
    let left = fs::read_to_string(cgroup_file(&bundle, "pids", "cgroup.procs")).unwrap();
    assert_eq!(left.lines().count(), 2, "{left:?}");
    runtime.call(&["delete", "c2"]).success();
    assert_eq!(runtime.status("c1"), "running");
    runtime.finish("c1");
}

#[test]
fn pause_and_resume() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("while :; do echo x >>/beat; sleep 0.01; done").save();
    runtime.detach(&bundle, "c1");
    let beats = || fs::metadata(bundle.rootfs("/beat")).map_or(0, |file| file.len());
    poll_until(PATIENCE, "it beats", || beats() > 0);
    runtime.call(&["pause", "c1"]).success();
    assert_eq!(runtime.status("c1"), "paused");
    let before = beats();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(beats(), before, "nothing runs while it is paused");
    runtime.call(&["exec", "c1", "true"]).failure();
    runtime.call(&["resume", "c1"]).success();
    poll_until(PATIENCE, "it beats again", || beats() > before);
    assert_eq!(runtime.status("c1"), "running");
    runtime.call(&["pause", "c1"]).success();
    runtime.finish("c1");
}

#[test]
fn the_pid_file_holds_the_pid_as_text() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().save();
    let file = runtime.root.join("pid");
    runtime
        .cmd()
        .args(["create", "--pid-file"])
        .arg(&file)
        .arg("-b")
        .arg(bundle.path())
        .arg("c1")
        .run()
        .success();
    assert_eq!(fs::read_to_string(&file).unwrap(), runtime.pid("c1").to_string());
    runtime.finish("c1");
}

#[test]
fn the_bundle_is_the_current_directory_by_default() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("echo here").save();
    let out = runtime.cmd().args(["run", "c1"]).cwd(bundle.path()).run().success();
    assert_eq!(out.stdout, "here\n");
    runtime.assert_clean();
}

#[test]
fn a_name_is_taken_once() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().save();
    runtime.detach(&bundle, "c1");
    let other = Bundle::new(&runtime.root, "other").save();
    let out = runtime.cmd().args(["create", "-b"]).arg(other.path()).arg("c1").run().failure();
    assert!(
        out.stderr.contains("container with given ID already exists")
            || out.stderr.contains("already exists"),
        "{out}"
    );
    assert_eq!(runtime.status("c1"), "running");
    runtime.finish("c1");
}

#[test]
fn names_that_are_not_allowed() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().save();
    for name in ["", "..", ".", "a/b", "a b", "ä", "*"] {
        runtime.cmd().args(["create", "-b"]).arg(bundle.path()).arg(name).run().failure();
    }
    runtime.assert_clean();
    runtime.detach(&bundle, "A-b_c.d+1");
    runtime.finish("A-b_c.d+1");
}

#[test]
fn an_init_that_is_killed_from_outside_is_stopped() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sleeper().save(), "c1");
    kill(Pid::from_raw(runtime.pid("c1")), Signal::SIGKILL).unwrap();
    runtime.wait_for("c1", "stopped");
    runtime.finish("c1");
}

#[test]
fn a_detached_container_outlives_its_runtime_and_its_streams_go_on() {
    let runtime = Runtime::new();
    let bundle = runtime
        .sh("echo first; while [ ! -e /go ]; do sleep 0.01; done; echo second; touch /said; sleep 1000")
        .save();
    let out = runtime.root.join("out");
    let file = fs::File::create(&out).unwrap();
    let status = runtime
        .cmd()
        .args(["run", "-d", "-b"])
        .arg(bundle.path())
        .arg("c1")
        .with(|command| {
            command.stdin(std::process::Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        })
        .keep_stdio()
        .run()
        .status;
    assert_eq!(status.code(), Some(0), "{status} {:?}", status.signal());
    poll_until(PATIENCE, "first", || fs::read_to_string(&out).unwrap() == "first\n");
    fs::write(bundle.rootfs("/go"), "").unwrap();
    poll_until(PATIENCE, "second", || bundle.rootfs("/said").exists());
    assert_eq!(fs::read_to_string(&out).unwrap(), "first\nsecond\n");
    runtime.finish("c1");
}

#[test]
fn many_containers_one_after_the_other_and_at_once() {
    let runtime = Runtime::new();
    let bundles: Vec<_> =
        (0..8).map(|n| Bundle::new(&runtime.root, &format!("b{n}")).sh("exit 3").save()).collect();
    std::thread::scope(|scope| {
        for (number, bundle) in bundles.iter().enumerate() {
            let runtime = &runtime;
            scope.spawn(move || {
                for round in 0..3 {
                    let id = format!("c{number}-{round}");
                    let out = runtime.cmd().args(["run", "-b"]).arg(bundle.path()).arg(&id).run();
                    assert_eq!(out.code(), 3, "{out}");
                }
            });
        }
    });
    runtime.assert_clean();
}

#[test]
fn a_container_without_a_process_can_be_created_and_not_started() {
    let runtime = Runtime::new();
    // runc refuses the creation; the specification wants a process when the container is started.
    if runtime.is_reference() {
        return;
    }
    let bundle =
        runtime.sleeper().edit(|config| drop(config.as_object_mut().unwrap().remove("process"))).save();
    let refused = runtime.run(&bundle).failure();
    assert!(refused.stderr.contains("process property must not be empty"), "{refused}");
    runtime.assert_clean();
    runtime.create(&bundle, "c1");
    assert_eq!(runtime.status("c1"), "created");
    let refused = runtime.call(&["start", "c1"]).failure();
    assert!(refused.stderr.contains("process property must not be empty"), "{refused}");
    assert_eq!(runtime.status("c1"), "created");
    let file = runtime.root.join("process.json");
    std::fs::write(
        &file,
        r#"{"args": ["hostname"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}"#,
    )
    .unwrap();
    let out = runtime.cmd().args(["exec", "--process"]).arg(&file).arg("c1").run().success();
    assert_eq!(out.stdout, "orlop\n");
    runtime.finish("c1");
}
