//! SIGKILL of the shim at random points of a container's life, under Debian's containerd and under orlopd: nothing is left, and
//! whoever was told that a container runs is told how it ended.
//!
//! `ORLOP_SHIM_KILLS` says how often, as `make soak` does; each kill prints its seed, and `ORLOP_SHIM_SEED` is the first.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_tests::{Containerd, Daemon, Numbers, Orlopd, Process, Root, host, number, poll_for, poll_until};

use crate::workload::{DEADLINE, import_image};

/// Kills of a run that was asked for no number.
const KILLS: u64 = 6;
/// The longest life of a shim, in microseconds: a little more than all steps take.
const LIFE: u64 = 500_000;

/// Leads a container through its life until its shim is gone; whether its client was told that it runs.
fn live(daemon: &impl Daemon, image: &str, name: &str, script: &str) -> bool {
    let run = daemon.ctr(["run", "-d", "--null-io", "--runtime", "io.containerd.orlop.v1"]);
    if !run.args([image, name, "sh", "-c", script]).run().status.success() {
        return false;
    }
    // How far it gets is chance, and what ends early makes its steps fail.
    for step in [
        &["tasks", "exec", "--exec-id", "e", name, "true"][..],
        &["tasks", "pause", name],
        &["tasks", "resume", name],
        &["tasks", "kill", "-s", "KILL", name],
        &["tasks", "delete", name],
    ] {
        if !daemon.ctr(step).run().status.success() {
            break;
        }
    }
    true
}

/// The container's shim, as soon as there is one: not the action that starts it.
fn shim(root: &Root, name: &str) -> Option<i32> {
    let id = format!(" -namespace {} -id {name} ", root.tag());
    let serves = |task: &host::Task| {
        let command = format!("{} ", task.command);
        command.contains("containerd-shim") && command.contains(&id) && !command.ends_with(" start ")
    };
    host::processes().into_iter().find(serves).map(|task| task.pid)
}

/// Where a shim listens, as its bundle says from before the shim is there.
fn socket(shim: i32) -> Option<PathBuf> {
    let read = |name| fs::read_to_string(format!("/proc/{shim}/cwd/{name}"));
    let url = read("address").or_else(|_| read(".address")).ok()?;
    url.trim().strip_prefix("unix://").map(PathBuf::from)
}

/// What the manager published of a container, in order: topic and the rest of the line.
fn events(printed: &Process, name: &str) -> Vec<String> {
    let own = format!("\"container_id\":\"{name}\"");
    let lines = printed.stdout();
    let of_tasks = lines.lines().filter_map(|line| line.find(" /tasks/").map(|at| &line[at + 1..]));
    of_tasks.filter(|line| line.contains(&own)).map(str::to_owned).collect()
}

/// The exit statuses that were told of a container's init.
fn exits(events: &[String], name: &str) -> Vec<u64> {
    let init = format!("\"id\":\"{name}\"");
    let of_init = events.iter().filter(|line| line.starts_with("/tasks/exit ") && line.contains(&init));
    of_init
        .map(|line| {
            let value: serde_json::Value =
                serde_json::from_str(line.split_once(' ').expect("a topic and more").1).expect("JSON");
            value["exit_status"].as_u64().unwrap_or(0)
        })
        .collect()
}

/// What carries the container's name (processes, mounts and cgroups), and the socket of its shim.
fn remains(root: &Root, name: &str, socket: Option<&Path>) -> Vec<String> {
    let below = format!("/{}/{name}", root.tag());
    let group = |hierarchy: &Path| hierarchy.join(root.tag()).join(name);
    let groups = host::cgroup_hierarchies().into_iter().map(|hierarchy| group(&hierarchy));
    let mounts = host::mounts().into_iter().map(|mount| mount.target.display().to_string());
    let mut left: Vec<String> =
        groups.filter(|path| path.exists()).map(|path| path.display().to_string()).collect();
    left.extend(mounts.filter(|target| target.contains(&below)));
    left.extend(shim(root, name).map(|pid| format!("process {pid}")));
    left.extend(socket.filter(|socket| socket.exists()).map(|socket| socket.display().to_string()));
    left
}

fn kill_at_random<D: Daemon + Sync>(root: &Root, daemon: &D, log: fn(&D) -> String) {
    let image = import_image(root, daemon);
    let published = daemon.ctr(["events"]).spawn();
    poll_until(DEADLINE, "the subscription stands", || {
        daemon.ctr(["namespaces", "label", daemon.namespace(), "beat=1"]).run();
        !published.stdout().is_empty()
    });
    let (first, kills) = (number("ORLOP_SHIM_SEED", 1), number("ORLOP_SHIM_KILLS", KILLS));
    let (mut told_of, mut sockets) = (0, 0);
    for seed in first..first + kills {
        // Half of them early, where most happens.
        let longest = if seed % 2 == 0 { LIFE / 8 } else { LIFE };
        let (after, name) = (Numbers::of(seed).draw() % longest, format!("k{seed}"));
        println!("seed {seed}: killed after {after} us");
        let (script, truth) = if seed % 3 == 0 { ("exit 7", 7) } else { ("sleep 1000", 137) };
        let (started, socket) = thread::scope(|scope| {
            let life = scope.spawn(|| live(daemon, &image, &name, script));
            let pid = poll_for(DEADLINE, || shim(root, &name)).expect("the shim starts");
            let socket = socket(pid);
            // The point is chosen by time, since that is what comes: the machine decides which instruction it meets.
            thread::sleep(Duration::from_micros(after));
            // It may have come to its end before.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            (life.join().expect("the client ends"), socket)
        });
        sockets += usize::from(socket.is_some());
        poll_until(DEADLINE, &format!("seed {seed}: the manager knows no such task"), || {
            let listed = daemon.ctr(["tasks", "ls", "-q"]).run().success().stdout;
            !listed.lines().any(|line| line == name)
        });
        let mut left = Vec::new();
        let clean = poll_for(DEADLINE, || {
            left = remains(root, &name, socket.as_deref());
            left.is_empty().then_some(())
        });
        assert!(clean.is_some(), "seed {seed} left {left:#?}\n{}", log(daemon));
        if started {
            told_of += 1;
            let mut told = Vec::new();
            poll_until(DEADLINE, &format!("seed {seed}: its end is told"), || {
                told = events(&published, &name);
                told.iter().any(|line| line.starts_with("/tasks/delete "))
            });
            let exits = exits(&told, &name);
            // One whose shim died before it looked is not known to have ended by itself.
            let may_be = |status: &u64| *status == truth || *status == 137;
            let one = exits.first();
            assert!(one.is_some_and(may_be), "seed {seed}: {told:#?}");
            assert!(
                exits.iter().all(|status| Some(status) == one),
                "seed {seed} contradicts itself: {told:#?}"
            );
        }
        daemon.ctr(["containers", "rm", &name]).run();
        let known = daemon.ctr(["containers", "ls", "-q"]).run().success().stdout;
        assert!(!known.lines().any(|line| line == name), "seed {seed}: {known}");
    }
    assert!(told_of > 0, "no shim lived long enough for anything to be told");
    assert!(sockets > 0, "no shim lived long enough to be asked where it listens");
}

#[test]
fn killed_shims_leave_nothing_under_the_reference_manager() {
    let root = Root::new();
    let mut containerd = Containerd::start(&root);
    kill_at_random(&root, &containerd, Containerd::log);
    containerd.stop();
    root.assert_clean();
}

#[test]
fn killed_shims_leave_nothing_under_orlopd() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    kill_at_random(&root, &orlopd, Orlopd::log);
    orlopd.stop();
    root.assert_clean();
}
