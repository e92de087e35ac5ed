//! What must not start: one clear error, nothing left.

use std::fs;

use orlop_tests::{Bundle, Output};
use serde_json::{Value, json};

use super::support::Runtime;

#[track_caller]
fn refused(runtime: &Runtime, bundle: &Bundle, words: &[&str]) {
    for verb in ["run", "create"] {
        let out: Output = runtime.cmd().args([verb, "-b"]).arg(bundle.path()).arg("c1").run().failure();
        assert_eq!(out.stdout, "");
        assert!(!out.stderr.trim().is_empty());
        if !words.is_empty() {
            assert!(words.iter().any(|word| out.stderr.contains(word)), "none of {words:?} in {out}");
        }
        runtime.assert_clean();
    }
}

#[test]
fn broken_bundles() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("true");
    refused(&runtime, &bundle, &["JSON specification file config.json not found", "config.json"]);
    let config = bundle.path().join("config.json");
    for text in ["", "{", "[]", "{\"ociVersion\": 5}", "no json"] {
        fs::write(&config, text).unwrap();
        refused(&runtime, &bundle, &[]);
    }
    let missing = runtime.root.join("nowhere");
    runtime.cmd().args(["run", "-b"]).arg(&missing).arg("c1").run().failure();
    runtime.assert_clean();
}

type Change = fn(&mut Value);

#[test]
fn configurations_that_cannot_be() {
    let runtime = Runtime::new();
    let cases: [(&str, Change, &[&str]); 19] = [
        (
            "rootfs missing",
            |c| c["root"]["path"] = json!("nowhere"),
            &["no such file", "not exist", "rootfs"],
        ),
        ("rootfs is a file", |c| c["root"]["path"] = json!("config.json"), &[]),
        ("no arguments", |c| c["process"]["args"] = json!([]), &["args must not be empty", "args"]),
        ("relative directory", |c| c["process"]["cwd"] = json!("relative"), &["absolute", "cwd"]),
        ("empty directory", |c| c["process"]["cwd"] = json!(""), &["Cwd property must not be empty", "cwd"]),
        (
            "no program",
            |c| c["process"]["args"] = json!(["no-such-program"]),
            &["executable file not found in $PATH"],
        ),
        ("program not executable", |c| c["process"]["args"] = json!(["/etc/passwd"]), &["permission denied"]),
        (
            "program is a directory",
            |c| c["process"]["args"] = json!(["/etc"]),
            &["permission denied", "is a directory"],
        ),
        (
            "unknown mount type",
            |c| push(c, json!({"destination": "/m", "type": "nosuchfs", "source": "x"})),
            &["no such device", "no such file system type"],
        ),
        (
            "mount source missing",
            |c| {
                push(
                    c,
                    json!({"destination": "/m", "type": "bind", "source": "/no/such/source", "options": ["bind"]}),
                )
            },
            &["no such file"],
        ),
        (
            "mount data refused",
            |c| {
                push(
                    c,
                    json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": ["size=nonsense"]}),
                )
            },
            &["invalid argument"],
        ),
        (
            "unknown namespace",
            |c| c["linux"]["namespaces"][0] = json!({"type": "nosuch"}),
            &["nosuch", "does not exist"],
        ),
        (
            "namespace twice",
            |c| c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"})),
            &["duplicated", "pid", "malformed"],
        ),
        (
            "namespace path missing",
            |c| c["linux"]["namespaces"][0] = json!({"type": "pid", "path": "/no/such/ns"}),
            &["no such file", "/no/such/ns"],
        ),
        (
            "namespace path of another kind",
            |c| c["linux"]["namespaces"][0] = json!({"type": "pid", "path": "/proc/self/ns/net"}),
            &[],
        ),
        (
            "unknown limit",
            |c| c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOSUCH", "soft": 1, "hard": 1}]),
            &["RLIMIT_NOSUCH"],
        ),
        ("hostname without namespace", |c| without(c, "uts"), &["UTS", "hostname"]),
        ("sysctl of the host", |c| c["linux"]["sysctl"] = json!({"vm.swappiness": "1"}), &["vm.swappiness"]),
        (
            "sysctl without namespace",
            |c| {
                without(c, "network");
                c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
            },
            &["net.ipv4.ip_forward"],
        ),
    ];
    for (name, change, words) in cases {
        println!("{name}");
        let bundle = runtime.sh("echo ran").edit(change).save();
        refused(&runtime, &bundle, words);
    }
}

#[test]
fn a_console_needs_its_socket_and_only_then() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("true").edit(|config| config["process"]["terminal"] = json!(true)).save();
    let out = runtime.cmd().args(["create", "-b"]).arg(bundle.path()).arg("c1").run().failure();
    assert!(out.stderr.contains("console socket") || out.stderr.contains("cannot allocate tty"), "{out}");
    runtime.assert_clean();
    let bundle = runtime.sh("true").save();
    let out = runtime
        .cmd()
        .args(["create", "--console-socket", "/no/such", "-b"])
        .arg(bundle.path())
        .arg("c1")
        .run()
        .failure();
    assert!(out.stderr.contains("console socket") || out.stderr.contains("console"), "{out}");
    runtime.assert_clean();
}

#[test]
fn unknown_words() {
    let runtime = Runtime::new();
    runtime.call(&["no-such-verb"]).failure();
    runtime.call(&["run", "--no-such-flag", "c1"]).failure();
    runtime.call(&["run"]).failure();
    runtime.call(&["state"]).failure();
    runtime.call(&["kill"]).failure();
}

#[test]
fn errors_go_to_the_log_in_the_form_that_callers_read() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("").args(["no-such-program"]).save();
    let log = runtime.root.join("log.json");
    let out = runtime
        .cmd()
        .arg("--log")
        .arg(&log)
        .args(["--log-format", "json", "run", "-b"])
        .arg(bundle.path())
        .arg("c1")
        .run();
    assert_eq!(out.code(), 1);
    let text = fs::read_to_string(&log).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("executable file not found in $PATH"), "{text}");
    assert!(last["time"].is_string());
    runtime.assert_clean();
}

fn push(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().unwrap().push(mount);
}

fn without(config: &mut Value, namespace: &str) {
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != namespace);
}
