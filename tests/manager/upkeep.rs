//! The disk explains itself: `fsck`, `du` and `gc --explain`, and layers that a power cut may have cut short.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use orlop_tests::{Cmd, Daemon, Image, Layer, Orlopd, Output, Registry, Root, Variant, binaries, poll_until};
use serde_json::Value;

use crate::client::{Client, Put};
use crate::evidence::{self, in_a_layer};

/// A long time for anything local.
const DEADLINE: Duration = Duration::from_secs(60);

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// What `fsck` says, as JSON.
fn fsck(daemon: &Orlopd, flags: &[&str]) -> Value {
    let output = daemon.orlopctl(["--format", "json", "fsck"].iter().chain(flags)).run();
    let report = json(&output);
    assert_eq!(output.code() != 0, report["damaged"] != 0, "{output}");
    report
}

/// The problems in one line each.
fn problems(report: &Value) -> Vec<String> {
    let line = |problem: &Value| {
        let part = |name: &str| problem[name].as_str().unwrap().to_owned();
        format!("{} {}: {} [{}]", part("severity"), part("kind"), part("problem"), part("outcome"))
    };
    report["problems"].as_array().unwrap().iter().map(line).collect()
}

fn assert_clean(daemon: &Orlopd) {
    let report = fsck(daemon, &[]);
    assert_eq!(problems(&report), Vec::<String>::new(), "{report:#}");
}

/// Two layers, the upper of which changes what the lower has.
fn image() -> Image {
    let upper = Layer::new()
        .file("opt/file", &vec![7; 100_000], 0o640)
        .file("opt/small", b"small", 0o644)
        .symlink("opt/link", "file")
        .whiteout("bin/uncommon");
    Image::busybox().layer(upper)
}

struct Pulled {
    root: Root,
    registry: Registry,
    daemon: Orlopd,
    name: String,
    image: Image,
}

fn pulled() -> Pulled {
    let root = Root::new();
    let (registry, daemon) = (Registry::start(&root), Orlopd::start(&root));
    let image = image();
    let name = image.push(&registry, "image", "1");
    daemon.orlopctl(["images", "pull", &name]).run().success();
    Pulled { root, registry, daemon, name, image }
}

impl Pulled {
    fn blob(&self, digest: &str) -> PathBuf {
        self.daemon.root().join("content/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    }

    /// Overwrites one byte of a blob's file.
    fn damage(&self, digest: &str) {
        let mut bytes = fs::read(self.blob(digest)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(self.blob(digest), bytes).unwrap();
    }

    /// The files of a layer, counted from 1.
    fn layer(&self, id: u32) -> PathBuf {
        self.daemon.root().join("overlayfs").join(id.to_string())
    }
}

#[test]
fn damage_is_found_and_healed_from_registry_and_blobs() {
    let mut this = pulled();
    let before = evidence::layers(&this.daemon);
    assert_clean(&this.daemon);

    let (layer, manifest) = (this.image.layers()[1].digest.clone(), this.image.digest());
    this.damage(&layer);
    fs::remove_file(this.blob(&manifest)).unwrap();
    fs::write(in_a_layer(&this.daemon, "opt/small"), b"large").unwrap();
    fs::remove_file(in_a_layer(&this.daemon, "bin/busybox")).unwrap();
    let strays = [this.blob(&format!("sha256:{}", "0".repeat(64))), this.layer(77)];
    fs::write(&strays[0], b"x").unwrap();
    fs::create_dir_all(strays[1].join("fs")).unwrap();

    let report = fsck(&this.daemon, &[]);
    let said = problems(&report).join("\n");
    for part in [
        "its bytes have the digest sha256:",
        "its file is missing",
        "no namespace has it",
        "no snapshot has it",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(strays[0].exists() && strays[1].exists(), "without --repair nothing changes");

    let repaired = fsck(&this.daemon, &["--repair"]);
    assert_eq!(repaired["damaged"], 0, "{repaired:#}");
    assert!(problems(&repaired).iter().filter(|line| line.contains("[fetched again]")).count() == 2);
    assert!(problems(&repaired).iter().filter(|line| line.contains("[unpacked again]")).count() == 2);
    assert!(!strays[0].exists() && !strays[1].exists());
    assert_clean(&this.daemon);
    evidence::check_blobs(&this.daemon, &[this.daemon.namespace()]);
    assert_eq!(evidence::layers(&this.daemon), before);

    // A layer without any files, and a registry that is gone: the blob goes, and the next pull brings it back.
    let small = in_a_layer(&this.daemon, "opt/small");
    fs::remove_dir_all(small.ancestors().nth(3).unwrap()).unwrap();
    fsck(&this.daemon, &["--repair"]);
    assert_eq!(evidence::layers(&this.daemon), before);
    this.damage(&layer);
    let storage = this.registry.dir().clone();
    let address = this.registry.address().to_owned();
    this.registry.stop();
    let repaired = fsck(&this.daemon, &["--repair"]);
    assert!(problems(&repaired)[0].contains("removed, so that the next pull fetches it"), "{repaired:#}");
    assert!(!this.blob(&layer).exists());
    assert!(storage.exists() && !address.is_empty());
}

#[test]
fn a_layer_in_use_is_not_replaced() {
    let this = pulled();
    this.daemon.ctr(["run", "-d", &this.name, "c", "sleep", "1000"]).run().success();
    fs::write(in_a_layer(&this.daemon, "opt/small"), b"large").unwrap();
    let report = fsck(&this.daemon, &["--repair"]);
    assert_eq!(report["damaged"], 1, "{report:#}");
    assert!(problems(&report)[0].contains("it is mounted, seen by process"), "{report:#}");
    this.daemon.ctr(["tasks", "kill", "-s", "KILL", "c"]).run().success();
    this.daemon.ctr(["tasks", "rm", "-f", "c"]).run();
    poll_until(DEADLINE, "the layer is free", || fsck(&this.daemon, &["--repair"])["damaged"] == 0);
    assert_clean(&this.daemon);
    this.daemon.ctr(["containers", "rm", "c"]).run().success();
}

#[test]
fn a_stopped_daemon_is_checked_by_orlopd_itself() {
    let mut this = pulled();
    let offline = |verb: &[&str]| {
        Cmd::new(binaries::orlopd())
            .args(["--config", "/dev/null", "--root"])
            .arg(this.daemon.root())
            .args(verb)
            .run()
    };
    let refused = offline(&["fsck"]).failure();
    assert!(refused.stderr.contains("another orlopd uses this root"), "{refused}");
    let root = this.daemon.root();
    this.daemon.kill();
    let offline = |verb: &[&str]| {
        Cmd::new(binaries::orlopd()).args(["--config", "/dev/null", "--root"]).arg(&root).args(verb).run()
    };
    offline(&["fsck"]).success();
    fs::remove_file(in_a_layer(&this.daemon, "opt/small")).unwrap();
    let found = offline(&["fsck"]).failure();
    assert!(found.stdout.contains("damage: snapshot"), "{found}");
    offline(&["fsck", "--repair"]).success();
    offline(&["fsck"]).success();
    let total = offline(&["du"]).success().stdout;
    let total: u64 = total.lines().last().unwrap().split('\t').next().unwrap().parse().unwrap();
    assert_eq!(total, du(&root));
    assert!(!this.root.join("nowhere").exists());
    let nowhere = Cmd::new(binaries::orlopd())
        .args(["--config", "/dev/null", "--root"])
        .arg(this.root.join("nowhere"))
        .arg("fsck")
        .run()
        .failure();
    assert!(nowhere.stderr.contains("not found"), "{nowhere}");
    assert!(!this.root.join("nowhere").exists(), "a check makes no root");
}

/// What du(1) says.
fn du(path: &std::path::Path) -> u64 {
    let output = Cmd::new("du").args(["--summarize", "--block-size=1"]).arg(path).run().success();
    output.stdout.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn every_byte_has_an_owner() {
    let this = pulled();
    this.daemon
        .ctr(["run", "--net-host", &this.name, "c", "sh", "-c", "dd if=/dev/zero of=/big bs=1k count=300"])
        .run()
        .success();
    let client = Client::new(this.daemon.address(), this.daemon.namespace());
    // An unfinished write.
    let bytes = vec![1; 50_000];
    let pieces = crate::client::pieces(0, &bytes, 10_000);
    let open = orlop_proto::containerd::services::content::v1::WriteContentRequest {
        action: orlop_proto::containerd::services::content::v1::WriteAction::Stat.into(),
        r#ref: "unfinished".to_owned(),
        ..Default::default()
    };
    client.write(std::iter::once(open).chain(pieces).collect()).unwrap();
    // What is being written back changes the number of blocks.
    poll_until(DEADLINE, "all layers are on the disk", || {
        fsck(&this.daemon, &["--quick"])["layersUnsynced"] == 0
    });
    let usage = json(&this.daemon.orlopctl(["--format", "json", "du"]).run().success());
    assert_eq!(usage["bytes"].as_u64().unwrap(), du(&this.daemon.root()), "{usage:#}");
    let owners = usage["owners"].as_array().unwrap();
    let sum: u64 = owners.iter().map(|owner| owner["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, usage["bytes"].as_u64().unwrap());
    let of = |kind: &str| -> Vec<&Value> { owners.iter().filter(|owner| owner["kind"] == kind).collect() };
    assert!(of("other").is_empty(), "{usage:#}");
    assert_eq!(of("content").len(), 2 + this.image.layers().len());
    assert!(of("content").iter().all(|owner| owner["keptBy"] == format!("image {}", this.name)), "{usage:#}");
    assert_eq!(of("snapshot").len(), 3);
    let container = of("snapshot").into_iter().find(|owner| owner["name"] == "overlayfs/c").unwrap();
    assert_eq!(container["keptBy"], "container c");
    assert!(container["bytes"].as_u64().unwrap() > 300_000, "{container}");
    assert_eq!(of("ingest")[0]["name"], "unfinished");
    let table = this.daemon.orlopctl(["du", "-s"]).run().success().stdout;
    assert!(table.starts_with("KIND") && table.contains("total"), "{table}");
    this.daemon.ctr(["containers", "rm", "c"]).run().success();
}

#[test]
fn what_is_kept_has_a_reason() {
    let this = pulled();
    let explain = |name: &str| this.daemon.orlopctl(["gc", "--explain", name]).run();
    let layer = this.image.layers()[0].digest.clone();
    let said = explain(&layer).success().stdout;
    assert!(said.starts_with(&format!("content {layer}: kept\n  image {}", this.name)), "{said}");
    assert!(said.contains("label containerd.io/gc.ref.content.l.0"), "{said}");
    assert!(explain(&layer[7..19]).success().stdout.contains(&layer), "the beginning of a digest will do");
    assert!(explain(&this.name).success().stdout.contains("images are kept until they are removed"));

    let client = Client::new(this.daemon.address(), this.daemon.namespace());
    client.create_lease("l").unwrap();
    let leased = Client::new(this.daemon.address(), this.daemon.namespace()).with_lease("l");
    let stored = leased.put(&Put { reference: "r", ..Put::default() }, b"held", 10).unwrap();
    let said = explain(&stored.digest).success().stdout;
    assert!(said.contains("  lease l"), "{said}");
    leased.prepare("overlayfs", "tmp", "").unwrap();
    let said = json(&this.daemon.orlopctl(["--format", "json", "gc", "--explain", "tmp"]).run().success());
    assert_eq!(said[0]["path"][0]["name"], "l", "{said}");
    let missing = explain("nonesuch").failure();
    assert!(missing.stderr.contains("nothing in namespace"), "{missing}");
    client.delete_lease("l").unwrap();
    let removed = json(&this.daemon.orlopctl(["--format", "json", "gc"]).run().success());
    assert!(removed["content"].is_number(), "{removed}");
    assert!(explain(&stored.digest).failure().stderr.contains("nothing in namespace"));
}

#[test]
fn garbage_goes_when_it_is_quiet() {
    let root = Root::new();
    let daemon = Orlopd::start_with(&root, "[gc]\nidle_delay = 1\n");
    let client = Client::new(daemon.address(), "one");
    // No deletion, and far from enough changes for a collection.
    client.put(&Put { reference: "r", ..Put::default() }, b"nobody's", 10).unwrap();
    poll_until(DEADLINE, "the blob is collected", || client.digests().unwrap().is_empty());
}

#[test]
fn layers_that_a_power_cut_may_have_cut_short_are_unpacked_again() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let boot = root.join("boot");
    fs::write(&boot, "11111111-0000-0000-0000-000000000000\n").unwrap();
    let variant = Variant { boot_id: Some(boot.clone()), ..Variant::default() };
    let mut daemon = Orlopd::start_as(&root, "[snapshots]\nwrite_back_delay = 0\n", &variant);
    let name = image().push(&registry, "image", "1");
    daemon.orlopctl(["images", "pull", &name]).run().success();
    let before = evidence::layers(&daemon);
    let unsynced = |daemon: &Orlopd| fsck(daemon, &["--quick"])["layersUnsynced"].as_u64().unwrap();
    poll_until(DEADLINE, "all layers are on the disk", || unsynced(&daemon) == 0);

    // A restart of the machine changes nothing that is known to be on the disk.
    let small = in_a_layer(&daemon, "opt/small");
    let inode = |path: &PathBuf| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let first = inode(&small);
    daemon.kill();
    fs::write(&boot, "22222222-0000-0000-0000-000000000000\n").unwrap();
    daemon.restart();
    assert_eq!(inode(&small), first, "{}", daemon.log());
    daemon.stop();

    // Layers whose files never got there.
    let mut daemon = Orlopd::start_as(&root, "[snapshots]\nwrite_back_delay = 3600\n", &variant);
    daemon.orlopctl(["images", "pull", &name]).run().success();
    assert_eq!(unsynced(&daemon), 2);
    daemon.kill();
    daemon.restart();
    assert_eq!(unsynced(&daemon), 2, "a kill of the daemon alone loses nothing");
    assert!(!daemon.log().contains("unpacked again"), "{}", daemon.log());
    daemon.kill();
    fs::write(&boot, "33333333-0000-0000-0000-000000000000\n").unwrap();
    // As a power cut leaves them.
    fs::write(in_a_layer(&daemon, "opt/small"), b"").unwrap();
    fs::remove_file(in_a_layer(&daemon, "bin/busybox")).unwrap();
    daemon.restart();
    assert_eq!(daemon.log().matches("unpacked again").count(), 2, "{}", daemon.log());
    assert_eq!(evidence::layers(&daemon), before);
    assert_clean(&daemon);
    // And until they are there, once more.
    assert_eq!(unsynced(&daemon), 2);
}

#[test]
fn an_image_of_a_layer_is_compared_with_its_blob_and_made_again() {
    let root = Root::new();
    let (registry, mut daemon) = (Registry::start(&root), Orlopd::start(&root));
    let name = image().push(&registry, "image", "1");
    daemon.orlopctl(["images", "pull", "--snapshotter", "erofs", &name]).run().success();
    assert_clean(&daemon);
    let position = |bytes: &[u8]| bytes.windows(5).position(|window| window == b"small");
    let layers = fs::read_dir(daemon.root().join("erofs")).unwrap();
    let mut images = layers.map(|layer| layer.unwrap().path().join("layer.erofs"));
    let has_it = |image: &PathBuf| fs::read(image).is_ok_and(|bytes| position(&bytes).is_some());
    let Some(image) = images.find(has_it) else {
        println!("not shown: this kernel has no EROFS, so layers are directories, which other tests damage");
        return;
    };
    let before = fs::read(&image).unwrap();
    let run = |id: &str| {
        daemon.ctr(["run", "-d", "--snapshotter", "erofs", &name, id, "sleep", "1000"]).run().success();
    };
    run("c");
    let mut bytes = before.clone();
    let at = position(&before).unwrap();
    bytes[at] ^= 1;
    fs::write(&image, &bytes).unwrap();
    let said = problems(&fsck(&daemon, &["--repair"])).join("\n");
    assert!(said.contains("its image is not that of its blob"), "{said}");
    assert!(said.contains("it is mounted, seen by process"), "{said}");
    daemon.orlopctl(["tasks", "rm", "-f", "c"]).run().success();
    // The container's snapshot still holds the image's mount, which shows the new one from now on.
    poll_until(DEADLINE, "the image is free", || fsck(&daemon, &["--repair"])["damaged"] == 0);
    assert_eq!(fs::read(&image).unwrap(), before);
    assert_clean(&daemon);
    let start = ["tasks", "start", "-d", "c"];
    daemon.ctr(start).run().success();
    let seen = daemon.ctr(["tasks", "exec", "--exec-id", "e", "c", "cat", "/opt/small"]).run().success();
    assert_eq!(seen.stdout, "small");
    daemon.orlopctl(["tasks", "rm", "-f", "c"]).run().success();
    daemon.orlopctl(["containers", "rm", "c"]).run().success();
    // One that is cut short, and one that is gone.
    fs::write(&image, &before[..before.len() / 2]).unwrap();
    assert_eq!(fsck(&daemon, &["--repair"])["damaged"], 0);
    assert_eq!(fs::read(&image).unwrap(), before);
    daemon.stop();
}
