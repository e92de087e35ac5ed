//! Limits of what containers may write, on a file system with quotas of projects, which the machines that tests run on need not have.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use orlop_tests::{Cmd, Daemon, Image, Orlopd, Root, Variant, binaries, patient};

const IMAGE: &str = "docker.io/library/bb:latest";
const LIMIT: u64 = 10 << 20;

/// A file system in a file.
struct Disk(PathBuf);

impl Disk {
    fn mounted(root: &Root, options: &str) -> Disk {
        let (disk, place) = (root.join("disk"), root.join("data"));
        File::create(&disk).unwrap().set_len(256 << 20).unwrap();
        fs::create_dir(&place).unwrap();
        let make = Cmd::new(binaries::system("mkfs.ext4")).args([
            "-q",
            "-O",
            "project,quota",
            "-E",
            "quotatype=prjquota",
        ]);
        make.arg(&disk).run().success();
        Cmd::new("mount").args(["-o", options]).arg(disk).arg(&place).run().success();
        Disk(place)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Cmd::new("umount").arg(&self.0).run();
    }
}

/// A manager on that file system, with an image in docker's namespace.
fn start(root: &Root, disk: &Disk) -> Orlopd {
    let parent = format!("/{}", root.tag());
    let config = format!("[docker]\naddress = {:?}\ncgroup_parent = {parent:?}\n", root.join("docker.sock"));
    let variant = Variant { data: Some(disk.0.join("orlopd")), ..Variant::default() };
    let daemon = Orlopd::start_as(root, &config, &variant);
    let archive = root.join("image.tar");
    Image::busybox().docker_archive(&archive, "bb:latest");
    docker(root, &["load", "--quiet", "--input", &archive.display().to_string()]).run().success();
    daemon
}

fn docker(root: &Root, words: &[&str]) -> Cmd {
    let host = format!("unix://{}", root.join("docker.sock").display());
    Cmd::new("docker").args(["--host", &host]).args(words).deadline(patient(Duration::from_secs(60)))
}

/// `ctr` in the namespace of docker's images.
fn ctr(daemon: &Orlopd, words: &[&str]) -> Cmd {
    let ctr = Cmd::new(daemon.client()).arg("--address").arg(daemon.address()).args(["--namespace", "moby"]);
    ctr.args(words).deadline(patient(Duration::from_secs(60)))
}

/// Writes twice as much as fits, then half of it.
const WRITE: &str = "dd if=/dev/zero of=/much bs=1M count=20 2>/said && exit 1; cat /said; rm /much; \
                     dd if=/dev/zero of=/half bs=1M count=5 2>/dev/null && df -k / | tail -n 1";

/// What the shell above tells of a layer with this limit.
#[track_caller]
fn assert_limited(said: &str) {
    assert!(said.contains("No space left") || said.contains("quota exceeded"), "{said}");
    let size = said.lines().last().and_then(|line| line.split_whitespace().nth(1)).map(str::to_owned);
    assert_eq!(size, Some((LIMIT >> 10).to_string()), "{said}");
}

/// What the file system has noted of limits that nothing has any more.
fn left(root: &Root) -> Vec<String> {
    let list = Cmd::new(binaries::system("debugfs")).args(["-R", "list_quota project"]);
    let listed = list.arg(root.join("disk")).run().success().stdout;
    let numbers =
        |line: &str| line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<Vec<u64>>>();
    let is_ours = |line: &&str| numbers(line).is_some_and(|numbers| numbers[0] != 0);
    assert!(listed.lines().any(|line| numbers(line).is_some()), "{listed}");
    listed.lines().filter(is_ours).map(str::to_owned).collect()
}

#[test]
fn a_container_takes_no_more_than_it_may() {
    let root = Root::new();
    let disk = Disk::mounted(&root, "loop,prjquota");
    let mut daemon = start(&root, &disk);
    let run = ["run", "--rm", "--network", "none", "--storage-opt", "size=10M", "bb", "sh", "-c", WRITE];
    assert_limited(&docker(&root, &run).run().success().stdout);
    let refused = docker(&root, &["create", "--storage-opt", "size=much", "bb"]).run().failure();
    assert!(refused.stderr.contains("invalid size: 'much'"), "{refused}");

    for snapshotter in ["overlayfs", "native", "erofs"] {
        let label = format!("containerd.io/snapshot/max-size={LIMIT}");
        let flags = ["run", "--rm", "--snapshotter", snapshotter, "--snapshotter-label", &label];
        let said = ctr(&daemon, &flags).args([IMAGE, "limited", "sh", "-c", WRITE]).run().success().stdout;
        assert_limited(&said);
        // One without the label is bound by the disk alone.
        let much = "dd if=/dev/zero of=/much bs=1M count=20 2>/dev/null";
        let flags = ["run", "--rm", "--snapshotter", snapshotter, IMAGE, "free", "sh", "-c", much];
        ctr(&daemon, &flags).run().success();
    }

    // Kept over a restart, and gone with the container.
    let create =
        ["run", "--detach", "--network", "none", "--storage-opt", "size=10M", "--name", "kept", "bb"];
    docker(&root, &create).args(["sleep", "1000"]).run().success();
    daemon.restart();
    let said = docker(&root, &["exec", "kept", "sh", "-c", WRITE]).run().success().stdout;
    assert_limited(&said);
    docker(&root, &["rm", "--force", "kept"]).run().success();
    daemon.stop();
    drop(disk);
    assert_eq!(left(&root), [""; 0]);
    root.assert_clean();
}

#[test]
fn without_quotas_docker_is_refused_and_a_label_ignored() {
    let root = Root::new();
    // With the feature, but mounted without the option: projects are counted and not kept to limits.
    let disk = Disk::mounted(&root, "loop");
    let mut daemon = start(&root, &disk);
    let run = ["run", "--rm", "--network", "none", "--storage-opt", "size=10M", "bb", "true"];
    let refused = docker(&root, &run).run().failure();
    let words = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option";
    assert!(refused.stderr.contains(words), "{refused}");
    let label = format!("containerd.io/snapshot/max-size={LIMIT}");
    let much = "dd if=/dev/zero of=/much bs=1M count=20 2>/dev/null";
    let run = ["run", "--rm", "--snapshotter-label", &label, IMAGE, "free", "sh", "-c", much];
    ctr(&daemon, &run).run().success();
    daemon.stop();
    drop(disk);
    root.assert_clean();
}
