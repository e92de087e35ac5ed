//! Registries as they are in the world: behind TLS, passwords and tokens, with images for several platforms.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use orlop_tests::{
    Authority, Cmd, Compression, Daemon, Guard, Image, Layer, Orlopd, Output, PASSWORD, Registry, Root,
    TokenServer, USER,
};

use crate::ctl::DEADLINE;

/// A registry that takes what tests push, the same behind a guard, and an orlopd that knows how to reach it.
struct Stage {
    orlopd: Orlopd,
    plain: Registry,
    guarded: Registry,
    tokens: TokenServer,
    authority: Authority,
    root: Root,
}

impl Stage {
    fn new(guard: Guard) -> Stage {
        let root = Root::new();
        let certificates = root.join("certificates");
        fs::create_dir(&certificates).unwrap();
        let authority = Authority::new(&certificates);
        let tokens = TokenServer::start(&authority);
        let plain = Registry::start(&root);
        let guarded = plain.guarded(&root, &authority, &guard, &tokens);
        let orlopd =
            Orlopd::start_with(&root, &format!("[registry]\nconfig_path = {:?}\n", root.join("certs.d")));
        let stage = Stage { orlopd, plain, guarded, tokens, authority, root };
        stage.trust("certs.d", true);
        stage
    }

    /// A directory of hosts as containerd lays it out, that trusts the authority, or nobody.
    fn trust(&self, name: &str, trusted: bool) -> PathBuf {
        let (hosts, address) = (self.root.join(name), self.guarded.address());
        fs::create_dir_all(hosts.join(address)).unwrap();
        let ca = if trusted { format!("ca = {:?}\n", self.authority.certificate()) } else { String::new() };
        let text = format!("server = \"https://{address}\"\n[host.\"https://{address}\"]\n{ca}");
        fs::write(hosts.join(address).join("hosts.toml"), text).unwrap();
        hosts
    }

    /// The reference of something pushed to the plain registry, at the guarded one.
    fn guarded(&self, reference: &str) -> String {
        reference.replace(self.plain.address(), self.guarded.address())
    }

    fn ctl(&self, words: &[&str]) -> Cmd {
        self.orlopd.orlopctl(words.iter().copied()).deadline(DEADLINE)
    }

    /// Both clients' pulls: ours by orlopd and its own configuration, Debian's `ctr` by itself with the same directory.
    fn pulls(&self, flags: &[&str], reference: &str) -> [Cmd; 2] {
        let hosts = self.root.join("certs.d").display().to_string();
        let ours = self.ctl(&[&["images", "pull"], flags, &[reference]].concat());
        let theirs = [&["images", "pull", "--hosts-dir", &hosts], flags, &[reference]].concat();
        [ours, self.orlopd.ctr(theirs).deadline(DEADLINE)]
    }

    /// Runs a pulled image's program, and removes the image with all that it brought.
    fn use_up(&self, reference: &str) {
        let run = ["run", "--rm", reference, "c", "cat", "/etc/changed"];
        assert_eq!(self.orlopd.ctr(run).deadline(DEADLINE).run().success().stdout, "two\n");
        self.ctl(&["images", "rm", "--sync", reference]).run().success();
        self.assert_empty();
    }

    /// No image, blob, layer or lease is there, and no half-written one.
    fn assert_empty(&self) {
        for table in [&["images", "ls", "-q"][..], &["content", "ls", "-q"], &["leases", "ls", "-q"]] {
            // A failed pull gives its lease back; collecting is what removes what it brought.
            self.ctl(&["gc"]).run().success();
            assert_eq!(self.ctl(table).run().success().stdout, "", "{table:?}");
        }
        assert_eq!(self.ctl(&["snapshots", "ls"]).run().success().stdout.lines().count(), 1);
    }

    fn finish(mut self) {
        self.orlopd.stop();
        self.plain.stop();
        self.guarded.stop();
        self.root.assert_clean();
    }
}

/// Our client's failures are one line; `ctr` prints its progress before.
fn assert_says(output: &Output, ours: bool, part: &str) {
    assert_eq!(output.code(), 1, "{output}");
    let last = output.stderr.lines().last().unwrap_or_default();
    assert!(last.contains(part), "{part:?} in {output}");
    if ours {
        let said = output.stderr.lines().filter(|line| line.starts_with("orlopctl: ")).count();
        assert_eq!(said, 1, "{output}");
    }
}

fn credentials(password: &str) -> String {
    format!("{USER}:{password}")
}

/// Right and wrong passwords, at a registry that wants one.
fn let_in_by_password_alone(stage: &Stage, refusal: &str) {
    let name = stage.guarded(&Image::two_layers().push(&stage.plain, "two", "1"));
    for pull in stage.pulls(&["--user", &credentials(PASSWORD)], &name) {
        pull.run().success();
        stage.use_up(&name);
    }
    for (flags, parts) in [
        (vec!["--user".to_owned(), credentials("wrong")], [refusal, "401 Unauthorized"]),
        (Vec::new(), [refusal, "401 Unauthorized"]),
    ] {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        for ((pull, ours), part) in stage.pulls(&flags, &name).into_iter().zip([true, false]).zip(parts) {
            assert_says(&pull.run(), ours, part);
            stage.assert_empty();
        }
    }
}

#[test]
fn a_password_over_tls() {
    let stage = Stage::new(Guard::Password);
    let_in_by_password_alone(&stage, "401 Unauthorized");
    stage.finish();
}

#[test]
fn a_token_for_a_password_over_tls() {
    let stage = Stage::new(Guard::Token);
    let_in_by_password_alone(&stage, "401 Unauthorized");
    assert!(stage.tokens.given() > 0);
    // A token to push is another than one to pull.
    let archive = stage.root.join("image.tar");
    let local = format!("{}/new:1", stage.guarded.address());
    Image::two_layers().oci_archive(&archive, &local);
    let user = credentials(PASSWORD);
    stage.ctl(&["images", "import", &archive.display().to_string()]).run().success();
    stage.ctl(&["images", "push", "--user", &user, &local]).run().success();
    stage.ctl(&["images", "rm", "--sync", &local]).run().success();
    stage.ctl(&["images", "pull", "--user", &user, &local]).run().success();
    stage.use_up(&local);
    stage.finish();
}

#[test]
fn a_certificate_that_nobody_vouches_for() {
    let stage = Stage::new(Guard::Open);
    let name = stage.guarded(&Image::two_layers().push(&stage.plain, "two", "1"));
    let strangers = stage.trust("strangers", false).display().to_string();
    let refused = stage.ctl(&["images", "pull", "--hosts-dir", &strangers, &name]).run();
    assert_says(&refused, true, "certificate signed by unknown authority");
    stage.assert_empty();
    let refused =
        stage.orlopd.ctr(["images", "pull", "--hosts-dir", &strangers, &name]).deadline(DEADLINE).run();
    assert_says(&refused, false, "certificate signed by unknown authority");
    stage.assert_empty();

    let authority = stage.authority.certificate().display().to_string();
    for flags in [&["--tlscacert", authority.as_str()][..], &["--skip-verify"]] {
        stage.ctl(&[&["images", "pull"], flags, &[&name]].concat()).run().success();
        stage.use_up(&name);
    }
    for pull in stage.pulls(&[], &name) {
        pull.run().success();
        stage.use_up(&name);
    }
    stage.finish();
}

/// Two images for two platforms under one name, one of them with a zstd layer.
fn for_two_platforms() -> [Image; 2] {
    let other = Layer::new().file("etc/architecture", b"arm64\n", 0o644).compressed(Compression::Zstd);
    [Image::two_layers(), Image::busybox().layer(other).architecture("arm64")]
}

/// The digests of what an image consists of, without its index.
fn blobs(image: &Image) -> BTreeSet<String> {
    let layers = image.layers().iter().map(|layer| layer.digest.clone());
    layers.chain([image.digest(), orlop_tests::image::digest(&image.config_bytes())]).collect()
}

fn choose_platforms(docker: bool) {
    let stage = Stage::new(Guard::Open);
    let mut images = for_two_platforms();
    if docker {
        images = images.map(Image::docker);
        // Docker's media types know no zstd.
        images[1] =
            Image::busybox().layer(Layer::new().file("x", b"x", 0o644)).architecture("arm64").docker();
    }
    let name = stage.guarded(&Image::push_index(&images, docker, &stage.plain, "index", "1"));
    let [native, other] = images.each_ref().map(blobs);
    let stored = || -> BTreeSet<String> {
        stage.ctl(&["content", "ls", "-q"]).run().success().stdout.lines().map(str::to_owned).collect()
    };
    for pull in stage.pulls(&[], &name) {
        pull.run().success();
        let stored = stored();
        assert!(native.is_subset(&stored), "{stored:?}");
        // Of the other platform at most the layer that both have.
        assert!(other.difference(&native).all(|digest| !stored.contains(digest)), "{stored:?}");
        stage.use_up(&name);
    }
    for pull in stage.pulls(&["--platform", "linux/arm64"], &name) {
        pull.run().success();
        let stored = stored();
        assert!(other.is_subset(&stored), "{stored:?}");
        assert!(native.difference(&other).all(|digest| !stored.contains(digest)), "{stored:?}");
        let snapshots = stage.ctl(&["snapshots", "ls"]).run().success().stdout;
        assert_eq!(snapshots.lines().count(), 1 + images[1].layers().len(), "{snapshots}");
        stage.ctl(&["images", "rm", "--sync", &name]).run().success();
        stage.assert_empty();
    }
    for pull in stage.pulls(&["--all-platforms"], &name) {
        pull.run().success();
        let stored = stored();
        assert!(native.is_subset(&stored) && other.is_subset(&stored), "{stored:?}");
        stage.use_up(&name);
    }
    let [ours, theirs] = stage.pulls(&["--platform", "linux/s390x"], &name);
    assert_says(&ours.run(), true, "not found");
    stage.assert_empty();
    assert_says(&theirs.run(), false, "not found");
    // That client names the image before it looks for the platform.
    stage.ctl(&["images", "rm", "--sync", &name]).run().success();
    stage.assert_empty();
    stage.finish();
}

#[test]
fn an_oci_index_gives_the_platforms_that_are_asked_for() {
    choose_platforms(false);
}

#[test]
fn a_docker_manifest_list_gives_the_platforms_that_are_asked_for() {
    choose_platforms(true);
}
