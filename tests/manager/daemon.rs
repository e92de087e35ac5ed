//! Starting, stopping and refusing to start.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_proto::containerd::services::containers::v1 as containers;
use orlop_tests::{Cmd, Daemon, Orlopd, Root, binaries, poll_until};
use tonic::Code;

use crate::client::Client;

#[test]
fn the_socket_is_for_its_owner_and_group_and_goes_with_the_daemon() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    let mode = fs::metadata(daemon.address()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(fs::metadata(daemon.root()).unwrap().permissions().mode() & 0o777, 0o711);
    for private in ["meta.redb", "content", "overlayfs", "native"] {
        let mode = fs::metadata(daemon.root().join(private)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{private}: {mode:o}");
    }
    let output = daemon.stop().unwrap();
    assert_eq!(output.code(), 0, "{output}");
    assert!(!daemon.address().exists());
    root.assert_clean();
}

#[test]
fn a_killed_daemon_leaves_a_socket_that_the_next_replaces() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    daemon.ctr(["namespaces", "create", "kept"]).run().success();
    let uuid = |daemon: &Orlopd| {
        let output = daemon.ctr(["version"]).run().success();
        output.stdout.lines().find(|line| line.contains("UUID")).unwrap().to_owned()
    };
    let before = uuid(&daemon);
    daemon.kill();
    assert!(daemon.address().exists());
    daemon.restart();
    assert!(daemon.ctr(["namespaces", "ls", "-q"]).run().success().stdout.contains("kept"));
    assert_eq!(uuid(&daemon), before, "an installation keeps its identity");
}

#[test]
fn a_second_daemon_on_the_same_root_is_refused() {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let second = |state: &str, address: &str| {
        Cmd::new(binaries::orlopd())
            .args(["--config", "/dev/null", "--root"])
            .arg(daemon.root())
            .arg("--state")
            .arg(root.join(state))
            .arg("--address")
            .arg(root.join(address))
            .run()
    };
    let output = second("state2", "second.sock").failure();
    assert!(output.stderr.contains("another orlopd uses this root"), "{output}");
    daemon.ctr(["version"]).run().success();
}

#[test]
fn a_bad_configuration_is_named() {
    let root = Root::new();
    let file = root.join("config.toml");
    fs::write(&file, "rooot = \"/x\"\n").unwrap();
    let output = Cmd::new(binaries::orlopd()).arg("--config").arg(&file).run().failure();
    assert!(output.stderr.contains("config.toml") && output.stderr.contains("rooot"), "{output}");
    let output = Cmd::new(binaries::orlopd()).args(["--config", "/nowhere/c.toml"]).run().failure();
    assert_eq!(output.stderr.trim(), "orlopd: read configuration /nowhere/c.toml: no such file or directory");
    let output = Cmd::new(binaries::orlopd()).args(["config", "default"]).run().success();
    fs::write(&file, &output.stdout).unwrap();
    assert!(output.stdout.contains("[runtimes"));
}

#[test]
fn a_stop_waits_for_nobody_for_ever() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    let mut events = daemon.ctr(["events"]).spawn();
    // The subscription is there once an event comes through it.
    poll_until(Duration::from_secs(20), "an event", || {
        let name = format!("n{}", std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos());
        daemon.ctr(["namespaces", "create", &name]).run().success();
        events.stdout().contains("/namespaces/create")
    });
    let output = daemon.stop().unwrap();
    assert_eq!(output.code(), 0, "{output}");
    events.signal(Signal::SIGKILL);
    events.end();
}

#[test]
fn a_caller_without_time_is_told_so() {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let status = Client::new(daemon.address(), "one").hurried_list();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    let unknown = Client::new(daemon.address(), "no/name").images().unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    let none = Client::new(daemon.address(), "").images().unwrap_err();
    assert_eq!(
        (none.code(), none.message()),
        (Code::FailedPrecondition, "namespace is required: failed precondition")
    );
}

#[test]
fn containers_keep_what_clients_typed() {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let client = Client::new(daemon.address(), "one");
    let any = |url: &str, value: &[u8]| prost_types::Any { type_url: url.into(), value: value.into() };
    let container = containers::Container {
        id: "c".into(),
        image: "an image that is nowhere".into(),
        runtime: Some(containers::container::Runtime {
            name: "io.containerd.runc.v2".into(),
            options: Some(any("containerd.runc.v1.Options", &[0x18, 0x01])),
        }),
        spec: Some(any(
            "types.containerd.io/opencontainers/runtime-spec/1/Spec",
            b"{ \"odd\":  \"spacing\" }",
        )),
        extensions: [("x".to_owned(), any("anything", b"\0\xff"))].into(),
        labels: [("k".to_owned(), "v".to_owned())].into(),
        snapshotter: "overlayfs".into(),
        snapshot_key: "c".into(),
        sandbox: "s".into(),
        ..Default::default()
    };
    let made = client.create_container(container.clone()).unwrap();
    let comparable = |mut container: containers::Container| {
        container.created_at = None;
        container.updated_at = None;
        container
    };
    assert_eq!(comparable(made.clone()), container);
    assert_eq!(client.container("c").unwrap(), made);
    let error = client.create_container(container.clone()).unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::AlreadyExists, "container \"c\": already exists"));

    let change = containers::Container {
        id: "c".into(),
        labels: [("l".to_owned(), "w".to_owned())].into(),
        image: "ignored".into(),
        ..Default::default()
    };
    let updated = client.update_container(change.clone(), &["labels.l"]).unwrap();
    assert_eq!(updated.labels.len(), 2);
    assert_eq!(updated.image, container.image);
    assert_eq!(updated.created_at, made.created_at);
    assert_ne!(updated.updated_at, made.updated_at);
    let error = client.update_container(change.clone(), &["snapshotter"]).unwrap_err();
    assert_eq!(error.message(), "cannot update \"snapshotter\" field on \"c\": invalid argument");
    let error = client.update_container(change, &[]).unwrap_err();
    assert_eq!(error.message(), "container.Snapshotter field is immutable: invalid argument");
    let error =
        client.update_container(containers::Container { id: "c".into(), ..Default::default() }, &["spec"]);
    assert_eq!(
        error.unwrap_err().message(),
        "update failed validation: container.Spec must be set: invalid argument"
    );
    client.delete_container("c").unwrap();
    let error = client.container("c").unwrap_err();
    assert_eq!(error.message(), "container \"c\" in namespace \"one\": not found");
}
