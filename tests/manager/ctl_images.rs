//! orlopctl's images on orlopd: import, tag, push, pull, export, mount, and that nothing stays.

use orlop_tests::{Daemon, Image, Orlopd, Registry, Root, host};
use serde_json::Value;

use crate::ctl::{DEADLINE, IMAGE};

#[test]
fn an_image_goes_round() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let mut daemon = Orlopd::start(&root);
    let ctl = |words: &[&str]| daemon.orlopctl(words).deadline(DEADLINE);
    let archive = root.join("image.tar").display().to_string();
    Image::two_layers().oci_archive(archive.as_ref(), IMAGE);

    ctl(&["images", "import", &archive]).run().success();
    assert_eq!(ctl(&["images", "check", "-q"]).run().success().stdout, format!("{IMAGE}\n"));
    let remote = format!("{}/two:1", registry.address());
    ctl(&["images", "tag", IMAGE, &remote]).run().success();
    let again = ctl(&["images", "tag", IMAGE, &remote]).run().failure();
    assert!(again.stderr.contains("already exists"), "{again}");
    ctl(&["images", "tag", "--force", IMAGE, &remote]).run().success();
    let pushed = ctl(&["images", "push", "--plain-http", &remote]).run().success();
    // Without a terminal each step is a line.
    assert!(pushed.stderr.lines().any(|line| line.starts_with("manifest-sha256:")), "{pushed}");

    ctl(&["images", "rm", "--sync", IMAGE, &remote]).run().success();
    assert_eq!(ctl(&["content", "ls", "-q"]).run().success().stdout, "");
    assert_eq!(ctl(&["snapshots", "ls", "--format", "json"]).run().success().stdout, "[]\n");

    let pulled = ctl(&["images", "pull", "--plain-http", "--print-chainid", &remote]).run().success();
    assert!(pulled.stdout.starts_with("image chain ID: sha256:"), "{pulled}");
    let inspected = ctl(&["images", "inspect", &remote]).run().success().stdout;
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected["manifest"]["layers"].as_array().map(Vec::len), Some(2));
    let usage = ctl(&["images", "usage", "--format", "json"]).run().success().stdout;
    assert!(!usage.contains("\"snapshots\": 0"), "{usage}");

    let copy = root.join("copy.tar").display().to_string();
    ctl(&["images", "export", &copy, &remote]).run().success();
    ctl(&["images", "rm", "--sync", &remote]).run().success();
    ctl(&["images", "import", &copy]).run().success();
    assert_eq!(ctl(&["images", "ls", "-q"]).run().success().stdout, format!("{remote}\n"));

    let target = root.join("mounted");
    std::fs::create_dir(&target).expect("the directory");
    let shown = target.display().to_string();
    ctl(&["images", "mount", &remote, &shown]).run().success();
    assert_eq!(std::fs::read_to_string(target.join("etc/changed")).expect("a file"), "two\n");
    assert!(!target.join("etc/deleted").exists());
    ctl(&["images", "unmount", "--rm", &shown]).run().success();
    assert!(!host::mounts().iter().any(|mount| mount.target == target));
    assert_eq!(ctl(&["leases", "ls", "-q"]).run().success().stdout, "");

    let missing = ctl(&["images", "pull", "--plain-http", &format!("{}/none:1", registry.address())]).run();
    assert_eq!(missing.code(), 1);
    assert!(missing.stderr.contains("not found"), "{missing}");
    ctl(&["images", "rm", &remote]).run().success();
    ctl(&["gc"]).run().success();
    assert_eq!(ctl(&["content", "ls", "-q"]).run().success().stdout, "");
    daemon.stop();
}

#[test]
fn content_is_taken_and_given_back() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    let ctl = |words: &[&str]| daemon.orlopctl(words).deadline(DEADLINE);
    // A lease keeps it from collection.
    ctl(&["leases", "create", "--id", "keep"]).run().success();
    let data: Vec<u8> = (0..3_000_000u32).map(|number| number as u8).collect();
    let digest = orlop_tests::image::digest(&data);
    ctl(&["content", "ingest", "--expected-digest", &digest, "upload"]).input(data.clone()).run().success();
    let given = ctl(&["content", "get", &digest]).run().success();
    assert!(given.stdout_bytes == data, "{} bytes came back", given.stdout_bytes.len());
    let wrong = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let refused = ctl(&["content", "ingest", "--expected-digest", wrong, "other"]).input("x").run();
    assert_eq!(refused.code(), 1, "{refused}");
    let labels = ctl(&["content", "label", &digest, "a=b"]).run().success().stdout;
    assert_eq!(labels, "a=b\n");
    ctl(&["content", "rm", &digest]).run().success();
    daemon.stop();
}
