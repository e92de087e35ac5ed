//! Flags of `docker run` and what they do inside, and what is refused.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use orlop_tests::poll_until;

use super::side::{Line, Side, clients, compare};

/// Lines that say and do the same on dockerd.
const LINES: &[Line] = &[
    (
        0,
        "$run --label tier=front --env A=1 --log-opt labels=tier --log-opt env=A --log-opt 'tag={{.Name}} x' --name details bb \
         echo hi; $docker logs --details details; $docker logs --details --timestamps details | cut -d' ' -f2-; \
         $docker rm details",
    ),
    (
        0,
        "$run --name packed --log-driver local --log-opt max-size=1k --log-opt max-file=3 bb seq 1 2000 >/dev/null; \
         $docker logs packed | tail -1; $docker logs --tail 3 packed; $docker rm packed",
    ),
    (125, "$run --rm --log-opt compress=true bb true"),
    (125, "$run --rm --log-opt max-size=1k --log-opt max-file=0 bb true"),
    (
        137,
        "$run --name oom --memory 16m --memory-swap 16m bb sh -c 'cat /dev/zero | tail'; code=$?; \
         $docker inspect --format '{{.State.ExitCode}} {{.State.OOMKilled}}' oom; $docker rm oom; exit $code",
    ),
    (
        0,
        "$run --rm --cgroupns private bb sh -c 'grep -c :/$ /proc/self/cgroup || grep -c ::/ /proc/self/cgroup'",
    ),
    (0, "$run --rm --security-opt label=disable --userns host bb echo label"),
    (0, "$run --rm --cgroupns host --annotation a=b bb echo host 2>/dev/null || echo host"),
    (
        0,
        "$run --rm --blkio-weight 200 --cpu-shares 512 --cpuset-cpus 0 --memory-reservation 32m --oom-kill-disable --memory 64m \
         bb true 2>/dev/null; echo $?",
    ),
    (
        0,
        "$docker create --name shown --network none --memory 64m --cpu-shares 300 --cpus 1 --pids-limit 9 --shm-size 1m --init \
         --read-only --tmpfs /t --cap-add NET_ADMIN --cap-drop CHOWN --ulimit nofile=5:6 --sysctl net.core.somaxconn=9 \
         --stop-signal USR1 --stop-timeout 4 --oom-score-adj 7 --group-add 5 --hostname h --domainname d --label a=b \
         --restart on-failure:3 --device /dev/null:/dev/n:r --expose 9 --volume /v --entrypoint x bb y >/dev/null; \
         $docker inspect --format '{{json .HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.CpuShares}} \
         {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} {{.HostConfig.ShmSize}} {{.HostConfig.Init}} \
         {{.HostConfig.ReadonlyRootfs}} {{json .HostConfig.Tmpfs}} {{json .HostConfig.CapAdd}} {{json .HostConfig.CapDrop}} \
         {{json .HostConfig.Sysctls}} {{.HostConfig.OomScoreAdj}} {{json .HostConfig.GroupAdd}} \
         {{json .HostConfig.RestartPolicy}} {{json .HostConfig.Devices}} {{json .Config.ExposedPorts}} \
         {{json .Config.Volumes}} {{json .Config.Entrypoint}} {{json .Config.Cmd}} {{.Config.StopSignal}} \
         {{.Config.StopTimeout}} {{.Config.Hostname}} {{.Config.Domainname}} {{json .Config.Labels}}' shown; \
         $docker rm --volumes shown",
    ),
    (
        0,
        "$run --rm --user 5 bb cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range; $run --rm --sysctl \
         net.ipv4.ip_unprivileged_port_start=1000 bb cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
    ),
    (125, "$run --rm --storage-opt size=1G bb true"),
    (125, "$run --rm --storage-opt SIZE=1G bb true"),
    (125, "$run --rm --gpus all bb true"),
    (125, "$run --rm --cgroupns nope bb true"),
    (127, "$run --rm --device /dev/nope bb true"),
    (125, "$run --rm --volumes-from nope bb true"),
    (125, "$run --rm --ipc nope bb true"),
    (
        0,
        "$docker volume create vol; $docker create --name uses --volume vol:/v bb true >/dev/null; $docker volume rm vol || echo used; \
         $docker rm uses; $docker volume rm vol",
    ),
    (0, "$docker system df --format '{{.Type}} {{.TotalCount}} {{.Active}}'"),
    (0, "$docker ps --all --quiet"),
];

#[test]
fn flags_do_as_under_dockerd() {
    let debian = clients().pop().expect("a client");
    let (ours, reference) = (Side::orlopd_for(debian.clone()), Side::dockerd(debian));
    compare(&ours, &reference, LINES);
    ours.finish();
    reference.finish();
}

/// Links and their variables, on the default network.
const LINKS: &[Line] = &[
    (
        0,
        "$docker run --detach --name db --expose 80 --expose 53/udp --env X=1 bb sleep 1000 >/dev/null; \
         $docker run --rm --name web --link db:my-db bb env | grep ^MY_DB | grep -v ^MY_DB_PORT= | sort; \
         $docker run --rm --link db:my-db bb grep -o my-db /etc/hosts; $docker rm --force db",
    ),
    (
        0,
        "$docker run --rm --network host --dns 192.0.2.1 --add-host one:192.0.2.2 bb \
         sh -c 'grep nameserver /etc/resolv.conf; grep -w one /etc/hosts'",
    ),
    (
        125,
        "$docker run --detach --name first --publish 8080:80 bb sleep 1000 >/dev/null; \
         $docker run --name second --publish 8080:80 bb true; code=$?; $docker inspect --format '{{.State.Status}}' second; \
         $docker rm second; $docker rm --force first; exit $code",
    ),
];

#[test]
fn links_do_as_under_dockerd() {
    let debian = clients().pop().expect("a client");
    let (ours, reference) = (Side::orlopd_alone(debian.clone()), Side::dockerd_alone(debian));
    compare(&ours, &reference, LINKS);
    ours.finish();
    reference.finish();
}

#[test]
fn devices_come_by_name() {
    let side =
        Side::orlopd_with(orlop_tests::binaries::system("docker"), r#"{"cdi-spec-dirs": ["$dir/cdi"]}"#);
    fs::create_dir(side.root.join("cdi")).expect("making the directory");
    let file = r#"{"cdiVersion": "0.6.0", "kind": "vendor.test/toy", "devices": [{"name": "one", "containerEdits":
        {"env": ["TOY=one"], "deviceNodes": [{"path": "/dev/toy", "hostPath": "/dev/null"}]}}]}"#;
    fs::write(side.root.join("cdi/toy.json"), file).expect("writing the file");
    fs::write(
        side.root.join("cdi/gpu.json"),
        file.replace("vendor.test/toy", "nvidia.com/gpu").replace("one", "all"),
    )
    .expect("writing the file");
    let line = "$run --rm --device vendor.test/toy=one bb sh -c 'echo $TOY; stat -c %F /dev/toy'";
    assert_eq!(side.says(line), "one\ncharacter special file");
    assert_eq!(side.says("$run --rm --gpus all bb sh -c 'echo $TOY'"), "all");
    let out = side.run("$run --name none --device vendor.test/toy=two bb true");
    assert_ne!(out.code(), 0);
    assert!(out.stderr.contains("unresolvable CDI devices vendor.test/toy=two"), "{}", out.stderr);
    side.says("$docker rm none");
    side.finish();
}

/// A frame of a client (RFC 6455, section 5.2), masked by zeros.
fn frame(code: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | code, 0x80 | data.len() as u8, 0, 0, 0, 0];
    bytes.extend_from_slice(data);
    bytes
}

#[test]
fn a_web_socket_is_attached() {
    let side = Side::orlopd();
    let id =
        side.says("$run --detach --interactive --name ws bb sh -c 'read word; echo got $word; read end'");
    let mut socket = UnixStream::connect(side.root.join("docker.sock")).expect("connecting");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("setting a deadline");
    let request = |upgrade: &str| {
        format!(
            "GET /v1.43/containers/{id}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: docker\r\n{upgrade}\r\n"
        )
    };
    let key = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
               Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    socket.write_all(request(key).as_bytes()).expect("asking");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    // The example of RFC 6455, section 1.3.
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    socket.write_all(&frame(2, b"hello\n")).expect("sending");
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).expect("a message");
    assert_eq!(&answer, b"\x82\x0agot hello\n");
    socket.write_all(&frame(8, &[])).expect("closing");
    // It is answered, and the connection goes, though the container says nothing and goes on.
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).expect("a goodbye");
    assert_eq!(rest, b"\x88\x00");
    assert_eq!(side.says("$docker inspect --format '{{.State.Running}}' ws"), "true");
    let mut plain = UnixStream::connect(side.root.join("docker.sock")).expect("connecting");
    plain.write_all(request("Connection: close\r\n").as_bytes()).expect("asking");
    let mut text = String::new();
    plain.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 400"), "{text}");
    side.finish();
}

#[test]
fn older_log_files_are_compressed() {
    let side = Side::orlopd();
    side.says("$run --name packed --log-opt max-size=1k --log-opt max-file=4 --log-opt compress=true bb seq 1 300 >/dev/null");
    let path = side.says("$docker inspect --format '{{.LogPath}}' packed");
    poll_until(Duration::from_secs(20), "a compressed file", || {
        fs::metadata(format!("{path}.1.gz")).is_ok() && fs::metadata(format!("{path}.1")).is_err()
    });
    let lines = side.says("$docker logs packed");
    let numbers: Vec<u32> = lines.lines().map(|line| line.parse().expect("a number")).collect();
    let expected: Vec<u32> = (numbers[0]..=300).collect();
    assert_eq!(numbers, expected, "what is kept has no gap");
    side.finish();
}
