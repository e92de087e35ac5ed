//! Published ports: which of the host's a container gets, held by sockets so that nobody else on the host takes them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

use super::held::{Held, Protocol, Published};

/// The host's ports for requests that name none.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;
/// Connections that may wait to be taken over.
const BACKLOG: i32 = 128;

/// A container's port to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The container's port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The host's address; none for all addresses of both families.
    pub host: Option<IpAddr>,
    /// The host's ports to choose from; none for any.
    pub host_ports: Option<RangeInclusive<u16>>,
}

impl Request {
    /// The host's addresses that it means.
    pub fn hosts(&self) -> Vec<IpAddr> {
        match self.host {
            Some(host) => vec![host],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        }
    }

    /// The host's ports to try, in order.
    fn candidates(&self, start: u16) -> Box<dyn Iterator<Item = u16>> {
        match &self.host_ports {
            Some(range) => Box::new(range.clone()),
            None => Box::new((start..=*EPHEMERAL.end()).chain(*EPHEMERAL.start()..start)),
        }
    }
}

/// Reads a range of ports as `80` or `80-90`; nothing for an empty text.
pub fn range(text: &str) -> Result<Option<RangeInclusive<u16>>> {
    let invalid = || Error::exactly(Kind::InvalidArgument, format!("invalid port specification: {text:?}"));
    if text.is_empty() {
        return Ok(None);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) =
        (first.parse().map_err(|_| invalid())?, last.parse().map_err(|_| invalid())?);
    match (first, last) {
        (0, 0) => Ok(None),
        (first, last) if first == 0 || first > last => Err(invalid()),
        (first, last) => Ok(Some(first..=last)),
    }
}

/// A port that is held: nobody else on the host can have it until the value is gone.
#[derive(Debug)]
pub struct HeldPort {
    /// What it leads to.
    pub published: Published,
    /// The socket that holds it.
    pub socket: OwnedFd,
}

/// The ports of the host that are taken by containers.
#[derive(Debug, Default)]
pub struct Taken(BTreeSet<(Protocol, u16, IpAddr)>);

impl Taken {
    /// Those of running containers.
    pub fn of<'a>(all: impl IntoIterator<Item = &'a Held>) -> Taken {
        let mut taken = Taken::default();
        all.into_iter().flat_map(|held| &held.published).for_each(|published| taken.add(published));
        taken
    }

    /// Adds one.
    pub fn add(&mut self, published: &Published) {
        self.0.insert((published.protocol, published.host_port, published.host));
    }

    /// Whether a port of an address, or of all addresses, is taken.
    pub fn has(&self, protocol: Protocol, port: u16, host: IpAddr) -> bool {
        let all = (protocol, port, IpAddr::V4(Ipv4Addr::UNSPECIFIED))
            ..=(protocol, port, IpAddr::V6(Ipv6Addr::from(u128::MAX)));
        self.0.range(all).any(|(_, _, other)| {
            other.is_ipv4() == host.is_ipv4()
                && (*other == host || other.is_unspecified() || host.is_unspecified())
        })
    }
}

/// Holds a port of the host for a request: the first of those it allows that is free on all its addresses.
///
/// # Errors
///
/// In dockerd's words, when the only one is taken by a container or by another program; the last one's reason for a range.
pub fn hold(request: &Request, taken: &mut Taken, to: Option<IpAddr>) -> Result<Vec<HeldPort>> {
    let single = request.host_ports.as_ref().is_some_and(|range| range.start() == range.end());
    let mut last = None;
    let start = taken.0.iter().map(|(_, port, _)| *port).filter(|port| EPHEMERAL.contains(port)).max();
    let start = start.map_or(*EPHEMERAL.start(), |port| (port + 1).min(*EPHEMERAL.end()));
    for port in request.candidates(start) {
        match hold_one(request, port, taken, to) {
            Ok(held) => {
                held.iter().for_each(|one| taken.add(&one.published));
                return Ok(held);
            }
            // Only a port that somebody has may be passed over.
            Err(error) if single || error.kind() != Kind::AlreadyExists => return Err(internal(error)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| Error::exactly(Kind::Internal, "all ports are allocated"), internal))
}

/// dockerd answers with 500, whatever was wrong with a port.
fn internal(error: Error) -> Error {
    Error::exactly(Kind::Internal, error.to_string())
}

fn hold_one(request: &Request, port: u16, taken: &Taken, to: Option<IpAddr>) -> Result<Vec<HeldPort>> {
    let mut held = Vec::new();
    for host in request.hosts() {
        if taken.has(request.protocol, port, host) {
            let text = format!("Bind for {} failed: port is already allocated", SocketAddr::new(host, port));
            return Err(Error::exactly(Kind::AlreadyExists, text));
        }
        match occupy(request.protocol, host, port) {
            Ok(socket) => {
                let published =
                    Published { protocol: request.protocol, host, host_port: port, port: request.port };
                held.push(HeldPort { published, socket });
            }
            // A host without version 6 publishes on version 4 alone, if the client asked for no address.
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if request.host.is_none() && host.is_ipv6() => {}
            Err(errno) => {
                let kind = if errno == Errno::ADDRINUSE { Kind::AlreadyExists } else { Kind::Internal };
                let reason = std::io::Error::from(errno).to_string();
                let reason = reason.split(" (os").next().unwrap_or_default().to_lowercase();
                let reason = reason.replace("address in use", "address already in use");
                let reason = reason.replace("address not available", "cannot assign requested address");
                let target = to.map_or(String::new(), |to| format!("{}:", SocketAddr::new(to, request.port)));
                let (target, name) = (target.trim_end_matches(':'), request.protocol.name());
                let text = format!(
                    "failed to bind host port for {}:{target}/{name}: {reason}",
                    SocketAddr::new(host, port)
                );
                return Err(Error::exactly(kind, text));
            }
        }
    }
    Ok(held)
}

/// A socket on a port, listening where the protocol has that.
pub fn occupy(protocol: Protocol, host: IpAddr, port: u16) -> rustix::io::Result<OwnedFd> {
    let family = if host.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if protocol == Protocol::Udp { SocketType::DGRAM } else { SocketType::STREAM };
    let number = (protocol == Protocol::Sctp).then_some(ipproto::SCTP);
    let made = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, number)?;
    if host.is_ipv6() {
        sockopt::set_ipv6_v6only(&made, true)?;
    }
    if protocol == Protocol::Tcp {
        sockopt::set_socket_reuseaddr(&made, true)?;
    }
    bind(&made, &SocketAddr::new(host, port))?;
    if protocol != Protocol::Udp {
        listen(&made, BACKLOG)?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(ports: Option<RangeInclusive<u16>>, host: &str) -> Request {
        Request { port: 80, protocol: Protocol::Tcp, host: host.parse().ok(), host_ports: ports }
    }

    /// A port that is free now: the kernel chose it a moment ago.
    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(range("").unwrap(), None);
        assert_eq!(range("0").unwrap(), None);
        assert_eq!(range("80").unwrap(), Some(80..=80));
        assert_eq!(range("80-82").unwrap(), Some(80..=82));
        for wrong in ["x", "82-80", "0-5", "70000", "1-2-3"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_port_of_another_container_is_taken_on_the_addresses_that_it_covers() {
        let mut taken = Taken::default();
        taken.add(&Published {
            protocol: Protocol::Tcp,
            host: "127.0.0.2".parse().unwrap(),
            host_port: 9,
            port: 80,
        });
        let has = |protocol, port, host: &str| taken.has(protocol, port, host.parse().unwrap());
        assert!(has(Protocol::Tcp, 9, "127.0.0.2") && has(Protocol::Tcp, 9, "0.0.0.0"));
        assert!(!has(Protocol::Tcp, 9, "127.0.0.3") && !has(Protocol::Udp, 9, "127.0.0.2"));
        assert!(!has(Protocol::Tcp, 9, "::") && !has(Protocol::Tcp, 10, "0.0.0.0"));
    }

    #[test]
    fn conflicts_have_dockers_words() {
        let port = free_port();
        let mut taken = Taken::default();
        let held = hold(&request(Some(port..=port), "127.0.0.1"), &mut taken, None).unwrap();
        assert_eq!(held[0].published.host_port, port);
        let error = hold(&request(Some(port..=port), "0.0.0.0"), &mut taken, None).unwrap_err();
        assert_eq!(error.to_string(), format!("Bind for 0.0.0.0:{port} failed: port is already allocated"));
        let error =
            hold(&request(Some(port..=port), "127.0.0.1"), &mut Taken::default(), "172.17.0.2".parse().ok());
        assert_eq!(
            error.unwrap_err().to_string(),
            format!(
                "failed to bind host port for 127.0.0.1:{port}:172.17.0.2:80/tcp: address already in use"
            )
        );
        let error = hold(&request(Some(port..=port), "192.0.2.1"), &mut Taken::default(), None).unwrap_err();
        assert!(error.to_string().ends_with("cannot assign requested address"), "{error}");
    }

    #[test]
    fn a_range_gives_the_first_free_one_and_no_port_any() {
        let (first, mut taken) = (free_port(), Taken::default());
        let busy = std::net::TcpListener::bind(("127.0.0.1", first));
        let held = hold(&request(Some(first..=first + 20), "127.0.0.1"), &mut taken, None).unwrap();
        assert_ne!(held[0].published.host_port, first);
        let any = hold(&request(None, "127.0.0.1"), &mut taken, None).unwrap();
        assert!(EPHEMERAL.contains(&any[0].published.host_port));
        let again = hold(&request(None, "127.0.0.1"), &mut taken, None).unwrap();
        assert_ne!(any[0].published.host_port, again[0].published.host_port);
        drop(busy);
    }
}
