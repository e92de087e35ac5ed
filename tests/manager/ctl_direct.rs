//! What orlopctl does beside the manager's API: installed programs, profiles, and shims by themselves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use orlop_tests::{Cmd, Containerd, Daemon, Image, Orlopd, Output, Root, poll_until};
use serde_json::Value;

use crate::ctl::{DEADLINE, IMAGE, import};

const TOOLS: &str = "example.org/tools:1";

/// What lies below a directory: names, modes, owners and contents.
fn listed(root: &Path) -> String {
    let found = Cmd::new("find").args([".", "!", "-type", "d", "-printf", "%p %y %m %U %l\n"]).cwd(root);
    let mut lines: Vec<String> = found.run().success().stdout.lines().map(str::to_owned).collect();
    lines.sort();
    lines.join("\n")
}

#[test]
fn programs_are_installed_as_by_ctr() {
    let root = Root::new();
    let managed = root.join("opt");
    let mut daemon = Orlopd::start_with(&root, &format!("[opt]\npath = {managed:?}\n"));
    import(&daemon, &root, &Image::busybox(), TOOLS);
    let (ours, theirs) = (root.join("ours"), root.join("theirs"));
    for directory in [&ours, &theirs] {
        fs::create_dir_all(directory).unwrap();
    }
    let ctl = |words: &[&str]| daemon.orlopctl(words).deadline(DEADLINE).run();
    let at = |path: &Path| path.display().to_string();
    ctl(&["install", "--libs", "--path", &at(&ours), TOOLS]).success();
    daemon.ctr(["install", "--libs", "--path", &at(&theirs), TOOLS]).deadline(DEADLINE).run().success();
    assert!(!listed(&ours).is_empty());
    assert_eq!(listed(&ours), listed(&theirs));

    // What is there already is replaced when that is wanted.
    let both = |words: &[&str]| {
        let there = |path: &Path| [&["install", "--path", &at(path)], words, &[TOOLS]].concat().join(" ");
        let (mine, other) = (there(&ours), there(&theirs));
        let other = daemon.ctr(other.split(' ')).deadline(DEADLINE).run();
        (daemon.orlopctl(mine.split(' ')).deadline(DEADLINE).run(), other)
    };
    let (mine, other) = both(&[]);
    assert_eq!((mine.code(), other.code()), (1, 1), "{mine}{other}");
    for refused in [mine, other] {
        assert!(refused.stderr.contains("cannot replace bin/"), "{refused}");
    }
    let (mine, other) = both(&["--replace"]);
    assert_eq!((mine.code(), other.code()), (0, 0), "{mine}{other}");
    assert_eq!(listed(&ours), listed(&theirs));

    // Without a directory it is the server's, by both clients.
    ctl(&["install", TOOLS]).success();
    daemon.ctr(["install", "--replace", TOOLS]).deadline(DEADLINE).run().success();
    let shell = managed.join("bin/busybox");
    assert!(shell.exists() || managed.join("bin/sh").exists(), "{}", listed(&managed));
    let absent = ctl(&["install", "example.org/absent:1"]).failure();
    assert!(absent.stderr.contains("not found"), "{absent}");
    daemon.stop();
}

#[test]
fn an_installed_shim_serves_its_runtime() {
    let root = Root::new();
    let managed = root.join("opt");
    fs::create_dir_all(managed.join("bin")).unwrap();
    let mut daemon = Orlopd::start_with(&root, &format!("[opt]\npath = {managed:?}\n"));
    import(&daemon, &root, &Image::busybox(), IMAGE);
    let run = |id: &str| {
        let words = ["run", "--rm", "--runtime", "io.example.tool.v1", IMAGE, id, "true"];
        daemon.orlopctl(words).deadline(DEADLINE).run()
    };
    let missing = run("a").failure();
    assert!(missing.stderr.contains("containerd-shim-tool-v1"), "{missing}");
    // A shim that only says by what way it was called.
    let shim = managed.join("bin/containerd-shim-tool-v1");
    fs::write(&shim, "#!/bin/sh\necho \"called with $PATH\" >&2\nexit 1\n").unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    let called = run("b").failure();
    let path = format!("called with {}:", managed.join("bin").display());
    assert!(called.stderr.contains(&path), "{called}");
    daemon.stop();
}

#[test]
fn the_managers_profile_is_fetched_and_others_are_refused() {
    let root = Root::new();
    let socket = root.join("debug.sock");
    let mut daemon = Orlopd::start_with(&root, &format!("[debug]\naddress = {socket:?}\n"));
    let file = root.join("profile");
    let fetch = format!(
        "{} pprof --debug-socket {} profile --seconds 1s > {}",
        orlop_tests::binaries::orlopctl().display(),
        socket.display(),
        file.display()
    );
    Cmd::new("sh").args(["-c", &fetch]).deadline(DEADLINE).run().success();
    assert_eq!(fs::read(&file).unwrap()[..2], [0x1f, 0x8b]);
    for profile in ["heap", "goroutines", "block", "threadcreate", "trace"] {
        let words = ["pprof", "-d", socket.to_str().unwrap(), profile];
        let (ours, theirs) = (daemon.orlopctl(words).run(), daemon.ctr(words).run());
        assert_eq!((ours.code(), theirs.code()), (1, 1), "{ours}{theirs}");
        for refused in [&ours, &theirs] {
            assert!(refused.stderr.contains("http get failed with status: 404 Not Found"), "{refused}");
        }
        assert!(ours.stderr.contains("/debug/pprof/profile"), "{ours}");
    }
    daemon.stop();
}

fn shim_by_itself(daemon: &impl Daemon, root: &Root) {
    import(daemon, root, &Image::busybox(), IMAGE);
    let run = ["run", "-d", "--null-io", IMAGE, "box", "sleep", "600"];
    daemon.orlopctl(run).deadline(DEADLINE).run().success();
    let shim = |words: &[&str]| -> Output {
        daemon.orlopctl(["shim", "--id", "box"]).args(words).deadline(DEADLINE).run()
    };
    let state: Value = serde_json::from_str(&shim(&["state"]).success().stdout).unwrap();
    let tasks = daemon.orlopctl(["tasks", "ls", "--format", "json"]).run().success().stdout;
    let tasks: Value = serde_json::from_str(&tasks).unwrap();
    // 2 is RUNNING.
    assert_eq!((&state["id"], &state["status"], &state["pid"]), (&"box".into(), &2.into(), &tasks[0]["pid"]));
    shim(&["state", "--api-version", "2"]).success();

    let process = root.join("process.json");
    let spec = serde_json::json!({
        "args": ["sh", "-c", "read line; echo $line from $PWD with $X; echo warned >&2"],
        "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true,
    });
    fs::write(&process, spec.to_string()).unwrap();
    let fifo = |name: &str| root.join(name).display().to_string();
    let streams = ["--stdin", &fifo("in"), "--stdout", &fifo("out"), "--stderr", &fifo("err")];
    let rest = ["--env", "X=y", "--cwd", "/tmp", "--spec", process.to_str().unwrap(), "job"];
    let exec = daemon.orlopctl(["shim", "--id", "box", "exec", "--attach"]).args(streams).args(rest);
    let exec = exec.input("words\n").deadline(DEADLINE).run().success();
    assert!(exec.stdout.contains("exec running with pid "), "{exec}");
    assert!(exec.stdout.contains("words from /tmp with y\n") && exec.stderr == "warned\n", "{exec}");

    let unknown = shim(&["state", "--task-id", "absent"]).failure();
    assert!(unknown.stderr.contains("not found"), "{unknown}");
    let nobody = daemon.orlopctl(["shim", "--id", "absent", "state"]).run().failure();
    assert!(nobody.stderr.contains("fail to connect to container shim with sockets"), "{nobody}");
    let nothing = daemon.orlopctl(["shim", "state"]).run().failure();
    assert!(nothing.stderr.contains("(--id) or address (--shim-address)"), "{nothing}");
    let profile = shim(&["pprof", "heap"]).failure();
    assert!(profile.stderr.contains("connect to"), "{profile}");

    daemon.orlopctl(["tasks", "kill", "-s", "KILL", "box"]).run().success();
    poll_until(DEADLINE, "the task has ended", || {
        // 3 is STOPPED.
        serde_json::from_str::<Value>(&shim(&["state"]).stdout).is_ok_and(|state| state["status"] == 3)
    });
    let deleted = shim(&["delete"]).success();
    assert_eq!(deleted.stdout, "container deleted and returned exit status 137\n");
    shim(&["shutdown"]).success();
    poll_until(DEADLINE, "the shim has ended", || shim(&["state"]).code() != 0);
}

#[test]
fn a_shim_of_orlopds_answers_by_itself() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    shim_by_itself(&daemon, &root);
    daemon.stop();
}

#[test]
fn a_shim_of_containerds_answers_by_itself() {
    let root = Root::new();
    let mut daemon = Containerd::start(&root);
    shim_by_itself(&daemon, &root);
    daemon.stop();
}
