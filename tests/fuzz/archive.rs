//! Mutated layers and image archives for the manager: imported or refused, with nothing outside the snapshots, and the manager
//! goes on serving.

use orlop_tests::image::Blob;
use orlop_tests::{Compression, Daemon, Image, Layer, Orlopd, Root, host};

use crate::for_a_while;

/// A layer with everything that an unpacker must take care of.
fn seed_layer() -> Vec<u8> {
    let layer = Layer::new()
        .dir("d", 0o755)
        .file("d/f", b"content of a file\n", 0o644)
        .symlink("d/link", "../../../../../../tmp")
        .hardlink("d/hard", "d/f")
        .file("d/link/through", b"x", 0o644)
        .special("d/fifo", tar::EntryType::Fifo, 0o644, |_| {})
        .xattrs([("user.key", &b"value"[..])])
        .file("d/attributes", b"", 0o644)
        .file(&"long/".repeat(40), b"", 0o644)
        .whiteout("etc/passwd")
        .opaque("d");
    layer.compressed(Compression::None).finish().bytes
}

#[test]
fn a_mutated_layer_stays_inside() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    let pid = orlopd.pid();
    let seed = seed_layer();
    let archive = root.join("image.tar");
    let canary = root.join("canary");
    std::fs::write(&canary, "untouched").unwrap();
    let before = outside();
    for_a_while("layer", |random| {
        let mut tar = seed.clone();
        random.mutate_bytes(&mut tar);
        let compression = [Compression::None, Compression::Gzip, Compression::Zstd][random.below(3)];
        Image::busybox().blob(Blob::from_tar(tar, compression)).oci_archive(&archive, "example.org/fuzz:1");
        let out = orlopd.orlopctl(["images", "import"]).arg(&archive).run();
        assert!(out.status.code().is_some_and(|code| code <= 1) && !out.stderr.contains("panicked"), "{out}");
        orlopd.orlopctl(["images", "rm", "--sync", "example.org/fuzz:1"]).run();
        assert_eq!(std::fs::read_to_string(&canary).unwrap(), "untouched");
        assert_eq!(outside(), before, "something was made outside");
        assert_eq!(orlopd.pid(), pid);
        assert!(host::alive(pid.expect("it runs")), "the manager died:\n{}", orlopd.log());
    });
    orlopd.stop();
    root.assert_clean();
}

/// What a layer that climbs out would most likely hit.
fn outside() -> Vec<bool> {
    ["/through", "/d", "/etc/.wh.passwd", "/tmp/through", "/long"]
        .map(|path| std::path::Path::new(path).exists())
        .into()
}

#[test]
fn a_mutated_archive_is_refused_or_imported() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    let archive = root.join("image.tar");
    Image::new().layer(Layer::new().file("f", b"x", 0o644)).oci_archive(&archive, "example.org/fuzz:1");
    let seed = std::fs::read(&archive).unwrap();
    for_a_while("image archive", |random| {
        let mut bytes = seed.clone();
        random.mutate_bytes(&mut bytes);
        std::fs::write(&archive, bytes).unwrap();
        let out = orlopd.orlopctl(["--timeout", "20s", "images", "import"]).arg(&archive).run();
        assert!(out.status.code().is_some_and(|code| code <= 1) && !out.stderr.contains("panicked"), "{out}");
        for name in orlopd.orlopctl(["images", "ls", "-q"]).run().success().stdout.lines() {
            orlopd.orlopctl(["images", "rm", name]).run();
        }
    });
    orlopd.stop();
    root.assert_clean();
}
