//! The harness itself, on Debian's own programs: a suite that fails here says nothing about ours.

use orlop_tests::{Bundle, Cmd, Containerd, Daemon, Image, Registry, Root, binaries, poll_until};
use std::time::Duration;

#[test]
fn a_bundle_runs_under_runc_and_leaves_nothing() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").sh("echo hello; exit 7").save();
    let out = Cmd::new(binaries::system("runc"))
        .arg("--root")
        .arg(root.join("state"))
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg(root.tag())
        .run();
    assert_eq!((out.code(), out.stdout.as_str()), (7, "hello\n"), "{out}");
    root.assert_clean();
}

#[test]
fn containerd_pulls_and_runs_a_made_image_and_leaves_nothing() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let reference = Image::two_layers().push(&registry, "made", "1");
    let mut containerd = Containerd::start(&root);
    containerd.ctr(["images", "pull", "--plain-http", &reference]).run().success();
    assert_eq!(registry.requests("GET", "/blobs/"), 3);
    let run = ["run", "--rm", &reference, "c1", "sh", "-c", "cat /etc/changed; ls /etc/deleted"];
    let out = containerd.ctr(run).run();
    assert_eq!(out.stdout, "two\n", "{out}");
    assert!(out.stderr.contains("/etc/deleted: No such file"), "{out}");
    containerd.stop();
    drop(registry);
    root.assert_clean();
}

#[test]
fn a_dropped_root_ends_what_a_test_left_running() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").args(["sleep", "1000"]).save();
    let pid_file = root.join("pid");
    Cmd::new(binaries::system("runc"))
        .arg("--root")
        .arg(root.join("state"))
        .args(["run", "--detach", "--pid-file"])
        .arg(&pid_file)
        .arg("--bundle")
        .arg(bundle.path())
        .arg(root.tag())
        .run()
        .success();
    let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    // runc returns before its process has become the program.
    poll_until(Duration::from_secs(5), "the program", || root.leaks().to_string().contains("sleep 1000"));
    drop(root);
    poll_until(Duration::from_secs(5), "the end of the container", || !orlop_tests::host::alive(pid));
}
