//! Networks of a host that is a network namespace of the test's own; its containers and the world outside are further ones. One file, as
//! all of them stand on this host. Needs root, and nft(8), which tells what the kernel has.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use orlop_host::sys;

use super::definitions::Definition;
use super::held::Protocol;
use super::namespace::within;
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// What is to be refused is not waited for as long.
const REFUSED: Duration = Duration::from_millis(500);

/// Runs a test in a thread whose network namespace is its own.
fn on_host<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        sys::pid::unshare(libc::CLONE_NEWNET).unwrap();
        sys::net::bring_loopback_up().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let db = Database::open(&directory.path().join("db")).unwrap();
            let networks = Networks::new(db.clone(), directory.path(), "test", Defaults::default()).unwrap();
            networks.recover(BTreeMap::new()).await.unwrap();
            test(Host { networks, db, directory: directory.path().to_owned() }).await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

struct Host {
    networks: Networks,
    db: Database,
    directory: std::path::PathBuf,
}

/// A network namespace with nothing in it but its loopback device.
struct Container(Arc<OwnedFd>);

impl Container {
    fn new() -> Container {
        let thread = std::thread::spawn(|| {
            sys::pid::unshare(libc::CLONE_NEWNET).unwrap();
            sys::net::bring_loopback_up().unwrap();
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
        });
        Container(Arc::new(thread.join().unwrap()))
    }

    fn namespace(&self) -> OwnedFd {
        self.0.try_clone().unwrap()
    }

    /// Runs something in it, off the thread of the runtime, which has to go on.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = self.0.clone();
        blocking(move || within(namespace.as_fd(), || Ok(work()))).await.unwrap()
    }

    /// A program in it, by nsenter(1).
    async fn sh(&self, script: &str) -> String {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        program("nsenter", &[&format!("--net={path}"), "sh", "-c", script]).await
    }

    /// Answers each connection with who it comes from, and each datagram too.
    async fn serve(&self, port: u16) {
        let any = SocketAddr::from(([0u16; 8], port));
        let (tcp, udp) =
            self.run(move || (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())).await;
        std::thread::spawn(move || {
            for client in tcp.incoming() {
                let mut client = client.unwrap();
                let from = client.peer_addr().unwrap().ip().to_canonical().to_string();
                let _ = client.write_all(from.as_bytes());
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 100];
            loop {
                let (_, from) = udp.recv_from(&mut buffer).unwrap();
                let _ = udp.send_to(from.ip().to_canonical().to_string().as_bytes(), from);
            }
        });
    }

    /// Whom a server takes this one for.
    async fn asks(&self, to: &str) -> Option<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || ask(to, PATIENCE)).await
    }

    /// Whether a server cannot be reached.
    async fn misses(&self, to: &str) -> bool {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || ask(to, REFUSED)).await.is_none()
    }

    /// The same by UDP.
    async fn sends(&self, to: &str) -> Option<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || send(to)).await
    }
}

fn ask(to: SocketAddr, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    (!text.is_empty()).then_some(text)
}

fn send(to: SocketAddr) -> Option<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    socket.set_read_timeout(Some(REFUSED)).unwrap();
    let mut buffer = [0; 100];
    // A datagram may be lost while addresses are looked for.
    let answered = (0..20).find_map(|_| {
        socket.send(b"?").ok()?;
        socket.recv(&mut buffer).ok()
    });
    Some(String::from_utf8_lossy(&buffer[..answered?]).into_owned())
}

async fn program(name: &str, args: &[&str]) -> String {
    let mut command = std::process::Command::new(name);
    command.args(args).stdin(std::process::Stdio::null());
    // Spawned from a thread of this host's namespace, it is in that one too.
    let out = blocking(move || command.output().context("run", "a program")).await.unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{name} {args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

impl Host {
    fn start(&self, id: &str, container: &Container) -> Start {
        Start {
            container: full(id),
            name: id.to_owned(),
            hostname: format!("{id}-host"),
            domain: String::new(),
            namespace: container.namespace(),
            ports: Vec::new(),
            resolver: Resolver::default(),
            hosts: Vec::new(),
            hosts_file: PathBuf::new(),
            resolv_file: PathBuf::new(),
        }
    }

    /// A running container on some networks.
    async fn run(&self, id: &str, networks: &[&str]) -> Container {
        self.run_with(id, networks, Vec::new()).await.unwrap().0
    }

    async fn run_with(&self, id: &str, networks: &[&str], ports: Vec<Request>) -> Result<(Container, Held)> {
        let container = Container::new();
        let wishes = networks.iter().map(|name| wish(name)).collect();
        self.networks.attach(&full(id), wishes).await?;
        let mut start = self.start(id, &container);
        start.ports = ports;
        let held = self.networks.up(start).await?;
        Ok((container, held))
    }

    async fn create(&self, name: &str, change: impl FnOnce(&mut Definition)) -> Network {
        let mut definition = Definition { name: name.to_owned(), ..Definition::default() };
        change(&mut definition);
        self.networks.create(definition).await.unwrap()
    }

    fn address(&self, id: &str) -> String {
        self.networks.held_of(&full(id)).unwrap().endpoints[0].ipv4.unwrap().0.to_string()
    }

    /// The world outside: reached by 192.0.2.2 through a device of the host, which has 192.0.2.1 there.
    async fn outside(&self) -> Container {
        let outside = Container::new();
        let path = format!("/proc/{}/fd/{}", std::process::id(), outside.0.as_raw_fd());
        program("sh", &["-c", "ip link add wan type veth peer name eth0 && ip addr add 192.0.2.1/24 dev wan && ip link set wan up && ip addr add fd01::1/64 dev wan nodad"]).await;
        // ip(8) takes a namespace by a process in it.
        let mut holder = std::process::Command::new("nsenter");
        holder.arg(format!("--net={path}")).args(["sleep", "60"]);
        let mut holder = blocking(move || holder.spawn().context("run", "sleep")).await.unwrap();
        let other = std::fs::read_link(&path).unwrap();
        let entered = format!("/proc/{}/ns/net", holder.id());
        while std::fs::read_link(&entered).ok().as_ref() != Some(&other) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        program("ip", &["link", "set", "eth0", "netns", &holder.id().to_string()]).await;
        holder.kill().unwrap();
        holder.wait().unwrap();
        outside
            .sh("ip addr add 192.0.2.2/24 dev eth0; ip addr add fd01::2/64 dev eth0 nodad; ip link set eth0 up; \
                 ip route add default via 192.0.2.1; ip route add default via fd01::1")
            .await;
        outside
    }

    /// What the host has of devices and rules that are ours.
    async fn traces(&self) -> String {
        let links = program("ip", &["-o", "link", "show"]).await;
        let ports: String = links
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .filter(|name| name.starts_with("veth"))
            .collect();
        let rules = program("nft", &["list", "ruleset"]).await;
        let elements: String = rules
            .lines()
            .filter(|line| line.contains(" : ") && !line.contains("jump") && !line.contains("type "))
            .collect();
        ports + &elements
    }
}

fn full(id: &str) -> String {
    let mut text: String = id.bytes().map(|byte| format!("{byte:02x}")).collect();
    text.push_str(&"0".repeat(64 - text.len()));
    text
}

fn wish(network: &str) -> Wish {
    Wish { network: network.to_owned(), ..Wish::default() }
}

fn port(text: &str, host_port: u16, port: u16, protocol: Protocol) -> Request {
    Request { port, protocol, host: text.parse().ok(), host_ports: Some(host_port..=host_port) }
}

async fn host_asks(to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    blocking(move || Ok(ask(to, PATIENCE))).await.unwrap()
}

async fn host_sends(to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    blocking(move || Ok(send(to))).await.unwrap()
}

#[test]
fn containers_talk_to_each_other_and_to_the_outside_and_leave_nothing() {
    on_host(async |host| {
        let before = program("nft", &["list", "ruleset"]).await;
        assert_eq!(before, "", "nothing is made before a container needs it");
        let outside = host.outside().await;
        outside.serve(80).await;
        let (one, two) = (host.run("one", &["bridge"]).await, host.run("two", &["bridge"]).await);
        two.serve(80).await;
        assert_eq!((host.address("one"), host.address("two")), ("172.17.0.2".into(), "172.17.0.3".into()));
        assert_eq!(one.asks("172.17.0.3:80").await.as_deref(), Some("172.17.0.2"));
        // The outside sees the host.
        assert_eq!(one.asks("192.0.2.2:80").await.as_deref(), Some("192.0.2.1"));
        assert_eq!(one.sends("192.0.2.2:80").await.as_deref(), Some("192.0.2.1"));
        // And has no way in, whatever its routes.
        assert!(outside.misses("172.17.0.3:80").await);
        let shown = one.sh("ip -o addr show dev eth0; ip route").await;
        for words in ["172.17.0.2/16 brd 172.17.255.255", "default via 172.17.0.1"] {
            assert!(shown.contains(words), "{shown}");
        }
        assert!(!shown.contains("inet6"), "{shown}");
        host.networks.down(&full("one")).await.unwrap();
        host.networks.down(&full("two")).await.unwrap();
        assert_eq!(host.traces().await, "");
        assert!(host.networks.held().is_empty());
    });
}

#[test]
fn published_ports_from_everywhere() {
    on_host(async |host| {
        let outside = host.outside().await;
        let other = host.create("other", |_| ()).await;
        let ports = vec![
            port("", 8080, 80, Protocol::Tcp),
            port("", 8080, 80, Protocol::Udp),
            port("127.0.0.1", 8081, 80, Protocol::Tcp),
            port("192.0.2.1", 8082, 80, Protocol::Tcp),
        ];
        let (web, held) = host.run_with("web", &["bridge"], ports).await.unwrap();
        web.serve(80).await;
        assert_eq!(held.published.len(), 6);
        let neighbour = host.run("neighbour", &["bridge"]).await;
        let stranger = host.run("stranger", &[&other.name]).await;
        // From outside, with the client's own address.
        assert_eq!(outside.asks("192.0.2.1:8080").await.as_deref(), Some("192.0.2.2"));
        assert_eq!(outside.sends("192.0.2.1:8080").await.as_deref(), Some("192.0.2.2"));
        assert_eq!(outside.asks("192.0.2.1:8082").await.as_deref(), Some("192.0.2.2"));
        assert!(outside.misses("192.0.2.1:8081").await);
        // From the host, by any of its addresses.
        for to in ["127.0.0.1:8080", "127.0.0.1:8081", "192.0.2.1:8080", "172.17.0.1:8080", "[::1]:8080"] {
            assert!(host_asks(to).await.is_some(), "{to}");
        }
        for to in ["127.0.0.1:8080", "192.0.2.1:8080", "[::1]:8080"] {
            assert!(host_sends(to).await.is_some(), "{to}/udp");
        }
        assert_eq!(host_asks("127.0.0.1:8082").await, None);
        // From version 6, though the container has none.
        assert!(outside.asks("[fd01::1]:8080").await.is_some());
        // From containers: itself, its neighbour, and one on another network.
        for (name, container) in [("itself", &web), ("neighbour", &neighbour), ("stranger", &stranger)] {
            for to in ["192.0.2.1:8080", "172.17.0.1:8080"] {
                assert!(container.asks(to).await.is_some(), "{name} {to}");
            }
        }
        // The other network is another one all the same.
        assert!(stranger.misses(&format!("{}:80", host.address("web"))).await);
        // A port of the loopback address is not to be had by a packet from elsewhere that claims to be for it.
        outside.sh("echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; ip route del local 127.0.0.0/8 table local; ip route add 127.0.0.0/8 via 192.0.2.1").await;
        assert!(outside.misses("127.0.0.1:8081").await);
        for id in ["web", "neighbour", "stranger"] {
            host.networks.down(&full(id)).await.unwrap();
        }
        assert_eq!(host.traces().await, "");
        assert_eq!(host_asks("127.0.0.1:8080").await, None);
        assert!(TcpListener::bind("0.0.0.0:8080").is_ok());
    });
}

#[test]
fn a_port_that_is_taken_is_refused_and_leaves_nothing() {
    on_host(async |host| {
        let first = vec![port("", 8080, 80, Protocol::Tcp)];
        let (_web, _) = host.run_with("web", &["bridge"], first.clone()).await.unwrap();
        let before = host.traces().await;
        let error = host.run_with("late", &["bridge"], first).await.err().unwrap().to_string();
        assert!(
            error.starts_with("driver failed programming external connectivity on endpoint late ("),
            "{error}"
        );
        assert!(error.ends_with("): Bind for 0.0.0.0:8080 failed: port is already allocated"), "{error}");
        let busy = TcpListener::bind("127.0.0.1:9090").unwrap();
        let taken = vec![port("", 9091, 80, Protocol::Tcp), port("", 9090, 80, Protocol::Tcp)];
        let error = host.run_with("late", &["bridge"], taken).await.err().unwrap().to_string();
        assert!(
            error.contains(
                "failed to bind host port for 0.0.0.0:9090:172.17.0.3:80/tcp: address already in use"
            ),
            "{error}"
        );
        drop(busy);
        assert_eq!(host.traces().await, before);
        assert_eq!(host.networks.held().len(), 1);
        let again = vec![port("", 9091, 80, Protocol::Tcp)];
        assert_eq!(
            host.run_with("late", &["bridge"], again).await.unwrap().1.endpoints[0]
                .ipv4
                .unwrap()
                .0
                .to_string(),
            "172.17.0.3"
        );
    });
}

#[test]
fn networks_are_apart_and_internal_ones_from_everything() {
    on_host(async |host| {
        let outside = host.outside().await;
        outside.serve(80).await;
        host.create("inner", |definition| definition.internal = true).await;
        host.create("quiet", |definition| {
            definition.options.insert(record::BRIDGE_ICC.to_owned(), "false".to_owned());
        })
        .await;
        let (a, b) = (host.run("a", &["bridge"]).await, host.run("b", &["inner"]).await);
        let (c, d, e) = (
            host.run("c", &["inner"]).await,
            host.run("d", &["quiet"]).await,
            host.run("e", &["quiet"]).await,
        );
        for container in [&a, &b, &c, &d, &e] {
            container.serve(80).await;
        }
        let to = |id: &str| format!("{}:80", host.address(id));
        assert!(b.asks(&to("c")).await.is_some(), "within the internal network");
        assert!(b.misses("192.0.2.2:80").await);
        b.sh("ip route add default via 172.18.0.1").await;
        assert!(b.misses("192.0.2.2:80").await, "even with a route");
        assert!(b.misses(&to("a")).await);
        assert!(a.misses(&to("b")).await);
        assert!(d.misses(&to("e")).await, "containers that may not talk to each other");
        assert!(d.asks("192.0.2.2:80").await.is_some());
        assert!(d.misses(&to("a")).await);
    });
}

/// What a question for a name's address is answered with.
async fn asks_for(container: &Container, name: &str) -> String {
    let script =
        format!("busybox nslookup -type=a {name} 127.0.0.11 2>&1 | grep -A9 Name: | grep Address || true");
    container
        .sh(&script)
        .await
        .lines()
        .map(|line| line.trim_start_matches("Address: ").to_owned() + " ")
        .collect()
}

#[test]
fn names_are_answered_on_networks_of_ones_own() {
    on_host(async |host| {
        let net = host.create("net", |_| ()).await;
        let web = host.run("web", &["net"]).await;
        let db = Container::new();
        let wishes = vec![Wish { aliases: vec!["store".into()], ..wish("net") }];
        host.networks.attach(&full("db"), wishes).await.unwrap();
        host.networks.up(host.start("db", &db)).await.unwrap();
        let address = host.address("db");
        for name in ["db", "store", "db.net", "db-host", &full("db")[..12]] {
            assert_eq!(asks_for(&web, name).await, format!("{address} "), "{name}");
        }
        assert_eq!(asks_for(&db, "web").await, format!("{} ", host.address("web")));
        // Port 53 is the container's own.
        web.run(|| UdpSocket::bind("0.0.0.0:53").map(drop).unwrap()).await;
        // A name goes with its container, and is there again after a rename.
        host.networks.rename(&full("db"), "base").await.unwrap();
        assert_eq!(asks_for(&web, "base").await, format!("{address} "));
        host.networks.down(&full("db")).await.unwrap();
        assert_eq!(asks_for(&web, "store").await, "");
        let in_use = host.networks.remove("net").await.unwrap_err().to_string();
        assert_eq!(
            in_use,
            format!("error while removing network: network net id {} has active endpoints", net.id)
        );
        host.networks.down(&full("web")).await.unwrap();
        host.networks.remove("net").await.unwrap();
        let left = program("ip", &["-o", "link", "show"]).await + &program("nft", &["list", "ruleset"]).await;
        assert!(!left.contains(&net.bridge()), "{left}");
    });
}

#[test]
fn a_running_container_is_connected_and_disconnected() {
    on_host(async |host| {
        let outside = host.outside().await;
        host.create("net", |_| ()).await;
        let (web, _) =
            host.run_with("web", &["bridge"], vec![port("", 8080, 80, Protocol::Tcp)]).await.unwrap();
        web.serve(80).await;
        let peer = host.run("peer", &["net"]).await;
        let web_id = full("web");
        host.networks
            .connect(&web_id, "web", Wish { aliases: vec!["www".into()], ..wish("net") })
            .await
            .unwrap();
        let held = host.networks.held_of(&web_id).unwrap();
        let second = held.endpoints[1].ipv4.unwrap().0;
        assert_eq!(held.endpoints[1].device, "eth1");
        assert!(peer.asks(&format!("{second}:80")).await.is_some());
        assert_eq!(asks_for(&peer, "www").await, format!("{second} "));
        assert_eq!(asks_for(&web, "peer").await, format!("{} ", host.address("peer")));
        let again = host.networks.connect(&web_id, "web", wish("net")).await.unwrap_err();
        assert_eq!(again.to_string(), "endpoint with name web already exists in network net");
        // What is published follows to the network that is left.
        host.networks.disconnect(&web_id, "bridge").await.unwrap();
        assert!(web.sh("ip route").await.contains("default via 172.18.0.1"));
        for to in ["127.0.0.1:8080", "[::1]:8080"] {
            assert!(host_asks(to).await.is_some(), "{to}");
        }
        assert_eq!(outside.asks("192.0.2.1:8080").await.as_deref(), Some("192.0.2.2"));
        let gone = host.networks.disconnect(&web_id, "bridge").await.unwrap_err();
        assert_eq!(gone.to_string(), format!("container {web_id} is not connected to network bridge"));
        host.networks.disconnect(&web_id, "net").await.unwrap();
        assert_eq!(
            web.sh("ls /sys/class/net >/dev/null; ip -o link | grep -c eth || true").await.trim(),
            "0"
        );
        assert_eq!(host_asks("127.0.0.1:8080").await, None);
        host.networks.connect(&web_id, "web", wish("bridge")).await.unwrap();
        assert!(host_asks("127.0.0.1:8080").await.is_some());
        for id in ["web", "peer"] {
            host.networks.down(&full(id)).await.unwrap();
        }
        assert_eq!(host.traces().await, "");
    });
}

#[test]
fn after_a_kill_the_living_have_what_they_had_and_the_dead_nothing() {
    on_host(async |host| {
        host.create("net", |_| ()).await;
        let publish = |number| vec![port("", number, 80, Protocol::Tcp)];
        let (web, before) = host.run_with("web", &["net"], publish(8080)).await.unwrap();
        web.serve(80).await;
        let (_dead, _) = host.run_with("dead", &["net"], publish(8081)).await.unwrap();
        let peer = host.run("peer", &["net"]).await;
        // The program is gone without a word; whoever comes next has its files.
        let Host { networks, db, directory } = host;
        drop(networks);
        tokio::task::yield_now().await;
        program("nft", &["add", "element", "ip", "orlop", "published_any", "{ tcp . 9999 : 1.2.3.4 . 1 }"])
            .await;
        let networks = Networks::new(db.clone(), &directory, "test", Defaults::default()).unwrap();
        let running = BTreeMap::from([(full("web"), web.namespace()), (full("peer"), peer.namespace())]);
        networks.recover(running).await.unwrap();
        let host = Host { networks, db, directory };
        assert_eq!(host.networks.held_of(&full("web")).unwrap(), before);
        for to in ["127.0.0.1:8080", "[::1]:8080"] {
            assert!(host_asks(to).await.is_some(), "{to}");
        }
        assert_eq!(asks_for(&peer, "web").await, format!("{} ", host.address("web")));
        assert_eq!(asks_for(&peer, "dead").await, "");
        let traces = host.traces().await;
        assert!(!traces.contains("8081") && !traces.contains("9999"), "{traces}");
        assert_eq!(traces.matches("@if").count(), 2, "{traces}");
        let again = host.run_with("next", &["net"], publish(8080)).await.err().unwrap();
        assert!(again.to_string().ends_with("port is already allocated"), "{again}");
        for id in ["web", "peer"] {
            host.networks.down(&full(id)).await.unwrap();
        }
        assert_eq!(host.traces().await, "");
    });
}

#[test]
fn rules_of_others_are_left_alone() {
    on_host(async |host| {
        program("nft", &["add", "table", "inet", "theirs"]).await;
        let outside = host.run("one", &["bridge"]).await;
        host.networks.down(&full("one")).await.unwrap();
        drop(outside);
        assert!(program("nft", &["list", "tables"]).await.contains("table inet theirs"));
    });
}

#[test]
fn version_six() {
    on_host(async |host| {
        let outside = host.outside().await;
        outside.serve(80).await;
        host.create("six", |definition| {
            definition.enable_ipv6 = true;
            definition.wanted =
                vec![ipam::Wanted { subnet: "fd00:5::/64".into(), ..ipam::Wanted::default() }];
        })
        .await;
        let (web, held) =
            host.run_with("web", &["six"], vec![port("", 8080, 80, Protocol::Tcp)]).await.unwrap();
        web.serve(80).await;
        let peer = host.run("peer", &["six"]).await;
        let address = held.endpoints[0].ipv6.unwrap().0;
        assert_eq!(address.to_string(), "fd00:5::2");
        assert_eq!(peer.asks(&format!("[{address}]:80")).await.as_deref(), Some("fd00:5::3"));
        assert_eq!(peer.asks("[fd01::2]:80").await.as_deref(), Some("fd01::1"), "the outside sees the host");
        assert_eq!(outside.asks("[fd01::1]:8080").await.as_deref(), Some("fd01::2"));
        assert!(host_asks("[::1]:8080").await.is_some());
        assert!(outside.misses(&format!("[{address}]:80")).await);
        let shown = peer.sh("busybox nslookup -type=aaaa web 127.0.0.11").await;
        assert!(shown.contains("fd00:5::2"), "{shown}");
        for id in ["web", "peer"] {
            host.networks.down(&full(id)).await.unwrap();
        }
        assert_eq!(host.traces().await, "");
    });
}

/// A network on the device that leads outside.
async fn on_a_device(host: &Host, driver: &'static str) {
    host.create(driver, move |definition| {
        definition.driver = driver.to_owned();
        definition.options.insert("parent".to_owned(), "wan".to_owned());
        definition.wanted = vec![ipam::Wanted {
            subnet: "192.0.2.0/24".into(),
            range: "192.0.2.64/26".into(),
            gateway: "192.0.2.2".into(),
            ..ipam::Wanted::default()
        }];
    })
    .await;
}

#[test]
fn a_macvlan_network_lies_on_a_device_of_the_host() {
    on_host(async |host| {
        let outside = host.outside().await;
        outside.serve(80).await;
        on_a_device(&host, "macvlan").await;
        let (one, two) = (host.run("one", &["macvlan"]).await, host.run("two", &["macvlan"]).await);
        two.serve(80).await;
        assert_eq!(one.asks("192.0.2.2:80").await.as_deref(), Some("192.0.2.64"));
        assert_eq!(one.asks("192.0.2.65:80").await.as_deref(), Some("192.0.2.64"));
        for id in ["one", "two"] {
            host.networks.down(&full(id)).await.unwrap();
        }
        host.networks.remove("macvlan").await.unwrap();
    });
}

#[test]
fn an_ipvlan_network_lies_on_a_device_of_the_host() {
    on_host(async |host| {
        let outside = host.outside().await;
        outside.serve(80).await;
        on_a_device(&host, "ipvlan").await;
        // Not every kernel has it; then the refusal leaves nothing. Who runs this where it is says so (`make test-vm`).
        match host.run_with("one", &["ipvlan"], Vec::new()).await {
            Ok((one, _)) => {
                let (two, _) = host.run_with("two", &["ipvlan"], Vec::new()).await.unwrap();
                two.serve(80).await;
                assert_eq!(one.asks("192.0.2.2:80").await.as_deref(), Some("192.0.2.64"));
                assert_eq!(one.asks("192.0.2.65:80").await.as_deref(), Some("192.0.2.64"));
            }
            Err(error) => {
                assert!(std::env::var_os("ORLOP_TEST_IPVLAN").is_none(), "{error}");
                assert_eq!(error.to_string(), "make network device on wan: operation not supported");
                assert!(host.networks.held().is_empty());
            }
        }
    });
}

#[test]
fn wishes_that_cannot_be_fulfilled_have_dockers_words() {
    on_host(async |host| {
        host.create("plain", |_| ()).await;
        host.create("tiny", |definition| {
            definition.wanted =
                vec![ipam::Wanted { subnet: "10.5.0.0/29".into(), ..ipam::Wanted::default() }];
        })
        .await;
        let refused = async |wish: Wish| {
            let container = Container::new();
            host.networks.attach(&full("x"), vec![wish]).await.unwrap();
            let error = host.networks.up(host.start("x", &container)).await.unwrap_err();
            assert!(host.networks.held().is_empty());
            error.to_string()
        };
        let with = |network: &str, address: &str| Wish { ipv4: address.into(), ..wish(network) };
        assert_eq!(refused(wish("nosuch")).await, "network nosuch not found");
        assert_eq!(
            refused(with("bridge", "172.17.0.9")).await,
            "user specified IP address is supported on user defined networks only"
        );
        assert_eq!(
            refused(with("plain", "172.18.0.9")).await,
            "user specified IP address is supported only when connecting to networks with user configured subnets"
        );
        assert_eq!(refused(with("tiny", "10.5.0.1")).await, "Address already in use");
        assert_eq!(
            refused(with("tiny", "10.6.0.1")).await,
            "Invalid address 10.6.0.1: It does not belong to any of this network's subnets"
        );
        assert_eq!(
            refused(Wish { aliases: vec!["x".into()], ..wish("bridge") }).await,
            "network-scoped alias is supported only for containers in user defined networks"
        );
        assert_eq!(refused(Wish { mac: "zz".into(), ..wish("bridge") }).await, "invalid mac address: zz");
        for (name, text) in [
            ("bridge", "operation is not permitted on predefined bridge network"),
            ("plain", "network with name plain already exists"),
        ] {
            let definition = Definition { name: name.to_owned(), ..Definition::default() };
            assert_eq!(host.networks.create(definition).await.unwrap_err().to_string(), text);
        }
        for (driver, text) in [
            ("nope", "plugin \"nope\" not found"),
            ("host", "only one instance of \"host\" network is allowed"),
        ] {
            let definition =
                Definition { name: "n".to_owned(), driver: driver.to_owned(), ..Definition::default() };
            assert_eq!(host.networks.create(definition).await.unwrap_err().to_string(), text);
        }
        for (name, text) in [
            ("nosuch", "network nosuch not found"),
            ("host", "host is a pre-defined network and cannot be removed"),
        ] {
            assert_eq!(host.networks.remove(name).await.unwrap_err().to_string(), text);
        }
    });
}

#[test]
fn a_step_that_fails_takes_the_others_back() {
    on_host(async |host| {
        host.create("net", |_| ()).await;
        let container = Container::new();
        // The second device of the container is there already.
        container.sh("ip link add eth1 type veth peer name other").await;
        host.networks.attach(&full("c"), vec![wish("bridge"), wish("net")]).await.unwrap();
        let mut start = host.start("c", &container);
        start.ports = vec![port("", 8080, 80, Protocol::Tcp)];
        let error = host.networks.up(start).await.unwrap_err();
        assert!(error.to_string().starts_with("make network device veth"), "{error}");
        assert_eq!(host.traces().await, "");
        assert!(host.networks.held().is_empty());
        assert!(TcpListener::bind("0.0.0.0:8080").is_ok());
        assert_eq!(
            std::fs::read_dir(Path::new(&host.directory).join("network/containers")).unwrap().count(),
            0
        );
    });
}
