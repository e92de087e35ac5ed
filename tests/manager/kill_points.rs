//! SIGKILL of the daemon at random points of a pull, an unpacking, a creation, a start, a deletion and a collection.
//!
//! `ORLOP_KILL_POINTS` says how many (`make soak`: 300), `ORLOP_TEST_SEED` where they lie; a few at fixed places always run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop_tests::{Daemon, Image, Layer, Numbers, Orlopd, Registry, Root, number};
use serde_json::Value;

use crate::evidence::{self, Tree};

/// Kills where nobody asks for more.
const KILLS: u64 = 8;
/// Where they lie then.
const SEED: u64 = 20_261_125;
/// Longest life of a daemon, in microseconds.
const LIFE: u64 = 1_500_000;

/// What the daemon said it did; what it was about to do when it died is neither.
#[derive(Default)]
struct Acknowledged {
    /// Whether the image is there.
    image: Option<bool>,
    /// Whether each container is there.
    containers: BTreeMap<String, bool>,
}

/// Two layers that take a moment to fetch and to unpack.
fn image() -> Image {
    let noise = |seed: u64, length: usize| {
        let mut numbers = Numbers::of(seed);
        (0..length / 8).flat_map(|_| numbers.draw().to_le_bytes()).collect::<Vec<u8>>()
    };
    let mut upper = Layer::new();
    for index in 0..200 {
        upper = upper.file(&format!("data/{index}/file"), &noise(index, 8 << 10), 0o644);
    }
    Image::busybox().layer(upper).layer(Layer::new().file("data/big", &noise(7, 4 << 20), 0o600))
}

/// Goes round and round until something fails, as it does when the daemon is killed.
fn work(daemon: &Orlopd, image: &str, round: u64, known: &mut Acknowledged, stop: &AtomicBool) {
    for turn in 0.. {
        let id = format!("c{round}-{turn}");
        // Before a step nobody knows any more what there will be; after it, the daemon has said so.
        let step = |known: &mut Acknowledged, args: &[&str], done: &mut dyn FnMut(&mut Acknowledged)| {
            let ok = !stop.load(Ordering::Relaxed) && daemon.orlopctl(args).run().status.success();
            if ok {
                done(known);
            }
            ok
        };
        if known.image != Some(true) {
            known.image = None;
            if !step(known, &["images", "pull", image], &mut |known| known.image = Some(true)) {
                return;
            }
        }
        let run = ["run", "-d", image, &id, "sleep", "1000"];
        let mut runs = |known: &mut Acknowledged| {
            known.containers.insert(id.clone(), true);
        };
        if !step(known, &run, &mut runs) {
            return;
        }
        known.containers.remove(&id);
        for args in [&["tasks", "rm", "-f", &id][..], &["containers", "rm", &id]] {
            if !step(known, args, &mut |_| {}) {
                return;
            }
        }
        known.containers.insert(id.clone(), false);
        known.image = None;
        if !step(known, &["images", "rm", image], &mut |known| known.image = Some(false))
            || !step(known, &["gc"], &mut |_| {})
        {
            return;
        }
    }
}

#[test]
fn whatever_step_is_cut_off_nothing_is_damaged_or_lost() {
    let (kills, seed) = (number("ORLOP_KILL_POINTS", KILLS), number("ORLOP_TEST_SEED", SEED));
    println!("seed: ORLOP_TEST_SEED={seed} ORLOP_KILL_POINTS={kills}");
    let mut numbers = Numbers::of(seed);
    let root = Root::new();
    let registry = Registry::start(&root);
    let mut daemon = Orlopd::start(&root);
    let image = image().push(&registry, "image", "1");
    // What the layers should be, from a root of their own.
    let layers = {
        let mut other = Orlopd::start(&root);
        other.orlopctl(["images", "pull", &image]).run().success();
        let layers = evidence::layers(&other);
        other.stop();
        layers
    };
    let mut known = Acknowledged::default();
    for round in 0..kills {
        let life = Duration::from_micros(numbers.draw() % LIFE);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let pid = nix::unistd::Pid::from_raw(daemon.pid().unwrap());
            let worker = scope.spawn(|| work(&daemon, &image, round, &mut known, &stop));
            // The point of the kill is what is random here; nothing waits for this time.
            std::thread::sleep(life);
            stop.store(true, Ordering::Relaxed);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            worker.join().unwrap();
        });
        daemon.kill();
        daemon.restart();
        check(&daemon, &image, &layers, &known, round);
    }
    let ids = daemon.orlopctl(["containers", "ls", "-q"]).run().success().stdout;
    for id in ids.lines() {
        daemon.orlopctl(["tasks", "rm", "-f", id]).run();
        daemon.orlopctl(["containers", "rm", id]).run().success();
    }
    daemon.stop();
}

fn check(daemon: &Orlopd, image: &str, layers: &[Tree], known: &Acknowledged, round: u64) {
    let report = daemon.orlopctl(["--format", "json", "fsck"]).run();
    let said: Value =
        serde_json::from_str(&report.stdout).unwrap_or_else(|error| panic!("{error}: {report}"));
    assert_eq!(said["damaged"], 0, "after kill {round}: {report}");
    evidence::check_blobs(daemon, &[daemon.namespace()]);
    let list = |args: &[&str]| daemon.orlopctl(args).run().success().stdout;
    let images = list(&["images", "ls", "-q"]);
    if let Some(is_there) = known.image {
        assert_eq!(images.lines().any(|line| line == image), is_there, "after kill {round}: {images}");
    }
    if known.image == Some(true) {
        let found = evidence::layers(daemon);
        for layer in layers {
            assert!(found.contains(layer), "after kill {round} a layer is not what it was");
        }
    }
    let containers = list(&["containers", "ls", "-q"]);
    let tasks = list(&["tasks", "ls"]);
    for (id, is_there) in &known.containers {
        assert_eq!(
            containers.lines().any(|line| line == id),
            *is_there,
            "after kill {round}, container {id}"
        );
        let runs = tasks.lines().any(|line| line.starts_with(&format!("{id} ")) && line.contains("RUNNING"));
        assert_eq!(runs, *is_there, "after kill {round}, task {id}: {tasks}");
    }
}
