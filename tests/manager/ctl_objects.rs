//! Single objects of a registry: fetched and pushed by orlopctl as by ctr.

use std::fs;

use orlop_tests::{
    Authority, Daemon, Guard, Image, Orlopd, Output, PASSWORD, Registry, Root, TokenServer, USER,
    image::digest,
};

use crate::ctl::DEADLINE;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What both clients answer to the same words, ours first.
fn both(daemon: &Orlopd, words: &[&str]) -> [Output; 2] {
    [daemon.orlopctl(words).deadline(DEADLINE).run(), daemon.ctr(words).deadline(DEADLINE).run()]
}

/// Both refuse it, and say why.
#[track_caller]
fn refused(daemon: &Orlopd, words: &[&str], why: &str) {
    for refused in both(daemon, words) {
        assert_eq!((refused.code(), refused.stdout.as_str()), (1, ""), "{refused}");
        assert!(refused.stderr.contains(why), "{why:?} in {refused}");
    }
}

/// Stores text under a label that keeps it.
fn store(daemon: &Orlopd, text: &str) -> String {
    let digest = digest(text.as_bytes());
    let lease = ["leases", "create", "--id", &digest[7..19]];
    daemon.ctr(lease).run().success();
    let ingest = ["content", "ingest", "--expected-digest", &digest, &digest];
    daemon.ctr(ingest).env("CONTAINERD_LEASE", &digest[7..19]).input(text).run().success();
    daemon.ctr(["content", "label", &digest, "containerd.io/gc.root=1"]).run().success();
    digest
}

#[test]
fn objects_are_fetched_as_by_ctr() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let image = Image::two_layers();
    let name = image.push(&registry, "two", "1");
    let repository = name.strip_suffix(":1").unwrap();
    let layer = &image.layers()[0];
    let mut daemon = Orlopd::start(&root);
    let manifest = String::from_utf8(image.manifest_bytes()).unwrap();
    for reference in [&name, &format!("{repository}@{}", image.digest())] {
        for fetched in both(&daemon, &["content", "fetch-object", reference, "object", "hint"]) {
            assert_eq!(fetched.success().stdout, manifest);
        }
    }
    let pinned = format!("{repository}@{}", layer.digest);
    let [ours, theirs] = both(&daemon, &["content", "fetch-object", &pinned]);
    assert!(!theirs.stdout.is_empty());
    assert_eq!(ours.success().stdout, theirs.success().stdout);
    let words = ["content", "fetch-blob", &name, &layer.digest, &image.digest()];
    let blobs = daemon.orlopctl(words).run().success().stdout;
    assert!(blobs.ends_with(&manifest) && blobs.len() > manifest.len());
    // Nothing was stored.
    assert_eq!(daemon.orlopctl(["content", "ls", "-q"]).run().success().stdout, "");

    let absent = digest(b"absent");
    refused(&daemon, &["content", "fetch-object", &format!("{repository}:2")], "not found");
    refused(&daemon, &["content", "fetch-object", &format!("{repository}@{absent}")], "not found");
    refused(&daemon, &["content", "fetch-object", "127.0.0.1:1/two:1"], "refused");
    daemon.orlopctl(["content", "fetch-object"]).run().failure();
    daemon.orlopctl(["content", "fetch-blob", &name, "sha256:x"]).run().failure();

    // A registry that sends something else is found out.
    fs::write(registry.blob_file(&layer.digest), vec![b'x'; layer.bytes.len()]).unwrap();
    let changed = daemon.orlopctl(["content", "fetch-object", &pinned]).run().failure();
    assert!(changed.stderr.contains("other content"), "{changed}");
    daemon.stop();
}

#[test]
fn objects_are_pushed_as_by_ctr() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let image = Image::two_layers();
    let mut daemon = Orlopd::start(&root);
    let host = registry.address();
    let push = |name: &str, object: &str, kind: &str| {
        ["content", "push-object", name, object, kind].map(str::to_owned).to_vec()
    };
    let manifest = store(&daemon, &String::from_utf8(image.manifest_bytes()).unwrap());
    let blob = store(&daemon, "a blob");
    for (client, name) in ["ours", "theirs"].into_iter().enumerate() {
        let run = |words: Vec<String>| match client {
            0 => daemon.orlopctl(words).deadline(DEADLINE).run(),
            _ => daemon.ctr(words).deadline(DEADLINE).run(),
        };
        let name = format!("{host}/{name}:1");
        let pushed = run(push(&name, &blob, LAYER)).success().stdout;
        assert_eq!(pushed, format!("Pushed {blob} {LAYER}\n"));
        assert_eq!(run(push(&name, &blob, LAYER)).failure().stdout, "");
        // Its parts are not there yet.
        run(push(&name, &manifest, MANIFEST)).failure();
        for part in image.layers().iter().map(|layer| &layer.bytes).chain([&image.config_bytes()]) {
            registry.put_blob(name.split(['/', ':']).nth(2).unwrap(), part);
        }
        let pushed = run(push(&name, &manifest, MANIFEST)).success().stdout;
        assert_eq!(pushed, format!("Pushed {manifest} {MANIFEST}\n"));
        let again = run(push(&name, &manifest, MANIFEST)).failure();
        assert!(again.stderr.contains("already exists"), "{again}");
        daemon.orlopctl(["content", "fetch-object", &name]).run().success();
    }
    let absent = digest(b"absent");
    let name = format!("{host}/ours:2");
    refused(&daemon, &["content", "push-object", &name, &absent, LAYER], "not found");
    refused(&daemon, &["content", "push-object", &name, "sha256:x", LAYER], "invalid checksum digest length");
    daemon.orlopctl(["content", "push-object", &name]).run().failure();
    daemon.stop();
}

#[test]
fn objects_of_a_guarded_registry_take_a_password() {
    let root = Root::new();
    let certificates = root.join("certificates");
    fs::create_dir(&certificates).unwrap();
    let authority = Authority::new(&certificates);
    let tokens = TokenServer::start(&authority);
    let plain = Registry::start(&root);
    let guarded = plain.guarded(&root, &authority, &Guard::Token, &tokens);
    let image = Image::two_layers();
    let name = image.push(&plain, "two", "1").replace(plain.address(), guarded.address());
    let mut daemon = Orlopd::start(&root);
    let hosts = root.join("hosts");
    fs::create_dir_all(hosts.join(guarded.address())).unwrap();
    let text = format!("[host.\"https://{}\"]\nca = {:?}\n", guarded.address(), authority.certificate());
    fs::write(hosts.join(guarded.address()).join("hosts.toml"), text).unwrap();
    let (user, hosts) = (format!("{USER}:{PASSWORD}"), hosts.display().to_string());
    for fetched in both(&daemon, &["content", "fetch-object", "--hosts-dir", &hosts, "--user", &user, &name])
    {
        assert!(fetched.success().stdout.contains(&image.layers()[0].digest));
    }
    let blob = store(&daemon, "a blob");
    let words = ["content", "push-object", "--hosts-dir", &hosts, "--user", &user, &name, &blob, LAYER];
    for (pushed, code) in both(&daemon, &words).into_iter().zip([0, 1]) {
        // The second finds it there.
        assert_eq!(pushed.code(), code, "{pushed}");
    }
    let ca = authority.certificate().display().to_string();
    let words = ["content", "fetch-object", "--tlscacert", &ca, "--user", &user, &name];
    daemon.orlopctl(words).deadline(DEADLINE).run().success();
    refused(&daemon, &["content", "fetch-object", "--hosts-dir", &hosts, &name], "401 Unauthorized");
    daemon.stop();
}
