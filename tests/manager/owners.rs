//! Layers whose owners are shifted for a user namespace, without a copy and without a mount that stays on the host.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use orlop_tests::{Daemon, Image, Layer, Orlopd, Output, Root};
use tar::{EntryType, Header};

const IMAGE: &str = "registry.test/two:1";

fn import(root: &Root, daemon: &Orlopd) {
    let archive = root.join("image.tar");
    let owned = |header: &mut Header| {
        header.set_uid(7);
        header.set_gid(8);
    };
    Image::two_layers()
        .layer(Layer::new().entry("etc/owned", EntryType::Regular, 0o640, owned, b"by seven\n"))
        .oci_archive(&archive, IMAGE);
    daemon.ctr(["images", "import"]).arg(&archive).run().success();
}

/// What of the test's is mounted where the host sees it.
fn mounted(root: &Root) -> usize {
    let below = root.path().display().to_string();
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(&below)).count()
}

/// The flags of a container in a user namespace.
const MAP: [&str; 4] = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];

/// Runs a container whose layers are shifted.
fn run(daemon: &Orlopd, flags: &[&str], id: &str, script: &str) -> Output {
    daemon
        .orlopctl([&["run"][..], &MAP, &["--remap-labels"], flags, &[IMAGE, id, "sh", "-c", script]].concat())
        .run()
}

#[test]
fn layers_belong_to_the_ids_of_the_containers_user_namespace() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    import(&root, &daemon);
    let capable = daemon.ctr(["plugins", "ls", "-d", "id==overlayfs"]).run().success().stdout;
    assert!(capable.contains("remap-ids"), "{capable}");
    let before = mounted(&root);
    let script = "cat /proc/self/uid_map; stat -c '%u:%g %n' /bin/busybox /etc/owned; cat /etc/changed; echo mine > /new; \
                  stat -c '%u:%g' /new; echo more >> /etc/kept; cat /etc/kept";
    // Debian's client does not know the options of such mounts; it copies the layers and changes their owners.
    let copied = [&["run", "--rm"][..], &MAP, &[IMAGE, "copied", "sh", "-c", script]].concat();
    for output in [
        run(&daemon, &["--rm"], "shifted", script).success().stdout,
        daemon.ctr(copied).run().success().stdout,
    ] {
        let words: Vec<&str> = output.split_whitespace().collect();
        assert_eq!(words[..3], ["0", "100000", "65536"], "{output}");
        assert_eq!(
            words[3..],
            ["0:0", "/bin/busybox", "7:8", "/etc/owned", "two", "0:0", "kept", "more"],
            "{output}"
        );
        assert_eq!(mounted(&root), before);
    }

    // The layers themselves are as they were, and what the container wrote belongs to its ids.
    run(&daemon, &["-d"], "kept", "echo mine > /new; exec sleep 1000").success();
    let mounts = daemon.ctr(["snapshots", "mounts", "/target", "kept"]).run().success().stdout;
    assert!(mounts.contains("uidmap=0:100000:65536") && mounts.contains("gidmap=0:200000:65536"), "{mounts}");
    let upper = mounts.split(['=', ',', ' ']).skip_while(|word| *word != "upperdir").nth(1).unwrap();
    let lower = mounts.split("lowerdir=").nth(1).unwrap().split([':', ',', ' ']).next().unwrap();
    let owner = |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    assert_eq!(owner(&Path::new(lower).join("etc/owned")), (7, 8));
    orlop_tests::poll_until(std::time::Duration::from_secs(20), "it has written", || {
        Path::new(upper).join("new").exists()
    });
    assert_eq!(owner(&Path::new(upper).join("new")), (100_000, 200_000));
    assert_eq!(owner(Path::new(upper)), (100_000, 200_000));
    assert_eq!(mounted(&root), before + 1, "the container's root alone");
    daemon.kill();
    daemon.restart();
    daemon.ctr(["tasks", "rm", "--force", "kept"]).run().success();
    daemon.ctr(["containers", "rm", "kept"]).run().success();
    assert_eq!(mounted(&root), before);

    // Labels that cannot be meant leave nothing.
    let label = "containerd.io/snapshot/uidmapping=5:1:1";
    let refused = ["run", "--rm", "--snapshotter-label", label, IMAGE, "bad", "true"];
    let refused = daemon.ctr(refused).run().failure();
    assert!(refused.stderr.contains("root pair"), "{refused}");
    assert!(!daemon.ctr(["snapshots", "ls"]).run().success().stdout.contains("bad"));
    daemon.stop();
    root.assert_clean();
}
