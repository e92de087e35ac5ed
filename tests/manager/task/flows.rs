//! A container's life, for each shim and runtime.

use std::thread;

use orlop_tests::{Daemon, binaries};

use super::{DEADLINE, Stage, foreign};

fn check(config: &str, runtime: &str) {
    let mut stage = Stage::new(config);
    let program = if runtime == "orlop" { binaries::orlop() } else { binaries::system(runtime) };
    stage.flags = vec!["--runc-binary".to_owned(), program.display().to_string()];
    let events = stage.events(&[]);
    foreground(&stage);
    detached(&stage);
    in_order(&events.tasks(), "fg");
    in_order(&events.tasks(), "bg");
    drop(events);
    stage.finish();
}

fn foreground(stage: &Stage) {
    let out = stage.run(&["--rm"], "fg", "echo out; echo err >&2; exit 7").run();
    assert_eq!((out.code(), out.stdout.as_str()), (7, "out\n"), "{out}");
    assert!(out.stderr.contains("err"), "{out}");
    // This ctr does not pass on the end of its input to `run`.
    let out = stage.run(&["--rm"], "in", "read line; echo got $line").input("something\n").run().success();
    assert_eq!(out.stdout, "got something\n");
    let missing = stage
        .ctr(&["run", "--rm"])
        .args(&stage.flags)
        .arg("--rootfs")
        .arg(&stage.rootfs)
        .args(["none", "/no/such"])
        .run()
        .failure();
    assert!(missing.stderr.contains("failed to create shim task: OCI runtime create failed: "), "{missing}");
    assert!(missing.stderr.contains("/no/such") && missing.stderr.contains("no such file"), "{missing}");
    assert_eq!(stage.status("none"), "");
    stage.assert_no_bundles();
}

fn detached(stage: &Stage) {
    stage.start("bg");
    let (pid, status) = stage.task("bg").unwrap();
    assert_eq!(status, "RUNNING");
    let again = stage.ctr(&["tasks", "start", "bg"]).run().failure();
    assert!(again.stderr.contains("task bg: already exists"), "{again}");
    let running = stage.ctr(&["tasks", "delete", "bg"]).run().failure();
    assert!(running.stderr.contains("task must be stopped before deletion: running"), "{running}");

    let out = stage.exec("bg", "cat; exit 3").input("in").run();
    assert_eq!((out.code(), out.stdout.as_str()), (3, "in"), "{out}");
    let missing = stage.ctr(&["tasks", "exec", "--exec-id", "e", "bg", "/no/such"]).run().failure();
    assert!(missing.stderr.contains("OCI runtime exec failed: "), "{missing}");

    stage.ctr(&["tasks", "pause", "bg"]).run().success();
    assert_eq!(stage.status("bg"), "PAUSED");
    let frozen = stage.exec("bg", "true").run().failure();
    assert!(frozen.stderr.contains("paused"), "{frozen}");
    stage.ctr(&["tasks", "resume", "bg"]).run().success();
    assert_eq!(stage.status("bg"), "RUNNING");

    let ps = stage.ctr(&["tasks", "ps", "bg"]).run().success();
    assert!(ps.stdout.lines().any(|line| line.split_whitespace().next() == Some(&pid.to_string())), "{ps}");
    let metrics = stage.ctr(&["tasks", "metrics", "bg"]).run().success();
    assert!(metrics.stdout.contains("memory.usage"), "{metrics}");
    for args in [["tasks", "kill", "--exec-id", "zz", "bg"], ["tasks", "delete", "--exec-id", "zz", "bg"]] {
        let unknown = stage.ctr(&args).run().failure();
        assert!(unknown.stderr.contains("process does not exist zz: not found"), "{unknown}");
    }

    stage.ctr(&["tasks", "kill", "-s", "KILL", "bg"]).run().success();
    stage.wait_for("bg", "STOPPED");
    let late = stage.ctr(&["tasks", "kill", "bg"]).run().failure();
    assert!(late.stderr.contains("process already finished: not found"), "{late}");
    let deleted = stage.ctr(&["tasks", "delete", "bg"]).run();
    assert!(deleted.stderr.contains("exit code 137"), "{deleted}");
    let gone = stage.ctr(&["tasks", "kill", "bg"]).run().failure();
    assert!(gone.stderr.contains("no running task found: task bg not found: not found"), "{gone}");
    stage.ctr(&["containers", "rm", "bg"]).run().success();
}

/// The events of a container's first life come once each and in order, and each exec's exit before the container's.
fn in_order(events: &[String], id: &str) {
    let own: Vec<&String> =
        events.iter().filter(|event| event.contains(&format!("\"container_id\":\"{id}\""))).collect();
    let init_exit = format!("\"id\":\"{id}\"");
    let position = |topic: &str, word: &str| {
        let found: Vec<usize> = own
            .iter()
            .enumerate()
            .filter(|(_, event)| event.starts_with(topic) && event.contains(word))
            .map(|(at, _)| at)
            .collect();
        assert_eq!(found.len(), 1, "{topic} {word} in {own:#?}");
        found[0]
    };
    let order = [
        position("/tasks/create", ""),
        position("/tasks/start", ""),
        position("/tasks/exit", &init_exit),
        position("/tasks/delete", ""),
    ];
    assert!(order.is_sorted(), "{own:#?}");
    for (at, event) in own.iter().enumerate() {
        let of_exec =
            event.starts_with("/tasks/exec") || (event.starts_with("/tasks/exit") && at != order[2]);
        assert!(!of_exec || (order[1] < at && at < order[2]), "{own:#?}");
    }
}

#[test]
fn our_shim_and_orlop() {
    check("", "orlop");
}

#[test]
fn our_shim_and_runc() {
    check("", "runc");
}

#[test]
fn foreign_shim_and_orlop() {
    check(&foreign(), "orlop");
}

#[test]
fn foreign_shim_and_runc() {
    check(&foreign(), "runc");
}

#[test]
fn a_container_that_does_not_run_is_told_apart_from_none() {
    let stage = Stage::new(&foreign());
    stage
        .ctr(&["containers", "create", "--rootfs"])
        .arg(&stage.rootfs)
        .args(["idle", "/bin/true"])
        .run()
        .success();
    for verb in ["kill", "pause", "resume", "ps", "metrics", "delete"] {
        let idle = stage.ctr(&["tasks", verb, "idle"]).run().failure();
        assert!(idle.stderr.contains("no running task found: task idle not found: not found"), "{idle}");
        let none = stage.ctr(&["tasks", verb, "none"]).run().failure();
        let namespace = stage.orlopd.namespace();
        let expected = format!("container \"none\" in namespace \"{namespace}\": not found");
        assert!(none.stderr.contains(&expected), "{none}");
    }
    stage.ctr(&["containers", "rm", "idle"]).run().success();
    stage.finish();
}

#[test]
fn a_checkpoint_without_criu_leaves_the_container_as_it_was() {
    let stage = Stage::new(&foreign());
    stage.start("c");
    let refused = stage.ctr(&["tasks", "checkpoint", "c"]).run().failure();
    assert!(refused.stderr.contains("CRIU"), "{refused}");
    assert_eq!(stage.status("c"), "RUNNING");
    let images = stage.ctr(&["images", "ls", "-q"]).run().success().stdout;
    assert_eq!(images, "");
    stage.remove("c");
    stage.finish();
}

#[test]
fn ten_clients_at_once() {
    let stage = Stage::new(&foreign());
    let stage = &stage;
    thread::scope(|scope| {
        for client in 0..10 {
            scope.spawn(move || {
                for round in 0..2 {
                    let name = format!("c{client}-{round}");
                    let script = format!("echo {name}; exit {client}");
                    let out = stage.run(&["--rm"], &name, &script).deadline(DEADLINE * 2).run();
                    assert_eq!((out.code(), out.stdout.trim()), (client, name.as_str()), "{out}");
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..5 {
                stage.ctr(&["tasks", "ls"]).run().success();
            }
        });
    });
    assert_eq!(stage.ctr(&["containers", "ls", "-q"]).run().success().stdout, "");
    stage.assert_no_bundles();
}

#[test]
fn one_name_goes_to_one_of_ten_clients() {
    let stage = Stage::new(&foreign());
    stage
        .ctr(&["containers", "create", "--rootfs"])
        .arg(&stage.rootfs)
        .args(["one", "/bin/sleep", "1000"])
        .run()
        .success();
    let outs: Vec<_> = thread::scope(|scope| {
        let start = || stage.ctr(&["tasks", "start", "-d", "--null-io", "one"]).run();
        let clients: Vec<_> = (0..10).map(|_| scope.spawn(start)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = outs.into_iter().partition(|out| out.code() == 0);
    assert_eq!(won.len(), 1, "{won:#?}");
    for out in lost {
        assert!(out.stderr.contains("task one: already exists"), "{out}");
    }
    assert_eq!(stage.status("one"), "RUNNING");
    stage.remove("one");
    stage.finish();
}
