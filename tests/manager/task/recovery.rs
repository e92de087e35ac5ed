//! The daemon and the shims may die in any order: no container is lost that runs, and no exit code.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_tests::{Daemon, host, poll_until};

use super::{DEADLINE, Stage, foreign, names};

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn survive(config: &str) {
    let mut stage = Stage::new(config);
    for n in 0..5 {
        stage.start(&format!("c{n}"));
    }
    let flag = stage.rootfs.join("tmp/go");
    let script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9";
    stage.run(&["-d", "--null-io"], "ends", script).run().success();
    let before: Vec<_> = (0..5).map(|n| stage.task(&format!("c{n}")).unwrap()).collect();
    let (ending, _) = stage.task("ends").unwrap();

    stage.orlopd.kill();
    fs::write(&flag, "").unwrap();
    poll_until(DEADLINE, "the container ends without the daemon", || !host::alive(ending));
    stage.orlopd.restart();

    let after: Vec<_> = (0..5).map(|n| stage.task(&format!("c{n}")).unwrap()).collect();
    assert_eq!(before, after);
    let out = stage.exec("c0", "echo still here; exit 4").run();
    assert_eq!((out.code(), out.stdout.as_str()), (4, "still here\n"), "{out}");
    stage.wait_for("ends", "STOPPED");
    let deleted = stage.ctr(&["tasks", "delete", "ends"]).run();
    assert!(deleted.stderr.contains("exit code 9"), "{deleted}");
    stage.ctr(&["containers", "rm", "ends"]).run().success();

    // The shims find the new daemon for their events.
    let events = stage.events(&[]);
    stage.ctr(&["tasks", "kill", "-s", "KILL", "c1"]).run().success();
    events.wait("/tasks/exit", &["\"c1\"", "137"]);
    drop(events);
    // A graceful stop leaves them too.
    stage.orlopd.restart();
    for n in 0..5 {
        stage.remove(&format!("c{n}"));
    }
    stage.finish();
}

#[test]
fn a_killed_daemon_finds_everything_again_under_our_shim() {
    survive("");
}

#[test]
fn a_killed_daemon_finds_everything_again_under_a_foreign_shim() {
    survive(&foreign());
}

fn shim_dies(config: &str) {
    let stage = Stage::new(config);
    let events = stage.events(&[]);
    let client = stage.run(&["--rm"], "fg", "echo up; exec sleep 1000").spawn();
    poll_until(DEADLINE, "the container runs", || client.stdout() == "up\n");
    let (pid, _) = stage.task("fg").unwrap();
    send(stage.shim("fg"), Signal::SIGKILL);
    events.wait("/tasks/exit", &["\"fg\"", "137"]);
    events.wait("/tasks/delete", &["\"fg\"", "137"]);
    let out = client.wait(DEADLINE);
    assert_ne!(out.code(), 0, "{out}");
    assert!(!host::alive(pid));
    assert_eq!(stage.status("fg"), "");
    stage.assert_no_bundles();
    // The name can be used again at once.
    stage.ctr(&["containers", "rm", "fg"]).run();
    stage.run(&["--rm"], "fg", "true").run().success();
    drop(events);
    stage.finish();
}

#[test]
fn a_shim_that_dies_is_cleaned_up_after_ours() {
    shim_dies("");
}

#[test]
fn a_shim_that_dies_is_cleaned_up_after_a_foreign_one() {
    shim_dies(&foreign());
}

#[test]
fn a_shim_that_dies_while_it_creates_is_cleaned_up_after() {
    let stage = Stage::new("");
    // The container is there, and its shim dies before it can say so.
    let runtime = stage.root.join("deadly");
    let orlop = orlop_tests::binaries::orlop();
    let script = format!(
        "#!/bin/sh\n{} \"$@\" || exit\nfor word; do [ \"$word\" != create ] || kill -9 $PPID; done\n",
        orlop.display()
    );
    fs::write(&runtime, script).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
    let flags = ["--rm", "--runc-binary", runtime.to_str().unwrap()];
    stage.run(&flags, "c", "true").run().failure();
    assert_eq!(stage.status("c"), "");
    stage.assert_no_bundles();
    let left = stage.root.leaks();
    assert!(left.cgroups.is_empty() && left.mounts.is_empty(), "{left}");
    stage.run(&["--rm"], "c", "true").run().success();
    stage.finish();
}

#[test]
fn a_shim_that_died_meanwhile_is_cleaned_up_after_at_start() {
    let mut stage = Stage::new(&foreign());
    stage.start("dead");
    stage.start("alive");
    let (pid, shim) = (stage.task("dead").unwrap().0, stage.shim("dead"));
    stage.orlopd.kill();
    send(shim, Signal::SIGKILL);
    poll_until(DEADLINE, "the shim has died", || !host::alive(shim));
    stage.orlopd.restart();
    assert_eq!(stage.status("alive"), "RUNNING");
    poll_until(DEADLINE, "the dead shim's container is gone", || !host::alive(pid));
    poll_until(DEADLINE, "its bundle is gone", || names(&stage.bundles()) == ["alive"]);
    stage.ctr(&["containers", "rm", "dead"]).run().success();
    stage.remove("alive");
    stage.finish();
}

#[test]
fn a_deaf_shim_blocks_nobody() {
    let mut stage = Stage::new(&foreign());
    stage.start("deaf");
    stage.start("well");
    let shim = stage.shim("deaf");
    send(shim, Signal::SIGSTOP);
    stage.orlopd.kill();
    stage.orlopd.restart();
    stage.exec("well", "true").run().success();
    assert_eq!(stage.status("well"), "RUNNING");
    assert_eq!(stage.status("deaf"), "UNKNOWN");
    stage.ctr(&["tasks", "metrics", "well"]).run().success();
    send(shim, Signal::SIGCONT);
    stage.wait_for("deaf", "RUNNING");
    stage.remove("deaf");
    stage.remove("well");
    stage.finish();
}

#[test]
fn what_a_kill_cut_off_leaves_no_trace() {
    let mut stage = Stage::new(&foreign());
    stage.orlopd.kill();
    let (bundles, work) = (stage.bundles(), stage.orlopd.root().join("io.containerd.runtime.v2.task"));
    // Cut off before the shim was chosen, before it was started, before it said where it listens, and while removing.
    for name in ["empty", "chosen", "silent", ".removing"] {
        fs::create_dir_all(bundles.join(name).join("rootfs")).unwrap();
        let own = work.join(stage.orlopd.namespace()).join(name);
        fs::create_dir_all(&own).unwrap();
        symlink(&own, bundles.join(name).join("work")).unwrap();
    }
    for name in ["chosen", "silent"] {
        let shim = orlop_tests::binaries::system(super::FOREIGN);
        fs::write(bundles.join(name).join("shim-binary-path"), shim.display().to_string()).unwrap();
        fs::write(bundles.join(name).join("config.json"), "{}").unwrap();
    }
    let lonely = orlop_tests::Cmd::new("sleep").arg("1000").cwd(bundles.join("silent")).spawn();
    fs::create_dir_all(work.join(stage.orlopd.namespace()).join("after-a-reboot")).unwrap();
    stage.orlopd.restart();
    poll_until(DEADLINE, "no bundle is left", || names(&bundles).is_empty());
    assert!(!host::alive(lonely.pid()));
    stage.run(&["--rm"], "silent", "true").run().success();
    drop(lonely);
    stage.finish();
}
