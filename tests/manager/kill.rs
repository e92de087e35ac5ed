//! SIGKILL of the daemon at random points: what was acknowledged is there, what was not leaves no trace.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop_tests::image::digest;
use orlop_tests::{Daemon, Numbers, Orlopd, Root};

use crate::client::{Client, Put};

/// Kills in a row, on one and the same root.
const KILLS: u64 = 12;
/// Longest life of a daemon, in microseconds.
const LIFE: u64 = 500_000;

/// What the daemon said it did.
#[derive(Default)]
struct Acknowledged {
    /// Image to the digest of its blob; `None` once deleted.
    images: BTreeMap<String, Option<String>>,
    /// Committed snapshots.
    snapshots: Vec<String>,
}

/// Makes and deletes things until the daemon is gone.
fn work(socket: &Path, round: u64, seed: u64, known: &mut Acknowledged, stop: &AtomicBool) {
    let Ok(client) = Client::connect(socket, "one") else { return };
    let mut numbers = Numbers::of(seed);
    for index in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("r{round}-{index}");
        let bytes: Vec<u8> =
            (0..1 + numbers.draw() % 20_000).flat_map(|_| numbers.draw().to_le_bytes()).collect();
        let lease = format!("l-{name}");
        if client.create_lease(&lease).is_err() {
            return;
        }
        let Ok(leased) = Client::connect(socket, "one") else { return };
        let leased = leased.with_lease(&lease);
        let Ok(answer) = leased.put(&Put { reference: &name, ..Put::default() }, &bytes, 10_000) else {
            return;
        };
        if leased.create_image(&name, &answer.digest, bytes.len() as i64).is_err() {
            return;
        }
        known.images.insert(name.clone(), Some(answer.digest));
        if leased.prepare("overlayfs", &format!("tmp-{name}"), "").is_err() {
            return;
        }
        if leased.commit("overlayfs", &name, &format!("tmp-{name}")).is_err() {
            return;
        }
        // The lease stays and keeps the snapshot.
        known.snapshots.push(name.clone());
        if index % 3 == 2 {
            let old = format!("r{round}-{}", index - 1);
            // From here on it may be there or not, until the daemon says which.
            known.images.remove(&old);
            if client.delete_image(&old, false).is_err() {
                return;
            }
            known.images.insert(old, None);
        }
    }
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_half_done_stays() {
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = std::env::var("ORLOP_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(seed);
    println!("seed: ORLOP_TEST_SEED={seed}");
    let mut numbers = Numbers::of(seed);
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    let mut known = Acknowledged::default();
    for round in 0..KILLS {
        let socket = daemon.address().to_owned();
        let (life, seed) = (Duration::from_micros(numbers.draw() % LIFE), numbers.draw());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| work(&socket, round, seed, &mut known, &stop));
            // The point of the kill is what is random here; nothing waits for this time.
            std::thread::sleep(life);
            stop.store(true, Ordering::Relaxed);
            daemon.kill();
            worker.join().unwrap();
        });
        daemon.restart();
        check(&daemon, &known);
    }
    assert!(known.images.len() > 3, "the daemon lived long enough to do something");
}

fn check(daemon: &Orlopd, known: &Acknowledged) {
    let client = Client::new(daemon.address(), "one");
    let images: BTreeMap<String, String> = client.images().unwrap().into_iter().collect();
    for (name, target) in &known.images {
        assert_eq!(images.get(name), target.as_ref(), "image {name}");
    }
    for (name, target) in &images {
        assert_eq!(&digest(&client.blob(target).unwrap()), target, "the blob of {name}");
    }
    let snapshots = client.snapshots("overlayfs").unwrap();
    for name in &known.snapshots {
        assert!(snapshots.iter().any(|(found, _)| found == name), "snapshot {name}");
    }
    let listed = client.digests().unwrap();
    let mut files = names(&daemon.root().join("content/blobs/sha256"));
    files.retain(|file| !listed.contains(&format!("sha256:{file}")));
    assert!(files.is_empty(), "blobs without a record: {files:?}");
    let mut layers = names(&daemon.root().join("overlayfs"));
    layers.retain(|name| name.parse::<u64>().is_ok());
    assert_eq!(layers.len(), snapshots.len(), "layers without a record, or the reverse");
}
