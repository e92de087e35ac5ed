//! Network devices and firewall of a network namespace, by netlink(7).
//!
//! Written here rather than taken from a crate: few requests are needed, and the crates bring an asynchronous runtime
//! and many times this code (docs/decisions/0102-network-devices.md), or a C library or licence that we cannot link
//! (docs/decisions/0940-networks.md).

pub mod conntrack;
pub mod link;
pub mod message;
pub mod nftables;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use nix::sys::stat::Mode;

use crate::sys;
use message::{
    ACK, CREATE, DUMP, MESSAGE_HEADER, Message, REQUEST, attributes, next_message, number_at, short_at,
};

const LINK_HEADER: usize = 16; // struct ifinfomsg
const ADDRESS_HEADER: usize = 8; // struct ifaddrmsg

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// Length of the network's prefix in bits.
    pub prefix: u8,
    /// It is nobody's lease and nothing that the kernel made up (`IFA_F_PERMANENT`).
    pub is_permanent: bool,
    /// It is valid everywhere (`RT_SCOPE_UNIVERSE`).
    pub is_global: bool,
    /// Attributes that belong to the address itself, by number: `IFA_LOCAL`, `IFA_ADDRESS`, `IFA_BROADCAST`.
    pub attributes: Vec<(u16, Vec<u8>)>,
}

/// A socket that speaks of the devices of one network namespace.
pub struct Devices(OwnedFd);

impl Devices {
    /// Those of this process's own namespace.
    pub fn own() -> io::Result<Devices> {
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(Devices(socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?))
    }

    /// Those of another namespace, which the process enters for as long as it takes to make the socket.
    pub fn within(namespace: BorrowedFd) -> io::Result<Devices> {
        let own = open("/proc/self/ns/net", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        sys::pid::setns(namespace, libc::CLONE_NEWNET)?;
        let devices = Devices::own();
        sys::pid::setns(own.as_fd(), libc::CLONE_NEWNET)?;
        devices
    }

    /// The index of a device by its name; `ENODEV` if there is none.
    pub fn index(&self, name: &str) -> io::Result<i32> {
        let mut request = link_message(libc::RTM_GETLINK, REQUEST | ACK, 0, 0, 0);
        request.text(libc::IFLA_IFNAME, name);
        let answers = self.ask(request)?;
        let index = answers.iter().find_map(|answer| link_index(answer));
        index.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// The indices of all devices.
    pub fn indices(&self) -> io::Result<Vec<i32>> {
        let answers = self.ask(link_message(libc::RTM_GETLINK, REQUEST | DUMP, 0, 0, 0))?;
        Ok(answers.iter().filter_map(|answer| link_index(answer)).collect())
    }

    /// The addresses of a device.
    pub fn addresses(&self, index: i32) -> io::Result<Vec<Address>> {
        let request = Message::new(libc::RTM_GETADDR, REQUEST | DUMP, &[0; ADDRESS_HEADER]);
        let answers = self.ask(request)?;
        Ok(answers.iter().filter_map(|answer| address_of(answer, index)).collect())
    }

    /// Switches a device on.
    pub fn set_up(&self, index: i32) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        self.ask(link_message(libc::RTM_NEWLINK, REQUEST | ACK, index, up, up)).map(drop)
    }

    /// Moves a device into another namespace and gives it a name there, in one step; `EEXIST` if the name is taken.
    pub fn hand_over(&self, index: i32, namespace: BorrowedFd, name: &str) -> io::Result<()> {
        let mut request = link_message(libc::RTM_NEWLINK, REQUEST | ACK, index, 0, 0);
        request.text(libc::IFLA_IFNAME, name);
        request.attribute(libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        self.ask(request).map(drop)
    }

    /// Adds an address to a device.
    pub fn add_address(&self, index: i32, address: &Address) -> io::Result<()> {
        let mut header = [0; ADDRESS_HEADER];
        header[0] = address.family;
        header[1] = address.prefix;
        header[4..].copy_from_slice(&index.to_ne_bytes());
        let mut request = Message::new(libc::RTM_NEWADDR, REQUEST | ACK | CREATE, &header);
        for (number, value) in &address.attributes {
            request.attribute(*number, value);
        }
        self.ask(request).map(drop)
    }

    /// Sends a request and collects the answers until the kernel says that it is done.
    fn ask(&self, request: Message) -> io::Result<Vec<Vec<u8>>> {
        ask(self.0.as_fd(), request)
    }
}

/// Sends a request and collects the answers until the kernel says that it is done.
fn ask(socket: BorrowedFd, request: Message) -> io::Result<Vec<Vec<u8>>> {
    send(socket.as_raw_fd(), &request.finish(), MsgFlags::empty())?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, message, after)) = next_message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(answers),
                libc::NLMSG_ERROR => {
                    return match number_at(message, MESSAGE_HEADER) {
                        0 => Ok(answers),
                        error => Err(io::Error::from_raw_os_error(-error)),
                    };
                }
                _ => answers.push(message.to_vec()),
            }
            rest = after;
        }
    }
}

fn link_message(kind: u16, request: u16, index: i32, flags: u32, change: u32) -> Message {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    Message::new(kind, request, &header)
}

fn link_index(message: &[u8]) -> Option<i32> {
    (short_at(message, 4) == libc::RTM_NEWLINK).then(|| number_at(message, MESSAGE_HEADER + 4))
}

fn address_of(message: &[u8], index: i32) -> Option<Address> {
    let header = message.get(MESSAGE_HEADER..MESSAGE_HEADER + ADDRESS_HEADER)?;
    if short_at(message, 4) != libc::RTM_NEWADDR || number_at(header, 4) != index {
        return None;
    }
    let mut address = Address {
        family: header[0],
        prefix: header[1],
        is_permanent: u32::from(header[2]) & libc::IFA_F_PERMANENT != 0,
        is_global: header[3] == libc::RT_SCOPE_UNIVERSE,
        attributes: Vec::new(),
    };
    for (number, value) in attributes(&message[MESSAGE_HEADER + ADDRESS_HEADER..]) {
        if [libc::IFA_LOCAL, libc::IFA_ADDRESS, libc::IFA_BROADCAST].contains(&number) {
            address.attributes.push((number, value.to_vec()));
        }
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_by_name() {
        let devices = Devices::own().unwrap();
        let index = devices.index("lo").unwrap();
        assert!(devices.indices().unwrap().contains(&index));
        let missing = devices.index("orlop-none").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn addresses_come_out_as_they_went_in() {
        let mut header = [0; ADDRESS_HEADER];
        (header[0], header[1], header[2]) = (libc::AF_INET as u8, 24, libc::IFA_F_PERMANENT as u8);
        header[4..].copy_from_slice(&7i32.to_ne_bytes());
        let mut request = Message::new(libc::RTM_NEWADDR, 0, &header);
        request.attribute(libc::IFA_LOCAL, &[10, 0, 0, 1]);
        request.text(libc::IFA_LABEL, "eth0");
        request.attribute(libc::IFA_ADDRESS, &[10, 0, 0, 2]);
        let bytes = request.finish();
        let (kind, message, rest) = next_message(&bytes).unwrap();
        assert_eq!((kind, rest.len()), (libc::RTM_NEWADDR, 0));
        let address = address_of(message, 7).unwrap();
        assert_eq!((address.family, address.prefix), (libc::AF_INET as u8, 24));
        assert!(address.is_permanent && address.is_global);
        let expected = [(libc::IFA_LOCAL, vec![10, 0, 0, 1]), (libc::IFA_ADDRESS, vec![10, 0, 0, 2])];
        assert_eq!(address.attributes, expected);
        assert_eq!(address_of(message, 8), None);
    }

    #[test]
    fn an_address_that_is_cut_off_has_no_attributes() {
        let mut cut = Message::new(libc::RTM_NEWADDR, 0, &[0; ADDRESS_HEADER]).finish();
        cut.extend([9, 0, 1, 0, 5]);
        assert!(address_of(&cut, 0).unwrap().attributes.is_empty());
    }
}
