//! Layers of media types that a program turns into ones that orlopd unpacks.

use std::fs;

use orlop_tests::image::digest;
use orlop_tests::{Cmd, Daemon, Image, Orlopd, Registry, Root, http};
use serde_json::Value;

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

#[test]
fn a_program_decodes_layers_that_are_then_unpacked() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let name = push(&registry, &root);
    let config = |script: &str| {
        format!(
            "[stream_processors.coded]\naccepts = [{TYPE:?}]\nreturns = \"application/vnd.oci.image.layer.v1.tar+gzip\"\n\
             path = \"sh\"\nargs = [\"-c\", {script:?}]\n"
        )
    };
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
