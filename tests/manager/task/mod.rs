//! Tasks: containers under our shim and under others, driven by Debian's `ctr` with a rootfs of busybox.

mod checkpoints;
mod events;
mod flows;
mod grpc_shim;
mod recovery;
mod restarts;
mod sandboxes;
mod shims;
mod sockets;

use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_tests::{
    Cmd, Daemon, Orlopd, Process, Root, binaries, busybox_rootfs, host, poll_until, poll_value,
};

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// containerd's own shim, as a foreign one.
const FOREIGN: &str = "containerd-shim-runc-v2";

/// An orlopd, a root file system, and the flags that choose shim and runtime.
struct Stage {
    orlopd: Orlopd,
    rootfs: PathBuf,
    flags: Vec<String>,
    // Dropped last: it ends what is left of the others.
    root: Root,
}

/// Configuration that serves the usual runtime name with containerd's own shim.
fn foreign() -> String {
    format!("[runtimes.\"io.containerd.runc.v2\"]\nshim = {:?}\n", binaries::system(FOREIGN))
}

impl Stage {
    fn new(config: &str) -> Stage {
        let root = Root::new();
        let rootfs = root.join("rootfs");
        busybox_rootfs(&rootfs);
        // The runtime's state too lies where the test can see that nothing is left.
        let state = format!("[runtimes.\"io.containerd.runc.v2\"]\nroot = {:?}\n", root.join("runtime"));
        let orlopd = Orlopd::start_with(&root, if config.is_empty() { &state } else { config });
        Stage { orlopd, rootfs, flags: Vec::new(), root }
    }

    fn ctr(&self, args: &[&str]) -> Cmd {
        self.orlopd.ctr(args)
    }

    /// `ctr run` with more flags, a name, and a shell script.
    fn run(&self, flags: &[&str], name: &str, script: &str) -> Cmd {
        self.ctr(&["run"])
            .args(&self.flags)
            .args(flags)
            .arg("--rootfs")
            .arg(&self.rootfs)
            .args([name, "/bin/sh", "-c", script])
    }

    /// Starts a container that runs until it is killed.
    fn start(&self, name: &str) {
        self.run(&["-d", "--null-io"], name, "exec sleep 1000").run().success();
    }

    fn exec(&self, name: &str, script: &str) -> Cmd {
        self.ctr(&["tasks", "exec", "--exec-id", "e", name, "/bin/sh", "-c", script])
    }

    /// Name → process and status, as `ctr tasks ls` shows them.
    fn task(&self, name: &str) -> Option<(i32, String)> {
        let listed = self.ctr(&["tasks", "ls"]).run().success().stdout;
        let row = listed.lines().find(|line| line.split_whitespace().next() == Some(name))?;
        let words: Vec<&str> = row.split_whitespace().collect();
        Some((words[1].parse().unwrap(), words[2].to_owned()))
    }

    fn status(&self, name: &str) -> String {
        self.task(name).map(|(_, status)| status).unwrap_or_default()
    }

    fn wait_for(&self, name: &str, status: &str) {
        poll_until(DEADLINE, &format!("{name} is {status:?}"), || self.status(name) == status);
    }

    /// Kills a container and removes it.
    fn remove(&self, name: &str) {
        self.ctr(&["tasks", "kill", "-s", "KILL", name]).run();
        self.wait_for(name, "STOPPED");
        self.ctr(&["tasks", "delete", name]).run();
        self.ctr(&["containers", "rm", name]).run().success();
    }

    fn bundles(&self) -> PathBuf {
        self.orlopd.state().join("io.containerd.runtime.v2.task").join(self.orlopd.namespace())
    }

    /// Where shims that take it from orlopd have their sockets.
    fn sockets(&self) -> PathBuf {
        self.orlopd.state().join("s")
    }

    /// No bundle is left below the state directory, and no work directory below the root.
    fn assert_no_bundles(&self) {
        let work = self.orlopd.root().join("io.containerd.runtime.v2.task").join(self.orlopd.namespace());
        for directory in [self.bundles(), work] {
            let left = names(&directory);
            assert!(left.is_empty(), "{left:?} in {}\n{}", directory.display(), self.orlopd.log());
        }
    }

    /// The process of a container's shim, found by where it works.
    fn shim(&self, name: &str) -> i32 {
        let bundle = self.bundles().join(name);
        poll_value(DEADLINE, "the shim works in the bundle", || {
            let works_there =
                |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == bundle);
            host::processes().into_iter().map(|process| process.pid).find(works_there)
        })
    }

    /// Events as `ctr events` prints them, from now on.
    fn events(&self, filters: &[&str]) -> Events {
        let process = self.ctr(&["events"]).args(filters).spawn();
        let events = Events(process);
        // The subscription stands when an event published after it is seen.
        poll_until(DEADLINE, "the subscription stands", || {
            self.ctr(&["namespaces", "label", self.orlopd.namespace(), "beat=1"]).run();
            !filters.is_empty() || !events.0.stdout().is_empty()
        });
        events
    }

    /// Stops the daemon and looks for what is left.
    fn finish(mut self) {
        self.assert_no_bundles();
        let stopped = self.orlopd.stop().unwrap();
        assert_eq!(stopped.code(), 0, "{stopped}");
        assert!(!self.sockets().exists(), "{:?} in {}", names(&self.sockets()), self.sockets().display());
        self.root.assert_clean();
    }
}

struct Events(Process);

impl Events {
    /// Topic and content of the task events so far.
    fn tasks(&self) -> Vec<String> {
        self.0
            .stdout()
            .lines()
            .filter_map(|line| line.find(" /tasks/").map(|at| line[at + 1..].to_owned()))
            .collect()
    }

    /// Waits for a task event of a topic that contains all the words.
    fn wait(&self, topic: &str, words: &[&str]) -> String {
        poll_value(DEADLINE, &format!("event {topic} {words:?}"), || {
            self.tasks()
                .into_iter()
                .find(|line| line.starts_with(topic) && words.iter().all(|word| line.contains(word)))
        })
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
