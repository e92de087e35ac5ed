//! Networks, as a person types them: on orlopd and on Debian's dockerd, each on a host of its own.

use std::net::UdpSocket;
use std::time::Duration;

use orlop_tests::{binaries, poll_until};

use super::side::{Line, Side, clients, compare};

/// Lines that say and do the same on dockerd. `$host` is a process in the engine's network namespace.
const LINES: &[Line] = &[
    (0, "$docker network ls --format '{{.Name}} {{.Driver}} {{.Scope}}'"),
    (
        0,
        "$docker network inspect --format '{{.Driver}} {{(index .IPAM.Config 0).Subnet}} {{json .Options}}' bridge",
    ),
    (
        0,
        "$docker run --rm bb sh -c 'busybox ip -o -4 addr show dev eth0; busybox ip route; sed 1,6d /etc/hosts | cut -f1' | sed 's/^[0-9]*: //'",
    ),
    (0, "$docker run --rm --network host bb busybox ip -o link show | wc -l"),
    (0, "$docker run --rm --network none bb busybox ip -o link show | wc -l"),
    (0, "$docker network create --subnet 10.9.0.0/24 --label a=b net | wc -c"),
    (
        0,
        "$docker run --detach --name fixed --network net --ip 10.9.0.77 --publish 8071:80 --hostname foo --domainname d.e bb sleep 1000 | wc -c; \
         $docker inspect --format '{{json .NetworkSettings.Networks.net.IPAMConfig}}' fixed; $docker exec fixed tail -1 /etc/hosts; \
         for filter in publish=8071 publish=8000-8100/tcp publish=80 expose=80; do $docker ps --quiet --filter $filter | wc -l; done; \
         $docker rm --force fixed",
    ),
    (
        0,
        "$docker run --detach --name far bb sleep 1000 | wc -c; $docker run --detach --name near --link far:db bb sleep 1000 | wc -c; \
         $docker inspect --format '{{.HostConfig.Links}}' near; $docker rm --force near far",
    ),
    (1, "$docker network create net"),
    (1, "$docker network create --subnet 10.9.0.0/28 other"),
    (1, "$docker network create --driver nope other"),
    (1, "$docker network create bridge"),
    (0, "$docker network ls --filter label=a=b --filter driver=bridge --format '{{.Name}}'"),
    (0, "$docker run --detach --name one --network net --network-alias uno bb sleep 1000 | wc -c"),
    (0, "$docker run --detach --name two --network net --ip 10.9.0.9 bb sleep 1000 | wc -c"),
    (
        0,
        "$docker inspect --format '{{.NetworkSettings.Networks.net.IPAddress}} {{.NetworkSettings.Networks.net.MacAddress}}' one two",
    ),
    (0, "$docker exec two busybox ping -c 1 -q uno | head -1"),
    (0, "$docker exec one busybox ping -c 1 -q two | head -1"),
    (0, "$docker exec one cat /etc/resolv.conf | grep -v search"),
    (125, "$docker run --rm --network net --ip 10.9.0.9 bb true"),
    (125, "$docker run --rm --network net --ip 10.8.0.9 bb true"),
    (125, "$docker run --rm --network nosuch bb true"),
    (
        0,
        "$docker network inspect --format '{{range .Containers}}{{.Name}} {{.IPv4Address}}{{\"\\n\"}}{{end}}' net | sort",
    ),
    (1, "$docker network rm net"),
    (1, "$docker network rm bridge"),
    (1, "$docker network connect net one"),
    (1, "$docker network connect host one"),
    (1, "$docker network connect nosuch one"),
    (
        0,
        "$docker network connect bridge one; $docker exec one sh -c 'ls /sys/class/net >/dev/null; busybox ip -o -4 addr show dev eth1 | wc -l'",
    ),
    (0, "$docker network disconnect net one; $docker exec one busybox ip route | grep -c default"),
    (1, "$docker network disconnect net one"),
    (
        0,
        "$docker run --rm --network container:two bb busybox ip -o -4 addr show dev eth0 | grep -o '10.9.0.9/24'",
    ),
    (
        0,
        "$docker run --detach --name web --publish 8080:80 --publish 127.0.0.1:8081:81/udp bb busybox nc -ll -p 80 -e echo hello | wc -c",
    ),
    (0, "$docker port web | sort"),
    (0, "$docker ps --filter name=web --format '{{.Ports}}'"),
    (
        0,
        "for at in 127.0.0.1 172.17.0.1 ::1; do nsenter --net=/proc/$host/ns/net busybox nc $at 8080 </dev/null; done",
    ),
    (125, "$docker run --rm --publish 8080:80 bb true"),
    (
        0,
        "$docker run --rm --add-host a:1.2.3.4 --dns 9.9.9.9 --dns-search ex --dns-option ndots:2 bb sh -c 'grep 1.2.3.4 /etc/hosts; cat /etc/resolv.conf'",
    ),
    (
        0,
        "$docker rm --force one two web; $docker network prune --force; $docker network ls --format '{{.Name}}'",
    ),
];

/// Words of errors that dockerd 20.10 and later versions have in common.
const WORDS: &[(&str, &str)] = &[
    ("$docker network rm host", "host is a pre-defined network and cannot be removed"),
    ("$docker network create host", "operation is not permitted on predefined host network"),
    ("$docker network create --subnet 172.17.0.0/24 x", "Pool overlaps with other one on this address space"),
    ("$docker network create -d nope x", "plugin \"nope\" not found"),
    ("$docker run --rm --network nosuch bb true", "network nosuch not found"),
    (
        "$docker run -d --name p1 -p 8080:80 bb sleep 1000; $docker run --rm --name q2 -p 8080:80 bb true",
        "Bind for 0.0.0.0:8080 failed: port is already allocated",
    ),
    (
        "$docker network disconnect bridge p1; $docker network disconnect bridge p1",
        "is not connected to network bridge",
    ),
    (
        "$docker run --rm --network bridge --ip 1.2.3.4 bb true",
        "user specified IP address is supported on user defined networks only",
    ),
];

#[test]
fn networks_do_as_under_dockerd() {
    let debian = clients().pop().expect("a client");
    let (ours, reference) = (Side::orlopd_alone(debian.clone()), Side::dockerd_alone(debian));
    compare(&ours, &reference, LINES);
    for (line, words) in WORDS {
        for side in [&ours, &reference] {
            let out = side.run(line);
            assert!(out.stderr.contains(words), "{line}: {out}");
        }
    }
    ours.finish();
    reference.finish();
}

#[test]
fn what_is_published_outlives_the_daemon_and_nothing_stays() {
    let mut side = Side::orlopd_alone(binaries::system("docker"));
    side.says("$docker network create net");
    side.says("$docker run -d --name web --network net -p 8080:80 bb busybox nc -ll -p 80 -e echo hello");
    side.says("$docker run -d --name other --network net bb sleep 1000");
    let asks = "nsenter --net=/proc/$host/ns/net busybox nc 127.0.0.1 8080 </dev/null";
    poll_until(Duration::from_secs(20), "the server", || side.run(asks).stdout == "hello\n");
    side.manager().kill();
    assert_eq!(side.says(asks), "hello", "without orlopd");
    side.manager().restart();
    assert_eq!(side.says(asks), "hello");
    poll_until(Duration::from_secs(20), "the name server", || {
        side.run("$docker exec other busybox ping -c 1 -q web").status.success()
    });
    side.says("$docker rm -f web other; $docker network rm net");
    let left = side.says("nsenter --net=/proc/$host/ns/net sh -c 'ip -o link; nft list ruleset'");
    for trace in ["veth", "br-", "8080"] {
        assert!(!left.contains(trace), "{left}");
    }
    side.finish();
}

/// A socket of the network namespace that a process is in. It stays one, whichever thread uses it.
fn socket_of(pid: &str, address: &'static str) -> UdpSocket {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).expect("a network namespace");
    let make = move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("entering the namespace");
        UdpSocket::bind(address).expect("a socket")
    };
    std::thread::spawn(make).join().expect("a socket")
}

#[test]
fn a_stream_of_datagrams_follows_its_port() {
    let side = Side::orlopd_alone(binaries::system("docker"));
    side.says("$docker run --detach --name first bb sleep 1000");
    let gateway = side.says("$docker network inspect --format '{{(index .IPAM.Config 0).Gateway}}' bridge");
    let socket = socket_of(&side.says("echo $host"), "0.0.0.0:4444");
    let send = || drop(socket.send_to(b"ping\n", format!("{gateway}:9000")));
    // From here on the kernel knows the stream, which leads to nobody.
    send();
    side.says("$docker run --detach --name udp --publish 9000:9000/udp bb sleep 1000");
    let inside = socket_of(&side.says("$docker inspect --format '{{.State.Pid}}' udp"), "0.0.0.0:9000");
    inside.set_read_timeout(Some(Duration::from_millis(200))).expect("a deadline");
    let mut buffer = [0; 8];
    poll_until(Duration::from_secs(20), "a datagram in the container", || {
        send();
        inside.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == b"ping\n")
    });
    drop(inside);
    side.finish();
}

#[test]
fn a_containers_own_name_server_is_asked_from_its_network() {
    let side = Side::orlopd_alone(binaries::system("docker"));
    side.says("$docker network create net");
    side.says("$docker run --detach --name asks --network net --dns 127.0.0.1 bb sleep 1000");
    // A server that nobody but the container itself can reach.
    let server = socket_of(&side.says("$docker inspect --format '{{.State.Pid}}' asks"), "127.0.0.1:53");
    server.set_read_timeout(Some(Duration::from_millis(100))).expect("a deadline");
    let mut buffer = [0; 512];
    let mut client = side.docker(&["exec", "asks", "busybox", "nslookup", "only.here"]).spawn();
    while client.running() {
        let Ok((length, from)) = server.recv_from(&mut buffer) else { continue };
        let name = 12 + buffer[12..length].iter().position(|&byte| byte == 0).expect("a name");
        // RFC 1035, section 4.1: the header with one answer, the question, and an address for the name at offset 12.
        let is_v4 = buffer[name + 1..name + 3] == [0, 1];
        let mut answer = [&buffer[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]].concat();
        answer.extend_from_slice(&buffer[12..name + 5]);
        if is_v4 {
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 9]);
        }
        server.send_to(&answer, from).expect("sending");
    }
    let out = client.wait(Duration::from_secs(20));
    assert!(out.stdout.contains("192.0.2.9"), "{out}");
    drop(server);
    side.says("$docker rm --force asks; $docker network rm net");
    side.finish();
}
