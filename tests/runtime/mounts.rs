//! Mounts: kinds, options, order, masks.

use std::fs;

use orlop_tests::Cmd;
use serde_json::json;

use super::support::Runtime;

/// The options of the mount at `target`, from the container's own table.
fn options(table: &str, target: &str) -> (Vec<String>, Vec<String>) {
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(target));
    let line = line.unwrap_or_else(|| panic!("no mount at {target}:\n{table}"));
    let (mount, file_system) = line.split_once(" - ").unwrap();
    let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    (words(mount.split(' ').nth(5).unwrap()), words(file_system.split(' ').nth(2).unwrap()))
}

#[test]
fn a_bind_mount_is_the_same_directory() {
    let runtime = Runtime::new();
    let shared = runtime.root.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("in"), "in\n").unwrap();
    let bundle = runtime
        .sh("cat /mnt/a/in; echo out >/mnt/a/out")
        .mount(json!({"destination": "/mnt/a", "type": "bind", "source": shared, "options": ["rbind", "rw"]}))
        .save();
    assert_eq!(runtime.output(&bundle), "in\n");
    assert_eq!(fs::read_to_string(shared.join("out")).unwrap(), "out\n");
    runtime.assert_clean();
}

#[test]
fn a_file_is_bound_onto_a_file_that_is_made() {
    let runtime = Runtime::new();
    let file = runtime.root.join("file");
    fs::write(&file, "bound\n").unwrap();
    let bundle = runtime
        .sh("cat /new/place/file; echo x >/new/place/file && echo written")
        .mount(json!({"destination": "/new/place/file", "type": "bind", "source": file, "options": ["bind", "ro"]}))
        .save();
    let out = runtime.run(&bundle);
    assert_eq!(out.stdout, "bound\n");
    assert!(out.stderr.contains("Read-only file system"), "{out}");
    runtime.assert_clean();
}

#[test]
fn every_flag_of_a_mount() {
    let runtime = Runtime::new();
    let cases = [
        ("ro", "ro"),
        ("nosuid", "nosuid"),
        ("nodev", "nodev"),
        ("noexec", "noexec"),
        ("noatime", "noatime"),
        ("nodiratime", "nodiratime"),
        ("relatime", "relatime"),
    ];
    let mut bundle = runtime.sh("cat /proc/self/mountinfo");
    for (option, _) in cases {
        for (kind, source) in [("tmpfs", "tmpfs"), ("bind", "/usr/share")] {
            let base = if kind == "bind" { vec!["rbind", option] } else { vec![option] };
            bundle = bundle.mount(json!({"destination": format!("/m/{kind}/{option}"), "type": kind, "source": source, "options": base}));
        }
    }
    let table = runtime.output(&bundle.save());
    for (option, shown) in cases {
        for kind in ["tmpfs", "bind"] {
            let (flags, _) = options(&table, &format!("/m/{kind}/{option}"));
            assert!(flags.iter().any(|flag| flag == shown), "{kind} {option}: {flags:?}");
        }
    }
    runtime.assert_clean();
}

#[test]
fn later_options_win() {
    let runtime = Runtime::new();
    let bundle = runtime
        .sh("cat /proc/self/mountinfo")
        .mount(json!({"destination": "/m/a", "type": "tmpfs", "source": "x", "options": ["ro", "noexec", "rw", "exec", "size=64k", "mode=700"]}))
        .save();
    let table = runtime.output(&bundle);
    let (flags, data) = options(&table, "/m/a");
    assert!(flags.contains(&"rw".to_owned()) && !flags.contains(&"noexec".to_owned()), "{flags:?}");
    assert!(data.contains(&"size=64k".to_owned()) && data.contains(&"mode=700".to_owned()), "{data:?}");
    runtime.assert_clean();
}

#[test]
fn propagation_of_single_mounts() {
    let runtime = Runtime::new();
    let mut bundle = runtime.sh("cat /proc/self/mountinfo");
    for option in ["private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"]
    {
        bundle = bundle.mount(json!({"destination": format!("/m/{option}"), "type": "tmpfs", "source": "x", "options": [option]}));
    }
    let table = runtime.output(&bundle.save());
    let tags = |target: &str| {
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(target)).unwrap();
        let (mount, _) = line.split_once(" - ").unwrap();
        mount.split(' ').skip(6).map(|tag| tag.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for name in ["private", "rprivate"] {
        assert!(tags(&format!("/m/{name}")).is_empty());
    }
    for name in ["shared", "rshared"] {
        assert_eq!(tags(&format!("/m/{name}")), ["shared"]);
    }
    for name in ["unbindable", "runbindable"] {
        assert_eq!(tags(&format!("/m/{name}")), ["unbindable"]);
    }
    runtime.assert_clean();
}

#[test]
fn mounts_are_made_in_order_and_lie_on_each_other() {
    let runtime = Runtime::new();
    let source = runtime.root.join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("deep"), "deep\n").unwrap();
    let bundle = runtime
        .sh("cat /a/b/deep")
        .mount(json!({"destination": "/a", "type": "tmpfs", "source": "tmpfs"}))
        .mount(json!({"destination": "/a/b", "type": "bind", "source": source, "options": ["bind"]}))
        .save();
    assert_eq!(runtime.output(&bundle), "deep\n");
    runtime.assert_clean();
}

#[test]
fn a_relative_source_counts_from_the_bundle() {
    let runtime = Runtime::new();
    let bundle = runtime
        .sh("cat /m/x")
        .mount(json!({"destination": "/m", "type": "bind", "source": "beside", "options": ["bind"]}))
        .save();
    fs::create_dir(bundle.path().join("beside")).unwrap();
    fs::write(bundle.path().join("beside/x"), "beside\n").unwrap();
    assert_eq!(runtime.output(&bundle), "beside\n");
    runtime.assert_clean();
}

#[test]
fn a_link_in_the_rootfs_leads_nowhere_but_into_it() {
    let runtime = Runtime::new();
    let bundle = runtime
        .sh("cat /inside/x")
        .mount(
            json!({"destination": "/link/x", "type": "bind", "source": "/etc/hostname", "options": ["bind"]}),
        )
        .save();
    let outside = runtime.root.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir_all(bundle.rootfs(outside.to_str().unwrap())).unwrap();
    std::os::unix::fs::symlink(&outside, bundle.rootfs("/link")).unwrap();
    std::os::unix::fs::symlink(&outside, bundle.rootfs("/inside")).unwrap();
    runtime.run(&bundle).success();
    assert!(!outside.join("x").exists(), "the host's directory of that name is untouched");
    runtime.assert_clean();
}

#[test]
fn a_read_only_rootfs() {
    let runtime = Runtime::new();
    let bundle =
        runtime.sh("echo x >/tmp/x && echo written").edit(|config| config["root"]["readonly"] = json!(true));
    let out = runtime.run(&bundle.save());
    assert_eq!(out.stdout, "");
    assert!(out.stderr.contains("Read-only file system"), "{out}");
    runtime.assert_clean();
}

#[test]
fn masked_and_read_only_paths() {
    let runtime = Runtime::new();
    let bundle = runtime
        .sh("cat /proc/keys; ls /masked; echo x >/ro/file; ls /ro")
        .edit(|config| {
            config["linux"]["maskedPaths"] = json!(["/proc/keys", "/masked", "/not/there"]);
            config["linux"]["readonlyPaths"] = json!(["/ro", "/proc/sys", "/not/there/either"]);
        })
        .save();
    fs::create_dir(bundle.rootfs("/masked")).unwrap();
    fs::write(bundle.rootfs("/masked/secret"), "").unwrap();
    fs::create_dir(bundle.rootfs("/ro")).unwrap();
    let out = runtime.run(&bundle);
    assert_eq!(out.stdout, "");
    assert!(out.stderr.contains("Read-only file system"), "{out}");
    assert!(!bundle.rootfs("/ro/file").exists());
    runtime.assert_clean();
}

#[test]
fn the_old_root_is_gone() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("cat /proc/self/mountinfo; ls -a /").save();
    let out = runtime.output(&bundle);
    assert!(!out.contains(".pivot") && !out.contains("put_old"), "{out}");
    assert_eq!(out.lines().filter(|line| line.split(' ').nth(4) == Some("/")).count(), 1, "{out}");
    runtime.assert_clean();
}

#[test]
fn a_rootfs_that_receives_nothing() {
    let runtime = Runtime::new();
    for wanted in ["private", "rprivate", "slave", "rslave"] {
        let bundle = runtime
            .sh("cat /proc/self/mountinfo")
            .edit(|config| config["linux"]["rootfsPropagation"] = json!(wanted));
        let table = runtime.output(&bundle.save());
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        assert!(!line.contains("shared:"), "{wanted}: {line}");
    }
    runtime.assert_clean();
}

#[test]
fn nothing_of_the_containers_mounts_is_seen_on_the_host() {
    let runtime = Runtime::new();
    let bundle =
        runtime.sleeper().mount(json!({"destination": "/m/tmp", "type": "tmpfs", "source": "tmpfs"})).save();
    runtime.detach(&bundle, "c1");
    assert!(runtime.root.leaks().mounts.is_empty());
    runtime.finish("c1");
}

/// As on hosts with systemd, where all mounts are shared; CRIU saves no mount that belongs together with one outside.
#[test]
fn cgroups_in_a_namespace_of_their_own_belong_to_no_mount_of_the_host() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("cat /proc/self/mountinfo").save();
    let run = runtime.cmd().args(["run", "--bundle"]).arg(bundle.path()).arg("c1");
    let shared = Cmd::new("unshare").args(["--mount", "--propagation", "shared"]).args(run.words());
    let table = shared.run().success().stdout;
    let cgroups: Vec<&str> = table.lines().filter(|line| line.contains(" - cgroup")).collect();
    assert!(!cgroups.is_empty(), "{table}");
    for line in cgroups {
        assert!(!line.contains("master:") && !line.contains("shared:"), "{line}");
    }
    runtime.assert_clean();
}

#[test]
fn copying_up_a_directory_into_a_tmpfs() {
    let runtime = Runtime::new();
    let bundle = runtime
        .sh("cat /data/file; stat -c %a /data; touch /data/new && ls /data")
        .mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}))
        .save();
    fs::create_dir(bundle.rootfs("/data")).unwrap();
    fs::write(bundle.rootfs("/data/file"), "copied\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(bundle.rootfs("/data"), fs::Permissions::from_mode(0o755)).unwrap();
    let out = runtime.output(&bundle);
    assert!(out.starts_with("copied\n") && out.ends_with("file\nnew\n"), "{out}");
    assert!(!bundle.rootfs("/data/new").exists());
    runtime.assert_clean();
}
