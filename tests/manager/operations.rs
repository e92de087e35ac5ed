//! What an administrator sees and does: configuration, reload, readiness, handed-over sockets, logs and metrics.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use orlop_tests::{Cmd, Daemon, Image, Orlopd, Registry, Root, Variant, binaries, poll_until};
use serde_json::Value;

use crate::client::{Client, Put};

/// A long time for anything local.
const DEADLINE: Duration = Duration::from_secs(30);

/// Asks the service of `Admin` for the value of a metric; the labels must be part of its line.
fn metric(daemon: &Orlopd, name: &str, labels: &str) -> Option<f64> {
    let text = daemon.orlopctl(["metrics"]).run().success().stdout;
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(labels))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn the_configuration_in_force_is_shown_and_reads_back() {
    let root = Root::new();
    let file = root.join("config.toml");
    fs::write(&file, "[gc]\nschedule_delay = 7\n[runtimes.other]\nbinary = \"crun\"\n").unwrap();
    let dump = |file: &Path| {
        let cmd = Cmd::new(binaries::orlopd()).arg("--config").arg(file).args([
            "--root",
            "/elsewhere",
            "config",
            "dump",
        ]);
        cmd.run().success().stdout
    };
    let first = dump(&file);
    for line in ["root = \"/elsewhere\"", "schedule_delay = 7", "level = \"info\"", "[runtimes.other]"] {
        assert!(first.lines().any(|found| found == line), "{line}: {first}");
    }
    fs::write(&file, &first).unwrap();
    assert_eq!(dump(&file), first);
}

#[test]
fn a_hangup_reads_the_configuration_again() {
    let root = Root::new();
    let mut daemon = Orlopd::start_with(&root, "[gc]\nschedule_delay = 3600000\n");
    let client = Client::new(daemon.address(), "one");
    client.put(&Put { reference: "r", ..Put::default() }, b"nobody's", 10).unwrap();
    let config = daemon.config();
    let hang_up = |daemon: &Orlopd| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid().unwrap()), Signal::SIGHUP).unwrap()
    };

    // What cannot be read changes nothing.
    fs::write(&config, "[gc]\nnonesuch = 1\n").unwrap();
    hang_up(&daemon);
    poll_until(DEADLINE, "the mistake is named", || {
        daemon.log().contains("the configuration stays as it was")
    });
    assert!(daemon.log().contains("nonesuch"), "{}", daemon.log());
    assert_eq!(client.digests().unwrap().len(), 1);

    fs::write(&config, "[gc]\nidle_delay = 1\n[grpc]\nmax_calls = 5\n").unwrap();
    hang_up(&daemon);
    poll_until(DEADLINE, "it is read", || daemon.log().contains("the configuration has been read again"));
    assert!(daemon.log().contains("takes effect at the next start"), "{}", daemon.log());
    poll_until(DEADLINE, "the new configuration holds", || client.digests().unwrap().is_empty());

    // Also for containers to come.
    fs::write(&config, "[runtimes.mine]\nshim = \"/nowhere/shim\"\n").unwrap();
    hang_up(&daemon);
    poll_until(DEADLINE, "it is read twice", || daemon.log().matches("has been read again").count() == 2);
    daemon.stop();
}

#[test]
fn the_service_manager_hears_when_it_is_ready_reloads_and_stops() {
    let root = Root::new();
    let heard = UnixDatagram::bind(root.join("notify")).unwrap();
    let (send, messages) = std::sync::mpsc::channel();
    // Read at once, as a service manager does; the thread ends with the program.
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok(length) = heard.recv(&mut bytes) {
            if send.send(String::from_utf8_lossy(&bytes[..length]).into_owned()).is_err() {
                return;
            }
        }
    });
    let next = || messages.recv_timeout(orlop_tests::patient(DEADLINE)).expect("a message");
    let other = |wanted: &str| loop {
        let message = next();
        if !message.contains("WATCHDOG=1") {
            assert!(message.contains(wanted), "{wanted}: {message}");
            return;
        }
    };
    let env = [
        ("NOTIFY_SOCKET", root.join("notify").display().to_string()),
        ("WATCHDOG_USEC", "200000".to_owned()),
    ];
    let env = env.map(|(key, value)| (key.to_owned(), value)).to_vec();
    let mut daemon = Orlopd::start_as(&root, "", &Variant { env, ..Variant::default() });
    other("READY=1");
    while !next().contains("WATCHDOG=1") {}
    while !next().contains("WATCHDOG=1") {}
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid().unwrap()), Signal::SIGHUP).unwrap();
    other("RELOADING=1");
    other("READY=1");
    // Containers get none of it.
    let registry = Registry::start(&root);
    let name = Image::busybox().push(&registry, "image", "1");
    daemon.orlopctl(["images", "pull", &name]).run().success();
    let seen = daemon.ctr(["run", "--rm", &name, "c", "env"]).run().success().stdout;
    assert!(!seen.contains("NOTIFY_SOCKET") && !seen.contains("WATCHDOG"), "{seen}");
    daemon.stop();
    other("STOPPING=1");
}

#[test]
fn sockets_that_are_handed_over_are_served_and_stay() {
    let root = Root::new();
    let path = root.join("handed.sock");
    let shims = root.join("handed.sock.ttrpc");
    let sockets = [UnixListener::bind(&path).unwrap(), UnixListener::bind(&shims).unwrap()];
    for socket in &sockets {
        fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    }
    // A connection from before the daemon: it is answered as soon as there is one.
    let early = std::thread::spawn({
        let path = path.clone();
        move || Client::new(&path, "one").create_lease("early")
    });
    let [first, second] = [sockets[0].as_raw_fd(), sockets[1].as_raw_fd()];
    let script = format!(
        "exec 3<&{first} 4<&{second}; LISTEN_PID=$$ LISTEN_FDS=2 exec {} --config /dev/null --root {} --state {} --address {}",
        binaries::orlopd().display(),
        root.join("root").display(),
        root.join("state").display(),
        path.display(),
    );
    let process = Cmd::new("bash").args(["-c", &script]).spawn();
    early.join().unwrap().unwrap();
    process.signal(Signal::SIGTERM);
    let output = process.wait(DEADLINE);
    assert_eq!(output.code(), 0, "{output}");
    assert!(path.exists() && shims.exists(), "they are the service manager's");
}

#[test]
fn logs_are_json_where_that_is_wanted() {
    let root = Root::new();
    let daemon = Orlopd::start_with(&root, "[debug]\nformat = \"json\"\n");
    daemon.ctr(["namespaces", "create", "one"]).run().success();
    let log = daemon.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(lines.iter().any(|line| line["message"] == "serving" && line["level"] == "INFO"), "{log}");
    let call = lines.iter().find(|line| line["message"] == "answered").expect("a call");
    assert!(call["span"]["method"].as_str().unwrap().starts_with("/containerd.services."), "{call}");
}

#[test]
fn metrics_tell_of_calls_pulls_unpacking_collections_and_tasks() {
    let root = Root::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = Orlopd::start_with(&root, &format!("[metrics]\naddress = \"{port}\"\n"));
    let registry = Registry::start(&root);
    let name = Image::two_layers().push(&registry, "image", "1");
    daemon.orlopctl(["images", "pull", &name]).run().success();
    daemon.orlopctl(["images", "pull", &format!("{}/image:nonesuch", registry.address())]).run().failure();
    daemon.ctr(["run", "-d", &name, "c", "sleep", "1000"]).run().success();
    daemon.orlopctl(["gc"]).run().success();
    let count = "orlopd_work_duration_seconds_count";
    assert_eq!(metric(&daemon, count, "kind=\"pull\",result=\"ok\""), Some(1.0));
    assert_eq!(metric(&daemon, count, "kind=\"pull\",result=\"error\""), Some(1.0));
    assert_eq!(metric(&daemon, count, "kind=\"unpack\",result=\"ok\""), Some(2.0));
    assert_eq!(metric(&daemon, count, "kind=\"create\",result=\"ok\""), Some(1.0));
    assert!(metric(&daemon, count, "kind=\"collect\"").unwrap() >= 1.0);
    assert_eq!(metric(&daemon, "orlopd_tasks", ""), Some(1.0));
    let calls = "orlopd_call_duration_seconds_count";
    assert_eq!(metric(&daemon, calls, "Tasks/Create\",code=\"0\""), Some(1.0));
    assert!(metric(&daemon, calls, "Leases/Nonesuch").is_none());

    let mut stream = TcpStream::connect(port).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("application/openmetrics-text") && answer.contains("# EOF"), "{answer}");

    let info: Value = serde_json::from_str(&daemon.orlopctl(["info"]).run().success().stdout).unwrap();
    assert_eq!(info["counts"]["tasks"], 1, "{info}");
    assert_eq!(info["counts"]["images"], 1, "{info}");
    assert_eq!(info["root"], daemon.root().display().to_string());
    assert!(info["disk"]["free"].as_u64().unwrap() > 0);
    daemon.ctr(["tasks", "kill", "-s", "KILL", "c"]).run().success();
    poll_until(DEADLINE, "it is deleted", || daemon.ctr(["tasks", "rm", "c"]).run().status.success());
    daemon.ctr(["containers", "rm", "c"]).run().success();
}

#[test]
fn calls_beyond_the_limit_are_refused_and_the_others_go_on() {
    let root = Root::new();
    let daemon = Orlopd::start_with(&root, "[grpc]\nmax_calls = 3\n");
    let mut listeners: Vec<_> = (0..3).map(|_| daemon.orlopctl(["events"]).spawn()).collect();
    let refused = || daemon.ctr(["namespaces", "ls"]).run();
    poll_until(DEADLINE, "all places are taken", || refused().stderr.contains("too many calls are open"));
    let one = listeners.pop().unwrap();
    one.signal(Signal::SIGKILL);
    one.wait(DEADLINE);
    poll_until(DEADLINE, "a place is free", || refused().status.success());
    assert!(metric(&daemon, "orlopd_calls_refused_total", "").unwrap() >= 1.0);
    for one in listeners {
        one.signal(Signal::SIGKILL);
        one.wait(DEADLINE);
    }
}

#[test]
fn a_service_manager_that_does_not_read_stops_nothing() {
    let root = Root::new();
    let deaf = UnixDatagram::bind(root.join("notify")).unwrap();
    let full = UnixDatagram::unbound().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.send_to(b"x", root.join("notify")).is_ok() {}
    let env = vec![("NOTIFY_SOCKET".to_owned(), root.join("notify").display().to_string())];
    let mut daemon = Orlopd::start_as(&root, "", &Variant { env, ..Variant::default() });
    daemon.ctr(["version"]).run().success();
    assert_eq!(daemon.stop().unwrap().code(), 0);
    drop(deaf);
}
