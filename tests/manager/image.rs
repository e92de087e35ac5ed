//! Images: pulled, pushed, imported and exported by stock clients and ours, from a real registry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_tests::image::Blob;
use orlop_tests::{
    Cmd, Compression, Containerd, Daemon, Image, Layer, Orlopd, Proxy, Registry, Root, poll_until,
};
use tar::EntryType;

/// A long time for anything on loopback.
const DEADLINE: Duration = Duration::from_secs(60);
/// The time of everything in the layers made here.
const TIME: i64 = 1_700_000_000;
/// A registry counts as hanging after this.
const IMPATIENT: &str = "[registry]\nstall_timeout = 2\n";

/// Two layers with everything that layers may hold.
pub fn rich() -> Image {
    let device = |major: u32, minor: u32| {
        move |header: &mut tar::Header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
            header.set_uid(3);
            header.set_cksum();
        }
    };
    let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(200));
    let first = Layer::busybox()
        .dir("opt", 0o750)
        .file("opt/setuid", b"#!/bin/sh\n", 0o4755)
        .hardlink("opt/other", "opt/setuid")
        .symlink("opt/outside", "../../../../etc/passwd")
        .special("opt/null", EntryType::Char, 0o666, device(1, 3))
        .special("opt/pipe", EntryType::Fifo, 0o622, |_| {})
        .xattrs([
            ("user.note", &b"a\0b"[..]),
            ("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]),
        ])
        .file("opt/capable", b"x", 0o755)
        .file(&long, b"long", 0o600)
        .file("gone/file", b"x", 0o644)
        .file("opaque/lower", b"x", 0o644)
        .file("becomes/a/directory", b"x", 0o644);
    let second = Layer::new()
        .whiteout("gone/file")
        .dir("opaque", 0o700)
        .opaque("opaque")
        .file("opaque/upper", b"y", 0o644)
        .whiteout("becomes")
        .file("opt/new", b"in a directory that this layer does not name", 0o644)
        .compressed(Compression::Zstd);
    Image::new().layer(first).layer(second)
}

/// What a tree holds, in words: one line per file.
pub(crate) fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    fn visit(directory: &Path, root: &Path, lines: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let kind = stat.file_type();
            let content = match () {
                () if kind.is_symlink() => format!("-> {}", fs::read_link(&path).unwrap().display()),
                () if kind.is_file() => orlop_tests::image::digest(&fs::read(&path).unwrap()),
                () if kind.is_char_device() => format!("device {}", stat.rdev()),
                () => String::new(),
            };
            let attributes =
                Cmd::new("getfattr").args(["-h", "-d", "-m", "-", "--absolute-names"]).arg(&path).run();
            let attributes: Vec<String> =
                attributes.stdout.lines().filter(|line| line.contains('=')).map(str::to_owned).collect();
            // The time of a directory that no layer names is when it was made.
            let time = if stat.mtime() == TIME { TIME } else { 0 };
            let line = format!(
                "{:o} {}:{} {time} {} {content} {attributes:?}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                if kind.is_dir() { 0 } else { stat.nlink() },
            );
            lines.insert(path.strip_prefix(root).unwrap().to_owned(), line);
            if kind.is_dir() {
                visit(&path, root, lines);
            }
        }
    }
    let mut lines = BTreeMap::new();
    visit(root, root, &mut lines);
    lines
}

/// Nothing but the empty tables of an untouched daemon.
fn assert_empty(daemon: &impl Daemon) {
    for table in [&["images", "ls", "-q"][..], &["content", "ls", "-q"]] {
        let left = daemon.ctr(table).run().success();
        assert_eq!(left.stdout.trim(), "", "{table:?}");
    }
    let snapshots = daemon.ctr(["snapshots", "ls"]).run().success();
    assert_eq!(snapshots.stdout.lines().count(), 1, "{}", snapshots.stdout);
}

#[test]
fn a_pull_makes_the_trees_that_containerd_makes() {
    let root = Root::new();
    let (registry, ours, theirs) = (Registry::start(&root), Orlopd::start(&root), Containerd::start(&root));
    let name = rich().docker().push(&registry, "rich", "1");
    ours.orlopctl(["images", "pull", &name]).run().success();
    theirs.ctr(["images", "pull", "--plain-http", &name]).run().success();
    let trees = |directory: PathBuf| -> Vec<BTreeMap<PathBuf, String>> {
        let mut trees: Vec<_> = ["1", "2"].iter().map(|id| listing(&directory.join(id).join("fs"))).collect();
        // Layers are unpacked side by side, so their numbers have no order.
        trees.sort_by_key(|tree| tree.contains_key(Path::new("opt/new")));
        trees
    };
    let ours_unpacked = trees(ours.root().join("overlayfs"));
    let theirs =
        theirs.address().parent().unwrap().join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    for (mut own, mut other) in ours_unpacked.into_iter().zip(trees(theirs)) {
        for tree in [&mut own, &mut other] {
            // The time of a directory that a layer implies is the lower layer's here, and chance there.
            tree.remove(Path::new("opt")).filter(|line| line.starts_with("4")).unwrap();
        }
        let differ = |path: &&PathBuf| own.get(*path) != other.get(*path);
        let names: BTreeSet<&PathBuf> = own.keys().chain(other.keys()).collect();
        let differences: Vec<_> =
            names.iter().copied().filter(differ).map(|path| (path, own.get(path), other.get(path))).collect();
        assert!(differences.is_empty(), "{differences:#?}");
    }
}

#[test]
fn ten_clients_cause_one_download() {
    let root = Root::new();
    let (registry, daemon) = (Registry::start(&root), Orlopd::start(&root));
    let image = rich();
    let name = image.push(&registry, "many", "1");
    let clients: Vec<_> = (0..10).map(|_| daemon.orlopctl(["images", "pull", &name]).spawn()).collect();
    for client in clients {
        client.wait(DEADLINE).success();
    }
    for layer in image.layers() {
        assert_eq!(registry.requests("GET", &format!("/blobs/{}", layer.digest)), 1);
    }
    let snapshots = daemon.ctr(["snapshots", "ls"]).run().success();
    assert_eq!(snapshots.stdout.matches("Committed").count(), 2, "{}", snapshots.stdout);
    assert!(!snapshots.stdout.contains("Active"), "{}", snapshots.stdout);
}

#[test]
fn a_pull_goes_on_where_a_killed_daemon_stopped() {
    let root = Root::new();
    let registry = Registry::start(&root);
    // Bytes that no compression shrinks, more than the network has let through when it stalls.
    let noise: Vec<u8> = (0_u32..4 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let image =
        Image::new().layer(Layer::busybox().file("noise", &noise, 0o644).compressed(Compression::None));
    image.push(&registry, "cut", "1");
    let proxy = Proxy::start(registry.address(), 3 << 20);
    let name = format!("{}/cut:1", proxy.address());
    let mut daemon = Orlopd::start(&root);
    let client = daemon.orlopctl(["images", "pull", &name]).spawn();
    poll_until(DEADLINE, "the network stalls", || proxy.stalled());
    let ingest = |daemon: &Orlopd| {
        let active = daemon.ctr(["content", "active"]).run().success().stdout;
        active.lines().any(|line| line.contains("layer-") && !line.contains("0B"))
    };
    poll_until(DEADLINE, "a part is written", || ingest(&daemon));
    daemon.kill();
    client.wait(DEADLINE).failure();
    proxy.release();
    daemon.restart();
    daemon.orlopctl(["images", "pull", &name]).run().success();
    let log = registry.access_log();
    let layer = format!("/blobs/{}", image.layers()[0].digest);
    let statuses: Vec<bool> = log
        .iter()
        .filter(|line| line.contains("\"GET ") && line.contains(&layer))
        .map(|line| line.contains("\" 206 "))
        .collect();
    assert_eq!(statuses.last(), Some(&true), "the rest alone was asked for: {log:#?}");
    daemon.ctr(["images", "check", "-q"]).run().success();
    let unpacked = daemon.root().join("overlayfs");
    let found = fs::read_dir(&unpacked)
        .unwrap()
        .any(|entry| fs::read(entry.unwrap().path().join("fs/noise")).is_ok_and(|bytes| bytes == noise));
    assert!(found, "the layer is unpacked whole");
}

#[test]
fn a_registry_that_hangs_is_one_clear_error() {
    let root = Root::new();
    let registry = Registry::start(&root);
    rich().push(&registry, "slow", "1");
    let proxy = Proxy::start(registry.address(), 0);
    let daemon = Orlopd::start_with(&root, IMPATIENT);
    let name = format!("{}/slow:1", proxy.address());
    let output = daemon.orlopctl(["images", "pull", &name]).deadline(DEADLINE).run().failure();
    assert!(
        output.stderr.contains(&format!("resolve {name}: {} does not answer", proxy.address())),
        "{}",
        output.stderr
    );
    assert_empty(&daemon);
}

#[test]
fn a_registry_that_stops_in_a_layer_is_one_clear_error() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let image =
        Image::new().layer(Layer::new().file("f", &[7; 1 << 20], 0o644).compressed(Compression::None));
    image.push(&registry, "slow", "1");
    let proxy = Proxy::start(registry.address(), 200 << 10);
    let daemon = Orlopd::start_with(&root, IMPATIENT);
    let name = format!("{}/slow:1", proxy.address());
    let output = daemon.orlopctl(["images", "pull", &name]).deadline(DEADLINE).run().failure();
    let expected = format!("fetch {}: {} does not answer", image.layers()[0].digest, proxy.address());
    assert!(output.stderr.contains(&expected), "{}", output.stderr);
    let images = daemon.ctr(["images", "ls", "-q"]).run().success();
    assert_eq!(images.stdout, "");
    poll_until(DEADLINE, "what was fetched is collected", || {
        daemon.ctr(["content", "ls", "-q"]).run().success().stdout.is_empty()
            && daemon.ctr(["snapshots", "ls"]).run().success().stdout.lines().count() == 1
    });
    // The start of the layer is kept, and the next pull asks for the rest alone.
    proxy.release();
    daemon.orlopctl(["images", "pull", &name]).run().success();
    let layer = format!("/blobs/{}", image.layers()[0].digest);
    let log = registry.access_log();
    let last = log.iter().rfind(|line| line.contains("\"GET ") && line.contains(&layer));
    assert!(last.is_some_and(|line| line.contains("\" 206 ")), "{log:#?}");
}

/// Pulls and expects an error that says all of `words`, and nothing left.
fn assert_refused(daemon: &Orlopd, name: &str, words: &[&str]) {
    let output = daemon.orlopctl(["images", "pull", name]).deadline(DEADLINE).run().failure();
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} in {}", output.stderr);
    }
    let images = daemon.ctr(["images", "ls", "-q"]).run().success();
    assert_eq!(images.stdout, "", "{name}");
    poll_until(DEADLINE, "nothing is left", || {
        let empty = |table: &[&str], lines| daemon.ctr(table).run().success().stdout.lines().count() == lines;
        empty(&["content", "ls", "-q"], 0) && empty(&["snapshots", "ls"], 1)
    });
}

#[test]
fn bad_images_are_refused_with_what_and_why() {
    let root = Root::new();
    let (registry, daemon) = (Registry::start(&root), Orlopd::start(&root));
    let address = registry.address().to_owned();

    assert_refused(&daemon, &format!("{address}/none:1"), &["resolve", "none:1", "not found"]);

    let hostile = |name: &str, layer: Layer, words: &[&str]| {
        let name = Image::new().layer(layer).push(&registry, name, "1");
        assert_refused(&daemon, &name, words);
    };
    let file = |path: &str| Layer::new().entry(path, EntryType::Regular, 0o644, |_| {}, b"x");
    hostile("parent", file("etc/.wh..."), &["apply layer sha256:", "etc/.wh...", "whiteout"]);
    hostile("rootfile", file("a/.."), &["apply layer sha256:", "only a directory can be the root"]);
    let link = Layer::new().hardlink("stolen", "nowhere/secret");
    hostile("link", link, &["apply layer sha256:", "stolen", "nowhere/secret does not exist"]);

    let whole = Layer::new().file("f", &[9; 100_000], 0o644).finish();
    let mut cut = whole.clone();
    cut.bytes.truncate(whole.bytes.len() / 2);
    cut.digest = orlop_tests::image::digest(&cut.bytes);
    let name = Image::new().blob(cut).push(&registry, "cut", "1");
    assert_refused(&daemon, &name, &["apply layer sha256:", "truncated"]);

    let mut wrong = whole.clone();
    wrong.diff_id = orlop_tests::image::digest(b"something else");
    let name = Image::new().blob(wrong).push(&registry, "wrong", "1");
    assert_refused(&daemon, &name, &["it unpacks to", &whole.diff_id]);

    let damaged = Image::new().layer(Layer::new().file("f", b"damaged later", 0o644));
    let name = damaged.push(&registry, "damaged", "1");
    let stored = registry.blob_file(&damaged.layers()[0].digest);
    let mut bytes = fs::read(&stored).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0xff;
    fs::write(&stored, bytes).unwrap();
    assert_refused(&daemon, &name, &[&damaged.layers()[0].digest]);

    let unknown = Image::new().layer(Layer::new().file("f", b"unknown", 0o644));
    let name = unknown.push(&registry, "unknown", "1");
    let manifest = String::from_utf8(unknown.manifest_bytes()).unwrap().replace("tar+gzip", "tar+rot13");
    registry.put_manifest("unknown", "1", unknown.manifest_type(), manifest.as_bytes());
    assert_refused(&daemon, &name, &["tar+rot13", "not that of a layer"]);

    // The daemon is none the worse for it.
    let name = rich().push(&registry, "good", "1");
    daemon.orlopctl(["images", "pull", &name]).run().success();
}

#[test]
fn a_bomb_fills_neither_memory_nor_time() {
    let root = Root::new();
    let (registry, daemon) = (Registry::start(&root), Orlopd::start(&root));
    // A gigabyte of zeros inside a file that never ends, in a megabyte.
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_mode(0o644);
    header.set_size(0);
    header.set_entry_type(EntryType::XHeader);
    header.set_size(1 << 30);
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.resize(tar.len() + (64 << 20), 0);
    let name = Image::new().blob(Blob::from_tar(tar, Compression::Gzip)).push(&registry, "bomb", "1");
    assert_refused(&daemon, &name, &["apply layer sha256:", "an extended header of more than 1 MiB"]);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().unwrap())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 128 << 10, "{peak} KiB");
}

#[test]
fn archives_go_round_through_every_program() {
    let root = Root::new();
    let (registry, daemon) = (Registry::start(&root), Orlopd::start(&root));
    let image = rich();
    let name = image.push(&registry, "round", "1");
    let archive = root.join("archive.tar").display().to_string();
    daemon.orlopctl(["images", "pull", &name]).run().success();
    daemon.orlopctl(["images", "export", &archive, &name]).run().success();
    let again = root.join("again.tar").display().to_string();
    daemon.orlopctl(["images", "export", &again, &name]).run().success();
    assert_eq!(fs::read(&archive).unwrap(), fs::read(&again).unwrap());
    for form in ["oci-archive", "docker-archive"] {
        let directory = format!("dir:{}", root.join(form).display());
        Cmd::new("skopeo").args(["copy", &format!("{form}:{archive}"), &directory]).run().success();
    }
    daemon.ctr(["images", "rm", "--sync", &name]).run().success();
    assert_empty(&daemon);
    daemon.orlopctl(["images", "import", &archive]).run().success();
    let images = daemon.ctr(["images", "ls"]).run().success().stdout;
    assert!(images.contains(&name) && images.contains(&image.digest()), "{images}");

    let old = root.join("docker.tar");
    Image::two_layers().docker_archive(&old, "example.org/old:7");
    daemon.orlopctl(["images", "import", &old.display().to_string()]).run().success();
    let images = daemon.ctr(["images", "ls", "-q"]).run().success().stdout;
    assert!(images.contains("example.org/old:7"), "{images}");

    let other = format!("{}/elsewhere:2", registry.address());
    daemon.orlopctl(["images", "tag", &name, &other]).run().success();
    daemon.orlopctl(["images", "push", &other]).run().success();
    let pushed =
        registry.request("GET", "/v2/elsewhere/manifests/2", &[("Accept", image.manifest_type())], &[]);
    assert_eq!(pushed.body, image.manifest_bytes());
}

#[test]
fn a_damaged_archive_leaves_nothing() {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let archive = root.join("archive.tar");
    Image::two_layers().oci_archive(&archive, "example.org/x:1");
    let whole = fs::read(&archive).unwrap();
    fs::File::create(&archive).unwrap().write_all(&whole[..whole.len() / 2]).unwrap();
    let output = daemon.orlopctl(["images", "import", &archive.display().to_string()]).run().failure();
    assert!(output.stderr.contains("truncated"), "{}", output.stderr);
    poll_until(DEADLINE, "nothing is left", || {
        daemon.ctr(["content", "ls", "-q"]).run().success().stdout.is_empty()
    });
    assert_empty(&daemon);
}

/// A number from a daemon's status, in KiB.
fn memory(daemon: &Orlopd, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_pull_takes_little_memory_whatever_the_image_is() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let noise: Vec<u8> = (0_u32..24 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut small = Layer::new();
    for n in 0..10_000 {
        small = small.file(&format!("small/{}/{n}", n / 100), &noise[n..n + 1000 + n % 9000], 0o644);
    }
    let image = Image::new()
        .layer(Layer::busybox().file("large", &noise, 0o644))
        .layer(small)
        .layer(Layer::new().file("again", &noise, 0o600).compressed(Compression::Zstd))
        .layer(Layer::new().file("plain", &noise, 0o600).compressed(Compression::None));
    let name = image.push(&registry, "large", "1");
    for snapshotter in ["overlayfs", "erofs"] {
        let mut daemon = Orlopd::start(&root);
        let idle = memory(&daemon, "VmRSS:");
        let pull = ["images", "pull", "--snapshotter", snapshotter, &name];
        daemon.orlopctl(pull).deadline(DEADLINE).run().success();
        let peak = memory(&daemon, "VmHWM:") - idle;
        assert!(peak < 64 << 10, "{snapshotter}: {peak} KiB above idle");
        daemon.stop();
    }
}

/// How often an unpack makes each system call, by name, for a layer of this many files of root's in few directories.
fn calls_of_a_pull(files: usize, snapshotter: &str) -> BTreeMap<String, usize> {
    let root = Root::new();
    let (registry, daemon) = (Registry::start(&root), Orlopd::start(&root));
    let mut layer = Layer::new();
    for n in 0..files {
        if n % 100 == 0 {
            layer = layer.dir(&format!("many/{}", n / 100), 0o755);
        }
        layer = layer.file(&format!("many/{}/{n}", n / 100), b"a few bytes", 0o644);
    }
    let name = Image::new().layer(layer).push(&registry, "many", "1");
    let log = root.join("calls");
    let names = "trace=openat,openat2,write,pwrite64,close,utimensat,fchmod,fchmodat,fchown,fchownat,fstat,newfstatat,fsetxattr";
    let pid = daemon.pid().unwrap().to_string();
    let tracer = Cmd::new("strace").args(["-f", "-q", "-e", names, "-p", &pid, "-o"]).arg(&log).spawn();
    poll_until(DEADLINE, "the daemon is traced", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        !status.contains("TracerPid:\t0\n")
    });
    daemon
        .orlopctl(["images", "pull", "--snapshotter", snapshotter, &name])
        .deadline(DEADLINE)
        .run()
        .success();
    tracer.signal(nix::sys::signal::Signal::SIGINT);
    tracer.wait(DEADLINE);
    let mut calls = BTreeMap::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        // A call that another thread's interrupted is written in two lines.
        let call = line.split_whitespace().nth(1).unwrap_or_default();
        if let Some((call, _)) = call.split_once('(') {
            *calls.entry(call.to_owned()).or_default() += 1;
        }
    }
    calls
}

#[test]
fn a_file_costs_four_system_calls_and_in_an_image_none() {
    const FILES: usize = 2000;
    // What the rest of a pull and 20 directories may take.
    const SLACK: usize = 600;
    let calls = calls_of_a_pull(FILES, "overlayfs");
    let count = |calls: &BTreeMap<String, usize>, name: &str| calls.get(name).copied().unwrap_or_default();
    for once in ["openat", "write", "utimensat", "close"] {
        assert!((FILES..FILES + SLACK).contains(&count(&calls, once)), "{once}: {calls:?}");
    }
    let all: usize = calls.values().sum();
    assert!(all < 4 * FILES + 2 * SLACK, "{calls:?}");
    let calls = calls_of_a_pull(FILES, "erofs");
    assert!(calls.values().sum::<usize>() < SLACK, "{calls:?}");
}
