//! The snapshotter `erofs`: layers as images, which show what directories show, to whoever mounts them.

use std::fs;
use std::path::Path;

use orlop_tests::{Cmd, Compression, Daemon, Image, Layer, Orlopd, Registry, Root, Variant, host};

use crate::client::Client;
use crate::ctl::DEADLINE;
use crate::image::rich;
use crate::snapshots::in_mounts;

/// Three layers: what layers may hold, and a third that hides, replaces, and links to what is below.
fn image() -> Image {
    rich().layer(
        Layer::new()
            .whiteout("opt/pipe")
            .file("opaque/upper", b"replaced", 0o600)
            .hardlink("linked", "opt/capable")
            .file("usr/share/implied/deep", b"in directories that no layer names", 0o644)
            .compressed(Compression::Gzip),
    )
}

/// Prints all that can be seen of a tree.
const LOOK: &str = "
find . ! -type d -printf '%P %y %m %U:%G %T@ %n %l %s\\n' | sort
find . -type d -printf '%P %y %m %U:%G\\n' | sort
find . -type f -exec sha256sum {} + | sort
find . -type c -exec stat -c '%n %t,%T' {} + | sort
find . -exec getfattr -h -d -m - -e hex {} + | grep -v '^# file' | sort
ls opt opaque
";

/// The images that are mounted below a daemon's state directory.
fn mounted(daemon: &Orlopd) -> Vec<String> {
    let state = daemon.state();
    host::mounts()
        .iter()
        .filter(|mount| mount.target.starts_with(&state) && mount.kind == "erofs")
        .map(|mount| mount.target.display().to_string())
        .collect()
}

/// The name of the topmost snapshot.
fn top(daemon: &Orlopd, snapshotter: &str) -> String {
    let all = daemon.ctr(["snapshots", "--snapshotter", snapshotter, "ls"]).run().success().stdout;
    let rows: Vec<Vec<&str>> = all.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let is_parent =
        |name: &str| rows.iter().any(|row| row.len() == 3 && row[1] == name && row[2] == "Committed");
    let committed = rows.iter().filter(|row| row.last() == Some(&"Committed"));
    committed.map(|row| row[0]).find(|name| !is_parent(name)).unwrap().to_owned()
}

/// Whether each layer of the snapshotter is an image and no tree of files.
fn assert_images(daemon: &Orlopd, count: usize) {
    let mut images = 0;
    for layer in fs::read_dir(daemon.root().join("erofs")).unwrap() {
        let path = layer.unwrap().path();
        if path.join("layer.erofs").exists() {
            images += 1;
            assert!(!path.join("fs").exists(), "{}", path.display());
        }
    }
    assert_eq!(images, count);
}

#[test]
fn images_show_what_directories_show() {
    let root = Root::new();
    let (registry, mut daemon) = (Registry::start(&root), Orlopd::start(&root));
    let name = image().push(&registry, "erofs", "1");
    for snapshotter in ["overlayfs", "erofs"] {
        daemon.orlopctl(["images", "pull", "--snapshotter", snapshotter, &name]).run().success();
    }
    assert_images(&daemon, 3);
    assert!(mounted(&daemon).is_empty(), "nothing is mounted that nobody uses: {:?}", mounted(&daemon));
    let look = |daemon: &Orlopd, snapshotter: &str| {
        in_mounts(daemon, &root, snapshotter, "v", LOOK).success().stdout
    };
    let client = client(&daemon);
    for snapshotter in ["overlayfs", "erofs"] {
        client.prepare(snapshotter, "v", &top(&daemon, snapshotter)).unwrap();
    }
    let expected = look(&daemon, "overlayfs");
    assert_eq!(look(&daemon, "erofs"), expected);
    assert_eq!(mounted(&daemon).len(), 3);
    // A second user of the same layers mounts nothing more; a killed daemon leaves the mounts to the next one.
    client.prepare("erofs", "w", &top(&daemon, "overlayfs")).unwrap();
    assert_eq!(mounted(&daemon).len(), 3);
    daemon.kill();
    assert_eq!(mounted(&daemon).len(), 3);
    daemon.restart();
    assert_eq!(look(&daemon, "erofs"), expected);
    daemon.ctr(["snapshots", "--snapshotter", "erofs", "rm", "v"]).run().success();
    assert_eq!(mounted(&daemon).len(), 3, "another snapshot still needs them");
    daemon.ctr(["snapshots", "--snapshotter", "erofs", "rm", "w"]).run().success();
    assert!(mounted(&daemon).is_empty(), "{:?}", mounted(&daemon));
}

#[test]
fn images_that_a_power_cut_may_have_cut_short_are_made_again() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let boot = root.join("boot");
    fs::write(&boot, "11111111-0000-0000-0000-000000000000\n").unwrap();
    let variant = Variant { boot_id: Some(boot.clone()), ..Variant::default() };
    let mut daemon = Orlopd::start_as(&root, "[snapshots]\nwrite_back_delay = 3600\n", &variant);
    let name = image().push(&registry, "erofs", "1");
    daemon.orlopctl(["images", "pull", "--snapshotter", "erofs", &name]).run().success();
    let client = client(&daemon);
    client.prepare("erofs", "v", &top(&daemon, "erofs")).unwrap();
    // The daemon has mounts of its own, in which another file stands for the kernel's boot ID.
    let look = |daemon: &Orlopd| {
        let target = root.join("mounted").display().to_string();
        fs::create_dir_all(&target).unwrap();
        let mounts = ["snapshots", "--snapshotter", "erofs", "mounts", &target, "v"];
        let printed = daemon.ctr(mounts).run().success().stdout;
        let script = format!("set -e\n{printed}\ncd {target}\n{LOOK}");
        let pid = daemon.pid().unwrap().to_string();
        let words = ["-t", &pid, "-m", "unshare", "-m", "--propagation", "private", "sh", "-c", &script];
        Cmd::new("nsenter").args(words).run().success().stdout
    };
    let expected = look(&daemon);
    let file = |layer: u32| daemon.root().join(format!("erofs/{layer}/layer.erofs"));
    let (first, second) = (file(1), file(2));
    let whole = [fs::read(&first).unwrap(), fs::read(&second).unwrap()];
    let check = |daemon: &Orlopd| daemon.orlopctl(["fsck"]).deadline(DEADLINE).run();
    check(&daemon).success();

    // As a power cut leaves them; the mounts go with the daemon's namespace.
    daemon.kill();
    fs::write(&boot, "22222222-0000-0000-0000-000000000000\n").unwrap();
    fs::write(&first, b"").unwrap();
    fs::write(&second, vec![0; whole[1].len()]).unwrap();
    daemon.restart();
    assert_eq!(daemon.log().matches("unpacked again").count(), 3, "{}", daemon.log());
    assert_eq!([fs::read(&first).unwrap(), fs::read(&second).unwrap()], whole);
    assert_eq!(look(&daemon), expected);

    // Damage that came by itself is found and healed, also for who has it mounted.
    let mut damaged = whole[1].clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&second, &damaged).unwrap();
    let found = check(&daemon).failure();
    assert!(found.stdout.contains("its image is not that of its blob"), "{found}");
    daemon.orlopctl(["fsck", "--repair"]).deadline(DEADLINE).run();
    assert_eq!(fs::read(&second).unwrap(), whole[1]);
    assert_eq!(look(&daemon), expected);
    check(&daemon).success();
    daemon.stop();
}

/// A client whose snapshots stay until they are removed.
fn client(daemon: &Orlopd) -> Client {
    let client = Client::new(daemon.address(), daemon.namespace());
    client.create_lease("keep").unwrap();
    client.with_lease("keep")
}

#[test]
fn mounts_are_made_again_after_the_machine_was_down() {
    let root = Root::new();
    let (registry, mut daemon) = (Registry::start(&root), Orlopd::start(&root));
    let name = Image::two_layers().push(&registry, "erofs", "1");
    daemon.orlopctl(["images", "pull", "--snapshotter", "erofs", &name]).run().success();
    client(&daemon).prepare("erofs", "v", &top(&daemon, "erofs")).unwrap();
    in_mounts(&daemon, &root, "erofs", "v", "echo kept > new").success();
    daemon.stop();
    for mount in mounted(&daemon) {
        unmount(Path::new(&mount));
    }
    fs::remove_dir_all(daemon.state()).unwrap();
    daemon.restart();
    assert_eq!(mounted(&daemon).len(), 2);
    in_mounts(&daemon, &root, "erofs", "v", "cat new; test -x bin/busybox").success();
    daemon.ctr(["snapshots", "--snapshotter", "erofs", "rm", "v"]).run().success();
}

fn unmount(path: &Path) {
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn stock_clients_unpack_into_images_and_run_them() {
    let root = Root::new();
    let (registry, daemon) = (Registry::start(&root), Orlopd::start(&root));
    let name = Image::two_layers().push(&registry, "erofs", "1");
    // It fetches by itself, prepares each layer, and has the diff service apply it to the mounts.
    daemon.ctr(["images", "pull", "--plain-http", "--snapshotter", "erofs", &name]).run().success();
    assert_images(&daemon, 2);
    let run = |id: &str, words: &[&str]| {
        daemon
            .ctr([&["run", "--rm", "--snapshotter", "erofs", &name, id], words].concat())
            .run()
            .success()
            .stdout
    };
    assert_eq!(run("a", &["sh", "-c", "echo x > /new && cat /new"]), "x\n");
    assert!(mounted(&daemon).is_empty(), "{:?}", mounted(&daemon));
    daemon.ctr(["images", "rm", "--sync", &name]).run().success();
    let left = fs::read_dir(daemon.root().join("erofs")).unwrap().count();
    assert_eq!(left, 1, "only the trash is left");
}
