//! Connections that the kernel keeps track of (nf_conntrack): forgetting those that lead where nothing is any more.
//!
//! A stream of UDP datagrams that goes on never looks new, so that a rule for its port which comes later changes nothing for it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::ask;
use super::message::{ACK, DUMP, MESSAGE_HEADER, Message, REQUEST, attributes};

/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;
// NFNL_SUBSYS_CTNETLINK in the high byte, IPCTNL_MSG_CT_… in the low one.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
// CTA_…
const TUPLE_ORIG: u16 = 1;
const ZONE: u16 = 18;
// CTA_TUPLE_…
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
// CTA_IP_…
const IP_V4_DST: u16 = 2;
const IP_V6_DST: u16 = 4;
// CTA_PROTO_…
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// Where a stream of datagrams goes.
#[derive(Debug, PartialEq, Eq)]
struct Stream<'a> {
    address: &'a [u8],
    port: u16,
    /// What names it to the kernel.
    tuple: &'a [u8],
    zone: Option<&'a [u8]>,
}

/// Forgets the streams of UDP datagrams to some ports of this network namespace; those to one address, unless it is the
/// unspecified one. Returns how many there were.
pub fn forget(is_v6: bool, ports: &[(IpAddr, u16)]) -> io::Result<usize> {
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    let header = [family, 0, 0, 0];
    let answers = ask(socket.as_fd(), Message::new(GET, REQUEST | DUMP, &header))?;
    let mut forgotten = 0;
    for stream in answers.iter().filter_map(|answer| stream_of(answer)).filter(|one| is_meant(one, ports)) {
        let mut request = Message::new(DELETE, REQUEST | ACK, &header);
        request.attribute(TUPLE_ORIG | NESTED, stream.tuple);
        if let Some(zone) = stream.zone {
            request.attribute(ZONE, zone);
        }
        match ask(socket.as_fd(), request) {
            Ok(_) => forgotten += 1,
            // It ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

fn is_meant(stream: &Stream, ports: &[(IpAddr, u16)]) -> bool {
    let is_there = |host: &IpAddr| match host {
        host if host.is_unspecified() => true,
        IpAddr::V4(four) => stream.address == four.octets(),
        IpAddr::V6(six) => stream.address == six.octets(),
    };
    ports.iter().any(|(host, port)| *port == stream.port && is_there(host))
}

/// The stream of datagrams that a message tells of; nothing for other protocols.
fn stream_of(message: &[u8]) -> Option<Stream<'_>> {
    let one = |bytes, wanted| attributes(bytes).find(|(number, _)| *number == wanted).map(|(_, value)| value);
    let all = message.get(MESSAGE_HEADER + HEADER..)?;
    let tuple = one(all, TUPLE_ORIG)?;
    let protocol = one(tuple, TUPLE_PROTO)?;
    if one(protocol, PROTO_NUM)? != [UDP] {
        return None;
    }
    let addresses = one(tuple, TUPLE_IP)?;
    let address = one(addresses, IP_V4_DST).or_else(|| one(addresses, IP_V6_DST))?;
    let port = u16::from_be_bytes(one(protocol, PROTO_DST_PORT)?.try_into().ok()?);
    Some(Stream { address, port, tuple, zone: one(all, ZONE) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(protocol: u8, port: u16) -> Vec<u8> {
        let mut message = Message::new(GET & 0xff00, 0, &[libc::AF_INET as u8, 0, 0, 0]);
        message.nested(TUPLE_ORIG, |tuple| {
            tuple.nested(TUPLE_IP, |ip| {
                ip.attribute(IP_V4_DST, &[10, 0, 0, 1]);
            });
            tuple.nested(TUPLE_PROTO, |proto| {
                proto.attribute(PROTO_NUM, &[protocol]).attribute(PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        message.finish()
    }

    #[test]
    fn only_datagrams_to_the_ports_are_meant() {
        let message = told(UDP, 53);
        let stream = stream_of(&message).unwrap();
        assert_eq!((stream.port, stream.address), (53, &[10, 0, 0, 1][..]));
        let any = "0.0.0.0".parse().unwrap();
        assert!(is_meant(&stream, &[(any, 53)]) && !is_meant(&stream, &[(any, 54)]));
        assert!(is_meant(&stream, &[("10.0.0.1".parse().unwrap(), 53)]));
        assert!(!is_meant(&stream, &[("10.0.0.2".parse().unwrap(), 53)]));
        assert_eq!(stream_of(&told(6, 53)), None);
        assert_eq!(stream_of(&message[..20]), None);
    }
}
