//! The server: questions by UDP and TCP, answers from the registry or from elsewhere.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orlop_proto::error::{Context, Result};
use simple_dns::rdata::{A, AAAA, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::super::files::NAME_SERVER;
use super::super::held::AllHeld;
use super::super::{firewall, namespace};
use super::names::{Known, lookup, reverse, reversed_address};

/// Seconds for which an answer may be remembered.
const TTL: u32 = 600;
/// How long another server may take.
const TIMEOUT: Duration = Duration::from_secs(4);
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one container that are worked on at once.
const CONCURRENT: usize = 256;
/// The largest message by UDP that is taken.
const DATAGRAM: usize = 4096;

/// The running containers, as the name servers see them.
pub type Registry = Arc<Mutex<AllHeld>>;

/// A container's name server; gone when dropped.
#[derive(Debug)]
pub struct Server {
    _udp: AbortOnDropHandle<()>,
    _tcp: AbortOnDropHandle<()>,
}

/// Whom a server serves.
struct Service {
    registry: Registry,
    container: String,
    /// Servers that are asked for what is not known here; none for containers that may not speak to the outside.
    upstream: Vec<IpAddr>,
    /// The container's network namespace, where these are servers that it named: they are asked from there.
    from: Option<OwnedFd>,
    questions: Arc<Semaphore>,
}

impl Server {
    /// Starts one in a container's network namespace.
    pub fn start(
        namespace: BorrowedFd,
        container: &str,
        registry: Registry,
        upstream: Vec<IpAddr>,
        asks_from_inside: bool,
    ) -> Result<Server> {
        let own = || namespace.try_clone_to_owned().context("keep", "the network namespace");
        let from = asks_from_inside.then(own).transpose()?;
        let (udp, tcp) = namespace::within(namespace, || {
            let address = SocketAddr::new(NAME_SERVER, 0);
            let udp = std::net::UdpSocket::bind(address).context("listen on", address.to_string())?;
            let tcp = std::net::TcpListener::bind(address).context("listen on", address.to_string())?;
            let ports = || Ok::<_, io::Error>((udp.local_addr()?.port(), tcp.local_addr()?.port()));
            let (by_udp, by_tcp) = ports().context("listen on", address.to_string())?;
            firewall::name_server(NAME_SERVER, by_udp, by_tcp)
                .commit()
                .context("lead questions to", "the name server")?;
            udp.set_nonblocking(true).context("listen on", address.to_string())?;
            tcp.set_nonblocking(true).context("listen on", address.to_string())?;
            Ok((udp, tcp))
        })?;
        let udp = UdpSocket::from_std(udp).context("listen on", "127.0.0.11")?;
        let tcp = TcpListener::from_std(tcp).context("listen on", "127.0.0.11")?;
        let service = Arc::new(Service {
            registry,
            container: container.to_owned(),
            upstream,
            from,
            questions: Arc::new(Semaphore::new(CONCURRENT)),
        });
        Ok(Server {
            _udp: AbortOnDropHandle::new(tokio::spawn(by_datagrams(service.clone(), Arc::new(udp)))),
            _tcp: AbortOnDropHandle::new(tokio::spawn(by_connections(service, tcp))),
        })
    }
}

async fn by_datagrams(service: Arc<Service>, socket: Arc<UdpSocket>) {
    let mut buffer = [0; DATAGRAM];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        // Above the limit a question is lost, and its client asks again.
        let Ok(permit) = service.questions.clone().try_acquire_owned() else { continue };
        let (service, socket, question) = (service.clone(), socket.clone(), buffer[..length].to_vec());
        tokio::spawn(async move {
            if let Some(answer) = service.answer(&question, false).await {
                let _ = socket.send_to(&answer, client).await;
            }
            drop(permit);
        });
    }
}

async fn by_connections(service: Arc<Service>, listener: TcpListener) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = service.questions.clone().try_acquire_owned() else { continue };
        let service = service.clone();
        tokio::spawn(async move {
            // A client that breaks off needs no answer.
            let _ = connection(&service, client).await;
            drop(permit);
        });
    }
}

async fn connection(service: &Service, mut client: TcpStream) -> io::Result<()> {
    loop {
        let question = match tokio::time::timeout(IDLE, read_framed(&mut client)).await {
            Ok(question) => question?,
            Err(_) => return Ok(()),
        };
        let Some(answer) = service.answer(&question, true).await else { return Ok(()) };
        write_framed(&mut client, &answer).await?;
    }
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

impl Service {
    /// The answer to a message; none to one that is no question.
    async fn answer(&self, question: &[u8], by_tcp: bool) -> Option<Vec<u8>> {
        if let Some(answer) = self.known(question)? {
            return Some(answer);
        }
        for server in &self.upstream {
            let server = SocketAddr::new(*server, 53);
            let asked = async {
                match by_tcp {
                    true => ask_by_tcp(self.from.as_ref(), server, question).await,
                    false => ask(self.from.as_ref(), server, question).await,
                }
            };
            if let Ok(Ok(answer)) = tokio::time::timeout(TIMEOUT, asked).await {
                return Some(answer);
            }
        }
        let packet = Packet::parse(question).ok()?;
        reply(&packet, RCODE::ServerFailure, Vec::new())
    }

    /// The answer from what is known here; outer none for what is no question, inner none for what others may know.
    fn known(&self, question: &[u8]) -> Option<Option<Vec<u8>>> {
        let packet = Packet::parse(question).ok()?;
        if packet.has_flags(PacketFlag::RESPONSE) || packet.opcode() != OPCODE::StandardQuery {
            return None;
        }
        let [asked] = &packet.questions[..] else {
            return Some(reply(&packet, RCODE::FormatError, Vec::new()));
        };
        if asked.qclass != QCLASS::CLASS(CLASS::IN) {
            return Some(None);
        }
        let name = asked.qname.to_string().to_lowercase();
        let registry = self.registry.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let data: Vec<RData> = match asked.qtype {
            QTYPE::TYPE(kind @ (TYPE::A | TYPE::AAAA)) => {
                match lookup(&registry, &self.container, &name, kind == TYPE::AAAA) {
                    Known::No => return Some(None),
                    Known::Addresses(found) => found.into_iter().map(record).collect(),
                }
            }
            QTYPE::TYPE(TYPE::PTR) => {
                let address = reversed_address(&name);
                let found = address.and_then(|address| reverse(&registry, &self.container, address));
                match found.as_deref().map(Name::new) {
                    Some(Ok(name)) => vec![RData::PTR(PTR(name.into_owned()))],
                    _ => return Some(None),
                }
            }
            // Nobody else knows a container's name.
            _ => match lookup(&registry, &self.container, &name, false) {
                Known::No => return Some(None),
                Known::Addresses(_) => Vec::new(),
            },
        };
        drop(registry);
        Some(reply(&packet, RCODE::NoError, data))
    }
}

fn record(address: IpAddr) -> RData<'static> {
    match address {
        IpAddr::V4(four) => RData::A(A { address: Ipv4Addr::into(four) }),
        IpAddr::V6(six) => RData::AAAA(AAAA { address: Ipv6Addr::into(six) }),
    }
}

/// A reply with these records, in an order that changes from time to time, so that clients spread over several containers.
fn reply(packet: &Packet, code: RCODE, mut data: Vec<RData<'static>>) -> Option<Vec<u8>> {
    if !data.is_empty() {
        let turn = usize::from(packet.id()) % data.len();
        data.rotate_left(turn);
    }
    let mut reply = Packet::new_reply(packet.id());
    *reply.rcode_mut() = code;
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if packet.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    reply.questions.clone_from(&packet.questions);
    if let Some(asked) = packet.questions.first() {
        let records =
            data.into_iter().map(|one| ResourceRecord::new(asked.qname.clone(), CLASS::IN, TTL, one));
        reply.answers.extend(records);
    }
    reply.build_bytes_vec_compressed().ok()
}

/// Makes a socket, in another network namespace where there is one.
async fn socket_in<T: Send + 'static>(
    from: Option<&OwnedFd>,
    make: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let Some(from) = from else { return make() };
    let from = from.try_clone()?;
    let made = tokio::task::spawn_blocking(move || {
        namespace::within(from.as_fd(), || make().context("open", "a socket in the container"))
    });
    made.await?.map_err(io::Error::other)
}

async fn ask(from: Option<&OwnedFd>, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = socket_in(from, move || {
        let socket = std::net::UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    let socket = UdpSocket::from_std(socket.await?)?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not answer this very question is not from whom we asked.
        if buffer[..length].get(..2) == question.get(..2) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_by_tcp(from: Option<&OwnedFd>, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let new = move || if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let mut stream = socket_in(from, new).await?.connect(server).await?;
    write_framed(&mut stream, question).await?;
    read_framed(&mut stream).await
}

#[cfg(test)]
mod tests {
    use simple_dns::Question;

    use super::super::super::held::{Endpoint, Held};
    use super::*;

    fn service(upstream: Vec<IpAddr>) -> Service {
        let endpoint = Endpoint {
            id: "e".into(),
            network: "n".into(),
            network_name: "net".into(),
            device: "eth0".into(),
            host_device: None,
            ipv4: Some(("10.0.0.2".parse().unwrap(), 24)),
            ipv6: None,
            gateway: None,
            gateway6: None,
            mac: [0; 6],
            aliases: Vec::new(),
            links: Vec::new(),
            gateway_priority: 0,
            internal: false,
            has_names: true,
        };
        let held = Held { name: "web".into(), endpoints: vec![endpoint], ..Held::default() };
        let registry = Arc::new(Mutex::new(AllHeld::from([("c".to_owned(), held)])));
        let questions = Arc::new(Semaphore::new(1));
        Service { registry, container: "c".into(), upstream, from: None, questions }
    }

    fn question(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        let class = QCLASS::CLASS(CLASS::IN);
        packet.questions.push(Question::new(Name::new_unchecked(name), QTYPE::TYPE(kind), class, false));
        packet.build_bytes_vec().unwrap()
    }

    async fn ask_it(service: &Service, name: &str, kind: TYPE) -> (RCODE, Vec<String>) {
        let bytes = service.answer(&question(name, kind), false).await.unwrap();
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.id(), packet.has_flags(PacketFlag::RESPONSE)), (7, true));
        let text = packet.answers.iter().map(|record| match &record.rdata {
            RData::A(a) => Ipv4Addr::from(a.address).to_string(),
            RData::PTR(name) => name.to_string(),
            other => format!("{other:?}"),
        });
        (packet.rcode(), text.collect())
    }

    #[tokio::test]
    async fn containers_are_answered_for_and_nobody_else() {
        let service = service(Vec::new());
        let web = (RCODE::NoError, vec!["10.0.0.2".to_owned()]);
        assert_eq!(ask_it(&service, "web", TYPE::A).await, web);
        assert_eq!(ask_it(&service, "WEB.net", TYPE::A).await, web);
        assert_eq!(ask_it(&service, "web", TYPE::AAAA).await, (RCODE::NoError, Vec::new()));
        assert_eq!(ask_it(&service, "web", TYPE::MX).await, (RCODE::NoError, Vec::new()));
        let back = ask_it(&service, "2.0.0.10.in-addr.arpa", TYPE::PTR).await;
        assert_eq!(back, (RCODE::NoError, vec!["web.net".to_owned()]));
        assert_eq!(ask_it(&service, "example.org", TYPE::A).await, (RCODE::ServerFailure, Vec::new()));
    }

    #[tokio::test]
    async fn what_is_no_question_has_no_answer() {
        let service = service(Vec::new());
        assert_eq!(service.answer(&[], false).await, None);
        assert_eq!(service.answer(&[0; 12], false).await.map(|bytes| bytes.len()), Some(12));
        assert_eq!(service.answer(&[0xff; 64], false).await, None);
        let answer = service.answer(&question("web", TYPE::A), false).await.unwrap();
        assert_eq!(service.answer(&answer, false).await, None);
        for length in 0..answer.len() {
            let _ = service.answer(&answer[..length], false).await;
        }
    }
}
