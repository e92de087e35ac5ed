//! Hooks: when they run, where, with what.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use orlop_tests::binaries;
use serde_json::{Value, json};

use super::support::Runtime;

/// A hook that notes its name, its namespace and the state that it is given.
fn hook(runtime: &Runtime, name: &str) -> Value {
    let script = runtime.root.join(format!("hook-{name}"));
    let log = runtime.root.join("log");
    let text = format!(
        "#!/bin/sh\nstate=$(cat)\nstatus=$(echo \"$state\" | sed 's/.*\"status\": *\"\\([a-z]*\\)\".*/\\1/')\n\
         echo \"{name} $status $1 $VARIABLE\" >>'{}'\n",
        log.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    json!({"path": script, "args": ["hook", "argument"], "env": ["VARIABLE=value", "PATH=/bin:/usr/bin"]})
}

#[test]
fn the_order_of_all_hooks() {
    let runtime = Runtime::new();
    let kinds = ["prestart", "createRuntime", "poststart", "poststop"];
    let bundle = runtime.sleeper().edit(|config| {
        for kind in kinds {
            config["hooks"][kind] = json!([hook(&runtime, kind)]);
        }
    });
    let log = || fs::read_to_string(runtime.root.join("log")).unwrap_or_default();
    let bundle = bundle.save();
    runtime.create(&bundle, "c1");
    // The environment is there by then, which the specification calls created; runc says creating.
    let created = if runtime.is_reference() { "creating" } else { "created" };
    let lines = ["prestart", "createRuntime"].map(|kind| format!("{kind} {created} argument value"));
    assert_eq!(log().lines().take(2).collect::<Vec<_>>(), lines);
    // Until 1.2 runc ran it when the container was created; the specification says after the start.
    assert_eq!(log().lines().count(), if runtime.is_reference() { 3 } else { 2 });
    runtime.call(&["start", "c1"]).success();
    let started = if runtime.is_reference() { "created" } else { "running" };
    assert_eq!(log().lines().nth(2), Some(format!("poststart {started} argument value").as_str()));
    runtime.call(&["delete", "-f", "c1"]).success();
    assert_eq!(log().lines().nth(3), Some("poststop stopped argument value"));
    assert_eq!(log().lines().count(), 4);
    runtime.assert_clean();
}

#[test]
fn create_container_and_start_container_run_inside() {
    let runtime = Runtime::new();
    // createContainer still sees the host's files, startContainer those of the container.
    let outside = runtime.root.join("outside");
    let bundle = runtime.sh("cat /inside").edit(|config| {
        config["hooks"] = json!({
            "createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", format!("readlink /proc/self/ns/uts >{}", outside.display())]}],
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "hostname >/inside"]}]
        });
    });
    assert_eq!(runtime.output(&bundle.save()), "orlop\n");
    let namespace = fs::read_to_string(&outside).unwrap();
    assert_ne!(namespace.trim(), fs::read_link("/proc/self/ns/uts").unwrap().to_string_lossy());
    runtime.assert_clean();
}

#[test]
fn a_failing_hook_stops_the_container_and_leaves_nothing() {
    let runtime = Runtime::new();
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer"] {
        let bundle = runtime.sh("echo ran").edit(|config| {
            config["hooks"][kind] =
                json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo complaint >&2; exit 3"]}]);
        });
        let out = runtime.run(&bundle.save()).failure();
        assert_eq!(out.stdout, "", "{kind}");
        assert!(out.stderr.contains("hook") && out.stderr.contains("exit status 3"), "{kind}: {out}");
        runtime.assert_clean();
    }
}

#[test]
fn a_failing_poststop_hook_is_only_told() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("true").edit(|config| {
        config["hooks"]["poststop"] = json!([{"path": "/bin/false"}]);
    });
    runtime.detach(&bundle.save(), "c1");
    runtime.wait_for("c1", "stopped");
    runtime.call(&["delete", "c1"]).success();
    runtime.assert_clean();
}

#[test]
fn a_hook_that_hangs_is_ended_after_its_time() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("echo ran").edit(|config| {
        config["hooks"]["createRuntime"] =
            json!([{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]);
    });
    let out = runtime.run(&bundle.save()).failure();
    assert!(out.stderr.contains("hook") && out.stdout.is_empty(), "{out}");
    runtime.assert_clean();
}

#[test]
fn poststart_hooks_see_the_program() {
    let runtime = Runtime::new();
    // Until 1.5 runc ran them before the program.
    if runtime.is_reference() {
        return;
    }
    let found = runtime.root.join("found");
    // The program's name, where the runtime's stood until the program took over.
    let script = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); cat /proc/$pid/comm >";
    let bundle = runtime.sleeper().edit(|config| {
        config["hooks"]["poststart"] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("{script}{}", found.display())]}]);
    });
    runtime.create(&bundle.save(), "c1");
    runtime.call(&["start", "c1"]).success();
    assert_eq!(fs::read_to_string(&found).unwrap(), "sleep\n");
    runtime.finish("c1");
}

#[test]
fn hooks_of_a_run_find_a_created_container_in_its_own_namespaces() {
    let runtime = Runtime::new();
    let found = runtime.root.join("found");
    // runc's state names no status before the container is made.
    if runtime.is_reference() {
        return;
    }
    let state = format!("{} --root {} state c1", binaries::orlop().display(), runtime.state_dir().display());
    let status = "sed -n 's/.*\"status\": *\"\\([a-z]*\\)\".*/\\1/p'";
    let script = |name: &str| {
        let pid = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/')";
        let namespaces = "for one in net ipc uts mnt pid; do [ \"$(readlink /proc/$pid/ns/$one)\" != \"$(readlink /proc/self/ns/$one)\" ] || echo shared $one; done";
        format!("{pid}; ( echo {name} $({state} | {status}); {namespaces} ) >>{}", found.display())
    };
    let bundle = runtime.sh("true").edit(|config| {
        for kind in ["createRuntime", "poststart"] {
            config["hooks"][kind] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script(kind)]}]);
        }
    });
    let bundle = bundle.args(["sleep", "1000"]).save();
    runtime.detach(&bundle, "c1");
    assert_eq!(fs::read_to_string(&found).unwrap(), "createRuntime created\npoststart running\n");
    runtime.finish("c1");
}

#[test]
fn hooks_are_given_the_whole_state() {
    let runtime = Runtime::new();
    let file = runtime.root.join("state.json");
    let bundle = runtime.sh("true").edit(|config| {
        config["annotations"] = json!({"org.example.key": "value"});
        config["hooks"]["createRuntime"] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("cat >{}", file.display())]}]);
    });
    let bundle = bundle.save();
    runtime.run(&bundle).success();
    let state: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(state["id"], "c1");
    // As in `the_order_of_all_hooks`.
    assert_eq!(state["status"], if runtime.is_reference() { "creating" } else { "created" });
    assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert!(state["pid"].as_i64().unwrap() > 1 && state["ociVersion"].is_string());
    runtime.assert_clean();
}

#[test]
fn a_hook_without_an_environment_has_the_callers_or_the_programs() {
    let runtime = Runtime::new();
    let outside = runtime.root.join("outside");
    let bundle = runtime.sh("cat /inside").env("OF_THE_PROGRAM=yes").edit(|config| {
        let script = |at: &str| format!("echo \"$OF_THE_CALLER $OF_THE_PROGRAM\" >{at}");
        config["hooks"] = json!({
            "createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script(&outside.to_string_lossy())]}],
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script("/inside")]}],
        });
    });
    let bundle = bundle.save();
    let run = || {
        let cmd = runtime.cmd().env("OF_THE_CALLER", "yes").args(["run", "--bundle"]);
        cmd.arg(bundle.path()).arg("c1").run().success().stdout
    };
    // Debian's runc gives the hooks inside the caller's.
    if !runtime.is_reference() {
        assert_eq!(run(), " yes\n");
    } else {
        run();
    }
    assert_eq!(fs::read_to_string(&outside).unwrap(), "yes \n");
    runtime.assert_clean();
}
