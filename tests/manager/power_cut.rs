//! Power cuts: everything that is written to a disk during a pull, a run and a deletion is recorded, and the disk as it would be
//! after a cut at many moments is mounted, started on and judged by what had been acknowledged.
//!
//! `ORLOP_POWER_CUTS` says how many moments (`make soak`: 300), `ORLOP_TEST_SEED` which. With `ORLOP_POWER_KEEP` the disks are put
//! into that directory, with what is expected of them, for a machine that boots with them (`make test-vm`).

use std::fs;
use std::path::PathBuf;

use orlop_tests::{
    Cmd, Daemon, Image, Layer, Numbers, Orlopd, Recorder, Registry, Root, Variant, number, poll_until,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{Client, Put};
use crate::ctl::DEADLINE;
use crate::evidence::{self, Tree};

/// Moments where nobody asks for more.
const CUTS: u64 = 8;
/// How many of the first writes are each followed by a cut, at least.
const FIRST: u64 = 12;
/// Which ones then.
const SEED: u64 = 20_261_126;
/// Bytes of the disk.
const DISK: usize = 96 << 20;
/// Layers are written back soon, so that some cuts come before and some after.
const CONFIG: &str = "[snapshots]\nwrite_back_delay = 0\n";

/// What an operation changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Fact {
    Image(String),
    Container(String),
    Blob(String),
}

/// An operation: from when to when it took, and what it made or removed.
struct Deed {
    began: usize,
    ended: usize,
    fact: Fact,
    is_there: bool,
}

/// What must be on a disk after a cut.
#[derive(Serialize, Deserialize)]
struct Expected {
    /// The namespace of it all.
    namespace: String,
    /// What must be there, or must not; nothing about what changed when the cut came.
    facts: Vec<(Fact, bool)>,
    /// The layers of all images.
    layers: Vec<Tree>,
    /// When the power went, for people.
    cut: usize,
}

impl Expected {
    fn after(cut: usize, deeds: &[Deed], layers: &[Tree], namespace: &str) -> Expected {
        let certain = |deed: &Deed| {
            let begun = deeds.iter().rfind(|other| other.fact == deed.fact && other.began <= cut);
            let is_there = match begun {
                None => Some(false),
                Some(deed) => (deed.ended <= cut).then_some(deed.is_there),
            };
            is_there.map(|is_there| (deed.fact.clone(), is_there))
        };
        let facts = deeds.iter().filter_map(certain).collect();
        Expected { namespace: namespace.to_owned(), facts, layers: layers.to_vec(), cut }
    }
}

fn image(seed: u8) -> Image {
    let mut upper = Layer::new().dir("data", 0o755);
    for index in 0..40 {
        upper = upper.file(&format!("data/{index}"), &[seed.wrapping_add(index); 3000], 0o644);
    }
    Image::busybox().layer(upper).layer(Layer::new().file("data/big", &vec![seed; 300_000], 0o600))
}

#[test]
fn what_was_acknowledged_is_there_after_a_power_cut() {
    let (cuts, seed) = (number("ORLOP_POWER_CUTS", CUTS), number("ORLOP_TEST_SEED", SEED));
    println!("seed: ORLOP_TEST_SEED={seed} ORLOP_POWER_CUTS={cuts}");
    let kept = std::env::var_os("ORLOP_POWER_KEEP").map(PathBuf::from);
    let root = Root::new();
    let mut registry = Registry::start(&root);
    let (one, two) = (image(1).push(&registry, "one", "1"), image(2).push(&registry, "two", "1"));
    let layers = {
        let mut other = Orlopd::start(&root);
        for name in [&one, &two] {
            other.orlopctl(["images", "pull", name]).run().success();
        }
        let layers = evidence::layers(&other);
        other.stop();
        layers
    };
    let mut recorder = Recorder::start(&root, DISK);
    let boot = root.join("boot");
    fs::write(&boot, "11111111-0000-0000-0000-000000000000\n").unwrap();
    let variant = Variant {
        boot_id: Some(boot.clone()),
        data: Some(recorder.path().join("root")),
        ..Variant::default()
    };
    let mut daemon = Orlopd::start_as(&root, CONFIG, &variant);
    let blob = orlop_tests::image::digest(b"somebody's");
    let deeds = {
        let mut deeds = Vec::new();
        let mut deed = |fact, is_there, work: &mut dyn FnMut()| {
            let began = recorder.now();
            work();
            deeds.push(Deed { began, ended: recorder.now(), fact, is_there });
        };
        let ctl = |args: &[&str]| drop(daemon.orlopctl(args).run().success());
        deed(Fact::Image(one.clone()), true, &mut || ctl(&["images", "pull", &one]));
        deed(Fact::Container("stays".to_owned()), true, &mut || {
            ctl(&["run", "-d", &one, "stays", "sleep", "1000"])
        });
        deed(Fact::Container("goes".to_owned()), true, &mut || {
            ctl(&["run", "-d", &one, "goes", "sh", "-c", "echo x >/file; sync; exec sleep 1000"])
        });
        deed(Fact::Blob(blob.clone()), true, &mut || {
            let client = Client::new(daemon.address(), daemon.namespace());
            client.create_lease("l").unwrap();
            client.with_lease("l").put(&Put { reference: "r", ..Put::default() }, b"somebody's", 4).unwrap();
        });
        deed(Fact::Image(two.clone()), true, &mut || {
            ctl(&["images", "pull", "--snapshotter", "erofs", &two])
        });
        ctl(&["tasks", "rm", "-f", "goes"]);
        deed(Fact::Container("goes".to_owned()), false, &mut || ctl(&["containers", "rm", "goes"]));
        deed(Fact::Image(two.clone()), false, &mut || ctl(&["images", "rm", &two]));
        ctl(&["gc"]);
        deed(Fact::Image(two.clone()), true, &mut || ctl(&["images", "pull", &two]));
        ctl(&["tasks", "rm", "-f", "stays"]);
        deeds
    };
    daemon.stop();
    registry.stop();
    recorder.finish();

    let (flushes, end) = (recorder.flushes(), recorder.now());
    println!("{end} writes, {} flushes", flushes.len());
    assert!(flushes.len() > 20, "the disk is asked to keep what it was given");
    let mut numbers = Numbers::of(seed);
    let first = if kept.is_some() { 0 } else { FIRST.max(cuts / 5) as usize };
    let moments: Vec<(usize, bool)> = (0..cuts)
        .map(|index| match index % 2 {
            // Of what came after the last flush nothing got there; and what chance says.
            0 => (flushes[numbers.draw() as usize % flushes.len()], true),
            _ => (numbers.draw() as usize % end, false),
        })
        // While all is made for the first time.
        .chain((1..=first).map(|cut| (cut, false)))
        .chain([(end, true)])
        .collect();
    for (index, (cut, is_flushed)) in moments.into_iter().enumerate() {
        println!("cut {index} after {cut} writes");
        let expected = Expected::after(cut, &deeds, &layers, root.tag());
        let stays = || !is_flushed && numbers.draw().is_multiple_of(2);
        if let Some(kept) = &kept {
            recorder.image(cut, stays, &kept.join(format!("{index}.image")));
            let text = serde_json::to_vec(&expected).unwrap();
            fs::write(kept.join(format!("{index}.json")), text).unwrap();
            continue;
        }
        let place = root.join(format!("cut{index}"));
        recorder.mount_image(cut, stays, &place);
        fs::write(&boot, format!("22222222-0000-0000-0000-{index:012}\n")).unwrap();
        let variant =
            Variant { boot_id: Some(boot.clone()), data: Some(place.join("root")), ..Variant::default() };
        let mut daemon = Orlopd::start_as(&root, CONFIG, &variant);
        judge(&daemon, &expected);
        daemon.stop();
        Cmd::new("umount").arg(&place).run().success();
    }
    root.assert_clean();
}

/// In the machine that has booted with the disks of `ORLOP_POWER_BOOTED`, in their order.
#[test]
fn what_was_acknowledged_is_there_in_a_machine_that_boots() {
    let Some(kept) = std::env::var_os("ORLOP_POWER_BOOTED").map(PathBuf::from) else { return };
    let mut disks = 0;
    for (index, device) in ('a'..='z').enumerate() {
        let Ok(text) = fs::read(kept.join(format!("{index}.json"))) else { break };
        let expected: Expected = serde_json::from_slice(&text).unwrap();
        println!("disk {index} after {} writes", expected.cut);
        let root = Root::new();
        let place = root.join("disk");
        fs::create_dir(&place).unwrap();
        Cmd::new("mount").arg(format!("/dev/vd{device}")).arg(&place).run().success();
        let variant = Variant {
            data: Some(place.join("root")),
            namespace: Some(expected.namespace.clone()),
            ..Variant::default()
        };
        let mut daemon = Orlopd::start_as(&root, CONFIG, &variant);
        judge(&daemon, &expected);
        daemon.stop();
        Cmd::new("umount").arg(&place).run().success();
        root.assert_clean();
        disks += 1;
    }
    assert!(disks > 1, "{disks} disks in {}", kept.display());
}

fn judge(daemon: &Orlopd, expected: &Expected) {
    let context = || format!("after {} writes; {}", expected.cut, daemon.log());
    let list = |args: &[&str]| daemon.orlopctl(args).run().success().stdout;
    let (images, containers) = (list(&["images", "ls", "-q"]), list(&["containers", "ls", "-q"]));
    let client = Client::new(daemon.address(), daemon.namespace());
    let blobs = client.digests().unwrap();
    for (fact, expected) in &expected.facts {
        let is_there = match fact {
            Fact::Image(name) => images.lines().any(|line| line == name),
            Fact::Container(name) => containers.lines().any(|line| line == name),
            Fact::Blob(name) => blobs.contains(name),
        };
        assert_eq!(is_there, *expected, "{fact:?} {}", context());
    }
    evidence::check_blobs(daemon, &[daemon.namespace()]);
    check_layers(daemon, &expected.layers, &context());
    let report = daemon.orlopctl(["--format", "json", "fsck"]).run();
    let said: Value =
        serde_json::from_str(&report.stdout).unwrap_or_else(|error| panic!("{error}: {report}"));
    assert_eq!(said["damaged"], 0, "{report} {}", context());
    // What is there works.
    if let Some(image) = images.lines().next() {
        let out =
            daemon.orlopctl(["run", "--rm", image, "new", "sh", "-c", "cat /data/* | wc -c"]).run().success();
        assert_eq!(out.stdout, format!("{}\n", 40 * 3000 + 300_000), "{}", context());
    }
}

/// Every committed layer of files is one of those that the images have.
fn check_layers(daemon: &Orlopd, layers: &[Tree], context: &str) {
    let snapshots = daemon.ctr(["snapshots", "ls"]).run().success().stdout;
    let count = |kind: &str| snapshots.lines().filter(|line| line.trim_end().ends_with(kind)).count();
    let found = evidence::layers(daemon);
    assert_eq!(found.len(), count("Committed") + count("Active"), "a layer for each record {context}");
    let whole = found.iter().filter(|layer| layers.contains(layer)).count();
    assert!(whole >= count("Committed"), "{whole} of these are what they were: {snapshots} {context}");
}

#[test]
fn a_recorded_disk_forgets_what_was_not_flushed() {
    let root = Root::new();
    let mut recorder = Recorder::start(&root, 16 << 20);
    let write = |name: &str| fs::write(recorder.path().join(name), vec![7; 100_000]).unwrap();
    write("synced");
    let synced = fs::File::open(recorder.path().join("synced")).unwrap();
    synced.sync_all().unwrap();
    let after = recorder.now();
    write("unsynced");
    drop(synced);
    recorder.finish();
    let mut elsewhere = Vec::new();
    let mut look = |length: usize, expected: &[&str]| {
        let place = root.join(format!("after{length}"));
        recorder.mount_image(length, || false, &place);
        // Somebody's mount namespace, which has a copy of this mount for longer than we have it.
        let other =
            Cmd::new("unshare").args(["--mount", "--propagation", "private", "sleep", "1000"]).spawn();
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        let pid = other.pid().to_string();
        poll_until(DEADLINE, "a mount namespace", || namespace(&pid) != namespace("self"));
        elsewhere.push(other);
        let mut names = evidence::names(&place);
        names.retain(|name| name != "lost+found");
        names.sort();
        assert_eq!(names, expected);
        for name in &names {
            assert_eq!(fs::read(place.join(name)).unwrap(), vec![7; 100_000], "{name}");
        }
        Cmd::new("umount").arg(&place).run().success();
    };
    look(after, &["synced"]);
    look(0, &[] as &[&str]);
    drop(elsewhere);
    root.assert_clean();
}
