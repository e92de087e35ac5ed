//! Intel RDT, on a directory in the place of the resctrl file system, which needs hardware: a test build takes it instead.

use std::fs;
use std::path::Path;

use orlop_tests::{Bundle, Cmd, Output};
use serde_json::{Value, json};

use super::attacks::switchable;
use super::support::{Runtime, content};

fn call(runtime: &Runtime, words: &[&str]) -> Output {
    Cmd::new(switchable())
        .env("ORLOP_TEST_RESCTRL", runtime.root.join("resctrl"))
        .arg("--root")
        .arg(runtime.state_dir())
        .args(words)
        .run()
}

fn bundle(runtime: &Runtime, rdt: Value) -> Bundle {
    runtime.sleeper().edit(|config| config["linux"]["intelRdt"] = rdt).save()
}

fn run(runtime: &Runtime, rdt: Value) -> Output {
    let bundle = bundle(runtime, rdt);
    call(runtime, &["run", "--detach", "--bundle", &bundle.path().to_string_lossy(), "c1"])
}

fn read(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).unwrap_or_default()
}

#[test]
fn a_container_and_what_joins_it_are_in_its_groups() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let resctrl = runtime.root.join("resctrl");
    for below in ["info/L3", "info/MB", "gold/mon_groups"] {
        fs::create_dir_all(resctrl.join(below)).unwrap();
    }
    fs::write(resctrl.join("gold/schemata"), "L3:0=f\n").unwrap();

    // A class of its own.
    run(&runtime, json!({"l3CacheSchema": "L3:0=3", "memBwSchema": "MB:0=50"})).success();
    let own = resctrl.join("c1");
    assert_eq!(read(&own, "schemata"), "L3:0=3\nMB:0=50\n");
    assert_eq!(read(&own, "tasks"), runtime.pid("c1").to_string());
    let stored = fs::read_to_string(runtime.state_dir().join("c1/state.json")).unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["intel_rdt_path"], own.to_str().unwrap());
    let pid_file = runtime.root.join("pid");
    call(&runtime, &["exec", "--detach", "--pid-file", &pid_file.to_string_lossy(), "c1", "sleep", "1000"])
        .success();
    assert_eq!(read(&own, "tasks"), content(&pid_file));
    // In the real one files go with their directory.
    for file in ["schemata", "tasks"] {
        fs::remove_file(own.join(file)).unwrap();
    }
    call(&runtime, &["delete", "--force", "c1"]).success();
    assert!(!own.exists());
    runtime.assert_clean();

    // A class that somebody else has made, with a monitoring group.
    run(&runtime, json!({"closID": "gold", "enableMonitoring": true})).success();
    let group = resctrl.join("gold/mon_groups/c1");
    assert_eq!(read(&resctrl, "gold/tasks"), runtime.pid("c1").to_string());
    assert_eq!(read(&group, "tasks"), runtime.pid("c1").to_string());
    assert_eq!(read(&resctrl, "gold/schemata"), "L3:0=f\n");
    fs::remove_file(group.join("tasks")).unwrap();
    call(&runtime, &["delete", "--force", "c1"]).success();
    assert!(resctrl.join("gold").exists() && !group.exists());
    runtime.assert_clean();

    // A failure after the class was made takes it away again.
    let broken = bundle(&runtime, json!({"enableMonitoring": true}));
    let out = call(&runtime, &["run", "-d", "--bundle", &broken.path().to_string_lossy(), "c1"]).failure();
    assert!(out.stderr.contains("intelRdt: create"), "{out}");
    assert!(!own.exists());
    runtime.assert_clean();
}

#[test]
fn without_the_hardware_it_is_refused() {
    let runtime = Runtime::new();
    // Debian's runc passes over it.
    if runtime.is_reference() || fs::read_to_string("/proc/filesystems").unwrap().contains("resctrl") {
        return;
    }
    for rdt in [json!({"closID": "gold"}), json!({"enableMonitoring": true}), json!({"schemata": ["L3:0=f"]})]
    {
        let out = runtime.run(&bundle(&runtime, rdt)).failure();
        assert!(out.stderr.contains("Intel RDT is not enabled"), "{out}");
        runtime.assert_clean();
    }
}
