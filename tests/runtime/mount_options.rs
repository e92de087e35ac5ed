//! Every option of a mount that the specification or runc knows, in force.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use orlop_tests::{Bundle, Cmd, binaries};
use serde_json::{Value, json};

use super::support::Runtime;

/// A tree of two mounts on the host, gone when dropped.
struct Tree(std::path::PathBuf);

impl Tree {
    /// Both with these flags.
    fn new(runtime: &Runtime, flags: MsFlags) -> Tree {
        let at = runtime.root.join("tree");
        for path in [at.clone(), at.join("below")] {
            fs::create_dir(&path).unwrap();
            mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        for path in [at.join("below"), at.clone()] {
            let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
            mount(None::<&str>, &path, None::<&str>, flags, None::<&str>).unwrap();
        }
        Tree(at)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // A failed test leaves them to be unmounted with its directory.
        let _ = umount2(&self.0.join("below"), MntFlags::MNT_DETACH);
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The options of a mount itself, as a container's table shows them, but for `rw` and `relatime`, which mean nothing special.
fn shown(table: &str, target: &str) -> String {
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(target));
    let line = line.unwrap_or_else(|| panic!("no mount at {target}:\n{table}"));
    let words = line.split(' ').nth(5).unwrap().split(',');
    words.filter(|word| !["rw", "relatime"].contains(word)).collect::<Vec<_>>().join(",")
}

#[test]
fn attributes_of_one_mount_and_of_a_whole_tree() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    // On a tree without attributes: options, what the mount shows, what the one below it shows.
    let plain = [
        ("ro", "ro", ""),
        ("rro", "ro", "ro"),
        ("ro,rrw", "", ""),
        ("nosuid,nodev,noexec", "nosuid,nodev,noexec", ""),
        ("rnosuid", "nosuid", "nosuid"),
        ("rnodev", "nodev", "nodev"),
        ("rnoexec", "noexec", "noexec"),
        ("rnosuid,rnodev,rnoexec,rro", "ro,nosuid,nodev,noexec", "ro,nosuid,nodev,noexec"),
        ("noatime", "noatime", ""),
        ("rnoatime", "noatime", "noatime"),
        ("nodiratime", "nodiratime", ""),
        ("rnodiratime", "nodiratime", "nodiratime"),
        ("nosymfollow", "nosymfollow", ""),
        ("rnosymfollow", "nosymfollow", "nosymfollow"),
    ];
    // On a tree with all of them.
    let all = "ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow";
    let without = |word: &str| all.split(',').filter(|one| *one != word).collect::<Vec<_>>().join(",");
    let cleared = [
        ("rw", "ro", false),
        ("rrw", "ro", true),
        ("suid", "nosuid", false),
        ("rsuid", "nosuid", true),
        ("dev", "nodev", false),
        ("rdev", "nodev", true),
        ("exec", "noexec", false),
        ("rexec", "noexec", true),
        ("ratime", "noatime", true),
        ("rrelatime", "noatime", true),
        ("relatime", "noatime", false),
        ("strictatime", "noatime", false),
        ("rstrictatime", "noatime", true),
        ("diratime", "nodiratime", false),
        ("rdiratime", "nodiratime", true),
        ("symfollow", "nosymfollow", false),
        ("rsymfollow", "nosymfollow", true),
        ("rnorelatime", "", true),
        ("rnostrictatime", "noatime", true),
        ("norelatime", "", false),
        ("nostrictatime", "noatime", false),
        ("defaults", "", false),
    ];
    let bind = |bundle: Bundle, tree: &Tree, options: &str| {
        let words: Vec<_> = ["rbind"].into_iter().chain(options.split(',')).collect();
        bundle.mount(json!({"destination": format!("/m/{options}"), "type": "bind", "source": tree.0, "options": words}))
    };
    let tree = Tree::new(&runtime, MsFlags::empty());
    let bundle = plain.iter().fold(runtime.sh("cat /proc/self/mountinfo"), |b, (o, ..)| bind(b, &tree, o));
    let table = runtime.output(&bundle.save());
    for (options, itself, below) in plain {
        assert_eq!(shown(&table, &format!("/m/{options}")), itself, "{options}");
        assert_eq!(shown(&table, &format!("/m/{options}/below")), below, "{options}");
    }
    drop(tree);
    fs::remove_dir(runtime.root.join("tree")).unwrap();

    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let nosymfollow = MsFlags::from_bits_retain(256);
    let tree = Tree::new(&runtime, flags | MsFlags::MS_NOATIME | MsFlags::MS_NODIRATIME | nosymfollow);
    let bundle = cleared.iter().fold(runtime.sh("cat /proc/self/mountinfo"), |b, (o, ..)| bind(b, &tree, o));
    let table = runtime.output(&bundle.save());
    for (options, gone, recursive) in cleared {
        assert_eq!(shown(&table, &format!("/m/{options}")), without(gone), "{options}");
        let below = if recursive { without(gone) } else { all.to_owned() };
        assert_eq!(shown(&table, &format!("/m/{options}/below")), below, "{options}");
    }
    drop(tree);
    runtime.assert_clean();
}

/// Each word of `features` starts a container, and no other word of a bind mount does.
#[test]
fn every_option_of_features_is_understood() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let features: Value = serde_json::from_str(&runtime.call(&["features"]).success().stdout).unwrap();
    let words: Vec<&str> =
        features["mountOptions"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    for word in
        ["idmap", "ridmap", "ro", "rro", "rbind", "tmpcopyup", "remount", "nosymfollow", "rslave", "sync"]
    {
        assert!(words.contains(&word), "{word}");
    }
    // Not every file system below /usr can map owners; tmpfs and what tests lie on can.
    let source = runtime.root.join("source");
    std::fs::create_dir(&source).unwrap();
    let mut bundle = runtime.sh("echo ran");
    for word in &words {
        let at = format!("/m/{word}");
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        bundle = match *word {
            "idmap" | "ridmap" => bundle.mount(json!({"destination": at, "source": source,
                "options": ["rbind", word], "uidMappings": map, "gidMappings": map})),
            "remount" => bundle.mount(json!({"destination": at, "type": "tmpfs", "source": "tmpfs"})).mount(
                json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": ["remount", "ro"]}),
            ),
            "bind" | "rbind" => {
                bundle.mount(json!({"destination": at, "source": "/usr/share", "options": [word]}))
            }
            _ => bundle
                .mount(json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": [word]})),
        };
    }
    assert_eq!(runtime.output(&bundle.save()), "ran\n");
    let bind = |options: serde_json::Value| {
        let mount = json!({"destination": "/m", "source": "/usr/share", "options": options});
        runtime.run(&runtime.sh("echo ran").mount(mount).save())
    };
    let out = bind(json!(["bind", "no-such-word"])).failure();
    assert!(out.stderr.contains("bind mounts cannot have any filesystem-specific options"), "{out}");
    let out = bind(json!(["rbind", "size=1m"])).success();
    assert!(out.stdout == "ran\n" && out.stderr.contains("size=1m is passed over"), "{out}");
    let bundle = runtime
        .sh("echo ran")
        .mount(json!({"destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": ["no-such-word"]}));
    let out = runtime.run(&bundle.save()).failure();
    assert!(out.stderr.contains("/m") && out.stdout.is_empty(), "{out}");
    runtime.assert_clean();
}

#[test]
fn options_of_whole_file_systems() {
    let runtime = Runtime::new();
    let mut bundle = runtime.sh("cat /proc/self/mountinfo");
    for options in [
        vec!["sync"],
        vec!["dirsync"],
        vec!["lazytime"],
        vec!["sync", "async"],
        vec!["lazytime", "nolazytime"],
    ] {
        let at = format!("/m/{}", options.join("-"));
        bundle = bundle.mount(json!({"destination": at, "type": "tmpfs", "source": "x", "options": options}));
    }
    let table = runtime.output(&bundle.save());
    let has = |at: &str, word: &str| {
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(at)).unwrap();
        line.rsplit(' ').next().unwrap().split(',').any(|one| one == word)
    };
    assert!(
        has("/m/sync", "sync") && has("/m/dirsync", "dirsync") && has("/m/lazytime", "lazytime"),
        "{table}"
    );
    assert!(!has("/m/sync-async", "sync") && !has("/m/lazytime-nolazytime", "lazytime"), "{table}");
    runtime.assert_clean();
}

#[test]
fn a_mount_is_changed_by_a_later_one() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime
        .sh("cat /proc/self/mountinfo")
        .mount(json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": ["size=64k"]}))
        .mount(json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": ["remount", "size=128k", "ro"]}))
        .mount(json!({"destination": "/n", "source": "/usr/share", "options": ["bind"]}))
        .mount(json!({"destination": "/n", "source": "/usr/share", "options": ["remount", "bind", "ro", "noexec"]}))
        .save();
    let table = runtime.output(&bundle);
    let lines: Vec<_> =
        table.lines().filter(|line| matches!(line.split(' ').nth(4), Some("/m" | "/n"))).collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(shown(&table, "/m").contains("ro") && lines[0].contains("size=128k"), "{table}");
    assert_eq!(shown(&table, "/n"), "ro,noexec");
    runtime.assert_clean();
}

fn user_namespace(config: &mut Value) {
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    // Several maps: root is one user, everybody else lies elsewhere.
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 1}, {"containerID": 1, "hostID": 200_001, "size": 3000}]);
    config["linux"]["uidMappings"] = maps.clone();
    config["linux"]["gidMappings"] = maps;
    config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
}

fn give_to_root_of_user_namespace(bundle: &Bundle) {
    for path in ["", "tmp", "bin", "etc", "dev", "proc", "sys"] {
        chown(bundle.rootfs(path), Some(100_000), Some(100_000)).unwrap();
    }
}

/// A directory with a file of each of these owners, and another file system with them below it.
fn owned(runtime: &Runtime, owners: &[u32]) -> Tree {
    let tree = Tree::new(runtime, MsFlags::empty());
    for owner in owners {
        for directory in [tree.0.clone(), tree.0.join("below")] {
            let file = directory.join(owner.to_string());
            fs::write(&file, "").unwrap();
            chown(&file, Some(*owner), Some(*owner)).unwrap();
        }
    }
    tree
}

#[test]
fn owners_by_a_mounts_own_mappings() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let tree = owned(&runtime, &[0, 1, 2000]);
    let maps = json!([{"containerID": 0, "hostID": 3000, "size": 1}, {"containerID": 1, "hostID": 5001, "size": 1000}]);
    let script = "cd /m; stat -c %n:%u:%g 0 1 2000 below/1; touch new; stat -c %u new";
    for (option, below) in [("idmap", "1:1"), ("ridmap", "5001:5001")] {
        let bundle = runtime.sh(script).mount(json!({"destination": "/m", "source": tree.0,
            "options": ["rbind", option], "uidMappings": maps, "gidMappings": maps}));
        let bundle =
            bundle.edit(|config| config["process"]["user"] = json!({"uid": 3000, "gid": 3000})).save();
        fs::set_permissions(&tree.0, fs::Permissions::from_mode(0o777)).unwrap();
        // 2000 is in neither map.
        assert_eq!(
            runtime.output(&bundle),
            format!("0:3000:3000\n1:5001:5001\n2000:65534:65534\nbelow/1:{below}\n3000\n"),
            "{option}"
        );
        let new = tree.0.join("new");
        assert_eq!(fs::metadata(&new).unwrap().uid(), 0);
        fs::remove_file(new).unwrap();
    }
    // Without either option the mappings still count, for the mount alone.
    let bundle =
        runtime.sh("stat -c %u /m/1 /m/below/1").mount(json!({"destination": "/m", "source": tree.0,
        "options": ["rbind"], "uidMappings": maps, "gidMappings": maps}));
    assert_eq!(runtime.output(&bundle.save()), "5001\n1\n");
    drop(tree);
    runtime.assert_clean();
}

#[test]
fn owners_by_the_containers_user_namespace_made_or_joined() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let tree = owned(&runtime, &[0, 1, 2000]);
    let mount = json!({"destination": "/m", "source": tree.0, "options": ["rbind", "ridmap"]});
    let script = "stat -c %u:%g /m/0 /m/1 /m/2000 /m/below/1; cat /proc/self/uid_map";
    let bundle = runtime.sh(script).mount(mount.clone()).edit(user_namespace).save();
    give_to_root_of_user_namespace(&bundle);
    let expected = ["0:0", "1:1", "2000:2000", "1:1", "0", "100000", "1", "1", "200001", "3000"];
    let out = runtime.output(&bundle);
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), expected);
    // Another container in the same user namespace.
    let first = runtime.sleeper().edit(user_namespace).save();
    give_to_root_of_user_namespace(&first);
    runtime.detach(&first, "first");
    let path = format!("/proc/{}/ns/user", runtime.pid("first"));
    let second = runtime.sh(script).mount(mount).edit(|config| {
        user_namespace(config);
        let linux = config["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
        linux["namespaces"].as_array_mut().unwrap().last_mut().unwrap()["path"] = json!(path);
    });
    let second = second.save();
    give_to_root_of_user_namespace(&second);
    let out = runtime.output(&second);
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), expected);
    runtime.call(&["delete", "--force", "first"]).success();
    drop(tree);
    runtime.assert_clean();
}

#[test]
fn owners_of_what_an_earlier_mount_brings_are_mapped_too() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime.sh("touch /a/new; stat -c %u /a/new /m/new; ls /n").edit(user_namespace);
    let source = |name: &str| bundle.rootfs(name).display().to_string();
    let (fresh, link) = (source("a"), source("link"));
    fs::create_dir(bundle.rootfs("data")).unwrap();
    fs::write(bundle.rootfs("data/of-the-image"), "").unwrap();
    // From the host this leads to its own directory, if there is one.
    std::os::unix::fs::symlink("/data", bundle.rootfs("link")).unwrap();
    // Who is the container's root becomes its second user.
    let maps = json!([{"containerID": 0, "hostID": 200_001, "size": 1}]);
    let mapped = |at: &str, source: &str| json!({"destination": at, "source": source, "options": ["rbind", "idmap"], "uidMappings": maps, "gidMappings": maps});
    let bundle = bundle
        .mount(json!({"destination": "/a", "type": "tmpfs", "source": "tmpfs"}))
        .mount(mapped("/m", &fresh))
        .mount(mapped("/n", &link))
        .save();
    give_to_root_of_user_namespace(&bundle);
    assert_eq!(runtime.output(&bundle), "0\n1\nof-the-image\n");
    // What cannot be had is told as for any other mount.
    let missing = runtime.sh("echo ran").edit(user_namespace).save();
    let nowhere = missing.rootfs("nowhere").display().to_string();
    let missing = missing.mount(mapped("/m", &nowhere)).save();
    give_to_root_of_user_namespace(&missing);
    let out = runtime.run(&missing).failure();
    assert!(
        out.stdout.is_empty() && out.stderr.contains("nowhere") && out.stderr.contains("no such file"),
        "{out}"
    );
    runtime.assert_clean();
}

#[test]
fn mappings_that_cannot_be_are_refused() {
    let runtime = Runtime::new();
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    for mount in [
        json!({"destination": "/m", "source": "/usr/share", "options": ["bind", "idmap"]}),
        json!({"destination": "/m", "source": "/usr/share", "options": ["rbind", "ridmap"], "uidMappings": map}),
        json!({"destination": "/m", "type": "tmpfs", "source": "x", "options": ["idmap"], "uidMappings": map, "gidMappings": map}),
    ] {
        let out = runtime.run(&runtime.sh("echo ran").mount(mount).save());
        if !runtime.is_reference() {
            assert!(out.failure().stdout.is_empty());
        }
        runtime.assert_clean();
    }
}

#[test]
fn a_source_may_lie_in_an_earlier_mount() {
    let runtime = Runtime::new();
    // runc learnt this in 1.2 for all cases.
    if runtime.is_reference() {
        return;
    }
    for with_user_namespace in [false, true] {
        let shared = runtime.root.join(format!("shared{with_user_namespace}"));
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("file"), "found\n").unwrap();
        let bundle = runtime.sh("cat /second/file /third/file");
        let inside = bundle.rootfs("/first");
        let bundle = bundle
            .mount(json!({"destination": "/first", "source": shared, "options": ["bind"]}))
            .mount(json!({"destination": "/second", "source": inside, "options": ["bind"]}))
            .mount(json!({"destination": "/third", "source": "rootfs/first", "options": ["bind"]}))
            .edit(|config| {
                if with_user_namespace {
                    user_namespace(config)
                }
            });
        let bundle = bundle.save();
        if with_user_namespace {
            give_to_root_of_user_namespace(&bundle);
        }
        assert_eq!(runtime.output(&bundle), "found\nfound\n", "user namespace: {with_user_namespace}");
    }
    runtime.assert_clean();
}

#[test]
fn a_tmpfs_has_the_mode_of_what_it_covers_unless_told() {
    let runtime = Runtime::new();
    // Debian's runc does not listen.
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime.sh("stat -c %a /covers /told /new");
    for name in ["covers", "told"] {
        fs::create_dir(bundle.rootfs(name)).unwrap();
        fs::set_permissions(bundle.rootfs(name), fs::Permissions::from_mode(0o710)).unwrap();
    }
    let tmpfs = |at: &str, options: Value| json!({"destination": at, "type": "tmpfs", "source": "x", "options": options});
    let bundle = bundle
        .mount(tmpfs("/covers", json!([])))
        .mount(tmpfs("/told", json!(["mode=0444"])))
        .mount(tmpfs("/new", json!([])))
        .save();
    assert_eq!(runtime.output(&bundle), "710\n444\n1777\n");
    runtime.assert_clean();
}

#[test]
fn links_and_relative_destinations_stay_in_the_root() {
    let runtime = Runtime::new();
    let shared = runtime.root.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "found\n").unwrap();
    let bundle = runtime.sh("cat /real/a/file /relative/file /dangling/to/file");
    fs::create_dir(bundle.rootfs("/real")).unwrap();
    symlink("/real", bundle.rootfs("/link")).unwrap();
    symlink("/dangling", bundle.rootfs("/broken")).unwrap();
    let bind = |at: &str| json!({"destination": at, "source": shared, "options": ["bind"]});
    let bundle = bundle.mount(bind("/link/a")).mount(bind("relative")).mount(bind("/broken/to")).save();
    let out = runtime.run(&bundle).success();
    assert_eq!(out.stdout, "found\nfound\nfound\n");
    assert!(!Path::new("/relative").exists() && !Path::new("/dangling").exists());
    runtime.assert_clean();
}

#[test]
fn propagation_of_the_root_and_through_it() {
    let runtime = Runtime::new();
    // Debian's runc makes a slave of a private mount.
    if runtime.is_reference() {
        return;
    }
    for (word, tags) in [
        ("private", ""),
        ("rprivate", ""),
        ("slave", "master"),
        ("rslave", "master"),
        ("shared", "shared"),
        ("rshared", "shared"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ] {
        let bundle = runtime
            .sh("cat /proc/self/mountinfo")
            .edit(|config| config["linux"]["rootfsPropagation"] = json!(word));
        let bundle = bundle.save();
        // The bundle lies on a shared mount of its own, as on a machine with systemd, and another has a shared mount below it.
        let (dir, table) = (bundle.path().to_owned(), runtime.root.join("table"));
        let script = format!(
            "mount --bind '{0}' '{0}' && cd '{0}' && mkdir -p a && mount -t tmpfs a a && mkdir a/b && mount -t tmpfs b a/b && \
             mount --make-rshared . && \"$@\" >'{1}' && mountpoint -q a/b",
            dir.display(),
            table.display()
        );
        Cmd::new(binaries::system("unshare"))
            .args(["--mount", "--propagation", "shared", "sh", "-c", &script, "sh"])
            .arg(binaries::orlop())
            .arg("--root")
            .arg(runtime.state_dir())
            .args(["run", "c1"])
            .run()
            .success();
        let table = fs::read_to_string(&table).unwrap();
        let root = table.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        let fields = root.split(" - ").next().unwrap().split(' ').skip(6);
        let found: Vec<_> = fields.map(|tag| tag.split(':').next().unwrap()).collect();
        assert!(
            found.join(",").starts_with(tags) && (!tags.is_empty() || found.is_empty()),
            "{word}: {root}"
        );
    }
    runtime.assert_clean();
}
