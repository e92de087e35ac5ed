//! Input that cannot work: one clear error that names what and why, the right exit code, and everything rolled back.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use orlop_tests::{Bundle, Cmd, Compression, Daemon, Image, Layer, Orlopd, Output, Registry, Root, binaries};
use serde_json::json;

/// Calls the runtime on a bundle, and checks that it failed, said `words`, and left nothing.
fn refused_by_runtime(root: &Root, bundle: &Path, words: &[&str]) {
    let state = root.join("state");
    let out = Cmd::new(binaries::orlop())
        .arg("--root")
        .arg(&state)
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg("c1")
        .run();
    says(&out, words);
    assert_eq!(out.code(), 1, "{out}");
    let left: Vec<_> =
        fs::read_dir(&state).map(|dir| dir.map(|e| e.unwrap().file_name()).collect()).unwrap_or_default();
    assert!(left.is_empty(), "state left behind: {left:?}");
    root.assert_clean();
}

/// One error message that names all of `words`, on standard error and not spread over a backtrace.
#[track_caller]
fn says(out: &Output, words: &[&str]) {
    assert!(!out.status.success(), "{out}");
    for word in words {
        assert!(out.stderr.contains(word), "does not say {word:?}: {out}");
    }
    assert!(!out.stderr.contains("panicked"), "{out}");
    assert!(out.stderr.trim().lines().count() <= 2, "not one error: {out}");
}

#[test]
fn a_bundle_without_configuration() {
    let root = Root::new();
    fs::create_dir(root.join("b")).unwrap();
    refused_by_runtime(&root, &root.join("b"), &["config.json"]);
}

#[test]
fn a_configuration_that_is_no_json() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").save();
    fs::write(bundle.path().join("config.json"), "{\"ociVersion\": \"1.0.2\",").unwrap();
    refused_by_runtime(&root, bundle.path(), &["config.json"]);
}

#[test]
fn a_bundle_without_its_rootfs() {
    let root = Root::new();
    let bundle =
        Bundle::new(&root, "b").edit(|config| config["root"]["path"] = json!("no-such-directory")).save();
    refused_by_runtime(&root, bundle.path(), &["no-such-directory"]);
}

#[test]
fn an_unknown_mount_type() {
    let root = Root::new();
    let unknown = json!({"destination": "/mnt", "type": "nosuchfs", "source": "nothing"});
    let bundle = Bundle::new(&root, "b").mount(unknown).save();
    refused_by_runtime(&root, bundle.path(), &["/mnt", "nosuchfs"]);
}

#[test]
fn a_program_that_is_not_there() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").args(["no-such-program"]).save();
    refused_by_runtime(&root, bundle.path(), &["no-such-program", "executable file not found in $PATH"]);
}

/// A registry, a manager, and what both clients say about a pull that cannot work; afterwards neither image nor snapshot
/// is there, and the manager still works.
struct Pulls {
    root: Root,
    registry: Registry,
    orlopd: Orlopd,
}

impl Pulls {
    fn new() -> Pulls {
        let root = Root::new();
        let registry = Registry::start(&root);
        let orlopd = Orlopd::start(&root);
        Pulls { root, registry, orlopd }
    }

    fn refused(&self, reference: &str, words: &[&str]) {
        for out in [
            self.orlopd.ctr(["images", "pull", "--plain-http", reference]).run(),
            self.orlopd.orlopctl(["images", "pull", "--plain-http", reference]).run(),
        ] {
            assert_eq!(out.code(), 1, "{out}");
            for word in words {
                assert!(out.stderr.contains(word), "does not say {word:?}: {out}");
            }
        }
        assert_eq!(self.orlopd.ctr(["images", "ls", "-q"]).run().success().stdout, "");
        let snapshots = self.orlopd.ctr(["snapshots", "ls"]).run().success();
        assert!(!snapshots.stdout.contains("Active"), "a half-made snapshot is left: {snapshots}");
    }

    fn end(mut self) {
        let good = Image::two_layers().push(&self.registry, "good", "1");
        self.orlopd.ctr(["images", "pull", "--plain-http", &good]).run().success();
        self.orlopd.stop();
        drop(self.registry);
        self.root.assert_clean();
    }
}

#[test]
fn a_truncated_layer() {
    let pulls = Pulls::new();
    let image = Image::two_layers().layer(Layer::new().file("big", &noise(300_000), 0o644));
    let reference = image.push(&pulls.registry, "bad", "1");
    let digest = &image.layers()[2].digest;
    let file = fs::File::options().write(true).open(pulls.registry.blob_file(digest)).unwrap();
    file.set_len(100_000).unwrap();
    pulls.refused(&reference, &[]);
    let content = pulls.orlopd.ctr(["content", "ls", "-q"]).run().success();
    assert!(!content.stdout.contains(digest.as_str()), "{content}");
    pulls.end();
}

#[test]
fn a_wrong_digest() {
    let pulls = Pulls::new();
    let image = Image::two_layers().layer(Layer::new().file("big", &noise(300_000), 0o644));
    let reference = image.push(&pulls.registry, "bad", "1");
    let digest = &image.layers()[2].digest;
    let path = pulls.registry.blob_file(digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[150_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    pulls.refused(&reference, &[digest]);
    let content = pulls.orlopd.ctr(["content", "ls", "-q"]).run().success();
    assert!(!content.stdout.contains(digest.as_str()), "{content}");
    pulls.end();
}

#[test]
fn a_missing_manifest() {
    let pulls = Pulls::new();
    Image::two_layers().push(&pulls.registry, "some", "1");
    let reference = format!("{}/some:nosuch", pulls.registry.address());
    pulls.refused(&reference, &[&reference, "not found"]);
    pulls.end();
}

#[test]
fn a_layer_that_climbs_out_of_its_root() {
    let pulls = Pulls::new();
    let escape = format!("../../../../../../../../..{}/escaped", pulls.root.path().display());
    let reference =
        Image::two_layers().layer(Layer::new().file(&escape, b"x", 0o644)).push(&pulls.registry, "bad", "1");
    // Whether it is refused or kept inside, nothing may appear outside.
    let _ = pulls.orlopd.ctr(["images", "pull", "--plain-http", &reference]).run();
    assert!(!pulls.root.join("escaped").exists());
    let _ = pulls.orlopd.ctr(["images", "rm", "--sync", &reference]).run();
    pulls.end();
}

#[test]
fn a_registry_that_hangs() {
    let pulls = Pulls::new();
    // Connections are taken into the backlog and never answered.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/never:1", silent.local_addr().unwrap());
    let start = Instant::now();
    let out = pulls.orlopd.orlopctl(["--timeout", "2s", "images", "pull", "--plain-http", &reference]).run();
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(out.code() == 1 && out.stderr.contains("not done within 2s"), "{out}");
    // The manager has other things to do meanwhile.
    let mut hanging = pulls.orlopd.orlopctl(["images", "pull", "--plain-http", &reference]).spawn();
    assert_eq!(pulls.orlopd.ctr(["images", "ls", "-q"]).run().success().stdout, "");
    assert!(hanging.running());
    hanging.end();
    pulls.end();
}

#[test]
fn a_namespace_that_is_not_there_or_cannot_be() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    let out = orlopd.ctr(["-n", "no/such", "containers", "ls"]).run();
    says(&out, &["no/such", "invalid argument"]);
    let out = orlopd.orlopctl(["--namespace", "no/such", "containers", "ls"]).run();
    says(&out, &["no/such"]);
    let out = orlopd.ctr(["-n", "nosuch", "tasks", "kill", "c1"]).run();
    says(&out, &["c1", "not found"]);
    orlopd.stop();
    root.assert_clean();
}

/// The manager's data on a file system of 24 MiB, a tmpfs that is unmounted with the test's root.
#[test]
fn a_full_disk() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let small = Image::two_layers().push(&registry, "small", "1");
    let large = Image::busybox()
        .layer(Layer::new().file("big", &noise(32 << 20), 0o644).compressed(Compression::None))
        .push(&registry, "large", "1");
    // The harness makes the directory `orlopd` when it starts the daemon; the data goes to a mount by a link below it.
    let disk = root.join("disk");
    fs::create_dir(&disk).unwrap();
    mount(Some("orlop-test"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=24m")).unwrap();
    let mut orlopd = Orlopd::start_on(&root, &disk.join("root"));
    for out in [
        orlopd.ctr(["images", "pull", "--plain-http", &large]).run(),
        orlopd.orlopctl(["images", "pull", "--plain-http", &large]).run(),
    ] {
        assert_eq!(out.code(), 1, "{out}");
        assert!(out.stderr.to_lowercase().contains("no space left on device"), "{out}");
    }
    orlopd.orlopctl(["gc"]).run().success();
    assert_eq!(orlopd.ctr(["images", "ls", "-q"]).run().success().stdout, "");
    let ingests = orlopd.orlopctl(["content", "active"]).run().success();
    for line in ingests.stdout.lines().skip(1) {
        // What was begun may be taken up again; what nobody wants any more is given up by name or by age.
        assert!(line.contains("layer-"), "{ingests}");
    }
    let _ = fs::remove_dir_all(disk.join("root/content/ingest"));
    orlopd.restart();
    orlopd.ctr(["images", "pull", "--plain-http", &small]).run().success();
    let out = orlopd.ctr(["run", "--rm", &small, "c1", "cat", "/etc/changed"]).run().success();
    assert_eq!(out.stdout, "two\n");
    orlopd.stop();
    drop(registry);
    nix::mount::umount2(&disk, nix::mount::MntFlags::MNT_DETACH).unwrap();
    root.assert_clean();
}

/// Bytes that no compression makes smaller, always the same.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
