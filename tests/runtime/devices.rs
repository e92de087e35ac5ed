//! Device nodes, and what the cgroup lets a container do with them.

use serde_json::json;

use super::support::Runtime;

#[test]
fn the_default_nodes_and_links() {
    let runtime = Runtime::new();
    let script = "cd /dev; for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a %u:%g' $d; done; \
                  for l in fd stdin stdout stderr core ptmx; do [ -L $l ] && echo $l $(readlink $l); done; true";
    let out = runtime.output(&runtime.sh(script).save());
    for line in [
        "null character special file 1:3 666 0:0",
        "zero character special file 1:5 666 0:0",
        "full character special file 1:7 666 0:0",
        "random character special file 1:8 666 0:0",
        "urandom character special file 1:9 666 0:0",
        "tty character special file 5:0 666 0:0",
        "fd /proc/self/fd",
        "stdin /proc/self/fd/0",
        "stdout /proc/self/fd/1",
        "stderr /proc/self/fd/2",
        "ptmx pts/ptmx",
    ] {
        assert!(out.lines().any(|one| one == line), "{line}\n{out}");
    }
    runtime.assert_clean();
}

#[test]
fn the_default_nodes_work() {
    let runtime = Runtime::new();
    let script = "echo x >/dev/null; head -c 4 /dev/zero | od -An -tx1; head -c 8 /dev/urandom | wc -c; echo x >/dev/full";
    let out = runtime.run(&runtime.sh(script).save());
    assert_eq!(out.stdout.split_whitespace().collect::<Vec<_>>(), ["00", "00", "00", "00", "8"]);
    assert!(out.stderr.contains("No space left"), "{out}");
    runtime.assert_clean();
}

#[test]
fn devices_of_the_configuration() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("cd /dev; stat -c '%n %F %t:%T %a %u:%g' mine/zero block pipe; head -c 2 mine/zero | wc -c").edit(|config| {
        config["linux"]["devices"] = json!([
            {"path": "/dev/mine/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o646, "uid": 3, "gid": 4},
            {"path": "/dev/block", "type": "b", "major": 7, "minor": 200, "fileMode": 0o600, "uid": 0, "gid": 0},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o622, "uid": 0, "gid": 0}]);
        config["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"}]);
    });
    let out = runtime.output(&bundle.save());
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [
            "mine/zero character special file 1:5 646 3:4",
            "block block special file 7:c8 600 0:0",
            "pipe fifo 0:0 622 0:0",
            "2"
        ]
    );
    runtime.assert_clean();
}

#[test]
fn only_allowed_devices_can_be_opened() {
    let runtime = Runtime::new();
    let script = "mknod /tmp/kmsg c 1 11; (: >/tmp/kmsg) && echo opened; mknod /tmp/z c 1 5 && head -c 1 /tmp/z | wc -c";
    let capabilities = json!(["CAP_MKNOD"]);
    let allow = |bundle: orlop_tests::Bundle| {
        let capabilities = capabilities.clone();
        bundle.edit(|config| {
            config["process"]["capabilities"] =
                json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
        })
    };
    let out = runtime.run(&allow(runtime.sh(script)).save());
    assert!(out.stderr.contains("Operation not permitted"), "{out}");
    assert_eq!(out.stdout, "1\n");
    let all = allow(runtime.sh("mknod /tmp/k2 c 1 11; : >/tmp/k2 && echo opened")).edit(|config| {
        config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    });
    assert_eq!(runtime.output(&all.save()), "opened\n");
    runtime.assert_clean();
}

#[test]
fn something_else_at_a_devices_path_is_an_error() {
    let runtime = Runtime::new();
    // runc leaves it as it is; the specification wants an error.
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime.sh("stat -c %t:%T /opt/null").edit(|config| {
        config["linux"]["devices"] = json!([{"path": "/opt/null", "type": "c", "major": 1, "minor": 3}]);
    });
    let bundle = bundle.save();
    std::fs::create_dir(bundle.rootfs("/opt")).unwrap();
    assert_eq!(runtime.output(&bundle), "1:3\n");
    // The same device is there now.
    assert_eq!(runtime.output(&bundle), "1:3\n");
    std::fs::remove_file(bundle.rootfs("/opt/null")).unwrap();
    std::fs::write(bundle.rootfs("/opt/null"), "a file").unwrap();
    let out = runtime.run(&bundle).failure();
    assert!(out.stderr.contains("/opt/null") && out.stdout.is_empty(), "{out}");
    assert_eq!(std::fs::read_to_string(bundle.rootfs("/opt/null")).unwrap(), "a file");
    runtime.assert_clean();
}
