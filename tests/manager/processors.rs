//! Layers of media types that a program turns into ones that orlopd unpacks.

use std::fs;

use orlop_tests::image::digest;
use orlop_tests::{Cmd, Daemon, Image, Orlopd, Registry, Root, Variant, http};
use serde_json::Value;

use crate::evidence;

const TYPE: &str = "application/vnd.test.layer.v1.tar+base64";

/// Pushes an image whose layers are written as base64.
fn push(registry: &Registry, root: &Root) -> String {
    Image::two_layers().push(registry, "coded", "1");
    let kind = ("Accept", "application/vnd.oci.image.manifest.v1+json");
    let get = |what: &str| {
        http::request(registry.address(), "GET", &format!("/v2/coded/{what}"), &[kind], &[]).unwrap().body
    };
    let mut manifest: Value = serde_json::from_slice(&get("manifests/1")).unwrap();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        let (plain, coded) = (root.join("plain"), root.join("coded"));
        fs::write(&plain, get(&format!("blobs/{}", layer["digest"].as_str().unwrap()))).unwrap();
        let script = "base64 \"$0\" > \"$1\"";
        Cmd::new("sh").args(["-c", script]).arg(&plain).arg(&coded).run().success();
        let coded = fs::read(&coded).unwrap();
        registry.put_blob("coded", &coded);
        layer["mediaType"] = TYPE.into();
        layer["digest"] = digest(&coded).into();
        layer["size"] = coded.len().into();
    }
    registry.put_manifest("coded", "2", kind.1, manifest.to_string().as_bytes());
    format!("{}/coded:2", registry.address())
}

/// A configuration in which a shell turns such layers into those that are unpacked.
fn config(script: &str) -> String {
    format!(
        "[stream_processors.coded]\naccepts = [{TYPE:?}]\nreturns = \"application/vnd.oci.image.layer.v1.tar+gzip\"\n\
         path = \"sh\"\nargs = [\"-c\", {script:?}]\n"
    )
}

#[test]
fn a_program_decodes_layers_that_are_then_unpacked() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let name = push(&registry, &root);
    let without = Orlopd::start(&root);
    let refused = without.orlopctl(["images", "pull", &name]).run().failure();
    assert!(refused.stderr.contains(TYPE), "{refused}");
    let broken = Orlopd::start_with(&root, &config("echo no key >&2; exit 1"));
    let refused = broken.orlopctl(["images", "pull", &name]).run().failure();
    assert!(refused.stderr.contains("no key"), "{refused}");
    let left = broken.ctr(["snapshots", "ls"]).run().success().stdout;
    assert_eq!(left.lines().count(), 1, "{left}");
    let daemon = Orlopd::start_with(&root, &config("base64 -d"));
    daemon.orlopctl(["images", "pull", &name]).run().success();
    let run = ["run", "--rm", &name, "c", "cat", "/etc/changed"];
    assert_eq!(daemon.orlopctl(run).run().success().stdout, "two\n");
}

#[test]
fn layers_that_go_through_a_program_are_made_again_after_a_power_cut() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let name = push(&registry, &root);
    let boot = root.join("boot");
    fs::write(&boot, "11111111-0000-0000-0000-000000000000\n").unwrap();
    let variant = Variant { boot_id: Some(boot.clone()), ..Variant::default() };
    let config = config("base64 -d") + "[snapshots]\nwrite_back_delay = 3600\n";
    let mut daemon = Orlopd::start_as(&root, &config, &variant);
    daemon.orlopctl(["images", "pull", &name]).run().success();
    let before = evidence::layers(&daemon);
    let changed = evidence::in_a_layer(&daemon, "etc/changed");
    daemon.kill();
    fs::write(&boot, "22222222-0000-0000-0000-000000000000\n").unwrap();
    // As a power cut leaves it.
    fs::write(&changed, b"").unwrap();
    daemon.restart();
    assert_eq!(daemon.log().matches("unpacked again").count(), 2, "{}", daemon.log());
    assert_eq!(evidence::layers(&daemon), before);
    daemon.orlopctl(["fsck"]).run().success();
    daemon.stop();
}
