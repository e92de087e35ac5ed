//! Bridges, pairs of devices, addresses and routes: what a manager makes of networks, by rtnetlink(7).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::message::{ACK, CREATE, DUMP, MESSAGE_HEADER, Message, REQUEST, attributes, number_at, text_of};
use super::{Devices, LINK_HEADER, link_message};

const ROUTE_HEADER: usize = 12; // struct rtmsg
const ADDRESS_HEADER: usize = 8; // struct ifaddrmsg

// linux/if_link.h and linux/veth.h, where libc has none of them.
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_FLAGS: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const AF_INET6: u16 = libc::AF_INET6 as u16;
/// Addresses of version 6 are used at once: nobody else has them, as we give them out.
const IFA_F_NODAD: u8 = 0x02;

/// A hardware address.
pub type Mac = [u8; 6];

/// A device as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: i32,
    /// Its name.
    pub name: String,
    /// Whether it is switched on.
    pub is_up: bool,
    /// The bridge that it is a port of, or 0.
    pub master: i32,
}

/// A pair of devices of which one end is a port of a bridge and the other goes into a namespace.
#[derive(Debug)]
pub struct Veth<'a> {
    /// Name of the end that stays.
    pub name: &'a str,
    /// Index of the bridge.
    pub bridge: i32,
    /// Name of the other end, in its namespace.
    pub peer: &'a str,
    /// Hardware address of the other end.
    pub mac: Mac,
    /// Bytes of a packet; 0 leaves the kernel's own.
    pub mtu: u32,
}

/// What a device below another one does with packets between its siblings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// A macvlan with a mode of `linux/if_link.h` (`MACVLAN_MODE_…`).
    Macvlan(u32),
    /// An ipvlan with a mode and flags of `linux/if_link.h` (`IPVLAN_MODE_…`, `IPVLAN_F_…`).
    Ipvlan(u16, u16),
}

impl Devices {
    /// All devices.
    pub fn links(&self) -> io::Result<Vec<Link>> {
        let answers = self.ask(link_message(libc::RTM_GETLINK, REQUEST | DUMP, 0, 0, 0))?;
        Ok(answers.iter().map(|answer| link_of(answer)).collect())
    }

    /// Makes a bridge and returns its index; `EEXIST` if the name is taken.
    pub fn add_bridge(&self, name: &str, mac: Mac, mtu: u32) -> io::Result<i32> {
        let mut request = link_message(libc::RTM_NEWLINK, REQUEST | ACK | CREATE, 0, 0, 0);
        request.text(libc::IFLA_IFNAME, name).attribute(libc::IFLA_ADDRESS, &mac);
        if mtu != 0 {
            request.number(libc::IFLA_MTU, mtu);
        }
        request.nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "bridge");
        });
        self.ask(request)?;
        self.index(name)
    }

    /// Makes a pair of devices, one of them a port of a bridge, the other in a namespace.
    pub fn add_veth(&self, veth: &Veth, namespace: BorrowedFd) -> io::Result<()> {
        let mut request = link_message(libc::RTM_NEWLINK, REQUEST | ACK | CREATE, 0, 0, 0);
        request.text(libc::IFLA_IFNAME, veth.name).number(libc::IFLA_MASTER, veth.bridge as u32);
        if veth.mtu != 0 {
            request.number(libc::IFLA_MTU, veth.mtu);
        }
        request.nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth").nested(libc::IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |peer| {
                    peer.raw(&[0; LINK_HEADER]).text(libc::IFLA_IFNAME, veth.peer);
                    peer.attribute(libc::IFLA_ADDRESS, &veth.mac);
                    peer.number(libc::IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
                    if veth.mtu != 0 {
                        peer.number(libc::IFLA_MTU, veth.mtu);
                    }
                });
            });
        });
        self.ask(request).map(drop)
    }

    /// Keeps the kernel from making up a link-local address of version 6 when the device is switched on. It takes this for devices that
    /// are there already and not while it makes one. Without version 6 there is nothing to keep it from.
    pub fn set_no_link_local(&self, index: i32) -> io::Result<()> {
        let mut request = link_message(libc::RTM_SETLINK, REQUEST | ACK, index, 0, 0);
        request.nested(libc::IFLA_AF_SPEC, |families| {
            families.nested(AF_INET6, |six| {
                six.attribute(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
            });
        });
        match self.ask(request) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Sets what a port of a bridge does: send packets back to where they came from, and talk to no other isolated port.
    pub fn set_port(&self, index: i32, hairpin: bool, isolated: bool) -> io::Result<()> {
        let mut header = [0; LINK_HEADER];
        header[0] = libc::AF_BRIDGE as u8;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut request = Message::new(libc::RTM_SETLINK, REQUEST | ACK, &header);
        request.nested(libc::IFLA_PROTINFO, |port| {
            port.attribute(IFLA_BRPORT_MODE, &[hairpin.into()]);
            port.attribute(IFLA_BRPORT_ISOLATED, &[isolated.into()]);
        });
        self.ask(request).map(drop)
    }

    /// Makes a device below another one, in a namespace.
    pub fn add_below(
        &self,
        parent: i32,
        kind: Below,
        name: &str,
        mac: Option<Mac>,
        mtu: u32,
        namespace: BorrowedFd,
    ) -> io::Result<()> {
        let mut request = link_message(libc::RTM_NEWLINK, REQUEST | ACK | CREATE, 0, 0, 0);
        request.text(libc::IFLA_IFNAME, name).number(libc::IFLA_LINK, parent as u32);
        request.number(libc::IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
        if let Some(mac) = mac {
            request.attribute(libc::IFLA_ADDRESS, &mac);
        }
        if mtu != 0 {
            request.number(libc::IFLA_MTU, mtu);
        }
        request.nested(libc::IFLA_LINKINFO, |info| match kind {
            Below::Macvlan(mode) => {
                info.text(libc::IFLA_INFO_KIND, "macvlan").nested(libc::IFLA_INFO_DATA, |data| {
                    data.number(IFLA_MACVLAN_MODE, mode);
                });
            }
            Below::Ipvlan(mode, flags) => {
                info.text(libc::IFLA_INFO_KIND, "ipvlan").nested(libc::IFLA_INFO_DATA, |data| {
                    data.attribute(IFLA_IPVLAN_MODE, &mode.to_ne_bytes());
                    data.attribute(IFLA_IPVLAN_FLAGS, &flags.to_ne_bytes());
                });
            }
        });
        self.ask(request).map(drop)
    }

    /// Makes a VLAN's device on another one and returns its index.
    pub fn add_vlan(&self, parent: i32, name: &str, id: u16) -> io::Result<i32> {
        const IFLA_VLAN_ID: u16 = 1;
        let up = libc::IFF_UP as u32;
        let mut request = link_message(libc::RTM_NEWLINK, REQUEST | ACK | CREATE, 0, up, up);
        request.text(libc::IFLA_IFNAME, name).number(libc::IFLA_LINK, parent as u32);
        request.nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "vlan").nested(libc::IFLA_INFO_DATA, |data| {
                data.attribute(IFLA_VLAN_ID, &id.to_ne_bytes());
            });
        });
        self.ask(request)?;
        self.index(name)
    }

    /// Removes a device; one that is not there is removed already.
    pub fn delete(&self, name: &str) -> io::Result<()> {
        let mut request = link_message(libc::RTM_DELLINK, REQUEST | ACK, 0, 0, 0);
        request.text(libc::IFLA_IFNAME, name);
        match self.ask(request) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Gives a device, by its index, an address with the length of its network's prefix.
    pub fn assign(&self, index: i32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut header = [0; ADDRESS_HEADER];
        header[0] = family(address);
        header[1] = prefix;
        if address.is_ipv6() {
            header[2] = IFA_F_NODAD;
        }
        header[4..].copy_from_slice(&index.to_ne_bytes());
        let mut request = Message::new(libc::RTM_NEWADDR, REQUEST | ACK | CREATE, &header);
        request.attribute(libc::IFA_LOCAL, &octets(address)).attribute(libc::IFA_ADDRESS, &octets(address));
        if let IpAddr::V4(four) = address {
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            if prefix < 31 {
                request.attribute(libc::IFA_BROADCAST, &(u32::from(four) | host).to_be_bytes());
            }
        }
        self.ask(request).map(drop)
    }

    /// Sends what goes to no known network to a gateway, or only to a device; an equal route is replaced.
    pub fn set_default_route(
        &self,
        index: i32,
        gateway: Option<IpAddr>,
        is_version_6: bool,
    ) -> io::Result<()> {
        let replace = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        let request =
            default_route(libc::RTM_NEWROUTE, REQUEST | ACK | replace, index, gateway, is_version_6);
        self.ask(request).map(drop)
    }

    /// Takes the default route of a family away; none is none.
    pub fn remove_default_route(&self, is_version_6: bool) -> io::Result<()> {
        let request = default_route(libc::RTM_DELROUTE, REQUEST | ACK, 0, None, is_version_6);
        match self.ask(request) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result.map(drop),
        }
    }

    /// The networks that this namespace has routes to, the default routes left out.
    pub fn routes(&self) -> io::Result<Vec<(IpAddr, u8)>> {
        let answers = self.ask(Message::new(libc::RTM_GETROUTE, REQUEST | DUMP, &[0; ROUTE_HEADER]))?;
        Ok(answers.iter().filter_map(|answer| route_of(answer)).collect())
    }
}

fn default_route(kind: u16, flags: u16, index: i32, gateway: Option<IpAddr>, is_version_6: bool) -> Message {
    let mut header = [0; ROUTE_HEADER];
    header[0] = if is_version_6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    header[4] = libc::RT_TABLE_MAIN;
    if kind == libc::RTM_NEWROUTE {
        header[5] = libc::RTPROT_BOOT;
        header[6] = if gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
        header[7] = libc::RTN_UNICAST;
    } else {
        header[6] = libc::RT_SCOPE_NOWHERE;
    }
    let mut request = Message::new(kind, flags, &header);
    if let Some(gateway) = gateway {
        request.attribute(libc::RTA_GATEWAY, &octets(gateway));
    }
    if index != 0 {
        request.number(libc::RTA_OIF, index as u32);
    }
    request
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

fn link_of(message: &[u8]) -> Link {
    let header = &message[MESSAGE_HEADER..];
    let flags = number_at(header, 8);
    let mut link = Link {
        index: number_at(header, 4),
        name: String::new(),
        is_up: flags & libc::IFF_UP != 0,
        master: 0,
    };
    for (number, value) in attributes(header.get(LINK_HEADER..).unwrap_or_default()) {
        match number {
            libc::IFLA_IFNAME => link.name = text_of(value),
            libc::IFLA_MASTER => link.master = number_at(value, 0),
            _ => {}
        }
    }
    link
}

fn route_of(message: &[u8]) -> Option<(IpAddr, u8)> {
    let header = message.get(MESSAGE_HEADER..MESSAGE_HEADER + ROUTE_HEADER)?;
    let (prefix, kind) = (header[1], header[7]);
    if prefix == 0 || kind != libc::RTN_UNICAST {
        return None;
    }
    let rest = &message[MESSAGE_HEADER + ROUTE_HEADER..];
    let (_, value) = attributes(rest).find(|(number, _)| *number == libc::RTA_DST)?;
    let address = match value.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
        _ => return None,
    };
    Some((address, prefix))
}
