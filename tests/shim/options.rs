//! Options that a runtime gets as flags.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use orlop_proto::any;
use orlop_proto::containerd::task::v2::*;
use orlop_proto::runtimeoptions::v1::Options as General;
use orlop_tests::shim::{Fifos, Shim};
use orlop_tests::{Root, binaries};

/// A runtime that notes how it is called in `calls` below the root, saves what is no container, and is orlop otherwise, without
/// what this machine need not have.
fn noting(root: &Root) -> PathBuf {
    let path = root.join("noting");
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>{}\nfor word; do shift; case $word in --systemd-cgroup) ;; checkpoint) exit 0;; \
         *) set -- \"$@\" \"$word\";; esac; done\nexec {} \"$@\"\n",
        root.join("calls").display(),
        binaries::orlop().display()
    );
    fs::write(&path, script).expect("writing the runtime");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("making it executable");
    path
}

/// Runs a container through a checkpoint and its end; how the runtime was called, by verb.
fn calls(root: &Root, mut shim: Shim, request: &CreateTaskRequest) -> Vec<Vec<String>> {
    shim.client.call::<CreateTaskResponse>("Create", request).expect("Create");
    shim.start_process("").unwrap();
    let images = root.join("images").display().to_string();
    let checkpoint = CheckpointTaskRequest { id: shim.id.clone(), path: images, options: None };
    shim.client.call::<()>("Checkpoint", &checkpoint).unwrap();
    shim.finish();
    let text = fs::read_to_string(root.join("calls")).unwrap();
    text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

#[test]
fn flags_follow_the_options() {
    for general in [false, true] {
        let root = Root::new();
        let mut shim = Shim::start_with(&root, "c", &noting(&root), |bundle| bundle.sh("exec sleep 1000"));
        shim.options.systemd_cgroup = true;
        shim.options.no_pivot_root = true;
        shim.options.no_new_keyring = true;
        shim.options.criu_path = "/opt/criu".into();
        shim.options.criu_work_path = "/tmp/criu-work".into();
        let mut request = shim.create_request(&Fifos::default());
        if general {
            let body = format!(
                "BinaryName = {:?}\nRoot = {:?}\nSystemdCgroup = true\nNoPivotRoot = true\nNoNewKeyring = true\n\
                 CriuPath = '/opt/criu'\nCriuWorkPath = '/tmp/criu-work'\n",
                shim.options.binary_name, shim.options.root
            );
            let options = General { config_body: body.into_bytes(), ..General::default() };
            request.options = Some(any::pack(&options));
        }
        let calls = calls(&root, shim, &request);
        let state = root.join("runtime").join(root.tag()).display().to_string();
        for call in &calls {
            let global: Vec<&str> = call.iter().map(String::as_str).collect();
            assert_eq!(global[..2], ["--root", state.as_str()], "{call:?}");
            assert!(global.contains(&"--systemd-cgroup"), "{call:?}");
        }
        let of = |verb: &str| {
            calls.iter().find(|call| call.iter().any(|word| word == verb)).expect("it was called")
        };
        let follows =
            |call: &[String], words: &[&str]| call.windows(words.len()).any(|window| window == words);
        assert!(follows(of("create"), &["--no-pivot", "--no-new-keyring"]), "{calls:?}");
        assert!(!follows(of("create"), &["--criu"]), "{calls:?}");
        assert!(follows(of("checkpoint"), &["--criu", "/opt/criu", "checkpoint"]), "{calls:?}");
        assert!(follows(of("checkpoint"), &["--work-path", "/tmp/criu-work"]), "{calls:?}");
        root.assert_clean();
    }
}
