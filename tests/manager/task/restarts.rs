//! Containers that are started again when they end, by the labels of containerd's restart monitor.

use std::fs;

use orlop_tests::poll_until;

use super::{DEADLINE, Stage};

fn stage() -> Stage {
    Stage::new("[restart]\ninterval = 2\n")
}

fn label(stage: &Stage, name: &str, key: &str) -> String {
    let info = stage.ctr(&["containers", "info", name]).run().success().stdout;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["Labels"][key].as_str().unwrap_or_default().to_owned()
}

const STATUS: &str = "containerd.io/restart.status=running";

#[test]
fn a_failure_is_tried_again_as_often_as_its_policy_says() {
    let stage = stage();
    let log = stage.root.join("log");
    let uri = format!("containerd.io/restart.loguri=file://{}", log.display());
    let labels = ["--label", STATUS, "--label", "containerd.io/restart.policy=on-failure:2", "--label", &uri];
    let flags = [&["-d", "--null-io"], &labels[..]].concat();
    stage.run(&flags, "c", "echo once; exit 3").run().success();
    poll_until(DEADLINE, "two more starts", || {
        label(&stage, "c", "containerd.io/restart.count") == "2" && stage.status("c") == "STOPPED"
    });
    assert_eq!(fs::read_to_string(&log).unwrap(), "once\nonce\n");
    // Success ends it, whatever is left of the tries.
    let labels = ["--label", STATUS, "--label", "containerd.io/restart.policy=on-failure"];
    stage.run(&[&["-d", "--null-io"], &labels[..]].concat(), "d", "exit 0").run().success();
    stage.wait_for("d", "STOPPED");
    for name in ["c", "d"] {
        assert_eq!(stage.status(name), "STOPPED");
        stage.remove(name);
    }
    stage.finish();
}

#[test]
fn what_is_to_run_runs_again_until_somebody_stops_it() {
    let mut stage = stage();
    let labels = ["--label", STATUS, "--label", "containerd.io/restart.policy=always"];
    stage.run(&[&["-d", "--null-io"], &labels[..]].concat(), "c", "exec sleep 1000").run().success();
    let (first, _) = stage.task("c").unwrap();
    stage.ctr(&["tasks", "kill", "-s", "KILL", "c"]).run().success();
    let again = |before: i32| {
        poll_until(DEADLINE, "another process", || {
            stage.task("c").is_some_and(|(pid, status)| pid != before && pid != 0 && status == "RUNNING")
        });
        stage.task("c").unwrap().0
    };
    again(first);
    // Explicitly stopped, it stays so.
    let stopped = "containerd.io/restart.explicitly-stopped";
    stage.ctr(&["containers", "label", "c", &format!("{stopped}=true")]).run().success();
    stage.ctr(&["tasks", "kill", "-s", "KILL", "c"]).run().success();
    stage.wait_for("c", "STOPPED");
    stage.ctr(&["tasks", "delete", "c"]).run();
    // A daemon that starts takes `always` by its word.
    stage.orlopd.restart();
    poll_until(DEADLINE, "it runs again", || stage.status("c") == "RUNNING");
    assert_eq!(label(&stage, "c", stopped), "false");
    stage.ctr(&["containers", "label", "c", "containerd.io/restart.status=stopped"]).run().success();
    poll_until(DEADLINE, "it is stopped", || stage.task("c").is_none());
    stage.ctr(&["containers", "rm", "c"]).run().success();
    stage.finish();
}
