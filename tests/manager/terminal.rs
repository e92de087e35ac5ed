//! Streams, terminals and limits of tasks: Debian's `ctr` on containerd and on orlopd must do the same.

use std::fs;
use std::path::PathBuf;

use orlop_tests::{Cmd, Containerd, Daemon, Orlopd, Root, Terminal, busybox_rootfs, host, poll_until};
use serde_json::json;

use crate::client::Client;
use crate::ctl::DEADLINE;

/// One of the two managers, with a root file system.
struct Stage<'a, D> {
    daemon: &'a D,
    rootfs: PathBuf,
    fifos: PathBuf,
}

impl<'a, D: Daemon> Stage<'a, D> {
    fn new(root: &Root, daemon: &'a D) -> Stage<'a, D> {
        let (rootfs, fifos) = (root.join("rootfs"), root.join("fifos"));
        busybox_rootfs(&rootfs);
        fs::create_dir(&fifos).unwrap();
        Stage { daemon, rootfs, fifos }
    }

    fn ctr(&self, words: &[&str]) -> Cmd {
        self.daemon.ctr(words.iter().copied()).deadline(DEADLINE)
    }

    fn run(&self, flags: &[&str], name: &str, script: &str) -> Cmd {
        let run = self.ctr(&["run"]).args(flags).arg("--fifo-dir").arg(&self.fifos).arg("--rootfs");
        run.arg(&self.rootfs).args([name, "/bin/sh", "-c", script])
    }

    fn remove(&self, name: &str) {
        self.ctr(&["tasks", "kill", "-s", "KILL", name]).run();
        let status = || self.ctr(&["tasks", "ls"]).run().success().stdout;
        poll_until(DEADLINE, "the container has stopped", || !status().contains("RUNNING"));
        self.ctr(&["tasks", "delete", name]).run();
        self.ctr(&["containers", "rm", name]).run().success();
    }
}

/// Asks a shell for its terminal's size until it is the wanted one.
fn expect_size(terminal: &Terminal, size: &str) {
    poll_until(DEADLINE, &format!("the terminal has {size}"), || {
        terminal.enter("stty size\n");
        terminal.shown().lines().any(|line| line.trim() == size)
    });
}

fn a_terminal_of_a_run(stage: &Stage<impl Daemon>) {
    let terminal = Terminal::start(&stage.run(&["--rm", "-t"], "t", "tty; exec sh"), 33, 101);
    poll_until(DEADLINE, "the container has a terminal", || terminal.shown().contains("/dev/pts/0"));
    expect_size(&terminal, "33 101");
    terminal.resize(40, 120);
    expect_size(&terminal, "40 120");
    // The terminal's own characters reach the container's processes as signals.
    // What it says shows that it has the terminal: a shell gives it before it lets the program run.
    terminal.enter("trap 'echo interr''upted' INT; sh -c 'echo sle''eping; exec sleep 1000'\n");
    poll_until(DEADLINE, "the sleep runs", || terminal.shown().contains("sleeping"));
    terminal.enter("\u{3}");
    poll_until(DEADLINE, "the interrupt arrives", || terminal.shown().contains("interrupted"));
    terminal.enter("exit 3\n");
    assert_eq!(terminal.wait(DEADLINE), 3);
}

fn a_terminal_of_an_exec(stage: &Stage<impl Daemon>) {
    stage.run(&["-d", "--null-io"], "e", "exec sleep 1000").run().success();
    let exec = stage.ctr(&["tasks", "exec", "-t", "--fifo-dir"]).arg(&stage.fifos);
    let exec = exec.args(["--exec-id", "x", "e", "/bin/sh"]);
    let terminal = Terminal::start(&exec, 20, 70);
    expect_size(&terminal, "20 70");
    terminal.resize(21, 71);
    expect_size(&terminal, "21 71");
    terminal.enter("exit 4\n");
    assert_eq!(terminal.wait(DEADLINE), 4);
    stage.remove("e");
}

fn attached_by_pipes(stage: &Stage<impl Daemon>) {
    let script =
        "while read line; do echo \"got $line\"; echo \"err $line\" >&2; [ $line = one ] || exit 6; done";
    stage.run(&["-d"], "a", script).run().success();
    let attached = stage.ctr(&["tasks", "attach", "a"]).input("one\ntwo\n").run();
    assert_eq!((attached.code(), attached.stdout.as_str()), (6, "got one\ngot two\n"), "{attached}");
    assert_eq!(attached.stderr, "err one\nerr two\n");
    stage.remove("a");
}

fn attached_to_a_terminal(stage: &Stage<impl Daemon>) {
    // That client wants a terminal even where it leaves at once.
    let script = "read word; echo \"said $word\"; exec sh";
    assert_eq!(Terminal::start(&stage.run(&["-d", "-t"], "at", script), 10, 10).wait(DEADLINE), 0);
    let terminal = Terminal::start(&stage.ctr(&["tasks", "attach", "at"]), 25, 90);
    terminal.enter("hello\n");
    poll_until(DEADLINE, "the answer", || terminal.shown().contains("said hello"));
    expect_size(&terminal, "25 90");
    terminal.resize(26, 91);
    expect_size(&terminal, "26 91");
    terminal.enter("exit 5\n");
    assert_eq!(terminal.wait(DEADLINE), 5);
    stage.remove("at");
}

/// On containerd's own shim an end of input that comes at once is lost, now and then, and `cat` waits for ever.
fn input_ends(stage: &Stage<impl Daemon>) {
    let run = stage.run(&["--rm"], "i", "cat; echo end; exit 2").input("from stdin\n").run();
    assert_eq!((run.code(), run.stdout.as_str()), (2, "from stdin\nend\n"), "{run}");
    stage.run(&["-d", "--null-io"], "i", "exec sleep 1000").run().success();
    let exec = stage.ctr(&["tasks", "exec", "--fifo-dir"]).arg(&stage.fifos);
    let exec = exec.args(["--exec-id", "x", "i", "/bin/sh", "-c", "wc -c; exit 9"]);
    let exec = exec.input(vec![b'x'; 300_000]).run();
    assert_eq!((exec.code(), exec.stdout.trim()), (9, "300000"), "{exec}");
    stage.remove("i");
}

/// What `ctr` of 1.6 has no command for.
fn limits_change(stage: &Stage<impl Daemon>) {
    stage.run(&["-d", "--null-io", "--memory-limit", "67108864"], "u", "exec sleep 1000").run().success();
    let memory = || -> Vec<String> {
        let groups = host::cgroups_named(stage.daemon.namespace()).into_iter().map(|group| group.join("u"));
        let files =
            groups.flat_map(|group| ["memory.limit_in_bytes", "memory.max"].map(|file| group.join(file)));
        files.filter_map(|file| fs::read_to_string(file).ok()).map(|text| text.trim().to_owned()).collect()
    };
    assert_eq!(memory(), ["67108864"]);
    let client = Client::new(stage.daemon.address(), stage.daemon.namespace());
    client.update_task("u", &json!({"memory": {"limit": 33_554_432}})).unwrap();
    assert_eq!(memory(), ["33554432"]);
    let none = client.update_task("none", &json!({})).unwrap_err();
    assert_eq!(none.code(), tonic::Code::NotFound, "{none}");
    stage.remove("u");
}

fn everything(daemon: &impl Daemon, root: &Root) {
    let stage = Stage::new(root, daemon);
    a_terminal_of_a_run(&stage);
    a_terminal_of_an_exec(&stage);
    attached_by_pipes(&stage);
    attached_to_a_terminal(&stage);
    limits_change(&stage);
}

#[test]
fn terminals_attachments_and_limits_on_containerd() {
    let root = Root::new();
    let mut daemon = Containerd::start(&root);
    everything(&daemon, &root);
    daemon.stop();
}

#[test]
fn terminals_attachments_and_limits_on_orlopd() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    everything(&daemon, &root);
    input_ends(&Stage { daemon: &daemon, rootfs: root.join("rootfs"), fifos: root.join("fifos") });
    daemon.stop();
    root.assert_clean();
}
