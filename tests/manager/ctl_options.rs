//! Options of ctr that change what orlopctl does.

use std::fs;
use std::path::Path;

use orlop_tests::{Containerd, Daemon, Image, Orlopd, Registry, Root};
use serde_json::Value;

use crate::ctl::{DEADLINE, IMAGE, import};

/// What a command printed, in lines, in order.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn metadata_alone_is_fetched_as_by_ctr() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let (host, other) = (Image::two_layers(), Image::busybox().architecture("riscv64"));
    let both = Image::push_index(&[host, other], false, &registry, "both", "1");
    let mut reference = Containerd::start(&root);
    let mut daemon = Orlopd::start(&root);
    let words = ["content", "fetch", "--metadata-only", &both];
    reference.ctr(words).deadline(DEADLINE).run().success();
    daemon.orlopctl(words).deadline(DEADLINE).run().success();
    let theirs = lines(&reference.ctr(["content", "ls", "-q"]).run().success().stdout);
    let ours = lines(&daemon.orlopctl(["content", "ls", "-q"]).run().success().stdout);
    // The index, two manifests and two configurations.
    assert_eq!((ours.len(), &ours), (5, &theirs));
    assert_eq!(daemon.orlopctl(["images", "ls", "-q"]).run().success().stdout, format!("{both}\n"));
    // What is missing comes with the next pull.
    daemon.orlopctl(["images", "pull", &both]).deadline(DEADLINE).run().success();
    let check = daemon.orlopctl(["images", "check", "-q"]).run().success().stdout;
    assert_eq!(check, format!("{both}\n"));

    // Of an image without an index there is no layer either.
    let single = Image::busybox().push(&registry, "single", "1");
    let count = || lines(&daemon.orlopctl(["content", "ls", "-q"]).run().success().stdout).len();
    daemon.orlopctl(["images", "delete", "--sync", &both]).run().success();
    assert_eq!(count(), 0);
    daemon.orlopctl(["content", "fetch", "--metadata-only", &single]).deadline(DEADLINE).run().success();
    assert_eq!(count(), 2);
    daemon.stop();
    reference.stop();
}

/// The configuration that `run` wrote into a file.
fn dumped(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_takes_the_newest_options() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    import(&daemon, &root, &Image::busybox(), IMAGE);
    let file = root.join("config.json");
    let run = |options: &[&str], id: &str, script: &str| {
        let run = daemon.orlopctl(["run", "--rm", "--dump-config"]).arg(&file).args(options);
        run.args([IMAGE, id, "sh", "-c", script]).deadline(DEADLINE).run()
    };
    let limited = run(&["--sync-fs", "--rlimit-nofile", "100:200"], "a", "ulimit -n; ulimit -Hn").success();
    assert_eq!(limited.stdout, "100\n200\n");
    let spec = dumped(&file);
    assert_eq!(spec["process"]["args"][2], "ulimit -n; ulimit -Hn");
    let limits = serde_json::json!([{ "type": "RLIMIT_NOFILE", "hard": 200, "soft": 100 }]);
    assert_eq!(spec["process"]["rlimits"], limits);

    let privileged = ["--privileged", "--privileged-without-host-devices"];
    let script = "grep CapEff /proc/self/status | grep -v 00000000; ls /dev/kmsg";
    let bare = run(&privileged, "b", script);
    assert!(bare.code() != 0 && bare.stdout.contains("CapEff"), "{bare}");
    let rules = |spec: Value| spec["linux"]["resources"]["devices"][0]["allow"].clone();
    assert_eq!(rules(dumped(&file)), false);
    let all = run(&privileged[..1], "c", script);
    assert_eq!(rules(dumped(&file)), true, "{all}");
    let wrong = run(&privileged[1..], "d", "true").failure();
    assert!(wrong.stderr.contains("without 'privileged' specified"), "{wrong}");

    // A file that cannot be written ends the run, and leaves no container.
    let nowhere =
        daemon.orlopctl(["run", "--rm", "--dump-config", "/no/such/file", IMAGE, "e", "true"]).run();
    assert_eq!(nowhere.failure().code(), 1);
    assert_eq!(daemon.orlopctl(["containers", "ls", "-q"]).run().success().stdout, "");

    let create = ["containers", "create", IMAGE, "f", "sh", "-c", "exit 7"];
    daemon.orlopctl(create).deadline(DEADLINE).run().success();
    let started = daemon.orlopctl(["tasks", "start", "--no-pivot", "f"]).deadline(DEADLINE).run();
    assert_eq!(started.code(), 7, "{started}");
    daemon.stop();
}

#[test]
fn the_default_profile_is_loaded_or_refused_as_by_ctr() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    import(&daemon, &root, &Image::busybox(), IMAGE);
    let words = ["--apparmor-default-profile", "orlop-test-default"];
    let create = |words: &[&str], id: &str| -> Vec<String> {
        let words = [&["containers", "create"], words, &[IMAGE, id]].concat();
        words.into_iter().map(str::to_owned).collect()
    };
    let theirs = daemon.ctr(create(&words, "theirs")).deadline(DEADLINE).run();
    let ours = daemon.orlopctl(create(&words, "ours")).deadline(DEADLINE).run();
    assert_eq!(ours.code(), theirs.code(), "{ours}{theirs}");
    let list = "/sys/kernel/security/apparmor/profiles";
    if Path::new(list).exists() {
        assert!(fs::read_to_string(list).unwrap().contains("orlop-test-default (enforce)"));
    } else {
        // Without AppArmor both say what they looked for.
        assert!(theirs.stderr.contains(list) && ours.stderr.contains(list), "{ours}{theirs}");
        // That of ctr goes with the next collection.
        let snapshots = daemon.orlopctl(["snapshots", "ls"]).run().success().stdout;
        assert!(!snapshots.contains("ours"), "{snapshots}");
    }
    let both = [&words[..], &["--apparmor-profile", "p"]].concat();
    for refused in
        [daemon.ctr(create(&both, "x")).run().failure(), daemon.orlopctl(create(&both, "x")).run().failure()]
    {
        assert!(refused.stderr.contains("apparmor-profile conflicts with"), "{refused}");
    }
    daemon.stop();
}

#[test]
fn images_that_no_container_uses_are_pruned() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    import(&daemon, &root, &Image::busybox(), IMAGE);
    import(&daemon, &root, &Image::two_layers(), "example.org/other:1");
    daemon.orlopctl(["containers", "create", IMAGE, "c"]).deadline(DEADLINE).run().success();
    let kept = daemon.orlopctl(["images", "prune"]).run().success();
    assert!(kept.stderr.contains("requires --all"), "{kept}");
    assert_eq!(daemon.orlopctl(["images", "ls", "-q"]).run().success().stdout.lines().count(), 2);
    let pruned = daemon.orlopctl(["images", "prune", "--all"]).deadline(DEADLINE).run().success();
    assert_eq!(pruned.stdout, "example.org/other:1\n");
    assert_eq!(daemon.orlopctl(["images", "ls", "-q"]).run().success().stdout, format!("{IMAGE}\n"));
    daemon.stop();
}
