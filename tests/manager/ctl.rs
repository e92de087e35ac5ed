//! orlopctl's verbs on both managers: containers, tasks, exit codes, streams, errors.

use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_tests::{Cmd, Containerd, Daemon, Image, Orlopd, Root, poll_until};
use serde_json::Value;

pub const IMAGE: &str = "example.org/busybox:1";
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Puts the image into a manager through Debian's ctr.
pub fn import(daemon: &impl Daemon, root: &Root, image: &Image, name: &str) {
    let archive = root.join(format!("{}.tar", name.replace(['/', ':'], "_")));
    image.oci_archive(&archive, name);
    daemon.ctr(["images", "import"]).arg(&archive).deadline(DEADLINE * 2).run().success();
}

/// What a command printed as JSON.
fn json(cmd: Cmd) -> Value {
    serde_json::from_str(&cmd.run().success().stdout).expect("JSON")
}

fn life_of_a_container(daemon: &impl Daemon, root: &Root) {
    import(daemon, root, &Image::busybox(), IMAGE);
    let ctl = |words: &[&str]| daemon.orlopctl(words).deadline(DEADLINE);

    let run = ctl(&["run", "--rm", IMAGE, "once", "sh", "-c", "cat; echo out; echo err >&2; exit 7"]);
    let output = run.input("from stdin\n").run();
    assert_eq!((output.code(), output.stdout.as_str()), (7, "from stdin\nout\n"), "{output}");
    assert_eq!(output.stderr, "err\n");
    assert_eq!(json(ctl(&["--format", "json", "containers", "ls"])), serde_json::json!([]));

    let limits = ["--memory-limit", "33554432", "--pids-limit", "20", "--cpus", "0.5"];
    let script = "trap 'exit 3' TERM; echo $GREETING; while :; do sleep 0.05; done";
    let words = ["run", "-d", "--env", "GREETING=hello", "--hostname", "box"];
    ctl(&words).args(limits).args([IMAGE, "stays", "sh", "-c", script]).run().success();
    let tasks = json(ctl(&["tasks", "ls", "--format", "json"]));
    assert_eq!((tasks[0]["id"].as_str(), tasks[0]["status"].as_str()), (Some("stays"), Some("RUNNING")));

    let exec = ctl(&["tasks", "exec", "--exec-id", "e", "stays", "sh", "-c", "hostname; exit 5"]).run();
    assert_eq!((exec.code(), exec.stdout.as_str()), (5, "box\n"), "{exec}");
    let exec = ctl(&["tasks", "exec", "--exec-id", "e", "--user", "user", "stays", "id", "-u"]).run();
    assert_eq!((exec.code(), exec.stdout.as_str()), (0, "1000\n"), "{exec}");

    ctl(&["tasks", "pause", "stays"]).run().success();
    assert_eq!(json(ctl(&["tasks", "ls", "--format", "json"]))[0]["status"], "PAUSED");
    ctl(&["tasks", "resume", "stays"]).run().success();
    let metrics = json(ctl(&["tasks", "metrics", "--format", "json", "stays"]));
    assert_eq!(metrics["pids"]["limit"], 20, "{metrics}");
    let ps = ctl(&["tasks", "ps", "stays"]).run().success().stdout;
    assert!(ps.starts_with("PID"), "{ps}");

    let refused = ctl(&["tasks", "delete", "stays"]).run().failure();
    assert_eq!(refused.code(), 1);
    let refused = ctl(&["containers", "delete", "stays"]).run().failure();
    assert!(refused.stderr.contains("non stopped container"), "{refused}");

    // The first line waits in the FIFO until somebody reads it; the exit code comes with the attachment.
    let attached = ctl(&["tasks", "attach", "stays"]).spawn();
    poll_until(DEADLINE, "the container's first line", || attached.stdout() == "hello\n");
    ctl(&["tasks", "kill", "stays"]).run().success();
    assert_eq!(attached.wait(DEADLINE).code(), 3);
    ctl(&["containers", "delete", "stays"]).run().success();
    let left = ctl(&["snapshots", "ls"]).run().success().stdout;
    assert!(!left.contains("stays"), "{left}");

    signals_reach_the_container(daemon);
    failures_leave_nothing(daemon);
}

fn detached_with_a_log(daemon: &impl Daemon, root: &Root) {
    let ctl = |words: &[&str]| daemon.orlopctl(words).deadline(DEADLINE);
    let log = root.join("container.log");
    let uri = format!("file://{}", log.display());
    let script = "echo one; echo two >&2; exit 9";
    ctl(&["run", "-d", "--log-uri", &uri, IMAGE, "logged", "sh", "-c", script]).run().success();
    assert_eq!(ctl(&["tasks", "wait", "logged"]).run().success().stdout, "9\n");
    ctl(&["tasks", "delete", "logged"]).run().success();
    ctl(&["containers", "delete", "logged"]).run().success();
    // Two pipes end in one file, in either order.
    poll_until(DEADLINE, "both lines are in the log", || {
        let text = std::fs::read_to_string(&log).expect("the log");
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        lines == ["one", "two"]
    });
}

fn signals_reach_the_container(daemon: &impl Daemon) {
    let script = "trap 'exit 4' INT; echo ready; while :; do sleep 0.05; done";
    let run = daemon.orlopctl(["run", "--rm", IMAGE, "signalled", "sh", "-c", script]).spawn();
    poll_until(DEADLINE, "the container's start", || run.stdout() == "ready\n");
    run.signal(Signal::SIGINT);
    assert_eq!(run.wait(DEADLINE).code(), 4);
}

fn failures_leave_nothing(daemon: &impl Daemon) {
    let ctl = |words: &[&str]| daemon.orlopctl(words).deadline(DEADLINE);
    for (words, part) in [
        (vec!["run", "--rm", IMAGE, "broken", "/no-such"], "/no-such"),
        (vec!["run", "--rm", "--user", "nobody-knows", IMAGE, "broken"], "no users found"),
        (vec!["run", "--rm", "no-such-image", "broken"], "not found"),
        (vec!["run", "--rm", "-d", IMAGE, "broken"], "cannot be specified together"),
        (vec!["run", "--mount", "foo=bar", IMAGE, "broken"], "not supported"),
        (vec!["run", "--cap-add", "SYS_ADMIN", IMAGE, "broken"], "CAP_"),
        (vec!["run", "--env-file", "/no-such", IMAGE, "broken"], "/no-such"),
        (vec!["tasks", "kill", "broken"], "not found"),
        (vec!["tasks", "checkpoint", "broken"], "not found"),
        (vec!["tasks", "kill", "-s", "SIGNOPE", "broken"], "unknown signal"),
        (vec!["content", "get", "sha256:0"], ""),
    ] {
        let output = ctl(&words).run();
        assert_eq!(output.code(), 1, "{output}");
        assert!(output.stderr.starts_with("orlopctl: ") && output.stderr.contains(part), "{output}");
        assert_eq!(output.stderr.lines().count(), 1, "said once: {output}");
    }
    assert_eq!(ctl(&["containers", "ls", "-q"]).run().success().stdout, "");
    assert!(!ctl(&["snapshots", "ls"]).run().success().stdout.contains("broken"));
}

#[test]
fn a_container_lives_on_containerd() {
    let root = Root::new();
    let mut daemon = Containerd::start(&root);
    life_of_a_container(&daemon, &root);
    daemon.stop();
}

#[test]
fn a_container_lives_on_orlopd() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    life_of_a_container(&daemon, &root);
    // containerd's own shim sometimes loses a line of such a log.
    detached_with_a_log(&daemon, &root);
    daemon.stop();
    root.assert_clean();
}

#[test]
fn without_a_manager_the_socket_is_named() {
    let root = Root::new();
    let socket = root.join("nobody.sock");
    let output =
        Cmd::new(orlop_tests::binaries::orlopctl()).arg("-a").arg(&socket).args(["images", "ls"]).run();
    assert_eq!(output.code(), 1);
    let expected = format!(
        "orlopctl: connect to {}: no such file or directory; is orlopd running there?\n",
        socket.display()
    );
    assert_eq!(output.stderr, expected);
    let unknown = Cmd::new(orlop_tests::binaries::orlopctl()).arg("nonsense").run();
    assert_eq!(unknown.code(), 3);
    let wrong = Cmd::new(orlop_tests::binaries::orlopctl()).args(["run", "--nonsense"]).run();
    assert_eq!(wrong.code(), 1);
}
