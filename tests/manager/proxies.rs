//! Snapshotters that run as programs of their own; here containerd's.

use std::time::Duration;

use orlop_tests::{Containerd, Daemon, Image, Orlopd, Root, poll_until};

/// Names of the snapshots that the program keeps for orlopd.
fn kept(backend: &Containerd) -> Vec<String> {
    let listed = backend.ctr(["-n", "orlopd", "snapshots", "--snapshotter", "native", "ls"]).run().success();
    let names = listed.stdout.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

#[test]
fn containers_run_on_an_external_snapshotter() {
    let root = Root::new();
    let mut backend = Containerd::start(&root);
    let config = format!(
        "[proxy_plugins.external]\ntype = \"snapshot\"\naddress = {:?}\nsnapshotter = \"native\"\n\
         exports = {{ root = \"/somewhere\" }}\ncapabilities = [\"remap-ids\"]\n",
        backend.address()
    );
    let mut daemon = Orlopd::start_with(&root, &config);
    let archive = root.join("image.tar");
    Image::two_layers().oci_archive(&archive, "registry.test/two:1");
    let import = ["images", "import", "--snapshotter", "external"];
    daemon.ctr(import).arg(&archive).run().success();
    assert_eq!(kept(&backend).len(), 2, "{}", backend.log());

    let run = |name: &str, script: &str| {
        let words = ["run", "--snapshotter", "external", "registry.test/two:1", name, "sh", "-c", script];
        daemon.ctr(words).run().success().stdout
    };
    assert_eq!(run("one", "cat /etc/changed; echo new > /new; cat /new"), "two\nnew\n");
    let snapshots = ["snapshots", "--snapshotter", "external"];
    let on = |daemon: &Orlopd, words: &[&str]| daemon.ctr([&snapshots, words].concat()).run();
    on(&daemon, &["commit", "changed", "one"]).success();
    assert_eq!(on(&daemon, &["ls"]).success().stdout.lines().count(), 4);
    let usage = on(&daemon, &["usage"]).success().stdout;
    assert!(usage.lines().any(|line| line.starts_with("changed") && !line.contains(" 0 ")), "{usage}");
    let plugins = daemon.ctr(["plugins", "ls", "-d", "id==external"]).run().success().stdout;
    assert!(plugins.contains("remap-ids") && plugins.contains("/somewhere"), "{plugins}");

    // A kill at any point leaves only what has a record.
    on(&daemon, &["prepare", "two", "changed"]).success();
    daemon.kill();
    daemon.restart();
    on(&daemon, &["mounts", "/mnt", "two"]).success();
    assert_eq!(kept(&backend).len(), 4);

    backend.stop();
    let refused = on(&daemon, &["prepare", "three", "changed"]).failure();
    assert!(refused.stderr.contains("external"), "{refused}");
    backend.restart();
    on(&daemon, &["prepare", "three", "changed"]).success();
    for name in ["three", "two"] {
        on(&daemon, &["rm", name]).success();
    }
    on(&daemon, &["rm", "changed"]).success();
    daemon.ctr(["containers", "rm", "one"]).run().success();
    daemon.ctr(["images", "rm", "--sync", "registry.test/two:1"]).run().success();
    poll_until(Duration::from_secs(20), "nothing is kept", || kept(&backend).is_empty());
}
