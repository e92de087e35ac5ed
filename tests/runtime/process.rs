//! What the container's process is given: user, capabilities, limits, environment, directory, descriptors.

use std::fs;
use std::os::fd::AsRawFd;

use serde_json::{Value, json};

use super::support::Runtime;

fn status_field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.map(|value| value.trim().to_owned()).unwrap_or_default()
}

#[test]
fn arguments_environment_and_directory() {
    let runtime = Runtime::new();
    let bundle = runtime
        .sh("pwd; echo $A; echo ${HOME}; echo \"$0|$*\"")
        .env("A=b c")
        .edit(|config| {
            config["process"]["cwd"] = json!("/tmp");
            config["process"]["args"].as_array_mut().unwrap().extend([
                json!("name"),
                json!("x y"),
                json!(""),
            ]);
        })
        .save();
    assert_eq!(runtime.output(&bundle), "/tmp\nb c\n/root\nname|x y \n");
    runtime.assert_clean();
}

#[test]
fn a_missing_directory_is_made() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("pwd").edit(|config| config["process"]["cwd"] = json!("/not/there"));
    assert_eq!(runtime.output(&bundle.save()), "/not/there\n");
    runtime.assert_clean();
}

#[test]
fn user_and_groups() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("id -u; id -g; id -G; umask; echo $HOME").edit(|config| {
        config["process"]["user"] =
            json!({"uid": 1000, "gid": 1000, "additionalGids": [2000, 5], "umask": 0o027});
        config["process"]["capabilities"] = json!({});
    });
    assert_eq!(runtime.output(&bundle.save()), "1000\n1000\n1000 5 2000\n0027\n/home/user\n");
    runtime.assert_clean();
}

#[test]
fn capabilities_are_the_listed_ones() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("cat /proc/self/status").edit(|config| {
        config["process"]["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
            "effective": ["CAP_KILL"],
            "permitted": ["CAP_CHOWN", "CAP_KILL"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL"]
        });
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    let status = runtime.output(&bundle.save());
    let kill = format!("{:016x}", 1 << 5);
    assert_eq!(status_field(&status, "CapBnd"), format!("{:016x}", 1 | 1 << 5 | 1 << 13));
    // An ordinary user's program keeps what is ambient.
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(status_field(&status, set), kill, "{set}");
    }
    runtime.assert_clean();
}

#[test]
fn no_capabilities_at_all() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("cat /proc/self/status").edit(|config| {
        config["process"].as_object_mut().unwrap().remove("capabilities");
    });
    let status = runtime.output(&bundle.save());
    for set in ["CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(status_field(&status, set), "0000000000000000", "{set}");
    }
    runtime.assert_clean();
}

#[test]
fn no_new_privileges() {
    let runtime = Runtime::new();
    for (wanted, shown) in [(true, "1"), (false, "0")] {
        let bundle = runtime
            .sh("cat /proc/self/status")
            .edit(|config| config["process"]["noNewPrivileges"] = json!(wanted));
        assert_eq!(status_field(&runtime.output(&bundle.save()), "NoNewPrivs"), shown);
    }
    runtime.assert_clean();
}

#[test]
fn resource_limits() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("cat /proc/self/limits").edit(|config| {
        config["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_NPROC", "soft": 300, "hard": 400},
            {"type": "RLIMIT_STACK", "soft": 8192000, "hard": 8192000},
            {"type": "RLIMIT_CPU", "soft": 77, "hard": 88}]);
    });
    let limits = runtime.output(&bundle.save());
    let row = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("Max open files"), ["100", "200"]);
    assert_eq!(row("Max core file size"), ["0", "0"]);
    assert_eq!(row("Max processes"), ["300", "400"]);
    assert_eq!(row("Max stack size"), ["8192000", "8192000"]);
    assert_eq!(row("Max cpu time"), ["77", "88"]);
    runtime.assert_clean();
}

#[test]
fn raising_the_oom_score() {
    let runtime = Runtime::new();
    let bundle = runtime
        .sh("cat /proc/self/oom_score_adj")
        .edit(|config| config["process"]["oomScoreAdj"] = json!(321));
    assert_eq!(runtime.output(&bundle.save()), "321\n");
    runtime.assert_clean();
}

/// A user namespace, new or another's, and a score.
fn user_namespace(config: &mut Value, path: Option<&str>) {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let namespace = match path {
        Some(path) => json!({"type": "user", "path": path}),
        None => json!({"type": "user"}),
    };
    config["process"]["oomScoreAdj"] = json!(7);
    config["linux"]["namespaces"].as_array_mut().unwrap().push(namespace);
    if path.is_none() {
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    }
    config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
}

fn open_to_root_of_user_namespace(bundle: &orlop_tests::Bundle) {
    for path in ["", "tmp", "bin", "etc", "dev", "proc", "sys"] {
        std::os::unix::fs::chown(bundle.rootfs(path), Some(100_000), Some(100_000)).unwrap();
    }
}

#[test]
fn a_user_namespace_has_a_lower_score_than_its_caller() {
    let runtime = Runtime::new();
    let bundle =
        runtime.sh("cat /proc/self/oom_score_adj").edit(|config| user_namespace(config, None)).save();
    open_to_root_of_user_namespace(&bundle);
    // What somebody with rights was given is the least that others may take.
    let script = "echo 300 > /proc/self/oom_score_adj && \"$@\" && cat /proc/self/oom_score_adj";
    let run = |bundle: &orlop_tests::Bundle, id: &str| {
        let orlop =
            orlop_tests::Cmd::new("/bin/sh").args(["-c", script, "sh"]).arg(orlop_tests::binaries::orlop());
        orlop
            .arg("--root")
            .arg(runtime.state_dir())
            .args(["run", "--bundle"])
            .arg(bundle.path())
            .arg(id)
            .run()
    };
    assert_eq!(run(&bundle, "made").success().stdout, "7\n300\n");
    // And of one that joins another's, whose init is born in there.
    let first = runtime.sleeper().edit(|config| user_namespace(config, None)).save();
    open_to_root_of_user_namespace(&first);
    runtime.detach(&first, "first");
    let path = format!("/proc/{}/ns/user", runtime.pid("first"));
    let joins =
        runtime.sh("cat /proc/self/oom_score_adj").edit(|config| user_namespace(config, Some(&path))).save();
    open_to_root_of_user_namespace(&joins);
    assert_eq!(run(&joins, "joins").success().stdout, "7\n300\n");
    runtime.call(&["delete", "--force", "first"]).success();
    runtime.assert_clean();
}

#[test]
fn only_the_standard_streams_are_open() {
    let runtime = Runtime::new();
    let file = fs::File::open("/etc/passwd").unwrap();
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let bundle = runtime.sh("ls /proc/self/fd").save();
    let list = runtime.output(&bundle);
    // ls has the directory itself open.
    assert_eq!(
        list.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"],
        "leaked {}",
        file.as_raw_fd()
    );
    runtime.assert_clean();
}

#[test]
fn preserved_descriptors_and_socket_activation() {
    use std::os::unix::process::CommandExt;
    let runtime = Runtime::new();
    let kept = runtime.root.join("kept");
    fs::write(&kept, "kept\n").unwrap();
    let bundle = runtime.sh("cat <&3; ls /proc/self/fd | wc -l; echo $LISTEN_FDS").save();
    for (variable, expected) in [(None, "kept\n5\n\n"), (Some("LISTEN_FDS"), "kept\n5\n1\n")] {
        // A shell puts the file at descriptor 3, wherever ours is.
        let script = format!("exec 3<'{}'; LISTEN_PID=$$ exec \"$@\"", kept.display());
        let mut words: Vec<std::ffi::OsString> =
            vec!["--root".into(), runtime.state_dir().into(), "run".into()];
        if variable.is_none() {
            words.extend(["--preserve-fds".into(), "1".into()]);
        }
        words.extend(["--bundle".into(), bundle.path().into(), "c1".into()]);
        let mut command = orlop_tests::Cmd::new("/bin/sh")
            .args(["-c", &script, "sh"])
            .arg(orlop_tests::binaries::orlop())
            .args(words)
            .with(|command| {
                command.arg0("sh");
            });
        if let Some(name) = variable {
            command = command.env(name, "1");
        }
        assert_eq!(command.run().success().stdout, expected);
    }
    runtime.assert_clean();
}

#[test]
fn a_descriptor_to_preserve_must_be_open() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("true").save();
    let out = runtime
        .cmd()
        .args(["run", "--preserve-fds", "90", "-b"])
        .arg(bundle.path())
        .arg("c1")
        .run()
        .failure();
    assert!(out.stderr.contains("preserve"), "{out}");
    runtime.assert_clean();
}

#[test]
fn the_program_is_looked_up_in_the_containers_path() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("").args(["mine"]).env("PATH=/opt").save();
    fs::create_dir(bundle.rootfs("/opt")).unwrap();
    std::os::unix::fs::symlink("/bin/busybox", bundle.rootfs("/opt/mine")).unwrap();
    // busybox knows no applet of that name; that it says so shows that it has run.
    let out = runtime.run(&bundle);
    assert!(out.stderr.contains("applet not found"), "{out}");
    runtime.assert_clean();
}

#[test]
fn a_personality() {
    let runtime = Runtime::new();
    let bundle =
        runtime.sh("uname -m").edit(|config| config["linux"]["personality"] = json!({"domain": "LINUX32"}));
    let out = runtime.run(&bundle.save());
    // runc learnt this in 1.2 only.
    if !runtime.is_reference() {
        assert_eq!(out.success().stdout, "i686\n");
    }
    runtime.assert_clean();
}
