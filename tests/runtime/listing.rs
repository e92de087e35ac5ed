//! list, ps, spec, features, version.

use std::fs;

use orlop_tests::{Bundle, binaries};
use serde_json::Value;

use super::support::Runtime;

#[test]
fn a_list_of_containers() {
    let runtime = Runtime::new();
    assert_eq!(runtime.call(&["list", "-q"]).success().stdout, "");
    assert_eq!(runtime.call(&["list", "-f", "json"]).success().stdout.trim(), "null");
    let first = Bundle::new(&runtime.root, "first").args(["sleep", "1000"]).save();
    let second = Bundle::new(&runtime.root, "second").args(["sleep", "1000"]).save();
    runtime.detach(&first, "b");
    runtime.create(&second, "a");
    assert_eq!(runtime.call(&["list", "-q"]).success().stdout, "a\nb\n");
    let table = runtime.call(&["list"]).success().stdout;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    assert_eq!(rows[1][..3], ["a", &runtime.pid("a").to_string(), "created"]);
    assert_eq!(rows[2][..4], ["b", &runtime.pid("b").to_string(), "running", first.path().to_str().unwrap()]);
    assert_eq!(rows[2].last(), Some(&"root"));
    let json: Value =
        serde_json::from_str(&runtime.call(&["list", "--format", "json"]).success().stdout).unwrap();
    assert_eq!(json[0]["id"], "a");
    assert_eq!(json[1]["status"], "running");
    assert_eq!(json[1]["bundle"], first.path().to_str().unwrap());
    assert_eq!(json[1]["owner"], "root");
    runtime.call(&["list", "-f", "yaml"]).failure();
    runtime.call(&["delete", "-f", "a"]).success();
    runtime.finish("b");
}

#[test]
fn the_processes_of_a_container() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sleeper().save(), "c1");
    let pid = runtime.pid("c1");
    let json: Vec<i32> =
        serde_json::from_str(&runtime.call(&["ps", "-f", "json", "c1"]).success().stdout).unwrap();
    assert_eq!(json, [pid]);
    let table = runtime.call(&["ps", "c1"]).success().stdout;
    assert!(table.lines().next().unwrap().starts_with("UID"), "{table}");
    assert!(table.lines().nth(1).unwrap().contains("sleep 1000"), "{table}");
    let own = runtime.call(&["ps", "c1", "-o", "pid,comm"]).success().stdout;
    assert_eq!(
        own.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(),
        [&pid.to_string(), "sleep"]
    );
    runtime.finish("c1");
}

#[test]
fn the_example_configuration_is_runcs() {
    let runtime = Runtime::new();
    let reference = Runtime::reference();
    for flags in [vec![], vec!["--rootless"]] {
        let spec = |runtime: &Runtime| {
            let dir = runtime.root.join(format!("spec{}", flags.len()));
            fs::create_dir(&dir).unwrap();
            runtime.cmd().arg("spec").args(&flags).arg("--bundle").arg(&dir).run().success();
            runtime.cmd().arg("spec").args(&flags).arg("--bundle").arg(&dir).run().failure();
            let mut spec: Value =
                serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
            spec["ociVersion"] = Value::Null;
            spec
        };
        assert_eq!(spec(&runtime), spec(&reference), "{flags:?}");
    }
}

#[test]
fn the_example_configuration_runs() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("");
    runtime.cmd().args(["spec", "-b"]).arg(bundle.path()).run().success();
    let file = bundle.path().join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    spec["process"]["terminal"] = Value::Bool(false);
    spec["process"]["args"] = serde_json::json!(["echo", "example"]);
    spec["linux"]["cgroupsPath"] = serde_json::json!(runtime.root.cgroups_path("b"));
    fs::write(&file, spec.to_string()).unwrap();
    let out = runtime.cmd().args(["run", "-b"]).arg(bundle.path()).arg("c1").run().success();
    assert_eq!(out.stdout, "example\n");
    runtime.assert_clean();
}

#[test]
fn features_are_json() {
    let runtime = Runtime::new();
    let features: Value = serde_json::from_str(&runtime.call(&["features"]).success().stdout).unwrap();
    for pointer in [
        "/ociVersionMin",
        "/ociVersionMax",
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
    ] {
        assert!(features.pointer(pointer).is_some(), "{pointer}");
    }
    assert!(
        features["linux"]["cgroup"]["v1"].as_bool().unwrap()
            && features["linux"]["cgroup"]["v2"].as_bool().unwrap()
    );
}

#[test]
fn a_version_in_the_usual_form() {
    let runtime = Runtime::new();
    let out = runtime.call(&["--version"]).success().stdout;
    let name = binaries::orlop().file_name().unwrap().to_string_lossy().into_owned();
    assert!(out.starts_with(&format!("{name} version ")), "{out}");
    assert!(out.lines().any(|line| line.starts_with("spec: ")), "{out}");
}
