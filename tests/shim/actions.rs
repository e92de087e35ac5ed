//! The actions on the command line.

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::containerd::types::RuntimeInfo;
use orlop_tests::{Bundle, Cmd, Root, binaries};
use prost::Message;
use serde_json::Value;

use orlop_tests::shim::Client;
use orlop_tests::shim::action;

#[test]
fn newer_managers_are_answered_in_json() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "c").save();
    let output = action(&bundle, "c", root.tag(), &root.join("none"))
        .env("MAX_SHIM_VERSION", "3")
        .arg("start")
        .run()
        .success();
    let answer: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&answer["version"], &answer["protocol"]), (&3.into(), &"ttrpc".into()));
    let url = answer["address"].as_str().unwrap().to_owned();
    assert_eq!(std::fs::read_to_string(bundle.path().join("address")).unwrap(), url);
    let socket = std::path::PathBuf::from(url.strip_prefix("unix://").unwrap());
    let mut client = Client::connect(&socket);
    let request = orlop_proto::containerd::task::v2::ShutdownRequest::default();
    client.call::<()>("Shutdown", &request).unwrap();
    orlop_tests::poll_until(orlop_tests::shim::DEADLINE, "the socket is gone", || !socket.exists());
    root.assert_clean();
}

#[test]
fn information_is_given_as_protobuf() {
    let options =
        Options { binary_name: binaries::system("runc").display().to_string(), ..Options::default() };
    let input = any::pack(&options).encode_to_vec();
    let output = Cmd::new(binaries::shim()).arg("-info").input(input).run().success();
    let info = RuntimeInfo::decode(output.stdout_bytes.as_slice()).unwrap();
    assert_eq!(info.name, "io.containerd.orlop.v1");
    assert_eq!(any::unpack::<Options>(&info.options.unwrap()).unwrap(), options);
}

#[test]
fn wrong_command_lines_are_refused() {
    let shim = || Cmd::new(binaries::shim());
    assert_eq!(shim().arg("-nonsense").run().code(), 2);
    let output = shim().args(["-id", "c", "start"]).run().failure();
    assert_eq!(output.stderr, "io.containerd.orlop.v1: shim namespace cannot be empty");
    assert!(shim().arg("-v").run().success().stdout.contains("Version:"));
}

#[test]
fn a_pods_directory_has_no_configuration_and_a_broken_one_starts_no_shim() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "c");
    let start = || action(&bundle, "c", root.tag(), &root.join("none")).arg("start").run();
    let socket = std::path::PathBuf::from(start().success().stdout.strip_prefix("unix://").unwrap());
    let request = orlop_proto::containerd::task::v2::ShutdownRequest::default();
    Client::connect(&socket).call::<()>("Shutdown", &request).unwrap();
    orlop_tests::poll_until(orlop_tests::shim::DEADLINE, "the socket is gone", || !socket.exists());
    std::fs::write(bundle.path().join("config.json"), "{").unwrap();
    let output = start().failure();
    assert!(output.stderr.contains("read") && output.stderr.contains("config.json"), "{output}");
    root.assert_clean();
}
