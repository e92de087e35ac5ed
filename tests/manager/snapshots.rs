//! Snapshots as clients mount them.

use std::fs;

use orlop_tests::{Cmd, Daemon, Orlopd, Output, Root};

use crate::client::Client;

/// Runs a shell in a mount namespace of its own in which a snapshot's mounts, as `ctr` prints them, are made at a
/// directory.
pub fn in_mounts(daemon: &Orlopd, root: &Root, snapshotter: &str, key: &str, script: &str) -> Output {
    let target = root.join("mounted");
    fs::create_dir_all(&target).unwrap();
    let path = target.display().to_string();
    let printed =
        daemon.ctr(["snapshots", "--snapshotter", snapshotter, "mounts", &path, key]).run().success().stdout;
    let script = format!("set -e\n{printed}\ncd {path}\n{script}");
    Cmd::new("unshare").args(["-m", "--propagation", "private", "sh", "-c", &script]).run()
}

#[test]
fn clients_mount_write_and_see_layers_through_each_other() {
    for snapshotter in ["overlayfs", "native", "erofs"] {
        let root = Root::new();
        let daemon = Orlopd::start(&root);
        let client = Client::new(daemon.address(), daemon.namespace());
        client.create_lease("keep").unwrap();
        let client = client.with_lease("keep");
        let mut parent = String::new();
        let scripts = [
            "echo one > a; echo one > b; mkdir d; echo one > d/f",
            "echo two > a; rm b; rm -r d",
            "echo three > c",
        ];
        for (index, script) in scripts.into_iter().enumerate() {
            client.prepare(snapshotter, "x", &parent).unwrap();
            in_mounts(&daemon, &root, snapshotter, "x", script).success();
            parent = format!("layer-{index}");
            client.commit(snapshotter, &parent, "x").unwrap();
        }
        let ctr = |args: &[&str]| {
            daemon.ctr([&["snapshots", "--snapshotter", snapshotter], args].concat()).run().success()
        };
        ctr(&["view", "v", &parent]);
        let seen = in_mounts(&daemon, &root, snapshotter, "v", "cat a c; ls | tr '\\n' ' '").success();
        assert_eq!(seen.stdout, "two\nthree\na c ", "{snapshotter}");
        let refused = in_mounts(&daemon, &root, snapshotter, "v", "echo x > a").failure();
        assert!(refused.stderr.to_lowercase().contains("read-only"), "{refused}");
        client.remove(snapshotter, "v").unwrap();
        client.delete_lease("keep").unwrap();
        assert!(client.snapshots(snapshotter).unwrap().is_empty());
        let left: Vec<_> = fs::read_dir(daemon.root().join(snapshotter)).unwrap().collect();
        assert_eq!(left.len(), 1, "only the trash is left: {left:?}");
    }
}
