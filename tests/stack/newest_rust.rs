//! A program on the crate containerd-client, built by `make newest`; `make test` leaves it out and says so.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use orlop_tests::{Cmd, Containerd, Daemon, Orlopd, Root, binaries, patient};

use crate::workload::import_image;

/// How long fetching and building may take.
const LONG: Duration = Duration::from_secs(600);

/// Builds the program in `clients/rust`, whose lock file says of which versions.
fn build() -> PathBuf {
    binaries::system("protoc");
    let target = binaries::target_dir().join("newest/rust");
    let manifest = binaries::source_root().join("tests/stack/clients/rust/Cargo.toml");
    let build =
        Cmd::new(env!("CARGO")).args(["build", "--quiet", "--locked", "--manifest-path"]).arg(manifest);
    build.env("CARGO_TARGET_DIR", &target).deadline(patient(LONG)).run().success();
    target.join("debug/containerd-client-walk")
}

/// What the program tells of a manager that has one image.
fn told(program: &PathBuf, root: &Root, daemon: &impl Daemon) -> String {
    let image = import_image(root, daemon);
    let directory = root.join("output");
    fs::create_dir_all(&directory).unwrap();
    let walk = Cmd::new(program).arg(daemon.address()).arg(daemon.namespace()).arg(directory);
    let told = walk.deadline(patient(Duration::from_secs(60))).run().success().stdout;
    for table in [["containers", "ls", "-q"], ["tasks", "ls", "-q"], ["leases", "ls", "-q"]] {
        assert_eq!(daemon.ctr(table).run().success().stdout, "", "{table:?}");
    }
    told.replace(&image, "IMAGE")
}

#[test]
fn newest_rust_client_hears_the_same_of_both_managers() {
    if std::env::var_os("ORLOP_NEWEST").is_none() {
        println!("not run: the crate containerd-client; `make newest` runs it");
        return;
    }
    let program = build();
    let root = Root::new();
    let mut containerd = Containerd::start(&root);
    let theirs = told(&program, &root, &containerd);
    containerd.stop();
    root.assert_clean();
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    let ours = told(&program, &root, &orlopd);
    orlopd.stop();
    root.assert_clean();
    assert_eq!(ours, theirs);
    let expected = [
        "image IMAGE",
        "containers 0",
        "again Some(AlreadyExists)",
        "container rust on rust",
        "ended with 7 and 7",
        r#"said "two\n" and "complaint\n""#,
        "kill Some(NotFound)",
        "event /tasks/create",
        "event /tasks/start",
        "event /tasks/exit",
        "event /tasks/delete",
    ];
    assert_eq!(ours.lines().collect::<Vec<_>>(), expected);
}
