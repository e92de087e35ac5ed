//! The engine as a whole: its daemon.json, TCP for clients with a certificate, what takes up the disk.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_tests::Authority;
use orlop_tests::{Cmd, Root, Terminal, binaries, poll_until};

use super::side::{Side, clients};

const DAEMON_JSON: &str = r#"{
    "labels": ["a=b"],
    "log-driver": "local",
    "log-opts": {"max-size": "1m"},
    "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 77, "Hard": 88}},
    "default-shm-size": "2M",
    "no-new-privileges": true,
    "init": true,
    "dns": ["192.0.2.7"],
    "bip": "10.77.0.1/24",
    "fixed-cidr": "10.77.0.128/25",
    "mtu": 1400,
    "default-address-pools": [{"base": "10.88.0.0/16", "size": 24}],
    "runtimes": {"other": {"path": "$dir/runtime", "runtimeArgs": ["--debug"]}},
    "storage-driver": "overlay2",
    "live-restore": true
}"#;

#[test]
fn a_daemon_json_is_carried_out() {
    let side = Side::orlopd_with(binaries::system("docker"), DAEMON_JSON);
    std::os::unix::fs::symlink(binaries::orlop(), side.root.join("runtime")).expect("linking the runtime");
    let line = "$docker info --format '{{.Labels}} {{.LoggingDriver}} {{.Runtimes.other.Path}}'";
    assert!(side.says(line).starts_with("[a=b] local"));
    let line = "$docker run --rm bb sh -c 'ulimit -n; grep -o size=2048k /proc/mounts; grep NoNewPrivs /proc/self/status; \
                cat /proc/1/comm /sys/class/net/eth0/mtu; busybox ip -o -4 addr show dev eth0 | grep -o 10.77.0.128/24; \
                grep nameserver /etc/resolv.conf'";
    // A container's address, the first of the range that is not the range's own.
    let said = side.says(&line.replace("10.77.0.128/24", "10.77.0.1[0-9]*/24"));
    let lines: Vec<&str> = said.lines().collect();
    let expected = ["77", "size=2048k", "NoNewPrivs:\t1", "docker-init", "1400"];
    assert_eq!(lines[..4], expected[..4], "{said}");
    assert!(lines[4].starts_with("1400"), "{said}");
    assert!(lines[5].starts_with("10.77.0.1") && lines[6] == "nameserver 192.0.2.7", "{said}");
    let line = "$docker inspect --format '{{.HostConfig.LogConfig.Type}} {{index .HostConfig.LogConfig.Config \"max-size\"}}' xx";
    assert_eq!(side.says(&format!("$run --name xx --runtime other bb true; {line}")), "local 1m");
    side.says("$docker network create pooled");
    let line = "$docker network inspect --format '{{(index .IPAM.Config 0).Subnet}}' pooled bridge";
    assert_eq!(side.says(line), "10.88.0.0/24\n10.77.0.0/24");
    side.finish();
}

#[test]
fn a_daemon_json_is_read_again() {
    let mut side =
        Side::orlopd_with(binaries::system("docker"), r#"{"labels": ["a=1"], "log-driver": "local"}"#);
    let path = side.root.join("daemon.json");
    let hang_up = |side: &mut Side| {
        kill(Pid::from_raw(side.manager().pid().expect("a process")), Signal::SIGHUP).expect("a signal");
    };
    std::fs::write(&path, r#"{"labels": ["b=2"], "log-driver": "json-file"}"#).expect("writing daemon.json");
    hang_up(&mut side);
    let line = "$docker info --format '{{.Labels}} {{.LoggingDriver}}'";
    poll_until(Duration::from_secs(20), "the new labels", || side.says(line).starts_with("[b=2]"));
    assert_eq!(side.says(line), "[b=2] local", "drivers are chosen at the start");
    poll_until(Duration::from_secs(20), "an event", || {
        side.says("$docker events --since 1m --until 0s --filter type=daemon").contains("reload")
    });
    std::fs::write(&path, r#"{"nope": 1}"#).expect("writing daemon.json");
    hang_up(&mut side);
    poll_until(Duration::from_secs(20), "a word about it", || {
        side.manager().log().contains("don't match any configuration option: nope")
    });
    assert_eq!(side.says(line), "[b=2] local", "one that cannot be read changes nothing");
    side.finish();
}

#[test]
fn an_unknown_key_and_plain_tcp_are_refused() {
    for (text, words) in [
        (r#"{"foo": 1}"#, "the following directives don't match any configuration option: foo"),
        (r#"{"hosts": ["tcp://127.0.0.1:1"]}"#, "only to clients that have a certificate"),
        (r#"{"userns-remap": "nobody-has-this-name"}"#, "nobody-has-this-name"),
        (r#"{"log-driver": "nope"}"#, "no log driver named 'nope' is registered"),
    ] {
        let root = Root::new();
        let (config, file) = (root.join("config.toml"), root.join("daemon.json"));
        std::fs::write(&file, text).expect("writing daemon.json");
        let socket = root.join("docker.sock");
        std::fs::write(&config, format!("[docker]\naddress = {socket:?}\ndaemon_json = {file:?}\n"))
            .expect("writing the configuration");
        let args = [
            ("--config", config),
            ("--root", root.join("r")),
            ("--state", root.join("s")),
            ("--address", root.join("a")),
        ];
        let args = args.iter().flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()]);
        let args: Vec<String> = args.collect();
        let orlopd = || Cmd::new(binaries::orlopd()).args(&args);
        let out = orlopd().run();
        assert!(out.code() != 0 && out.stderr.contains(words), "{text}: {out}");
        let names_file =
            out.stderr.contains("daemon.json: ") && out.stderr.contains("as daemon_json in [docker]");
        assert!(names_file || text.contains("hosts"), "{text}: {out}");
        // What serves nobody goes on: shims publish their events by it.
        assert!(!orlopd().args(["config", "dump"]).run().success().stdout.is_empty(), "{text}");
    }
}

#[test]
fn tcp_is_for_clients_with_a_certificate() {
    let certificates = Root::new();
    let authority = Authority::new(certificates.path());
    let text = |path: PathBuf| path.display().to_string();
    let ((certificate, key), (own, own_key)) = (authority.registry(), authority.client());
    let trusted = text(authority.certificate());
    let json = format!(
        r#"{{"hosts": ["tcp://127.0.0.1:2376"], "tlsverify": true, "tlscacert": {trusted:?}, "tlscert": {certificate:?},
            "tlskey": {key:?}}}"#
    );
    for client in clients() {
        let side = Side::orlopd_with(client.clone(), &json);
        let host = side.says("echo $host");
        let bare = || {
            Cmd::new(binaries::system("nsenter"))
                .arg(format!("--net=/proc/{host}/ns/net"))
                .arg(&client)
                .args(["--host", "tcp://127.0.0.1:2376"])
                .arg(format!("--config={}", side.root.join("client").display()))
        };
        let trusting = || bare().args(["--tlsverify", "--tlscacert", &trusted]);
        let known = || trusting().args(["--tlscert", &text(own.clone()), "--tlskey", &text(own_key.clone())]);
        let run = ["run", "--rm", "--network", "none"];
        let said = known().args(run).args(["bb", "echo", "hello"]).run().success().stdout;
        assert_eq!(said, "hello\n");
        let said = known().args(run).args(["-i", "bb", "cat"]).input("given\n").run().success().stdout;
        assert_eq!(said, "given\n");
        let terminal = Terminal::start(&known().args(run).args(["-it", "bb", "sh"]), 40, 100);
        terminal.enter("echo $((40 + 2))\n");
        poll_until(Duration::from_secs(20), "an answer", || terminal.shown().contains("42"));
        terminal.enter("exit 3\n");
        assert_eq!(terminal.wait(Duration::from_secs(20)), 3);
        let out = trusting().arg("ps").run();
        assert!(out.code() != 0 && out.stderr.contains("certificate"), "{out}");
        let out = bare().arg("ps").run();
        assert!(out.code() != 0 && out.stderr.contains("HTTP request to an HTTPS server"), "{out}");
        side.finish();
    }
    certificates.assert_clean();
}

#[test]
fn counts_and_sizes_are_told() {
    let side = Side::orlopd();
    side.says("$run --detach --name runs bb sleep 1000; $run --detach --name freezes bb sleep 1000; $docker pause freezes");
    side.says("$run --name ended bb sh -c 'head -c 100000 /dev/zero >/made'; $docker volume create vol");
    let line = "$docker info --format '{{.Containers}} {{.ContainersRunning}} {{.ContainersPaused}} {{.ContainersStopped}}'";
    assert_eq!(side.says(line), "3 1 1 1");
    let line = "$docker system df --format '{{.Type}}: {{.TotalCount}} {{.Active}}'";
    assert_eq!(side.says(line), "Images: 1 1\nContainers: 3 2\nLocal Volumes: 1 0\nBuild Cache: 0 0");
    let line = "$docker system df --verbose | grep -w ended | grep -c kB";
    assert_eq!(side.says(line), "1");
    side.says("$docker unpause freezes; $docker rm --force runs freezes ended; $docker volume rm vol");
    side.finish();
}

/// What orlopd may have of its own after some runs, in bytes; after a hundred it was 5.5 MiB.
const OWN_MEMORY: u64 = 12 << 20;

#[test]
fn runs_leave_no_memory() {
    let mut side = Side::orlopd();
    for _ in 0..25 {
        side.says("$run --rm bb true");
    }
    let pid = side.manager().pid().expect("a process");
    let own = orlop_tests::host::anonymous(pid).expect("its memory");
    assert!(own <= OWN_MEMORY, "{own} bytes");
    side.finish();
}
