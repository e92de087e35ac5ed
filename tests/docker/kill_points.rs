//! SIGKILL of the daemon at random points of what a `docker` user does, judged by what had been acknowledged: from the lists, the
//! files of volumes and containers, and the layers on the disk.
//!
//! `ORLOP_KILL_POINTS` says how many (`make soak`: 300), `ORLOP_TEST_SEED` where they lie.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop_tests::{Cmd, Daemon, Numbers, binaries, number, poll_until};
use serde_json::Value;

use super::side::Side;

const KILLS: u64 = 6;
const SEED: u64 = 20_261_127;
/// Longest life of a daemon, in microseconds.
const LIFE: u64 = 1_500_000;

/// What the daemon said it did, by kind and name; what it was about to do when it died is not in it.
#[derive(Default)]
struct Acknowledged {
    /// Whether it is there.
    known: BTreeMap<(&'static str, String), bool>,
    /// Volumes with a file that a container wrote.
    written: BTreeSet<String>,
}

/// Goes round until something fails, as it does when the daemon is killed.
fn work(side: &Side, round: u64, acknowledged: &mut Acknowledged, stop: &AtomicBool) {
    for turn in 0.. {
        let name = format!("n{round}-{turn}");
        let mut step = |kind: &'static str, is_there: bool, args: &[&str]| {
            let key = (kind, name.clone());
            acknowledged.known.remove(&key);
            let ok = !stop.load(Ordering::Relaxed) && side.docker(args).run().status.success();
            if ok {
                acknowledged.known.insert(key, is_there);
            }
            ok
        };
        let volume = format!("{name}:/v");
        let write = format!("echo {name} >/v/file; sync; exec sleep 1000");
        let created = step("volume", true, &["volume", "create", &name])
            && step("network", true, &["network", "create", &name])
            && step(
                "container",
                true,
                &["run", "-d", "--network", "none", "--name", &name, "-v", &volume, "bb", "sh", "-c", &write],
            );
        if !created {
            return;
        }
        let file = ["exec", &name, "cat", "/v/file"];
        if side.docker(&file).run().stdout == format!("{name}\n") {
            acknowledged.written.insert(name.clone());
        }
        // Every second one stays.
        if turn % 2 == 0 {
            continue;
        }
        acknowledged.written.remove(&name);
        let mut step = |kind: &'static str, args: &[&str]| {
            let key = (kind, name.clone());
            acknowledged.known.remove(&key);
            let ok = !stop.load(Ordering::Relaxed) && side.docker(args).run().status.success();
            if ok {
                acknowledged.known.insert(key, false);
            }
            ok
        };
        if !(step("container", &["rm", "--force", &name])
            && step("network", &["network", "rm", &name])
            && step("volume", &["volume", "rm", &name]))
        {
            return;
        }
    }
}

#[test]
fn whatever_docker_does_is_cut_off_nothing_is_damaged_or_lost() {
    let (kills, seed) = (number("ORLOP_KILL_POINTS", KILLS), number("ORLOP_TEST_SEED", SEED));
    println!("seed: ORLOP_TEST_SEED={seed} ORLOP_KILL_POINTS={kills}");
    let mut numbers = Numbers::of(seed);
    let mut side = Side::orlopd();
    let image_layers = layers(&side.manager().root());
    let mut acknowledged = Acknowledged::default();
    for round in 0..kills {
        let life = Duration::from_micros(numbers.draw() % LIFE);
        let stop = AtomicBool::new(false);
        let pid = nix::unistd::Pid::from_raw(side.manager().pid().unwrap());
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| work(&side, round, &mut acknowledged, &stop));
            // The point of the kill is what is random here; nothing waits for this time.
            std::thread::sleep(life);
            stop.store(true, Ordering::Relaxed);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            worker.join().unwrap();
        });
        side.manager().kill();
        side.manager().restart();
        check(&mut side, &acknowledged, image_layers, round);
        // What runs is not to pile up.
        side.run("$docker rm --force $($docker ps --all --quiet)");
        acknowledged.known.retain(|(kind, _), _| *kind != "container");
    }
    for what in ["volume", "network"] {
        side.run(&format!("$docker {what} prune --force"));
    }
    side.finish();
}

/// How many layers have files.
fn layers(root: &Path) -> usize {
    let entries = fs::read_dir(root.join("overlayfs")).unwrap().flatten();
    entries.filter(|entry| entry.path().join("fs").exists()).count()
}

fn check(side: &mut Side, acknowledged: &Acknowledged, image_layers: usize, round: u64) {
    let root = side.manager().root();
    let list = |line: &str| -> Vec<String> { side.says(line).lines().map(str::to_owned).collect() };
    let containers = list("$docker ps --all --format '{{.Names}}'");
    let found = BTreeMap::from([
        ("container", containers.clone()),
        ("volume", list("$docker volume ls --quiet")),
        ("network", list("$docker network ls --format '{{.Name}}'")),
    ]);
    for ((kind, name), is_there) in &acknowledged.known {
        assert_eq!(found[kind].contains(name), *is_there, "after kill {round}, {kind} {name}: {found:?}");
    }
    for ((_, name), _) in
        acknowledged.known.iter().filter(|((kind, _), there)| *kind == "container" && **there)
    {
        let status = side.says(&format!("$docker inspect --format '{{{{.State.Status}}}}' {name}"));
        assert_eq!(status, "running", "after kill {round}, container {name}");
    }
    for name in acknowledged.written.iter().filter(|name| found["volume"].contains(name)) {
        let file = root.join("docker/volumes").join(name).join("_data/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{name}\n"), "after kill {round}");
    }
    // Nothing is there of a container that is not listed. A removal that was cut off is ended in the background.
    let mut containers = containers;
    poll_until(Duration::from_secs(10), "layers of the images and the containers alone", || {
        containers = list("$docker ps --all --format '{{.Names}}'");
        layers(&root) == image_layers + containers.len()
    });
    let directories = fs::read_dir(root.join("docker/containers")).into_iter().flatten().count();
    assert!(directories <= containers.len(), "after kill {round}: {directories} directories, {containers:?}");
    let report = side.manager().orlopctl(["--format", "json", "fsck"]).run();
    let said: Value =
        serde_json::from_str(&report.stdout).unwrap_or_else(|error| panic!("{error}: {report}"));
    assert_eq!(said["damaged"], 0, "after kill {round}: {report}");
    assert!(!report.stdout.contains("it has networks and is not there"), "after kill {round}: {report}");
}

#[test]
fn fsck_reads_what_docker_keeps() {
    let mut side = Side::orlopd();
    side.says("$docker volume create kept");
    side.says("$docker volume create other");
    side.says("$run --name once -v kept:/v bb true");
    let fsck = |side: &mut Side| side.manager().orlopctl(["fsck"]).run();
    fsck(&mut side).success();
    let volumes = side.manager().root().join("docker/volumes");
    fs::remove_dir_all(volumes.join("other")).unwrap();
    fs::create_dir(volumes.join("stray")).unwrap();
    let id = side.says("$docker inspect --format '{{.Id}}' once");
    let removal = Cmd::new(binaries::orlopctl()).arg("--address").arg(side.manager().address());
    removal.args(["--namespace", "moby", "snapshots", "rm", &id]).run().success();
    let report = fsck(&mut side);
    assert_ne!(report.code(), 0, "{report}");
    for part in [
        "other",
        "its directory is not there",
        "stray",
        "a directory is there and no record",
        "its file system is not there",
    ] {
        assert!(report.stdout.contains(part), "{part}: {report}");
    }
    fs::create_dir_all(volumes.join("other/_data")).unwrap();
    fs::remove_dir(volumes.join("stray")).unwrap();
    side.says("$docker rm once");
    fsck(&mut side).success();
    side.says("$docker volume rm kept other");
    side.finish();
}
