//! `features` tells the truth: each entry has a test that uses it, here or in the file that a comment names.

use std::fs;

use orlop_tests::{Cmd, binaries};
use serde_json::{Value, json};

use super::support::Runtime;

fn features(runtime: &Runtime) -> Value {
    serde_json::from_str(&runtime.call(&["features"]).success().stdout).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn has_the_specifications_form() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let features = features(&runtime);
    let top = [
        "annotations",
        "hooks",
        "linux",
        "mountOptions",
        "ociVersionMax",
        "ociVersionMin",
        "potentiallyUnsafeConfigAnnotations",
    ];
    assert_eq!(keys(&features), top);
    let linux = &features["linux"];
    let parts = [
        "apparmor",
        "capabilities",
        "cgroup",
        "intelRdt",
        "memoryPolicy",
        "mountExtensions",
        "namespaces",
        "netDevices",
        "seccomp",
        "selinux",
    ];
    assert_eq!(keys(linux), parts);
    assert_eq!(keys(&linux["cgroup"]), ["rdma", "systemd", "systemdUser", "v1", "v2"]);
    let seccomp = ["actions", "archs", "enabled", "knownFlags", "operators", "supportedFlags"];
    assert_eq!(keys(&linux["seccomp"]), seccomp);
    // Mount options: mount_options.rs. Seccomp: seccomp_profiles.rs. Modes of memory: scheduling.rs. Id-mapped mounts:
    // mount_options.rs. Network devices: netdevices.rs. RDT: resctrl.rs. AppArmor: apparmor.rs. cgroups: limits.rs, resources.rs.
    assert_eq!(linux["mountExtensions"], json!({"idmap": {"enabled": true}}));
    assert_eq!(linux["netDevices"], json!({"enabled": true}));
    assert_eq!(linux["intelRdt"], json!({"enabled": true, "schemata": true, "monitoring": true}));
}

#[test]
fn every_version_is_accepted_and_no_other_major_one() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let features = features(&runtime);
    for version in
        [&features["ociVersionMin"], &features["ociVersionMax"], &json!("1.0.2-dev"), &json!("1.99.0")]
    {
        let bundle = runtime.sh("echo ran").edit(|config| config["ociVersion"] = version.clone());
        assert_eq!(runtime.output(&bundle.save()), "ran\n", "{version}");
    }
    let bundle = runtime.sh("echo ran").edit(|config| config["ociVersion"] = json!("2.0.0"));
    assert!(runtime.run(&bundle.save()).failure().stderr.contains("2.0.0"));
    runtime.assert_clean();
}

#[test]
fn every_hook_runs_once_at_its_time_and_place() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let log = runtime.root.join("log");
    let kinds = names(&features(&runtime)["hooks"]);
    assert_eq!(
        kinds,
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    );
    // The container's log is the host's, mounted.
    fs::write(&log, "").unwrap();
    let bundle = runtime.sh("echo program >>/log").edit(|config| {
        for kind in &kinds {
            let (shell, at) = if kind == "startContainer" {
                ("/bin/sh", "/log".into())
            } else {
                ("/bin/sh", log.display().to_string())
            };
            let script =
                format!("echo {kind} $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/uts) >>{at}");
            config["hooks"][kind] =
                json!([{"path": shell, "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]);
        }
    });
    let bundle = bundle.mount(json!({"destination": "/log", "source": log, "options": ["bind"]})).save();
    runtime.create(&bundle, "c1");
    let lines = || fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines().len(), 3);
    let pid = runtime.pid("c1");
    let link =
        |of: &str, kind: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).unwrap().display().to_string();
    let (own, theirs) = (
        format!("{} {}", link("self", "mnt"), link("self", "uts")),
        format!("{} {}", link(&pid.to_string(), "mnt"), link(&pid.to_string(), "uts")),
    );
    runtime.call(&["start", "c1"]).success();
    runtime.wait_for("c1", "stopped");
    runtime.call(&["delete", "c1"]).success();
    let found = lines();
    let expect = |kind: &str, place: &str| {
        assert!(found.contains(&format!("{kind} {place}")), "{kind} in {place}: {found:#?}")
    };
    for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
        expect(kind, &own);
    }
    for kind in ["createContainer", "startContainer"] {
        expect(kind, &theirs);
    }
    let first_words: Vec<_> = found.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(first_words[..4], ["prestart", "createRuntime", "createContainer", "startContainer"]);
    // The program and the hooks after its start run side by side.
    assert!(first_words[4..6].contains(&"program") && first_words[4..6].contains(&"poststart"), "{found:#?}");
    assert_eq!(first_words[6..], ["poststop"]);
    runtime.assert_clean();
}

#[test]
fn every_namespace_can_be_new_and_be_joined() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let kinds = names(&features(&runtime)["linux"]["namespaces"]);
    assert_eq!(kinds, ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]);
    let file = |kind: &str| match kind {
        "mount" => "mnt".to_owned(),
        "network" => "net".to_owned(),
        kind => kind.to_owned(),
    };
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let own = |bundle: &orlop_tests::Bundle| {
        for path in ["", "dev", "proc", "sys"] {
            std::os::unix::fs::chown(bundle.rootfs(path), Some(100_000), Some(100_000)).unwrap();
        }
    };
    let bundle = runtime.sleeper().edit(|config| {
        config["linux"]["namespaces"] = kinds.iter().map(|kind| json!({"type": kind})).collect();
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map.clone();
    });
    let bundle = bundle.save();
    own(&bundle);
    runtime.detach(&bundle, "first");
    let first = runtime.pid("first");
    let link = |of: &str, kind: &str| fs::read_link(format!("/proc/{of}/ns/{}", file(kind))).unwrap();
    for kind in &kinds {
        assert_ne!(link(&first.to_string(), kind), link("self", kind), "{kind}");
    }
    // A pod: another container in all of them but its own mounts, by path.
    let bundle = runtime.sleeper().edit(|config| {
        let joined = |kind: &String| match kind.as_str() {
            "mount" => json!({"type": "mount"}),
            _ => json!({"type": kind, "path": format!("/proc/{first}/ns/{}", file(kind))}),
        };
        config["linux"]["namespaces"] = kinds.iter().map(joined).collect();
        config.as_object_mut().unwrap().remove("hostname");
    });
    let bundle = bundle.save();
    own(&bundle);
    runtime.detach(&bundle, "second");
    let second = runtime.pid("second").to_string();
    for kind in kinds.iter().filter(|kind| *kind != "mount") {
        assert_eq!(link(&second, kind), link(&first.to_string(), kind), "{kind}");
    }
    // What joins a container is in the same ones.
    let script =
        kinds.iter().map(|kind| format!("readlink /proc/self/ns/{};", file(kind))).collect::<String>();
    let inside = runtime.exec("second", &["sh", "-c", &script]).success().stdout;
    let expected: Vec<_> = kinds.iter().map(|kind| link(&second, kind).display().to_string()).collect();
    assert_eq!(inside.lines().collect::<Vec<_>>(), expected);
    runtime.call(&["delete", "--force", "second"]).success();
    // A path must lead to a namespace of its type.
    for (kind, path) in [("uts", "/proc/self/ns/net"), ("network", "/etc/passwd"), ("ipc", "/no/such")] {
        let bundle = runtime.sh("echo ran").edit(|config| {
            config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": kind, "path": path}]);
            config.as_object_mut().unwrap().remove("hostname");
        });
        let out = runtime.run(&bundle.save()).failure();
        assert!(out.stdout.is_empty() && out.stderr.contains(path), "{out}");
    }
    let bundle = runtime.sh("echo ran").edit(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "no-such"}))
    });
    assert!(runtime.run(&bundle.save()).failure().stderr.contains("no-such"));
    runtime.finish("first");
}

#[test]
fn every_capability_that_the_caller_has_in_every_set() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let all = names(&features(&runtime)["linux"]["capabilities"]);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let owned = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
    let owned = u64::from_str_radix(owned, 16).unwrap();
    // They come in the kernel's order.
    assert_eq!(
        (all.len(), all[0].as_str(), all[21].as_str(), all[40].as_str()),
        (41, "CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE")
    );
    let own: Vec<_> =
        all.iter().enumerate().filter(|(bit, _)| owned & (1 << bit) != 0).map(|(_, name)| name).collect();
    let bundle = runtime.sh("grep ^Cap /proc/self/status | cut -f2").edit(|config| {
        config["process"]["capabilities"] =
            json!({"bounding": own, "effective": own, "permitted": own, "inheritable": own, "ambient": own});
        // Ambient ones are what a user who is not root keeps over the exec of a program.
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    let expected = format!("{owned:016x}\n").repeat(5);
    assert_eq!(runtime.output(&bundle.save()), expected);
    // One that nobody knows, or that the caller lacks, is warned of and left out.
    let bundle = runtime.sh("echo ran").edit(|config| {
        config["process"]["capabilities"]["bounding"] = json!(["CAP_CHOWN", "CAP_FUTURE"]);
    });
    let out = runtime.run(&bundle.save()).success();
    assert!(out.stdout == "ran\n" && out.stderr.contains("CAP_FUTURE"), "{out}");
    runtime.assert_clean();
}

#[test]
fn clocks_of_a_time_namespace() {
    let runtime = Runtime::new();
    // runc learnt this in 1.2.
    if runtime.is_reference() {
        return;
    }
    let uptime =
        || -> f64 { fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse().unwrap() };
    let before = uptime();
    let bundle = runtime.sh("cat /proc/self/timens_offsets; cut -d' ' -f1 /proc/uptime").edit(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
        config["linux"]["timeOffsets"] =
            json!({"monotonic": {"secs": 7881, "nanosecs": 2718281}, "boottime": {"secs": 1337000}});
    });
    let out = runtime.output(&bundle.save());
    let words: Vec<_> = out.split_whitespace().collect();
    assert_eq!(words[..6], ["monotonic", "7881", "2718281", "boottime", "1337000", "0"]);
    let inside: f64 = words[6].parse().unwrap();
    assert!(inside >= before + 1_337_000.0 && inside <= uptime() + 1_337_001.0, "{inside}");
    // And in an exec.
    let bundle = runtime.sleeper().edit(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
        config["linux"]["timeOffsets"] = json!({"boottime": {"secs": -1, "nanosecs": 500}});
    });
    runtime.detach(&bundle.save(), "c1");
    let out = runtime.exec("c1", &["cat", "/proc/self/timens_offsets"]).success().stdout;
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["monotonic", "0", "0", "boottime", "-1", "500"]);
    runtime.finish("c1");
    for (namespace, offsets) in [
        (None, json!({"monotonic": {"secs": 1}})),
        (Some(json!({"type": "time"})), json!({"realtime": {"secs": 1}})),
        (Some(json!({"type": "time"})), json!({"monotonic": {"nanosecs": 1_000_000_000_u32}})),
        (Some(json!({"type": "time", "path": "/proc/self/ns/time"})), json!({"monotonic": {"secs": 1}})),
    ] {
        let bundle = runtime.sh("echo ran").edit(|config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().extend(namespace);
            config["linux"]["timeOffsets"] = offsets;
        });
        assert!(runtime.run(&bundle.save()).failure().stdout.is_empty());
    }
    runtime.assert_clean();
}

#[test]
fn labels_for_modules_that_the_kernel_lacks_are_refused() {
    let runtime = Runtime::new();
    if fs::metadata("/sys/fs/selinux/enforce").is_ok() {
        return;
    }
    let label = "system_u:system_r:container_t:s0:c1,c2";
    let bundle = runtime.sh("echo ran").edit(|config| config["process"]["selinuxLabel"] = json!(label));
    let out = runtime.run(&bundle.save()).failure();
    assert!(out.stderr.contains("selinux is disabled or not supported"), "{out}");
    let bundle = runtime.sh("echo ran").edit(|config| config["linux"]["mountLabel"] = json!(label));
    assert!(runtime.run(&bundle.save()).failure().stdout.is_empty());
    runtime.assert_clean();
}

#[test]
fn what_the_future_brings_is_passed_over() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("echo ran").edit(|config| {
        let future = json!({"a": [1, {"b": null}], "c": "d"});
        config["newMember"] = future.clone();
        for part in ["process", "root", "linux"] {
            config[part]["newMember"] = future.clone();
        }
        config["mounts"][0]["newMember"] = future.clone();
        config["linux"]["resources"]["newMember"] = future.clone();
        config["linux"]["namespaces"][0]["newMember"] = future.clone();
        config["process"]["user"]["newMember"] = future;
        config["annotations"] = json!({"org.example.new": "value"});
        // Other systems' parts, and what is null, are none of ours.
        config["windows"] = json!({"layerFolders": ["c"]});
        config["vm"] = json!({"kernel": {"path": "/k"}});
        config["linux"]["seccomp"] = json!(null);
        config["process"]["rlimits"] = json!(null);
    });
    assert_eq!(runtime.output(&bundle.save()), "ran\n");
    runtime.assert_clean();
}

#[test]
fn a_container_without_a_mount_namespace() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let bundle = runtime
        .sh("cat /file; pwd; ls -d /root; readlink /proc/self/ns/mnt || echo no procfs")
        .edit(|config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "mount");
            config["linux"].as_object_mut().unwrap().remove("maskedPaths");
            config["linux"].as_object_mut().unwrap().remove("readonlyPaths");
            config["mounts"] = json!([]);
        });
    let bundle = bundle.save();
    fs::write(bundle.rootfs("/file"), "of the container\n").unwrap();
    assert_eq!(runtime.output(&bundle), "of the container\n/\n/root\nno procfs\n");
    assert_eq!(mounts(), before);
    runtime.assert_clean();
    // Its mounts are the host's, and go with it; those that were there before stay.
    let volume = bundle.rootfs("/volume");
    fs::create_dir(&volume).unwrap();
    nix::mount::mount(Some("x"), &volume, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    fs::write(volume.join("file"), "on a volume\n").unwrap();
    let with_volume = mounts();
    let bundle = bundle.sh("cat /volume/file /proc/self/comm").edit(|config| {
        config["mounts"] = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/tmp/share", "source": "/usr/share", "options": ["bind"]}]);
    });
    let bundle = bundle.save();
    assert_eq!(runtime.output(&bundle), "on a volume\ncat\n");
    assert_eq!(mounts(), with_volume);
    // After a failure, too.
    let broken = bundle.clone().edit(|config| config["process"]["args"] = json!(["no-such-program"])).save();
    runtime.run(&broken).failure();
    assert_eq!(mounts(), with_volume);
    nix::mount::umount(&volume).unwrap();
    runtime.assert_clean();
    for change in [
        |config: &mut Value| config["linux"]["maskedPaths"] = json!(["/proc/kcore"]),
        |config: &mut Value| config["root"]["readonly"] = json!(true),
        |config: &mut Value| config["linux"]["rootfsPropagation"] = json!("shared"),
    ] {
        let bundle = bundle.clone().edit(change).save();
        let out = runtime.run(&bundle).failure();
        assert!(out.stdout.is_empty() && out.stderr.contains("without a private MNT namespace"), "{out}");
        assert_eq!(mounts(), before);
        runtime.assert_clean();
    }
}

/// No kernel here has SELinux: what would be written is seen by strace, in a test build that takes it to be there.
#[test]
fn selinux_labels_are_written_where_the_kernel_takes_them() {
    let runtime = Runtime::new();
    if runtime.is_reference() || fs::metadata("/sys/fs/selinux/enforce").is_ok() {
        return;
    }
    let label = "system_u:system_r:container_t:s0:c1,c2";
    let traced = |words: &[&str], with_mount_label: bool| {
        let bundle = runtime.sh("echo ran").edit(|config| {
            config["process"]["selinuxLabel"] = json!(label);
            if words.contains(&"--no-pivot") {
                config["mounts"] = json!([{"destination": "/q", "type": "mqueue", "source": "mqueue"}]);
            }
            if with_mount_label {
                config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
            }
        });
        let bundle = bundle.save();
        let trace = runtime.root.join("trace");
        let out = Cmd::new(binaries::system("strace"))
            .args(["-f", "-s", "200", "-e", "trace=write,fsconfig,setxattr", "-o"])
            .arg(&trace)
            .arg(super::attacks::switchable())
            .arg("--root")
            .arg(runtime.state_dir())
            .args(words)
            .arg("--bundle")
            .arg(bundle.path())
            .arg("c1")
            .env("ORLOP_TEST_OFF", "selinux-probe")
            .run();
        (out.failure(), fs::read_to_string(trace).unwrap())
    };
    let written = format!("\"{label}\", {}", label.len());
    // Each write is refused by this kernel, so that the next one needs a container without the one before.
    let (out, trace) = traced(&["run"], true);
    assert!(trace.contains(&written) && out.stderr.contains("attr/keycreate"), "{out}\n{trace}");
    let (_, trace) = traced(&["run", "--no-new-keyring"], true);
    assert!(trace.contains("\"context\", \"system_u:object_r:container_file_t:s0\""), "{trace}");
    let (out, trace) = traced(&["run", "--no-new-keyring", "--no-pivot"], true);
    let labelled = "\"security.selinux\", \"system_u:object_r:container_file_t:s0\"";
    assert!(trace.contains(labelled) && out.stderr.contains("label it"), "{out}\n{trace}");
    let (out, trace) = traced(&["run", "--no-new-keyring"], false);
    assert!(trace.contains(&written) && out.stderr.contains("attr/exec"), "{out}\n{trace}");
    runtime.assert_clean();
}
