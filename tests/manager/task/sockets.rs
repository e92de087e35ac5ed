//! Where shims have their sockets: below orlopd's own directory, whoever dies, and foreign ones at their usual place.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_tests::{Orlopd, Root, Variant, busybox_rootfs, host, poll_until};

use super::{DEADLINE, Stage, foreign, names};

/// The socket that a container's shim has told.
fn socket(stage: &Stage, name: &str) -> PathBuf {
    let bootstrap = fs::read(stage.bundles().join(name).join("bootstrap.json")).unwrap();
    let bootstrap: serde_json::Value = serde_json::from_slice(&bootstrap).unwrap();
    bootstrap["address"].as_str().and_then(|address| address.strip_prefix("unix://")).unwrap().into()
}

#[test]
fn ours_lie_in_a_private_directory_of_orlopd() {
    let mut stage = Stage::new("");
    let before = names(Path::new("/run/containerd/s"));
    stage.start("one");
    stage.start("two");
    let sockets = stage.sockets();
    assert_eq!(sockets.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    for name in ["one", "two"] {
        let path = socket(&stage, name);
        assert_eq!(path.parent(), Some(sockets.as_path()));
        let found = path.metadata().unwrap();
        assert!(found.file_type().is_socket() && found.permissions().mode() & 0o777 == 0o600);
    }
    // The daemon goes and comes, and finds them there.
    stage.orlopd.restart();
    assert_eq!(stage.status("one"), "RUNNING");
    assert_eq!(names(&sockets).len(), 2);
    let others = names(Path::new("/run/containerd/s"));
    let ours = others.iter().filter(|name| !before.contains(name) && names(&sockets).contains(name));
    assert_eq!(ours.count(), 0);
    stage.remove("one");
    stage.remove("two");
    assert_eq!(names(&sockets), Vec::<String>::new());
    stage.finish();
}

#[test]
fn a_killed_shim_leaves_no_socket() {
    let mut stage = Stage::new("");
    for name in ["seen", "unseen"] {
        stage.start(name);
    }
    let seen = stage.shim("seen");
    kill(Pid::from_raw(seen), Signal::SIGKILL).unwrap();
    poll_until(DEADLINE, "its socket is gone", || names(&stage.sockets()).len() == 1);
    let unseen = stage.shim("unseen");
    stage.orlopd.kill();
    kill(Pid::from_raw(unseen), Signal::SIGKILL).unwrap();
    poll_until(DEADLINE, "the shim has died", || !host::alive(unseen));
    // One of which nothing else tells any more.
    drop(std::os::unix::net::UnixListener::bind(stage.sockets().join("orphan")).unwrap());
    stage.orlopd.restart();
    poll_until(DEADLINE, "no bundle is left", || names(&stage.bundles()).is_empty());
    assert_eq!(names(&stage.sockets()), Vec::<String>::new());
    for name in ["seen", "unseen"] {
        stage.ctr(&["containers", "rm", name]).run().success();
    }
    stage.finish();
}

#[test]
fn a_state_directory_with_a_long_path_has_them_at_a_short_one() {
    let root = Root::new();
    let rootfs = root.join("rootfs");
    busybox_rootfs(&rootfs);
    let state = root.join("a-state-directory-whose-path-leaves-no-room-for-the-name-of-a-unix-socket");
    let config = format!("[runtimes.\"io.containerd.runc.v2\"]\nroot = {:?}\n", root.join("runtime"));
    let variant = Variant { state: Some(state), ..Variant::default() };
    let orlopd = Orlopd::start_as(&root, &config, &variant);
    let mut stage = Stage { orlopd, rootfs, flags: Vec::new(), root };
    stage.start("c");
    let sockets = socket(&stage, "c").parent().unwrap().to_owned();
    assert_eq!(sockets.parent(), Some(Path::new("/run/orlopd")));
    stage.orlopd.kill();
    stage.orlopd.restart();
    assert_eq!(stage.status("c"), "RUNNING");
    stage.remove("c");
    stage.orlopd.stop();
    assert!(!sockets.exists());
    stage.root.assert_clean();
}

#[test]
fn a_foreign_shim_keeps_its_place() {
    let stage = Stage::new(&foreign());
    stage.start("c");
    assert_eq!(socket(&stage, "c").parent(), Some(Path::new("/run/containerd/s")));
    assert_eq!(names(&stage.sockets()), Vec::<String>::new());
    stage.remove("c");
    stage.finish();
}
