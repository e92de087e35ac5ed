//! Images made of images: `images convert`, `images squash`, `images history` and `containers commit` of orlopctl on orlopd, beside
//! ctr's `images convert`, with skopeo as a reader.

use std::fs;
use std::path::Path;

use orlop_tests::{Cmd, Compression, Daemon, Image, Layer, Orlopd, Root, binaries, poll_until};
use serde_json::Value;

use crate::ctl::{DEADLINE, IMAGE, import};

const OCI: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar";

fn inspect(daemon: &Orlopd, name: &str) -> Value {
    let shown = daemon.orlopctl(["images", "inspect", name]).run().success().stdout;
    serde_json::from_str(&shown).expect("JSON")
}

/// The media types of the layers, once each.
fn layer_types(inspected: &Value) -> Vec<&str> {
    let layers = inspected["manifest"]["layers"].as_array().expect("layers");
    let mut types: Vec<&str> = layers.iter().filter_map(|layer| layer["mediaType"].as_str()).collect();
    types.dedup();
    types
}

/// The tree of an image, by unpacking and mounting it.
fn tree(root: &Root, daemon: &Orlopd, name: &str) -> std::collections::BTreeMap<std::path::PathBuf, String> {
    let target = root.join("mounted");
    fs::create_dir_all(&target).unwrap();
    let shown = target.display().to_string();
    let digest = daemon.orlopctl(["images", "ls", "--format", "json"]).run().success().stdout;
    let images: Value = serde_json::from_str(&digest).unwrap();
    let found = images.as_array().unwrap().iter().find(|image| image["name"] == name).expect(name);
    let digest = found["digest"].as_str().unwrap();
    daemon.orlopctl(["snapshots", "unpack", digest]).deadline(DEADLINE).run().success();
    daemon.orlopctl(["images", "mount", name, &shown]).deadline(DEADLINE).run().success();
    let listing = crate::image::listing(&target);
    daemon.orlopctl(["images", "unmount", "--rm", &shown]).run().success();
    listing
}

fn export(daemon: &Orlopd, name: &str, to: &Path) {
    daemon.orlopctl(["images", "export"]).arg(to).arg(name).deadline(DEADLINE).run().success();
}

#[test]
fn layers_change_their_compression_and_nothing_else() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    let layers = |image: Image, compression| {
        image
            .layer(Layer::new().compressed(compression).dir("etc", 0o755).file("etc/a", &[7; 90_000], 0o640))
            .layer(Layer::new().compressed(compression).file("etc/b", b"two", 0o600).whiteout("etc/a"))
    };
    let convert = |words: &[&str], to: &str| {
        let words = [&["images", "convert"][..], words, &["example.org/one:1", to]].concat();
        let output = daemon.orlopctl(words).deadline(DEADLINE).run().success().stdout;
        let digest = output.trim().to_owned();
        assert_eq!(inspect(&daemon, to)["target"]["digest"], digest.as_str());
        digest
    };
    import(&daemon, &root, &layers(Image::new().docker(), Compression::Gzip), "example.org/one:1");
    let before = inspect(&daemon, "example.org/one:1");
    let files = tree(&root, &daemon, "example.org/one:1");

    for (words, suffix) in [
        (&["--zstd", "--oci"][..], "+zstd"),
        (&["--uncompress", "--oci"], ""),
        (&["--gzip", "--oci"], "+gzip"),
        (&["--oci"], "+gzip"),
    ] {
        convert(words, "example.org/two:1");
        let after = inspect(&daemon, "example.org/two:1");
        assert_eq!(layer_types(&after), [format!("{OCI}{suffix}")], "{words:?}");
        assert_eq!(after["config"], before["config"]);
        if suffix == "+zstd" {
            // Nothing but the new name holds what was made.
            daemon.orlopctl(["gc"]).run().success();
            assert_eq!(tree(&root, &daemon, "example.org/two:1"), files);
            let archive = root.join("zstd.tar");
            export(&daemon, "example.org/two:1", &archive);
            let skopeo = Cmd::new(binaries::system("skopeo"));
            let read =
                skopeo.args(["inspect", &format!("oci-archive:{}", archive.display())]).run().success();
            let top = after["manifest"]["layers"][1]["digest"].as_str().expect("a layer");
            assert!(read.stdout.contains(top), "{read}");
        }
    }

    // ctr's, on the same image: the same layers.
    let ctr = ["images", "convert", "--uncompress", "--oci", "example.org/one:1", "example.org/ctr:1"];
    daemon.ctr(ctr).deadline(DEADLINE).run().success();
    let ours = convert(&["--uncompress", "--oci"], "example.org/two:1");
    let (theirs, made) = (inspect(&daemon, "example.org/ctr:1"), inspect(&daemon, "example.org/two:1"));
    assert_eq!(theirs["manifest"]["layers"], made["manifest"]["layers"]);
    // The same conversion gives the same image, and one that changes nothing the image itself.
    assert_eq!(convert(&["--uncompress", "--oci"], "example.org/three:1"), ours);
    let same = convert(&["--gzip"], "example.org/three:1");
    assert_eq!(before["target"]["digest"], same.as_str());
    convert(&["--zstd"], "example.org/three:1");
    assert_eq!(layer_types(&inspect(&daemon, "example.org/three:1")), [format!("{DOCKER}.zstd")]);

    let refused = |words: &[&str]| daemon.orlopctl(words).run().failure().stderr;
    assert!(refused(&["images", "convert", "no/such:1", "x/y:1"]).contains("not found"));
    let platform = ["images", "convert", "--zstd", "--gzip", "example.org/one:1", "x/y:1"];
    assert!(refused(&platform).contains("cannot be used with"));
    daemon.stop();
}

#[test]
fn a_container_becomes_an_image() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    import(&daemon, &root, &Image::busybox(), IMAGE);
    let ctl = |words: &[&str]| daemon.orlopctl(words).deadline(DEADLINE);
    let script = "echo made > /made; rm /bin/cat; mkdir /d; ln -s made /link; echo ready; exec sleep 1000";
    let task = ctl(&["run", IMAGE, "one", "sh", "-c", script]).spawn();
    poll_until(DEADLINE, "the container's word", || task.stdout().contains("ready"));
    let commit = |to: &str| {
        let words = ["containers", "commit", "--author", "me", "--message", "a change", "one", to];
        ctl(&words).env("SOURCE_DATE_EPOCH", "1700000000").run().success().stdout
    };
    let first = commit("example.org/made:1");
    assert_eq!(commit("example.org/made:2"), first, "the same digest");
    // It goes on.
    let tasks = ctl(&["tasks", "ls"]).run().success().stdout;
    assert!(tasks.contains("RUNNING"), "{tasks}");

    let made = inspect(&daemon, "example.org/made:1");
    assert_eq!(made["manifest"]["layers"].as_array().map(Vec::len), Some(2));
    let config = made["manifest"]["config"]["digest"].as_str().unwrap();
    let config: Value =
        serde_json::from_str(&ctl(&["content", "get", config]).run().success().stdout).unwrap();
    assert_eq!(
        (config["created"].as_str(), config["author"].as_str()),
        (Some("2023-11-14T22:13:20Z"), Some("me"))
    );
    let history =
        ctl(&["images", "history", "--format", "json", "example.org/made:1"]).run().success().stdout;
    let history: Value = serde_json::from_str(&history).unwrap();
    assert_eq!(history[0]["comment"], "a change");
    assert_eq!(history[0]["layer"], made["manifest"]["layers"][1]["digest"]);
    let table = ctl(&["images", "history", "example.org/made:1"]).run().success().stdout;
    assert!(table.contains("orlopctl containers commit"), "{table}");

    ctl(&["gc"]).run().success();
    let script = "read x < /made; echo $x; readlink /link; test -d /d && ! test -e /bin/cat && echo all";
    let run = ctl(&["run", "--rm", "example.org/made:1", "two", "sh", "-c", script]).run().success();
    assert_eq!(run.stdout, "made\nmade\nall\n");

    // Of one layer: the same files, and what was removed is nowhere in it.
    ctl(&["images", "squash", "example.org/made:1", "example.org/flat:1"]).run().success();
    let flat = inspect(&daemon, "example.org/flat:1");
    assert_eq!(flat["manifest"]["layers"].as_array().map(Vec::len), Some(1));
    assert_eq!(tree(&root, &daemon, "example.org/flat:1"), tree(&root, &daemon, "example.org/made:1"));
    let run = ctl(&["run", "--rm", "example.org/flat:1", "three", "sh", "-c", script]).run().success();
    assert_eq!(run.stdout, "made\nmade\nall\n");

    ctl(&["images", "rm", IMAGE]).run().success();
    let refused = ctl(&["containers", "commit", "one", "example.org/x:1"]).run().failure();
    assert!(refused.stderr.contains("not found"), "{refused}");
    assert_eq!(ctl(&["leases", "ls", "-q"]).run().success().stdout, "");
    ctl(&["tasks", "kill", "-s", "KILL", "one"]).run().success();
    task.wait(DEADLINE);
    daemon.stop();
}
