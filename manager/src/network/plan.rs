//! What to do to the kernel for a container's place on a network, as data: each step knows its inverse. Pure.

use std::net::IpAddr;

use orlop_host::netlink::link::{Below, Mac};
use orlop_host::netlink::nftables::Batch;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::firewall;
use super::held::{Endpoint, Held, Published};
use super::record::{BRIDGE_ICC, Network};

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes a pair of devices, the host's end a port of a bridge.
    Pair {
        /// The host's end.
        host: String,
        /// The bridge.
        bridge: String,
        /// The container's end.
        device: String,
        /// Its hardware address.
        mac: Mac,
        /// Bytes of a packet; 0 for the kernel's own.
        mtu: u32,
        /// Whether it talks to no other container.
        isolated: bool,
    },
    /// Makes a device below one of the host's, in the container.
    Below {
        /// The host's device.
        parent: String,
        /// Which kind.
        kind: Below,
        /// The container's device.
        device: String,
        /// Its hardware address, where it has one of its own.
        mac: Option<Mac>,
        /// Bytes of a packet; 0 for the parent's.
        mtu: u32,
    },
    /// Gives a device of the container an address.
    Address(String, IpAddr, u8),
    /// Keeps a device of the container from having a link-local address of version 6.
    NoLinkLocal(String),
    /// Switches a device of the container on.
    Up(String),
    /// Sends what the container knows no other way for to a gateway, or to a device.
    Route {
        /// The device.
        device: String,
        /// The gateway.
        gateway: Option<IpAddr>,
        /// Which family.
        is_v6: bool,
    },
    /// Takes the default route of a family away.
    NoRoute {
        /// Which family.
        is_v6: bool,
    },
    /// Lets ports of the host lead to an address.
    Publish(Vec<Published>, IpAddr),
    /// Ends that.
    Unpublish(Vec<Published>, IpAddr),
    /// Removes a device of the host.
    Delete(String),
    /// Removes a device of the container.
    DeleteInside(String),
}

impl Operation {
    /// What undoes it; nothing where its undoing comes with another step's.
    pub fn inverse(&self) -> Option<Operation> {
        match self {
            Operation::Pair { host, .. } => Some(Operation::Delete(host.clone())),
            Operation::Below { device, .. } => Some(Operation::DeleteInside(device.clone())),
            Operation::Publish(ports, to) => Some(Operation::Unpublish(ports.clone(), *to)),
            _ => None,
        }
    }

    /// The change of the firewall, if it is one.
    pub fn batch(&self) -> Option<Batch> {
        match self {
            Operation::Publish(ports, to) => {
                Some(firewall::published(firewall::family_of(*to), ports, *to, true))
            }
            Operation::Unpublish(ports, to) => {
                Some(firewall::published(firewall::family_of(*to), ports, *to, false))
            }
            _ => None,
        }
    }
}

/// The steps that give a container its place on a network.
pub fn join(network: &Network, endpoint: &Endpoint) -> Result<Vec<Operation>> {
    let mut steps = Vec::new();
    let device = || endpoint.device.clone();
    match network.driver.as_str() {
        "bridge" => steps.push(Operation::Pair {
            host: endpoint.host_device.clone().unwrap_or_default(),
            bridge: network.bridge(),
            device: device(),
            mac: endpoint.mac,
            mtu: network.mtu(),
            isolated: !network.is_on(BRIDGE_ICC),
        }),
        "macvlan" | "ipvlan" => {
            let (kind, mac) = below(network, endpoint.mac)?;
            let parent = network.options.get("parent").cloned().unwrap_or_else(|| network.bridge());
            steps.push(Operation::Below { parent, kind, device: device(), mac, mtu: network.mtu() });
        }
        _ => return Ok(steps),
    }
    if endpoint.ipv6.is_none() {
        steps.push(Operation::NoLinkLocal(device()));
    }
    for (address, prefix) in [endpoint.ipv4, endpoint.ipv6].into_iter().flatten() {
        steps.push(Operation::Address(device(), address, prefix));
    }
    steps.push(Operation::Up(device()));
    Ok(steps)
}

/// Refuses a macvlan or ipvlan network with a mode that is none.
pub fn check_mode(network: &Network) -> Result<()> {
    below(network, [0; 6]).map(drop)
}

fn below(network: &Network, mac: Mac) -> Result<(Below, Option<Mac>)> {
    // MACVLAN_MODE_… of linux/if_link.h are bits, IPVLAN_MODE_… numbers.
    let mode = |option: &str| network.options.get(option).map(String::as_str).unwrap_or_default();
    let unknown = |text: &str| {
        Error::exactly(
            Kind::InvalidArgument,
            format!("requested {} mode '{text}' is not valid", network.driver),
        )
    };
    if network.driver == "macvlan" {
        let mode = match mode("macvlan_mode") {
            "private" => 1,
            "vepa" => 2,
            "" | "bridge" => 4,
            "passthru" => 8,
            other => return Err(unknown(other)),
        };
        return Ok((Below::Macvlan(mode), Some(mac)));
    }
    let number = match mode("ipvlan_mode") {
        "" | "l2" => 0,
        "l3" => 1,
        "l3s" => 2,
        other => return Err(unknown(other)),
    };
    let flags = match mode("ipvlan_flag") {
        "" | "bridge" => 0,
        "private" => 1,
        "vepa" => 2,
        other => return Err(unknown(other)),
    };
    Ok((Below::Ipvlan(number, flags), None))
}

/// Where the container sends what it knows no other way for. A network of layer 3 has a device and no gateway.
pub fn routes(held: &Held) -> Vec<Operation> {
    let one = |is_v6: bool| match held.gateway(is_v6) {
        Some(endpoint) => Operation::Route {
            device: endpoint.device.clone(),
            gateway: if is_v6 { endpoint.gateway6 } else { endpoint.gateway },
            is_v6,
        },
        None => Operation::NoRoute { is_v6 },
    };
    let has_v6 = held.endpoints.iter().any(|endpoint| endpoint.ipv6.is_some());
    let mut all = vec![one(false)];
    if has_v6 {
        all.push(one(true));
    }
    all
}

/// The ports of the host that lead to the container, by family.
pub fn publish(held: &Held) -> Vec<Operation> {
    let families = [false, true].into_iter().filter_map(|is_v6| {
        let to = held.published_address(is_v6)?;
        let ports: Vec<_> =
            held.published.iter().filter(|port| port.host.is_ipv6() == is_v6).cloned().collect();
        (!ports.is_empty()).then_some(Operation::Publish(ports, to))
    });
    families.collect()
}
