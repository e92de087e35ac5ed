//! Programs × formats: skopeo, umoci and buildah read what we export and push, and we what they make. The table of these is in
//! docs/images.md.

use std::fs;
use std::path::{Path, PathBuf};

use orlop_tests::{Cmd, Daemon, Image, Layer, Orlopd, Registry, Root, binaries};

use crate::ctl::DEADLINE;

const NAME: &str = "example.org/programs:1";

struct Stage {
    orlopd: Orlopd,
    registry: Registry,
    root: Root,
}

impl Stage {
    fn new() -> Stage {
        let root = Root::new();
        let (orlopd, registry) = (Orlopd::start(&root), Registry::start(&root));
        Stage { orlopd, registry, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn ctl(&self, words: &[&str]) -> String {
        self.orlopd.orlopctl(words.iter().copied()).deadline(DEADLINE).run().success().stdout
    }

    fn skopeo(&self, words: &[&str]) {
        let flags =
            ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"];
        let skopeo = Cmd::new(binaries::system("skopeo")).args(flags).args(words.iter().copied());
        skopeo.cwd(self.root.path()).deadline(DEADLINE).run().success();
    }

    fn umoci(&self, words: &[&str]) {
        let umoci = Cmd::new(binaries::system("umoci")).args(words.iter().copied());
        umoci.cwd(self.root.path()).deadline(DEADLINE).run().success();
    }

    fn buildah(&self, words: &[&str]) -> String {
        let storage = self.path("storage").display().to_string();
        let run = self.path("storage-run").display().to_string();
        let flags = ["--root", &storage, "--runroot", &run, "--storage-driver", "vfs"];
        let buildah = Cmd::new(binaries::system("buildah")).args(flags).args(words.iter().copied());
        buildah
            .cwd(self.root.path())
            .env("BUILDAH_ISOLATION", "chroot")
            .deadline(DEADLINE)
            .run()
            .success()
            .stdout
    }

    /// The one image that is here holds `file` with `content`; it is removed again.
    fn holds(&self, what: &str, file: &str, content: &str) {
        let names = self.ctl(&["images", "ls", "-q"]);
        let name = names.lines().next().unwrap_or_else(|| panic!("{what}: nothing was imported"));
        assert_eq!(self.ctl(&["images", "check", "-q"]), names, "{what}");
        let target = self.path("mounted");
        fs::create_dir_all(&target).unwrap();
        let shown = target.display().to_string();
        self.ctl(&["images", "mount", name, &shown]);
        assert_eq!(fs::read_to_string(target.join(file)).unwrap_or_default(), content, "{what}");
        self.ctl(&["images", "unmount", "--rm", &shown]);
        for name in names.lines() {
            self.ctl(&["images", "rm", "--sync", name]);
        }
    }

    fn import(&self, path: &str) {
        self.ctl(&["images", "import", "--base-name", "example.org/imported", "--digests", path]);
    }
}

/// `etc/changed` is "two", made by the upper of two layers.
fn image() -> Image {
    let first =
        Layer::new().dir("etc", 0o755).file("etc/changed", b"one", 0o644).file("etc/deleted", b"x", 0o644);
    Image::new().layer(first).layer(Layer::new().file("etc/changed", b"two", 0o644).whiteout("etc/deleted"))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn other_programs_read_what_we_export_and_push() {
    let stage = Stage::new();
    let archive = shown(&stage.path("image.tar"));
    image().oci_archive(archive.as_ref(), NAME);
    stage.ctl(&["images", "import", &archive]);
    fs::remove_file(&archive).unwrap();
    stage.ctl(&["images", "export", &archive, NAME]);
    let layout = shown(&stage.path("layout"));
    fs::create_dir(&layout).unwrap();
    stage.ctl(&["images", "export", &layout, NAME]);
    let full = stage.orlopd.orlopctl(["images", "export", &layout, NAME]).run().failure();
    assert!(full.stderr.contains("not empty"), "{full}");
    let remote = format!("{}/pushed:1", stage.registry.address());
    stage.ctl(&["images", "push", "--plain-http", &remote, NAME]);

    let sources = [
        format!("oci-archive:{archive}"),
        format!("docker-archive:{archive}:{NAME}"),
        format!("oci:{layout}:1"),
        format!("docker://{remote}"),
    ];
    for (n, source) in sources.iter().enumerate() {
        // skopeo checks digests and gives umoci a layout to unpack; buildah mounts what it reads itself.
        let copy = shown(&stage.path(&format!("copy{n}")));
        stage.skopeo(&[source, &format!("oci:{copy}:1")]);
        let bundle = stage.path(&format!("bundle{n}"));
        stage.umoci(&["unpack", "--image", &format!("{copy}:1"), &shown(&bundle)]);
        assert_eq!(fs::read_to_string(bundle.join("rootfs/etc/changed")).unwrap(), "two", "{source}");
        assert!(!bundle.join("rootfs/etc/deleted").exists(), "{source}");
        let container = stage.buildah(&["from", "--tls-verify=false", source]);
        let mounted = stage.buildah(&["mount", container.trim()]);
        assert_eq!(
            fs::read_to_string(Path::new(mounted.trim()).join("etc/changed")).unwrap(),
            "two",
            "{source}"
        );
        stage.buildah(&["umount", container.trim()]);
    }
    // umoci reads our directory itself.
    stage.umoci(&["unpack", "--image", &format!("{layout}:1"), &shown(&stage.path("direct"))]);
    assert_eq!(fs::read_to_string(stage.path("direct/rootfs/etc/changed")).unwrap(), "two");
    stage.buildah(&["rm", "--all"]);
}

#[test]
fn we_read_what_other_programs_make() {
    let stage = Stage::new();
    let origin = image().push(&stage.registry, "origin", "1");
    let source = format!("docker://{origin}");
    let at = |name: &str| shown(&stage.path(name));
    for (name, target) in [
        ("docker.tar", "docker-archive:docker.tar:example.org/x:1"),
        ("oci.tar", "oci-archive:oci.tar:1"),
        ("oci", "oci:oci:1"),
    ] {
        stage.skopeo(&[&source, target]);
        stage.import(&at(name));
        stage.holds(&format!("skopeo's {target}"), "etc/changed", "two");
    }
    // A compressed archive is one too.
    Cmd::new(binaries::system("gzip")).arg("-k").arg(at("oci.tar")).run().success();
    stage.import(&at("oci.tar.gz"));
    stage.holds("an archive within gzip", "etc/changed", "two");

    stage.umoci(&["init", "--layout", "umoci"]);
    stage.umoci(&["new", "--image", "umoci:1"]);
    stage.umoci(&["unpack", "--image", "umoci:1", "bundle"]);
    fs::create_dir(stage.path("bundle/rootfs/added")).unwrap();
    fs::write(stage.path("bundle/rootfs/added/note"), "by umoci").unwrap();
    stage.umoci(&["repack", "--image", "umoci:1", "bundle"]);
    stage.import(&at("umoci"));
    stage.holds("umoci's layout", "added/note", "by umoci");

    fs::create_dir(stage.path("added")).unwrap();
    fs::write(stage.path("added/note"), "by buildah").unwrap();
    let container = stage.buildah(&["from", "scratch"]);
    stage.buildah(&["copy", container.trim(), "added", "/added"]);
    stage.buildah(&["commit", "--quiet", container.trim(), "example.org/built:1"]);
    let remote = format!("{}/built:1", stage.registry.address());
    for target in [
        "oci-archive:built-oci.tar:1".to_owned(),
        "docker-archive:built-docker.tar:example.org/built:1".to_owned(),
        "oci:built:1".to_owned(),
        format!("docker://{remote}"),
    ] {
        stage.buildah(&["push", "--quiet", "--tls-verify=false", "example.org/built:1", &target]);
        match target.split(':').collect::<Vec<_>>().as_slice() {
            ["docker", ..] => drop(stage.ctl(&["images", "pull", "--plain-http", &remote])),
            [_, path, ..] => stage.import(&at(path)),
            _ => unreachable!(),
        }
        stage.holds(&format!("buildah's {target}"), "added/note", "by buildah");
    }
    stage.buildah(&["rm", "--all"]);
}
