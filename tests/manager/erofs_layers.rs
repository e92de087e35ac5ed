//! Layers that come as EROFS images: made by `images convert --erofs`, mounted as they come where that is allowed, and nowhere near
//! the kernel where they are not sound.

use std::fs;
use std::path::PathBuf;

use orlop_tests::image::digest;
use orlop_tests::{Daemon, Image, Orlopd, Registry, Root, Variant};
use serde_json::{Value, json};

use crate::ctl::DEADLINE;

const LAYER: &str = "application/vnd.erofs.layer.v1";
const ALLOWED: &str = "[snapshots]\nerofs_layers = true\n";

/// Has a daemon make images of the layers of one that it pulls, and pushes that.
fn converted(root: &Root, registry: &Registry) -> String {
    let name = Image::two_layers().push(registry, "two", "1");
    let target = name.replace(":1", ":erofs");
    let mut daemon = Orlopd::start(root);
    let ctl = |words: &[&str]| daemon.orlopctl(words).deadline(DEADLINE).run().success();
    ctl(&["images", "pull", &name]);
    ctl(&["images", "convert", "--erofs", &name, &target]);
    ctl(&["images", "push", &target]);
    daemon.stop();
    target
}

/// A manifest at the registry, and its layers and configuration.
fn manifest(registry: &Registry, tag: &str) -> (Value, Value) {
    let get = |target: String| {
        let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
        let answer = registry.request("GET", &target, &accept, &[]);
        serde_json::from_slice::<Value>(&answer.body).unwrap()
    };
    let manifest = get(format!("/v2/two/manifests/{tag}"));
    let config = get(format!("/v2/two/blobs/{}", manifest["config"]["digest"].as_str().unwrap()));
    (manifest, config)
}

/// Pushes the image with another top layer, whose configuration is about that one.
fn push_with(registry: &Registry, tag: &str, layer: &[u8], media_type: &str, diff_id: &str) -> String {
    let (mut manifest, mut config) = manifest(registry, "erofs");
    config["rootfs"]["diff_ids"][1] = diff_id.into();
    let config = config.to_string();
    manifest["layers"][1] =
        json!({"mediaType": media_type, "digest": registry.put_blob("two", layer), "size": layer.len()});
    manifest["config"]["digest"] = registry.put_blob("two", config.as_bytes()).into();
    manifest["config"]["size"] = config.len().into();
    let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
    registry.put_manifest("two", tag, &media_type, manifest.to_string().as_bytes());
    format!("{}/two:{tag}", registry.address())
}

fn images(daemon: &Orlopd) -> Vec<PathBuf> {
    let layers = fs::read_dir(daemon.root().join("erofs")).unwrap();
    let images = layers.map(|layer| layer.unwrap().path().join("layer.erofs"));
    images.filter(|path| path.exists()).collect()
}

#[test]
fn layers_that_are_images_are_mounted_as_they_come_where_that_is_allowed() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let name = converted(&root, &registry);
    let (made, config) = manifest(&registry, "erofs");
    let layers = made["layers"].as_array().unwrap();
    for (layer, diff_id) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
        assert_eq!((&layer["mediaType"], &layer["digest"]), (&json!(LAYER), diff_id));
    }

    let pull = |daemon: &Orlopd, snapshotter: &str, name: &str| {
        daemon.orlopctl(["images", "pull", "--snapshotter", snapshotter, name]).deadline(DEADLINE).run()
    };
    let mut without = Orlopd::start(&root);
    let refused = pull(&without, "erofs", &name).failure();
    assert!(refused.stderr.contains("`erofs_layers` in [snapshots] allows that"), "{refused}");
    // Nothing was fetched for it.
    assert_eq!(registry.requests("GET", layers[0]["digest"].as_str().unwrap()), 0);
    without.stop();

    let boot = root.join("boot");
    fs::write(&boot, "11111111-0000-0000-0000-000000000000\n").unwrap();
    let variant = Variant { boot_id: Some(boot.clone()), ..Variant::default() };
    let mut daemon = Orlopd::start_as(&root, &format!("{ALLOWED}write_back_delay = 3600\n"), &variant);
    let refused = pull(&daemon, "overlayfs", &name).failure();
    assert!(refused.stderr.contains("the snapshotter erofs alone mounts"), "{refused}");
    pull(&daemon, "erofs", &name).success();
    let mut found: Vec<String> =
        images(&daemon).iter().map(|path| digest(&fs::read(path).unwrap())).collect();
    let mut expected: Vec<&str> = layers.iter().map(|layer| layer["digest"].as_str().unwrap()).collect();
    found.sort();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let run = [
        "run",
        "--rm",
        "--snapshotter",
        "erofs",
        &name,
        "c",
        "sh",
        "-c",
        "cat /etc/changed; ls /etc/deleted",
    ];
    let ran = daemon.orlopctl(run).run();
    assert_eq!((ran.stdout.as_str(), ran.code()), ("two\n", 1), "{ran}");

    // One that a power cut cut short is made again from its blob.
    let image = images(&daemon).remove(0);
    let before = fs::read(&image).unwrap();
    daemon.kill();
    fs::write(&boot, "22222222-0000-0000-0000-000000000000\n").unwrap();
    fs::write(&image, &before[..before.len() / 2]).unwrap();
    daemon.restart();
    assert_eq!(fs::read(&image).unwrap(), before);
    daemon.orlopctl(["fsck"]).run().success();
    let packed = zstd::encode_all(before.as_slice(), 1).unwrap();
    let name = push_with(&registry, "packed", &packed, &format!("{LAYER}+zstd"), &digest(&before));
    pull(&daemon, "erofs", &name).success();
    daemon.stop();
}

#[test]
fn images_that_are_not_sound_never_reach_the_kernel() {
    let root = Root::new();
    let registry = Registry::start(&root);
    converted(&root, &registry);
    let (made, _) = manifest(&registry, "erofs");
    let top = fs::read(registry.blob_file(made["layers"][1]["digest"].as_str().unwrap())).unwrap();
    let mut daemon = Orlopd::start_as(&root, ALLOWED, &Variant::default());
    let mut outside = top.clone();
    let at = top.windows(7).position(|window| window == b"changed").unwrap();
    outside[at..at + 7].copy_from_slice(b"../../x");
    for (tag, layer, why) in [
        ("outside", outside.as_slice(), "name \"../../x\" is none"),
        ("cut", &top[..top.len() - 4096], "it is shorter than it says"),
        ("none", b"no image at all".as_slice(), "it is cut short"),
    ] {
        let name = push_with(&registry, tag, layer, LAYER, &digest(layer));
        let pull = ["images", "pull", "--snapshotter", "erofs", &name];
        let refused = daemon.orlopctl(pull).deadline(DEADLINE).run().failure();
        assert!(refused.stderr.contains(why), "{refused}");
        daemon.orlopctl(["gc"]).run().success();
        assert!(images(&daemon).is_empty(), "{tag}");
    }
    daemon.stop();
}
