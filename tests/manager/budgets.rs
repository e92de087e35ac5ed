//! What orlopd may take of the machine. Figures of the release build, which `make test` and `make soak` run.
//!
//! `ORLOP_BUDGET_RUNS` and `ORLOP_BUDGET_CONTAINERS` say how many containers come and go, and how many sleep (`make soak`: 100 and
//! 500).

use std::fs;
use std::time::Duration;

use orlop_tests::{Daemon, Image, Orlopd, Root, binaries, number, poll_for, poll_until};

/// Resident memory of an idle daemon, in KiB.
const IDLE: u64 = 12 << 10;
/// How long it may take to get there after the last container.
const SETTLING: Duration = Duration::from_secs(60);
/// Growth with each container that runs, in KiB: at the 500 of the budget.
const EACH: u64 = 20;

/// A figure of /proc/PID/status, in KiB.
fn figure(pid: i32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

fn resident(pid: i32) -> u64 {
    figure(pid, "VmRSS")
}

/// Where the memory is.
fn shown(pid: i32) -> String {
    let parts = ["VmRSS", "RssAnon", "RssFile", "Threads"];
    parts.map(|name| format!("{name} {}", figure(pid, name))).join(", ")
}

fn is_release() -> bool {
    binaries::is_release(&binaries::orlopd())
}

fn import(root: &Root, daemon: &Orlopd) -> &'static str {
    let archive = root.join("image.tar");
    Image::busybox().oci_archive(&archive, "example.org/busybox:1");
    daemon.ctr(["images", "import"]).arg(archive).run().success();
    "example.org/busybox:1"
}

#[test]
fn an_idle_daemon_is_small_after_containers_came_and_went() {
    let runs = number("ORLOP_BUDGET_RUNS", 20);
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    let image = import(&root, &daemon);
    let pid = daemon.pid().unwrap();
    println!("started: {}", shown(pid));
    for first in (0..runs).step_by(4) {
        let clients: Vec<_> = (first..runs.min(first + 4))
            .map(|index| daemon.ctr(["run", "--rm", image, &format!("c{index}"), "true"]).spawn())
            .collect();
        for client in clients {
            client.wait(Duration::from_secs(60)).success();
        }
    }
    println!("after {runs} containers: {}", shown(pid));
    let settled = poll_for(SETTLING, || (resident(pid) <= IDLE).then_some(()));
    println!("idle: {}", shown(pid));
    assert!(settled.is_some() || !is_release(), "{} KiB resident: {}", resident(pid), shown(pid));
    daemon.stop();
}

#[test]
fn a_sleeping_container_costs_the_daemon_little() {
    let (first, containers) = (50, number("ORLOP_BUDGET_CONTAINERS", 50));
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    let image = import(&root, &daemon);
    let pid = daemon.pid().unwrap();
    let start = |from: u64, to: u64| {
        for first in (from..to).step_by(4) {
            let clients: Vec<_> = (first..to.min(first + 4))
                .map(|index| {
                    let id = format!("c{index}");
                    daemon.ctr(["run", "-d", "--null-io", image, &id, "sleep", "100000"]).spawn()
                })
                .collect();
            for client in clients {
                client.wait(Duration::from_secs(60)).success();
            }
        }
    };
    // What the first ones cost once is no growth; and what is mapped of the program's file comes and goes.
    let own = || figure(pid, "RssAnon");
    start(0, first);
    let before = own();
    start(first, first + containers);
    let grown = || own().saturating_sub(before);
    println!("{containers} more containers: {} KiB; {}", grown(), shown(pid));
    // What starting them took goes back once the daemon is idle.
    let allowed = EACH * containers;
    let settled = poll_for(SETTLING, || (grown() <= allowed).then_some(()));
    println!("idle: {} KiB; {}", grown(), shown(pid));
    assert!(settled.is_some() || !is_release(), "{} KiB for {containers} containers", grown());
    let tasks = daemon.ctr(["tasks", "ls", "-q"]).run().success().stdout;
    assert_eq!(tasks.lines().count() as u64, first + containers);
    for id in tasks.lines() {
        daemon.orlopctl(["tasks", "rm", "-f", id]).run().success();
        daemon.orlopctl(["containers", "rm", id]).run().success();
    }
    poll_until(SETTLING, "no task is left", || daemon.ctr(["tasks", "ls", "-q"]).run().stdout.is_empty());
    daemon.stop();
}
