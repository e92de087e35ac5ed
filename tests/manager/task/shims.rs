//! Foreign shims: found by containerd's naming rule or by path, and those that misbehave at start.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use orlop_tests::{Orlopd, Output, Root, Variant, binaries, busybox_rootfs, host, poll_until};

use super::{DEADLINE, FOREIGN, Stage, foreign};

/// Runs a container under a shim that is this shell script.
fn run_under(stage: &Stage, script: &str) -> Output {
    let shim = stage.root.join("shim.sh");
    fs::write(&shim, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    stage.run(&["--rm", "--runtime", shim.to_str().unwrap()], "c", "true").run().failure()
}

fn assert_nothing_left(stage: &Stage) {
    assert_eq!(stage.status("c"), "");
    stage.assert_no_bundles();
    let bundles = stage.bundles();
    let working_there = host::processes()
        .into_iter()
        .filter(|process| {
            fs::read_link(format!("/proc/{}/cwd", process.pid)).is_ok_and(|cwd| cwd.starts_with(&bundles))
        })
        .collect::<Vec<_>>();
    assert!(working_there.is_empty(), "{working_there:#?}");
}

#[test]
fn a_name_that_no_shim_serves() {
    let stage = Stage::new(&foreign());
    for (runtime, expected) in [
        (
            "io.containerd.nope.v1",
            "failed to resolve runtime path: runtime \"io.containerd.nope.v1\" binary not installed \
             \"containerd-shim-nope-v1\": file does not exist",
        ),
        ("bad", "failed to resolve runtime path: invalid runtime name bad, correct runtime name should be"),
        ("/no/such", "invalid custom binary path: stat /no/such: no such file or directory"),
    ] {
        let out = stage.run(&["--rm", "--runtime", runtime], "c", "true").run().failure();
        assert!(out.stderr.contains("failed to start shim: ") && out.stderr.contains(expected), "{out}");
        assert_nothing_left(&stage);
    }
    stage.finish();
}

#[test]
fn a_shim_that_misbehaves_at_start() {
    let stage = Stage::new("[shim]\nstart_timeout = 2\n");
    for (script, expected) in [
        ("echo out; echo the reason >&2; exit 5", "the reason: exit status 5"),
        ("echo hello world", "the shim answered \"hello world\\n\", which is no address"),
        ("true", "the shim answered \"\", which is no address"),
        ("head -c 100000 /dev/zero", "which is no address"),
        (r#"echo '{"version":9,"address":"unix:///x","protocol":"ttrpc"}'"#, "unsupported shim version (9)"),
        (
            r#"echo '{"version":3,"address":"unix:///x","protocol":"http"}'"#,
            "unsupported shim protocol \"http\"",
        ),
        ("echo unix:///no/such/socket", "connect to shim unix:///no/such/socket: no such file or directory"),
        ("exec sleep 1000", "neither answered nor ended within 2s"),
        ("sleep 1000 & sleep 1000", "neither answered nor ended within 2s"),
        (
            "[ \"$1\" = x ] || setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo garbage",
            "which is no address",
        ),
        ("kill -9 $$", "signal: 9"),
    ] {
        let out = run_under(&stage, script);
        assert!(out.stderr.contains("failed to start shim: start failed: "), "{script}: {out}");
        assert!(out.stderr.contains(expected), "{script}: {out}");
        assert_nothing_left(&stage);
    }
    stage.finish();
}

#[test]
fn a_shim_gets_what_containerd_gives_it() {
    let stage = Stage::new("");
    let seen = stage.root.join("seen");
    let script = format!(
        "[ \"$*\" != \"${{*% start}}\" ] || exit 1; {{ echo \"$@\"; pwd; env; echo; cat; }} >{seen}; exit 1",
        seen = seen.display()
    );
    run_under(&stage, &script);
    let seen = String::from_utf8_lossy(&fs::read(seen).unwrap()).into_owned();
    let namespace = stage.root.tag();
    let socket = orlop_tests::Daemon::address(&stage.orlopd).display().to_string();
    let bundle = stage.bundles().join("c").display().to_string();
    let mut lines = seen.lines();
    let command = lines.next().unwrap();
    assert!(
        command.starts_with(&format!("-namespace {namespace} -address {socket} -publish-binary /")),
        "{command}"
    );
    assert!(command.contains(" -id c ") && command.ends_with(" start"), "{command}");
    assert_eq!(lines.next().unwrap(), bundle);
    for variable in [
        format!("TTRPC_ADDRESS={socket}.ttrpc"),
        format!("GRPC_ADDRESS={socket}"),
        format!("NAMESPACE={namespace}"),
        "MAX_SHIM_VERSION=3".to_owned(),
    ] {
        assert!(seen.lines().any(|line| line == variable), "{variable} in {seen}");
    }
    assert_nothing_left(&stage);
    stage.finish();
}

#[test]
fn a_client_that_goes_away_gets_its_container_undone() {
    let stage = Stage::new("");
    let shim = stage.root.join("shim.sh");
    fs::write(&shim, "#!/bin/sh\ncase \"$*\" in *start) exec sleep 1000;; esac\n").unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    let mut client = stage.run(&["--runtime", shim.to_str().unwrap()], "c", "true").spawn();
    stage.shim("c");
    client.end();
    poll_until(DEADLINE, "the bundle is gone", || super::names(&stage.bundles()).is_empty());
    assert_nothing_left(&stage);
    stage.ctr(&["containers", "rm", "c"]).run().success();
    stage.finish();
}

#[test]
fn a_shim_by_the_naming_rule_and_by_path() {
    let root = Root::new();
    let rootfs = root.join("rootfs");
    busybox_rootfs(&rootfs);
    let links = vec![(binaries::system(FOREIGN), "containerd-shim-other-v3".to_owned())];
    let orlopd = Orlopd::start_as(&root, "", &Variant { links, ..Variant::default() });
    let stage = Stage { orlopd, rootfs, flags: Vec::new(), root };
    let path = binaries::system(FOREIGN).display().to_string();
    for runtime in ["com.example.other.v3", &path] {
        let out = stage.run(&["--rm", "--runtime", runtime], "c", "echo served; exit 5").run();
        assert_eq!((out.code(), out.stdout.as_str()), (5, "served\n"), "{out}");
        stage.run(&["-d", "--null-io", "--runtime", runtime], "d", "exec sleep 1000").run().success();
        let info = stage.ctr(&["containers", "info", "d"]).run().success().stdout;
        assert!(info.contains(&format!("\"Name\": {runtime:?}")), "{info}");
        stage.remove("d");
    }
    stage.finish();
}
