//! The same commands to Debian's containerd and to orlopd: the same output, the same exit code.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_tests::{Containerd, Daemon, Image, Orlopd, Output, Root, poll_until};

/// Commands of `ctr` in order; `IMAGE` stands for the archive of an image.
const COMMANDS: &str = "
namespaces create a x=y
namespaces create a
namespaces create a/b
namespaces create
namespaces label a k=v x=
namespaces ls
namespaces ls -q
namespaces rm nope
images ls
images import --no-unpack IMAGE
images import --no-unpack IMAGE
images ls
images ls -q
images check
images tag registry.test/busybox:1 foo:2
images tag registry.test/busybox:1 foo:2
images tag registry.test/none:1 foo:3
images label foo:2 a=b
images ls name==foo:2
images ls labels.a
images ls bad filter
images ls name~=^foo
images rm nope
images rm --sync foo:2
content ls -q
content get sha256:abc
content get sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
content label sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 a=b
content active
content ls labels.none
leases create --id l1 a=b
leases create --id l1
leases ls -q
leases rm l1
leases rm l1
snapshots ls
snapshots prepare k1
snapshots prepare k1
snapshots prepare k2 nope
snapshots commit c1 k1
snapshots commit c1 k1
snapshots prepare k2 c1
snapshots ls
snapshots tree
snapshots usage
snapshots rm c1
snapshots rm nope
snapshots commit c2 nope
snapshots info nope
snapshots --snapshotter nope ls
snapshots --snapshotter native prepare n1
snapshots --snapshotter native ls
snapshots rm k2
snapshots rm c1
containers ls
containers info nope
containers rm nope
containers label nope a=b
images rm registry.test/busybox:1
namespaces rm a
";

/// What a command says, without the daemon's own paths.
fn said(output: &Output) -> String {
    let warning = |line: &&str| line.starts_with("time=");
    let (dated, plain): (Vec<&str>, Vec<&str>) = output.stderr.lines().partition(warning);
    let dated: Vec<&str> =
        dated.iter().filter_map(|line| line.split_once(" level=")).map(|(_, rest)| rest).collect();
    format!("exit {}\n{}\n{}\n{}", output.code(), output.stdout, plain.join("\n"), dated.join("\n"))
}

fn run(daemon: &impl Daemon, image: &Path) -> Vec<(String, String)> {
    let lines = COMMANDS.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let image = image.display().to_string();
            let arguments = line.split(' ').map(|word| if word == "IMAGE" { image.as_str() } else { word });
            (line.to_owned(), said(&daemon.ctr(arguments).run()))
        })
        .collect()
}

#[test]
fn ctr_cannot_tell_orlopd_from_containerd() {
    let root = Root::new();
    let image = root.join("image.tar");
    Image::two_layers().oci_archive(&image, "registry.test/busybox:1");
    let containerd = Containerd::start(&root);
    let expected = run(&containerd, &image);
    let orlopd = Orlopd::start(&root);
    let found = run(&orlopd, &image);
    let mut differences = String::new();
    for ((command, expected), (_, found)) in expected.iter().zip(&found) {
        if expected != found {
            differences += &format!("--- ctr {command}\ncontainerd: {expected}\norlopd: {found}\n");
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

/// Commands of `ctr` that each cause an event or more.
const EVENTFUL: &str = "
namespaces create z
namespaces label z a=b
namespaces rm z
images import --no-unpack IMAGE
images tag registry.test/busybox:1 x:2
images label x:2 q=r
snapshots prepare k
snapshots commit K k
snapshots prepare k2 K
snapshots rm k2
images rm --sync x:2 registry.test/busybox:1
snapshots rm K
namespaces create last
";

/// The events of the commands, without their times.
fn events(daemon: &impl Daemon, image: &Path) -> Vec<String> {
    let mut watch = daemon.ctr(["events"]).spawn();
    let mut tries = 0;
    poll_until(Duration::from_secs(20), "the subscription", || {
        tries += 1;
        daemon.ctr(["namespaces", "create", &format!("ready{tries}")]).run().success();
        watch.stdout().contains("ready")
    });
    let image = image.display().to_string();
    for line in EVENTFUL.lines().filter(|line| !line.is_empty()) {
        let arguments = line.split(' ').map(|word| if word == "IMAGE" { image.as_str() } else { word });
        daemon.ctr(arguments).run().success();
    }
    poll_until(Duration::from_secs(20), "the last event", || watch.stdout().contains("\"last\""));
    let seen = watch.stdout();
    watch.signal(Signal::SIGKILL);
    watch.end();
    // A line is a time of four words, the namespace, the topic and the event.
    let event = |line: &str| line.splitn(5, ' ').nth(4).unwrap_or_default().to_owned();
    seen.lines().filter(|line| !line.contains("ready")).map(event).collect()
}

#[test]
fn events_are_containerds() {
    let root = Root::new();
    let image = root.join("image.tar");
    Image::two_layers().oci_archive(&image, "registry.test/busybox:1");
    let expected = events(&Containerd::start(&root), &image);
    let found = events(&Orlopd::start(&root), &image);
    assert_eq!(expected, found);
    assert!(found.len() >= 14, "{found:?}");
}
