//! orlopctl beside Debian's ctr on Debian's containerd: the same configurations, the same tables.

use std::path::PathBuf;

use orlop_tests::{Cmd, Containerd, Daemon, Image, Root, binaries};
use serde_json::Value;

use crate::ctl::{DEADLINE, IMAGE, import};

const OTHER: &str = "example.org/web:1";

/// What a manager has stored of a container, without what each client and moment has of its own.
fn stored(daemon: &impl Daemon, id: &str) -> Value {
    let text = daemon.ctr(["containers", "info", id]).run().success().stdout.replace(id, "ID");
    let mut info: Value = serde_json::from_str(&text).expect("JSON");
    for key in ["CreatedAt", "UpdatedAt"] {
        info[key].take();
    }
    info["Spec"]["ociVersion"].take();
    // containerd 2 has taken io_uring out of its default profile, and so have we.
    let names = info.pointer_mut("/Spec/linux/seccomp/syscalls/0/names").and_then(Value::as_array_mut);
    if let Some(names) = names {
        names.retain(|name| !name.as_str().unwrap_or_default().starts_with("io_uring_"));
    }
    info
}

#[test]
fn the_same_flags_make_the_same_container() {
    let root = Root::new();
    let mut daemon = Containerd::start(&root);
    import(&daemon, &root, &Image::busybox(), IMAGE);
    let other = Image::busybox().config(|config| {
        config["Entrypoint"] = serde_json::json!(["/bin/echo", "e"]);
        config["Cmd"] = serde_json::json!(["c"]);
        config["User"] = "user".into();
        config["WorkingDir"] = "/tmp".into();
        config["Labels"] = serde_json::json!({ "from": "image" });
        config["StopSignal"] = "SIGINT".into();
    });
    import(&daemon, &root, &other, OTHER);
    let env_file = root.join("env");
    std::fs::write(&env_file, "FILED=1\n").expect("the file");
    let env_file = env_file.display().to_string();
    let sets: &[&[&str]] = &[
        &[IMAGE],
        &[OTHER],
        &["--env", "X=1", "--env", "PATH=/x", "--env", "E", "--label", "k=v", "--annotation", "a=b", IMAGE],
        &["--env-file", &env_file, OTHER],
        &["--net-host", IMAGE],
        &["--privileged", IMAGE],
        &["--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_CHOWN", "--cap-drop", "CAP_KILL", IMAGE],
        &["-t", "--cwd", "/tmp", "--read-only", "--allow-new-privs", IMAGE],
        &["--memory-limit", "10000000", "--cpu-quota", "5000", "--cpu-period", "10000", IMAGE],
        &["--device", "/dev/null", "--with-ns", "pid:/proc/1/ns/pid", "--with-ns", "user:/x", IMAGE],
        &["--mount", "type=bind,src=/tmp,dst=/host,options=rbind:ro", "--mount", "dst=/x,source=y", IMAGE],
        &["--rootfs-propagation", "shared", "--rdt-class", "c", "--apparmor-profile", "p", IMAGE],
        &["--seccomp", IMAGE],
        &["--seccomp", "--cap-add", "CAP_SYS_ADMIN", "--cap-drop", "CAP_SYS_CHROOT", IMAGE],
        &["--runtime", "io.example.v1", IMAGE],
        &["--rootfs", "/"],
    ];
    for (number, flags) in sets.iter().enumerate() {
        let (theirs, ours) = (format!("theirs-{number}-x"), format!("ours-{number}-x"));
        daemon.ctr(["containers", "create"]).args(*flags).arg(&theirs).deadline(DEADLINE).run().success();
        daemon.orlopctl(["containers", "create"]).args(*flags).arg(&ours).deadline(DEADLINE).run().success();
        let (expected, made) = (stored(&daemon, &theirs), stored(&daemon, &ours));
        assert!(expected == made, "{flags:?}: {}", difference("", &expected, &made).unwrap_or_default());
    }
    daemon.stop();
}

/// Where two documents first differ.
fn difference(path: &str, one: &Value, other: &Value) -> Option<String> {
    let children = |key: &str| difference(&format!("{path}/{key}"), &one[key], &other[key]);
    match (one, other) {
        _ if one == other => None,
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| children(key)),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs.into_iter().find_map(|(at, (a, b))| difference(&format!("{path}/{at}"), a, b))
        }
        _ => Some(format!("{path}: {one} against {other}")),
    }
}

#[test]
fn the_first_configuration_is_the_same_and_needs_no_server() {
    let printed = |program: PathBuf| {
        let words = ["--address", "/nonexistent", "--namespace", "ns", "oci", "spec"];
        let text = Cmd::new(program).args(words).run().success().stdout;
        let (version, rest) =
            text.split_once('\n').and_then(|(_, rest)| rest.split_once('\n')).expect("lines");
        assert!(version.starts_with("    \"ociVersion\": "), "{text}");
        rest.to_owned()
    };
    assert_eq!(printed(binaries::orlopctl()), printed(binaries::system("ctr")));
}

#[test]
fn the_tables_are_the_same() {
    let root = Root::new();
    let mut daemon = Containerd::start(&root);
    import(&daemon, &root, &Image::two_layers(), IMAGE);
    daemon.ctr(["images", "label", IMAGE, "tier=test"]).run().success();
    daemon.ctr(["containers", "create", IMAGE, "made"]).deadline(DEADLINE).run().success();
    daemon.ctr(["leases", "create", "--id", "held", "--expires", "0s", "a=b"]).run().success();
    daemon.ctr(["run", "-d", IMAGE, "runs", "sleep", "600"]).deadline(DEADLINE).run().success();
    for verb in [
        "images ls",
        "images ls -q",
        "images check",
        "images check -q",
        "containers ls",
        "containers ls -q",
        "tasks ls",
        "tasks ps runs",
        "content active",
        "content ls -q",
        "snapshots ls",
        "snapshots tree",
        "snapshots usage",
        "snapshots usage -b made",
        "snapshots mounts /target made",
        "namespaces ls",
        "leases ls",
        "plugins ls",
        "plugins ls -q",
    ] {
        let words: Vec<&str> = verb.split(' ').collect();
        let theirs = daemon.ctr(&words).deadline(DEADLINE).run().success().stdout;
        let ours = daemon.orlopctl(&words).deadline(DEADLINE).run().success().stdout;
        assert_eq!(ours, theirs, "{verb}");
    }
    daemon.orlopctl(["tasks", "delete", "--force", "runs"]).deadline(DEADLINE).run().success();
    daemon.stop();
}
