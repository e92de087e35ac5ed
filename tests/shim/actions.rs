//! The actions on the command line.

use std::fs;
use std::path::{Path, PathBuf};

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::containerd::runtime::bootstrap::v1::{BootstrapParams, LogLevel};
use orlop_proto::containerd::task::v2::{ConnectRequest, ConnectResponse, ShutdownRequest};
use orlop_proto::containerd::types::RuntimeInfo;
use orlop_tests::shim::{Client, DEADLINE, action};
use orlop_tests::{Bundle, Cmd, Root, binaries, poll_until};
use prost::Message;
use serde_json::Value;

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
    assert_eq!(fs::read_to_string(bundle.path().join("address")).unwrap(), url);
    let socket = PathBuf::from(url.strip_prefix("unix://").unwrap());
    end(&socket);
    root.assert_clean();
}

/// containerd 2.3 and later tell everything in one message on standard input.
#[test]
fn the_newest_managers_say_where_the_socket_is_to_be() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "c").save();
    let sockets = root.join("sockets");
    let params = BootstrapParams {
        instance_id: "c".into(),
        namespace: root.tag().into(),
        socket_dir: Some(sockets.display().to_string()),
        log_level: LogLevel::Info as i32,
        ..BootstrapParams::default()
    };
    let start = action(&bundle, "c", root.tag(), &root.join("none")).arg("start");
    let output = start.input(params.encode_to_vec()).run().success();
    let answer: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&answer["version"], &answer["protocol"]), (&3.into(), &"ttrpc".into()));
    let socket = PathBuf::from(answer["address"].as_str().unwrap().strip_prefix("unix://").unwrap());
    assert_eq!(socket.parent(), Some(sockets.as_path()));
    end(&socket);
    root.assert_clean();
}

#[test]
fn a_shim_is_killed_before_its_manager_and_has_no_huge_pages() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "c").save();
    let start = action(&bundle, "c", root.tag(), &root.join("none")).arg("start").run().success();
    let socket = PathBuf::from(start.stdout.strip_prefix("unix://").unwrap());
    let id = ConnectRequest { id: "c".into() };
    let answer = Client::connect(&socket).call::<ConnectResponse>("Connect", &id).unwrap();
    let of = |process: &str, file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap();
    let score = |process: &str| of(process, "oom_score_adj").trim().parse::<i32>().unwrap();
    let shim = answer.shim_pid.to_string();
    assert_eq!(score(&shim), (score("self") + 1).min(1000));
    let status = of(&shim, "status");
    assert!(status.contains("THP_enabled:\t0\n"), "{status}");
    end(&socket);
    root.assert_clean();
}

/// Ends a shim without containers.
fn end(socket: &Path) {
    Client::connect(socket).call::<()>("Shutdown", &ShutdownRequest::default()).unwrap();
    poll_until(DEADLINE, "the socket is gone", || !socket.exists());
}

#[test]
fn information_is_given_as_protobuf() {
    for runtime in [binaries::orlop(), binaries::system("runc")] {
        let options = Options { binary_name: runtime.display().to_string(), ..Options::default() };
        let input = any::pack(&options).encode_to_vec();
        let output = Cmd::new(binaries::shim()).arg("-info").input(input).run().success();
        let info = RuntimeInfo::decode(output.stdout_bytes.as_slice()).unwrap();
        assert_eq!(info.name, "io.containerd.orlop.v1");
        assert!(!info.version.unwrap().version.is_empty());
        assert_eq!(any::unpack::<Options>(&info.options.unwrap()).unwrap(), options);
        let features: Value = serde_json::from_slice(&info.features.unwrap().value).unwrap();
        let told = Cmd::new(runtime).arg("features").run().success().stdout;
        assert_eq!(features, serde_json::from_str::<Value>(&told).unwrap());
    }
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
    let socket = PathBuf::from(start().success().stdout.strip_prefix("unix://").unwrap());
    end(&socket);
    fs::write(bundle.path().join("config.json"), "{").unwrap();
    let output = start().failure();
    assert!(output.stderr.contains("read") && output.stderr.contains("config.json"), "{output}");
    root.assert_clean();
}
