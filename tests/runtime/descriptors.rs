//! Which descriptors reach programs: the three standard streams, and nothing else that the caller or the runtime has open.
//! runc promises neither this for hooks nor that its own stay out of `--preserve-fds`, nor one mount for all masks.

use std::fs;

use orlop_tests::{Bundle, Cmd, Output, binaries};
use serde_json::json;

use super::support::Runtime;

/// Prints the descriptors of the shell itself: its globs open none that last.
const LIST: &str = "for fd in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 100; do
    [ -e /proc/self/fd/$fd ] && echo $fd; done; true";
const STREAMS: &str = "0\n1\n2\n";

/// A call of the runtime with descriptors 9 and 100 open on a directory of the host.
fn leaky(runtime: &Runtime, words: &[&str], bundle: Option<&Bundle>) -> Output {
    let mut call =
        Cmd::new("bash").args(["-c", "exec 9<\"$0\" 100<\"$0\"; exec \"$@\""]).arg(runtime.root.path());
    call = call.arg(binaries::orlop()).arg("--root").arg(runtime.state_dir()).arg("--log");
    call = call.arg(runtime.root.join("log")).args(words);
    if let Some(bundle) = bundle {
        call = call.arg("--bundle").arg(bundle.path());
    }
    call.arg("c1").run()
}

#[test]
fn hooks_init_and_exec_get_their_streams_alone() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    let seen = |kind: &str| runtime.root.join(format!("seen-{kind}"));
    let bundle = runtime.sh(&format!("sh -c '{LIST}' >/seen; exec sleep 1000")).edit(|config| {
        for kind in kinds {
            let file = if kind == "startContainer" { "/seen-startContainer".into() } else { seen(kind) };
            let script = format!("sh -c '{LIST}' >'{}'", file.display());
            config["hooks"][kind] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
        }
    });
    let bundle = bundle.save();
    leaky(&runtime, &["create"], Some(&bundle)).success();
    leaky(&runtime, &["start"], None).success();
    let exec = runtime.root.join("process.json");
    let process = json!({"cwd": "/", "user": {}, "args": ["sh", "-c", LIST], "env": ["PATH=/bin"]});
    fs::write(&exec, process.to_string()).unwrap();
    let output = leaky(&runtime, &["exec", "--process", exec.to_str().unwrap()], None).success();
    assert_eq!(output.stdout, STREAMS, "exec");
    assert_eq!(super::support::content(&bundle.rootfs("/seen")), STREAMS, "init");
    leaky(&runtime, &["delete", "--force"], None).success();
    for kind in kinds {
        let file = if kind == "startContainer" { bundle.rootfs("/seen-startContainer") } else { seen(kind) };
        assert_eq!(fs::read_to_string(file).unwrap(), STREAMS, "{kind}");
    }
    runtime.assert_clean();
}

#[test]
fn what_the_runtime_has_open_is_not_preserved() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime.sh(LIST).save();
    // The caller has no descriptor 3: there the runtime opens its log.
    let log = runtime.root.join("log");
    let output = runtime
        .cmd()
        .arg("--log")
        .arg(&log)
        .args(["run", "--preserve-fds", "1", "--bundle"])
        .arg(bundle.path())
        .arg("c1")
        .run();
    assert!(output.failure().stdout.is_empty());
    assert!(fs::read_to_string(&log).unwrap().contains("preserve"));
    runtime.assert_clean();
}

#[test]
fn masked_directories_share_one_read_only_mount() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let directories = ["/proc/acpi", "/proc/scsi", "/sys/firmware", "/a", "/b"];
    let script = "for dir in $(cat /list); do stat -c %d $dir; touch $dir/x 2>/dev/null && echo writable; ls -A $dir; done";
    let bundle = runtime.sh(script).edit(|config| config["linux"]["maskedPaths"] = json!(directories));
    let there: Vec<_> = directories
        .into_iter()
        .filter(|name| name.len() == 2 || std::path::Path::new(name).is_dir())
        .collect();
    for name in ["/a", "/b"] {
        fs::create_dir(bundle.rootfs(name)).unwrap();
        fs::write(bundle.rootfs(name).join("hidden"), "").unwrap();
    }
    fs::write(bundle.rootfs("/list"), there.join(" ")).unwrap();
    let output = runtime.output(&bundle.save());
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines.len(), there.len(), "{output}");
    assert!(lines.iter().all(|line| *line == lines[0]), "one file system covers all: {output}");
    runtime.assert_clean();
}
