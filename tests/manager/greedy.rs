//! Clients that mean no good: bounded memory, and everybody else is served.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use orlop_proto::containerd::services::events::v1::events_client::EventsClient;
use orlop_proto::containerd::services::events::v1::{PublishRequest, SubscribeRequest};
use orlop_proto::containerd::services::images::v1 as images;
use orlop_proto::containerd::services::images::v1::images_client::ImagesClient;
use orlop_tests::{Cmd, Daemon, Orlopd, Root, poll_until};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

/// A long time for anything local.
const DEADLINE: Duration = Duration::from_secs(60);

fn resident(daemon: &Orlopd) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

async fn connect(daemon: &Orlopd) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix://{}", daemon.address().display())).unwrap();
    endpoint.connect().await.unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "one".parse().unwrap());
    request
}

#[test]
fn ten_thousand_streams_of_one_client_take_bounded_memory() {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let before = resident(&daemon);
    let runtime = runtime();
    runtime.block_on(async {
        let channel = connect(&daemon).await;
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..10_000 {
            let mut client = EventsClient::new(channel.clone());
            streams.spawn(async move {
                let stream = client.subscribe(request(SubscribeRequest::default())).await;
                // Kept open, and never read.
                std::future::pending::<()>().await;
                drop(stream);
            });
        }
        let served = |daemon: &Orlopd| {
            let text = daemon.orlopctl(["metrics"]).run().success().stdout;
            let line = text.lines().find(|line| line.starts_with("orlopd_calls_open ")).unwrap().to_owned();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if served(&daemon) >= 2000.0 {
                break;
            }
        }
        assert!(served(&daemon) >= 2000.0 && served(&daemon) < 2200.0, "{}", served(&daemon));
        daemon.ctr(["version"]).run().success();
        let grown = resident(&daemon).saturating_sub(before);
        println!("2048 open streams: {grown} KiB more");
        assert!(grown < 96 << 10, "{grown} KiB more");
    });
    drop(runtime);
    let open = || daemon.orlopctl(["metrics"]).run().success().stdout.contains("orlopd_calls_open 1\n");
    poll_until(DEADLINE, "all streams end with their client", open);
}

#[test]
fn messages_of_a_hundred_megabytes_are_refused_unread() {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let before = resident(&daemon);
    let runtime = runtime();
    let codes = runtime.block_on(async {
        let channel = connect(&daemon).await;
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let mut client = ImagesClient::new(channel.clone());
            calls.spawn(async move {
                let image = images::Image { name: "x".repeat(100 << 20), ..Default::default() };
                let create = images::CreateImageRequest { image: Some(image), ..Default::default() };
                client.create(request(create)).await.unwrap_err().code()
            });
        }
        calls.join_all().await
    });
    assert!(codes.iter().all(|code| matches!(code, Code::OutOfRange | Code::ResourceExhausted)), "{codes:?}");
    let grown = resident(&daemon).saturating_sub(before);
    println!("four messages of 100 MiB: {grown} KiB more");
    assert!(grown < 64 << 10, "{grown} KiB more");
    daemon.ctr(["version"]).run().success();
}

#[test]
fn a_client_that_never_reads_its_events_holds_nobody_up() {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let before = resident(&daemon);
    runtime().block_on(async {
        let deaf = connect(&daemon).await;
        let mut deaf = EventsClient::new(deaf);
        let _unread = deaf.subscribe(request(SubscribeRequest::default())).await.unwrap();
        let mut publisher = EventsClient::new(connect(&daemon).await);
        for _ in 0..5_000 {
            let event = prost_types::Any { type_url: "x/y".to_owned(), value: vec![1; 10 << 10] };
            let publish = PublishRequest { topic: "/made/up".to_owned(), event: Some(event) };
            publisher.publish(request(publish)).await.unwrap();
        }
    });
    let grown = resident(&daemon).saturating_sub(before);
    println!("50 MB of events that nobody read: {grown} KiB more");
    assert!(grown < 40 << 10, "{grown} KiB more");
}

#[test]
fn another_user_is_kept_out_of_sockets_and_directories() {
    let root = Root::new();
    std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let daemon = Orlopd::start(&root);
    std::fs::set_permissions(daemon.address().parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    let as_nobody = |program: &str, args: &[&str]| {
        Cmd::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", program])
            .args(args)
            .run()
    };
    let shims = format!("{}.ttrpc", daemon.address().display());
    for socket in [daemon.address().display().to_string(), shims] {
        let script = format!("import socket; socket.socket(socket.AF_UNIX).connect({socket:?})");
        let refused = as_nobody("/usr/bin/python3", &["-c", &script]).failure();
        assert!(refused.stderr.contains("PermissionError"), "{refused}");
    }
    for directory in
        [daemon.root(), daemon.root().join("content"), daemon.root().join("overlayfs"), daemon.state()]
    {
        let refused = as_nobody("ls", &[&directory.display().to_string()]).failure();
        assert!(refused.stderr.contains("Permission denied"), "{refused}");
    }
}
