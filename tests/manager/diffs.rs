//! All snapshotters and the diff service through Debian's `ctr`, on containerd and on orlopd: what one says, the other says.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;

use orlop_tests::{Cmd, Containerd, Daemon, Image, Layer, Orlopd, Root};

use crate::ctl::{DEADLINE, IMAGE};

/// What the entries of a layer are, by path: everything but the times of what has just been written.
fn entries(layer: &[u8]) -> BTreeMap<String, String> {
    let mut tar = Vec::new();
    match layer {
        [0x1f, 0x8b, ..] => flate2::read::MultiGzDecoder::new(layer).read_to_end(&mut tar).unwrap(),
        plain => plain.to_vec().as_slice().read_to_end(&mut tar).unwrap(),
    };
    let mut archive = tar::Archive::new(tar.as_slice());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header();
        let link = entry.link_name().unwrap().unwrap_or_default().into_owned();
        let what = format!(
            "{:?} {:o} {}:{} {} {}",
            header.entry_type(),
            header.mode().unwrap() & 0o7777,
            header.uid().unwrap(),
            header.gid().unwrap(),
            link.display(),
            String::from_utf8_lossy(&content),
        );
        (entry.path().unwrap().display().to_string().trim_end_matches('/').to_owned(), what)
    });
    entries.collect()
}

/// What a container changes in its root file system.
const CHANGES: &str = "cd /etc && echo new >new && chmod 600 new && rm kept && mkdir -p dir/sub && ln -s passwd link && \
     ln new hard && rm -r /opt/gone && rm -r /opt/again && mkdir /opt/again && echo x >/opt/again/x && \
     chown 7:8 changed && mkfifo pipe && rm group && mkdir group";

fn image() -> Image {
    Image::two_layers().layer(
        Layer::new().file("opt/gone/a", b"a", 0o644).file("opt/again/b", b"b", 0o644).file(
            "opt/again/deep/c",
            b"c",
            0o644,
        ),
    )
}

/// The life of an image's layers and of a container's own; returns all that the client was told on the way.
fn life(daemon: &impl Daemon, root: &Root, snapshotter: &str) -> Vec<String> {
    let archive = root.join("image.tar");
    image().oci_archive(&archive, IMAGE);
    let ctr = |words: &[&str]| daemon.ctr(words.iter().copied()).deadline(DEADLINE);
    let snapshots = |words: &[&str]| ctr(&[&["snapshots", "--snapshotter", snapshotter], words].concat());
    let run = |words: &[&str]| ctr(&[&["run", "--snapshotter", snapshotter], words].concat());
    let mut told = Vec::new();
    let mut tell = |cmd: Cmd| {
        let output = cmd.run();
        told.push(format!("exit {}\n{}{}", output.code(), output.stdout, output.stderr));
    };

    ctr(&["images", "import", "--snapshotter", snapshotter]).arg(&archive).run().success();
    tell(snapshots(&["tree"]));
    tell(run(&["--rm", IMAGE, "once", "sh", "-c", "cat /etc/changed; ls /etc/deleted /opt"]));
    tell(run(&[IMAGE, "c", "sh", "-c", CHANGES]));
    tell(snapshots(&["info", "nope"]));

    // Kept, it is content like any other. First, as containerd gives no label to content that it has already, which is collected.
    let kept = ["diff", "--keep", "--ref", "kept", "--label", "containerd.io/gc.root=now", "c"];
    let kept = snapshots(&kept).run().success().stdout_bytes;
    let digest = orlop_tests::image::digest(&kept);
    assert!(ctr(&["content", "get", &digest]).run().success().stdout_bytes == kept);
    ctr(&["content", "rm", &digest]).run().success();
    let diff = snapshots(&["diff", "c"]).run().success().stdout_bytes;
    told.push(format!("{:#?}", entries(&diff)));
    let plain = ["diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "c"];
    let plain = snapshots(&plain).run().success().stdout_bytes;
    assert_ne!(plain[..2], diff[..2]);
    assert_eq!(entries(&plain), entries(&diff));
    let mut tell = |cmd: Cmd| {
        let output = cmd.run();
        told.push(format!("exit {}\n{}{}", output.code(), output.stdout, output.stderr));
    };
    tell(snapshots(&["diff", "nope"]));
    tell(snapshots(&["diff", "--media-type", "text/plain", "c"]));

    // Committed, it is a layer on which others stand, and the difference of the two is the same.
    tell(snapshots(&["commit", "layer", "c"]));
    tell(snapshots(&["prepare", "next", "layer"]));
    tell(snapshots(&["diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "next"]));
    tell(snapshots(&["rm", "layer"]));
    let again = snapshots(&["diff", "layer"]).run().success().stdout_bytes;
    assert_eq!(entries(&again), entries(&diff));
    tell(snapshots(&["rm", "next"]));
    tell(snapshots(&["rm", "layer"]));
    tell(ctr(&["containers", "rm", "c"]));
    tell(ctr(&["images", "rm", "--sync", IMAGE]));
    tell(snapshots(&["ls"]));
    tell(ctr(&["content", "ls", "-q"]));
    told
}

fn side_by_side(snapshotter: &str, containerds: &str) {
    let (ours, theirs) = (Root::new(), Root::new());
    let mut orlopd = Orlopd::start(&ours);
    let told = life(&orlopd, &ours, snapshotter);
    let left: Vec<_> = fs::read_dir(orlopd.root().join(snapshotter)).unwrap().collect();
    assert_eq!(left.len(), 1, "only the trash is left: {left:?}");
    orlopd.stop();
    let mut containerd = Containerd::start(&theirs);
    let expected = life(&containerd, &theirs, containerds);
    containerd.stop();
    for (told, expected) in told.iter().zip(&expected) {
        assert_eq!(told, expected);
    }
    ours.assert_clean();
}

#[test]
fn overlayfs_and_its_differences_are_those_of_containerd() {
    side_by_side("overlayfs", "overlayfs");
}

#[test]
fn native_and_its_differences_are_those_of_containerd() {
    side_by_side("native", "native");
}

#[test]
fn images_and_their_differences_are_those_of_containerds_directories() {
    side_by_side("erofs", "overlayfs");
}
