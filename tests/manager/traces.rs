//! Traces: what a collector is sent by OTLP.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orlop_proto::containerd::services::version::v1::version_client::VersionClient;
use orlop_tests::{Daemon, Image, Orlopd, Registry, Root, Variant, host, poll_for, poll_until};

use crate::client::Client;

const DEADLINE: Duration = Duration::from_secs(30);

/// What a collector got, on all connections.
struct Collector {
    address: String,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    /// Answers each request over HTTP/1.1, and says nothing to who speaks HTTP/2.
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let all = bytes.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let all = all.clone();
                std::thread::spawn(move || {
                    let mut stream = stream;
                    let mut buffer = [0; 16 << 10];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        let part = &buffer[..length];
                        all.lock().unwrap().extend(part);
                        if part.starts_with(b"POST ") {
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
                        }
                    }
                });
            }
        });
        Collector { address, bytes }
    }

    fn has(&self, part: &[u8]) -> bool {
        self.bytes.lock().unwrap().windows(part.len()).any(|window| window == part)
    }

    fn wait(&self, part: &[u8]) {
        poll_until(DEADLINE, &String::from_utf8_lossy(part), || self.has(part));
    }
}

/// The name of a call's span.
const CALL: &[u8] = b"containerd.services.version.v1.Version/Version";

fn call(daemon: &Orlopd, trace: Option<&str>) {
    let client = Client::new(daemon.address(), "one");
    let mut request = client.request(());
    if let Some(trace) = trace {
        request.metadata_mut().insert("traceparent", trace.parse().unwrap());
    }
    client.call(async |channel| VersionClient::new(channel).version(request).await).unwrap();
}

#[test]
fn calls_and_what_they_cause_are_traced() {
    let (root, collector) = (Root::new(), Collector::start());
    let mut registry = Registry::start(&root);
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address)),
        ("OTEL_SERVICE_NAME", "cargo".into()),
    ];
    let env = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let mut daemon = Orlopd::start_as(&root, "", &Variant { env, ..Variant::default() });
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    call(&daemon, Some(&format!("00-{trace}-00f067aa0ba902b7-01")));
    let image = Image::busybox().push(&registry, "image", "1");
    daemon.orlopctl(["images", "pull", &image]).run().success();
    daemon.orlopctl(["run", "--rm", &image, "c", "true"]).run().success();
    // The last spans are sent when it stops.
    daemon.stop();
    registry.stop();
    collector.wait(b"POST /v1/traces ");
    collector.wait(CALL);
    let identifier: Vec<u8> =
        (0..16).map(|n| u8::from_str_radix(&trace[2 * n..][..2], 16).unwrap()).collect();
    collector.wait(&identifier);
    for part in [&b"cargo"[..], b"pull", b"unpack", b"create", b"shim"] {
        collector.wait(part);
    }
    root.assert_clean();
}

#[test]
fn a_collector_of_the_configuration_is_spoken_to_by_grpc() {
    let (root, collector) = (Root::new(), Collector::start());
    let config = format!("[tracing]\nendpoint = \"http://{}\"\nprotocol = \"grpc\"\n", collector.address);
    let mut daemon = Orlopd::start_with(&root, &config);
    call(&daemon, None);
    daemon.stop();
    collector.wait(b"PRI * HTTP/2.0");
    collector.wait(CALL);
    assert!(collector.has(b"orlopd"), "the service has a name");
    root.assert_clean();
}

#[test]
fn a_collector_that_is_not_there_holds_nothing_up() {
    let root = Root::new();
    // Nobody listens on a port that was just let go of.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut daemon = Orlopd::start_with(&root, &format!("[tracing]\nendpoint = \"http://{address}\"\n"));
    for _ in 0..3 {
        call(&daemon, None);
    }
    let stopped = daemon.stop().unwrap();
    assert_eq!(stopped.code(), 0, "{stopped}");
    root.assert_clean();
}

#[test]
fn a_profile_is_taken_on_demand() {
    let root = Root::new();
    let socket = root.join("debug.sock");
    let mut daemon = Orlopd::start_with(&root, &format!("[debug]\naddress = {socket:?}\n"));
    let pprof = |what: &[&str]| daemon.ctr(["pprof", "--debug-socket"]).arg(&socket).args(what);
    let profile = pprof(&["profile", "--seconds", "1s"]).spawn();
    while profile.stdout().is_empty() && host::alive(profile.pid()) {
        daemon.orlopctl(["images", "ls"]).run().success();
    }
    let out = profile.wait(DEADLINE);
    assert!(out.status.success(), "{}", out.stderr);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
    let missing = pprof(&["heap"]).run();
    assert!(!missing.status.success() || missing.stdout.contains("not found"), "{missing}");

    // One that is being taken ends with its client, and holds up neither the next one nor the daemon's end.
    let ask = |seconds: u32| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let line = format!("GET /debug/pprof/profile?seconds={seconds} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(line.as_bytes()).unwrap();
        stream
    };
    let is_refused = || {
        let mut answer = [0; 12];
        ask(1).read_exact(&mut answer).unwrap();
        answer == *b"HTTP/1.1 500"
    };
    // Whichever of two comes first, the other one is refused.
    let long = || poll_for(DEADLINE, || Some(ask(600)).filter(|_| is_refused())).expect("a profile is taken");
    drop(long());
    poll_until(DEADLINE, "the profile has ended with its client", || !is_refused());
    let client = long();
    let stopped = daemon.stop().unwrap();
    assert_eq!(stopped.code(), 0, "{stopped}");
    drop(client);
    root.assert_clean();
}
