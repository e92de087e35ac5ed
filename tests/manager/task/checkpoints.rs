//! Containers saved to a directory and restored from it.

use std::fs;

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options;
use orlop_tests::{Daemon, Image, poll_until, pretender};

use super::{DEADLINE, Stage};
use crate::client::Client;

#[test]
fn a_directory_takes_a_checkpoint_and_gives_it_back() {
    let stage = Stage::new("");
    let runtime = pretender(&stage.root).display().to_string();
    let images = stage.root.join("images").display().to_string();
    stage.run(&["-d", "--null-io", "--runc-binary", &runtime], "c", "exec sleep 1000").run().success();
    let events = stage.events(&[]);
    stage.ctr(&["tasks", "checkpoint", "--image-path", &images, "--exit", "c"]).run().success();
    events.wait("/tasks/checkpointed", &[&images]);
    stage.wait_for("c", "STOPPED");
    stage.ctr(&["tasks", "delete", "c"]).run();

    let options = Options {
        binary_name: runtime,
        root: stage.root.join("runtime").display().to_string(),
        criu_image_path: images.clone(),
        ..Options::default()
    };
    let client = Client::new(stage.orlopd.address(), stage.orlopd.namespace());
    let pid = client.start_task("c", any::pack(&options)).unwrap();
    poll_until(DEADLINE, "it runs again", || stage.task("c") == Some((pid as i32, "RUNNING".to_owned())));
    let calls = fs::read_to_string(stage.root.join("calls")).unwrap();
    let verbs: Vec<_> = calls.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(verbs, ["checkpoint", "restore"], "{calls}");
    assert!(calls.lines().all(|line| line.contains(&format!("--image-path {images}"))), "{calls}");
    drop(events);
    stage.remove("c");
    stage.finish();
}

#[test]
fn content_takes_a_checkpoint_and_gives_it_back() {
    let stage = Stage::new("");
    let runtime = pretender(&stage.root).display().to_string();
    let archive = stage.root.join("image.tar");
    Image::busybox().oci_archive(&archive, "registry.test/busybox:1");
    stage.ctr(&["images", "import"]).arg(&archive).run().success();
    let run = ["run", "-d", "--runc-binary", &runtime, "registry.test/busybox:1", "c", "sleep", "1000"];
    stage.ctr(&run).run().success();
    let made = stage.ctr(&["tasks", "checkpoint", "c"]).run().success().stdout;
    assert!(made.starts_with("containerd.io/checkpoint/c:"), "{made}");
    stage.ctr(&["containers", "checkpoint", "--rw", "--image", "--task", "c", "saved:1"]).run().success();
    assert_eq!(stage.status("c"), "RUNNING");
    stage.remove("c");
    let listed = stage.ctr(&["images", "ls", "-q"]).run().success().stdout;
    assert!(listed.contains("saved:1"), "{listed}");

    stage.ctr(&["containers", "restore", "--rw", "--live", "c", "saved:1"]).run().success();
    poll_until(DEADLINE, "it runs again", || stage.status("c") == "RUNNING");
    let calls = fs::read_to_string(stage.root.join("calls")).unwrap();
    let verbs: Vec<_> = calls.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(verbs, ["checkpoint", "checkpoint", "restore"], "{calls}");
    stage.remove("c");
    stage.finish();
}
