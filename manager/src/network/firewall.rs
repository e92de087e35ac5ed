//! The firewall of bridge networks, as the contents of one table per family: `orlop`. Pure.
//!
//! A packet's way through it does not grow with the number of networks or ports: devices and ports are looked up in maps, and each
//! network has chains of its own that the maps lead to. Nothing outside of the table is touched.

use std::net::IpAddr;

use ipnet::IpNet;
use orlop_host::netlink::nftables::{
    Batch, DataType, Element, Family, Hook, IFNAME, R0, Step, Target, Type, Verdict,
};

use super::held::Published;
use super::record::{BRIDGE_MASQUERADE, Network};

/// Name of the table.
pub const TABLE: &str = "orlop";

// NF_INET_…, and the priorities that nft(8) calls raw, dstnat, filter and srcnat.
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

// NFT_META_…, NFT_CT_… and their values.
const IN_NAME: u32 = 6;
const OUT_NAME: u32 = 7;
const PROTOCOL: u32 = 16;
const STATE: u32 = 0;
const STATUS: u32 = 2;
const ESTABLISHED_OR_RELATED: u32 = 0b110;
const DESTINATION_CHANGED: u32 = 1 << 5; // IPS_DST_NAT
const LOCAL: u32 = 2; // RTN_LOCAL

// Types as nft(8) numbers them; those of a concatenation are six bits each.
const INET_PROTOCOL: u32 = 12;
const INET_SERVICE: u32 = 13;

/// Devices of bridge networks.
const BRIDGES: &str = "bridges";
/// What may go to a bridge, by its name.
const INTO: &str = "into";
/// What may come from a bridge, by its name.
const FROM: &str = "from";
/// Which source addresses are changed, by the name of the bridge that a packet came from.
const LEAVE: &str = "leave";
/// Which source addresses are changed, by the name of the bridge that a packet goes to.
const RETURN: &str = "return";
/// Ports published on one address of the host.
const PUBLISHED: &str = "published";
/// Ports published on all addresses of the host.
const PUBLISHED_ANY: &str = "published_any";

fn address_type(family: Family) -> u32 {
    if family == Family::V4 { 7 } else { 8 }
}

/// The family of an address.
pub fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

fn device(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn port(number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [high, low, 0, 0]
}

/// Whether a network has rules of a family.
pub fn has_family(network: &Network, family: Family) -> bool {
    network.driver == "bridge"
        && network.nets().iter().any(|net| matches!(net, IpNet::V6(_)) == (family == Family::V6))
}

/// The table from scratch: what was there before, by this program, is replaced in the same instant.
pub fn rebuilt(family: Family, networks: &[Network], published: &[(Published, IpAddr)]) -> Batch {
    let mut batch = Batch::new(family, TABLE);
    // A table has to be there to be removed.
    batch.add_table().remove_table().add_table();
    base(&mut batch, family);
    for network in networks.iter().filter(|network| has_family(network, family)) {
        add_network(&mut batch, family, network);
    }
    for (published, to) in published {
        if family_of(*to) == family && family_of(published.host) == family {
            add_published(&mut batch, published, *to);
        }
    }
    batch
}

/// Removes the table.
pub fn removed(family: Family) -> Batch {
    let mut batch = Batch::new(family, TABLE);
    batch.add_table().remove_table();
    batch
}

fn base(batch: &mut Batch, family: Family) {
    let length = family.address_length();
    let concatenated = INET_PROTOCOL << 12 | address_type(family) << 6 | INET_SERVICE;
    let target = Type(address_type(family) << 6 | INET_SERVICE, length + 4);
    batch.add_set(BRIDGES, IFNAME, DataType::None);
    for map in [INTO, FROM, LEAVE, RETURN] {
        batch.add_set(map, IFNAME, DataType::Verdict);
    }
    batch.add_set(PUBLISHED, Type(concatenated, length + 8), DataType::Value(target));
    batch.add_set(PUBLISHED_ANY, Type(INET_PROTOCOL << 6 | INET_SERVICE, 8), DataType::Value(target));

    let destination = if family == Family::V4 { 16 } else { 24 };
    let source = if family == Family::V4 { 12 } else { 8 };
    // Protocol, address and port in registers that follow each other.
    let full = |to: u32| {
        let after = to + 1 + length / 4;
        [Step::Meta(PROTOCOL, to), Step::Network(destination, length, to + 1), Step::Transport(2, 2, after)]
    };
    if family == Family::V4 {
        let loopback = |offset: u32| {
            [
                Step::Network(offset, 4, R0),
                Step::Mask(R0, vec![255, 0, 0, 0]),
                Step::Equal(R0, vec![127, 0, 0, 0]),
            ]
        };
        batch.add_chain("guard", Some(Hook { number: PREROUTING, priority: RAW, kind: "filter" }));
        // Bridges route 127.0.0.0/8, so that published ports work from the host itself; nobody else may use that.
        let mut steps = vec![Step::Meta(IN_NAME, R0), Step::In(BRIDGES, R0)];
        steps.extend(loopback(destination));
        steps.push(Step::Do(Verdict::Drop));
        batch.add_rule("guard", &steps);
        let mut steps = vec![Step::Meta(IN_NAME, R0), Step::Unequal(R0, device("lo"))];
        steps.extend(loopback(destination));
        steps.extend(full(R0));
        steps.push(Step::Map(PUBLISHED, R0, R0));
        steps.push(Step::Do(Verdict::Drop));
        batch.add_rule("guard", &steps);
    }
    for (chain, number) in [("prerouting", PREROUTING), ("output", OUTPUT)] {
        batch.add_chain(chain, Some(Hook { number, priority: DSTNAT, kind: "nat" }));
        if family == Family::V6 && chain == "output" {
            // What is for ::1 cannot be sent elsewhere; a proxy takes it.
            let loopback = octets(std::net::Ipv6Addr::LOCALHOST.into());
            let steps = [
                Step::Network(destination, length, R0),
                Step::Equal(R0, loopback),
                Step::Do(Verdict::Accept),
            ];
            batch.add_rule(chain, &steps);
        }
        let local = [Step::DestinationType(R0), Step::Equal(R0, LOCAL.to_ne_bytes().to_vec())];
        let mut steps = local.to_vec();
        steps.extend(full(R0));
        steps.push(Step::Map(PUBLISHED, R0, R0));
        steps.push(Step::Destination(R0, R0 + length / 4));
        batch.add_rule(chain, &steps);
        let mut steps = local.to_vec();
        steps.extend([Step::Meta(PROTOCOL, R0), Step::Transport(2, 2, R0 + 1)]);
        steps.push(Step::Map(PUBLISHED_ANY, R0, R0));
        steps.push(Step::Destination(R0, R0 + length / 4));
        batch.add_rule(chain, &steps);
    }
    batch.add_chain("forward", Some(Hook { number: FORWARD, priority: FILTER, kind: "filter" }));
    batch.add_rule("forward", &[Step::Meta(IN_NAME, R0), Step::VerdictMap(FROM, R0)]);
    batch.add_rule("forward", &[Step::Meta(OUT_NAME, R0), Step::VerdictMap(INTO, R0)]);
    batch.add_chain("postrouting", Some(Hook { number: POSTROUTING, priority: SRCNAT, kind: "nat" }));
    if family == Family::V4 {
        batch.add_rule(
            "postrouting",
            &[
                Step::Network(source, 4, R0),
                Step::Mask(R0, vec![255, 0, 0, 0]),
                Step::Equal(R0, vec![127, 0, 0, 0]),
                Step::Meta(OUT_NAME, R0),
                Step::In(BRIDGES, R0),
                Step::Masquerade,
            ],
        );
    }
    batch.add_rule("postrouting", &[Step::Meta(OUT_NAME, R0), Step::VerdictMap(RETURN, R0)]);
    batch.add_rule("postrouting", &[Step::Meta(IN_NAME, R0), Step::VerdictMap(LEAVE, R0)]);
}

/// A new bridge network.
pub fn network_added(family: Family, network: &Network) -> Batch {
    let mut batch = Batch::new(family, TABLE);
    add_network(&mut batch, family, network);
    batch
}

fn chains(bridge: &str) -> [(&'static str, String); 4] {
    [INTO, FROM, LEAVE, RETURN].map(|map| (map, format!("{map}_{bridge}")))
}

fn jumps(bridge: &str) -> impl Iterator<Item = (&'static str, Element)> {
    chains(bridge).into_iter().map(|(map, chain)| {
        let target = Target::Verdict(Verdict::Jump(chain));
        (map, Element { key: device(bridge), target })
    })
}

fn add_network(batch: &mut Batch, family: Family, network: &Network) {
    let bridge = network.bridge();
    let name = device(&bridge);
    let is_to = |key: u32, same: bool| {
        let compare = if same { Step::Equal(R0, name.clone()) } else { Step::Unequal(R0, name.clone()) };
        [Step::Meta(key, R0), compare]
    };
    let status = |verdict: Step| {
        vec![
            Step::Connection(STATUS, R0),
            Step::Mask(R0, DESTINATION_CHANGED.to_ne_bytes().to_vec()),
            Step::Unequal(R0, vec![0; 4]),
            verdict,
        ]
    };
    let [(_, into), (_, from), (_, leave), (_, back)] = chains(&bridge);
    let rule = |batch: &mut Batch, chain: &str, start: &[Step], rest: Vec<Step>| {
        batch.add_rule(chain, &[start, &rest].concat());
    };
    for chain in [&into, &from, &leave, &back] {
        batch.add_chain(chain, None);
    }
    if network.internal {
        rule(batch, &into, &is_to(IN_NAME, false), vec![Step::Do(Verdict::Drop)]);
        rule(batch, &from, &is_to(OUT_NAME, false), vec![Step::Do(Verdict::Drop)]);
    }
    rule(batch, &into, &is_to(IN_NAME, true), vec![Step::Do(Verdict::Accept)]);
    rule(
        batch,
        &into,
        &[],
        vec![
            Step::Connection(STATE, R0),
            Step::Mask(R0, ESTABLISHED_OR_RELATED.to_ne_bytes().to_vec()),
            Step::Unequal(R0, vec![0; 4]),
            Step::Do(Verdict::Accept),
        ],
    );
    rule(batch, &into, &[], status(Step::Do(Verdict::Accept)));
    rule(batch, &into, &[], vec![Step::Do(Verdict::Drop)]);
    if network.is_on(BRIDGE_MASQUERADE) && !network.internal {
        rule(batch, &leave, &is_to(OUT_NAME, false), vec![Step::Masquerade]);
    }
    // A container that talks to its own or a neighbour's published port: the answer has to come back this way. Told by its address,
    // as a bridge that shows its packets to the firewall does not say where they came from.
    let source = if family == Family::V4 { 12 } else { 8 };
    for net in network.nets().iter().filter(|net| matches!(net, IpNet::V6(_)) == (family == Family::V6)) {
        let from = [
            Step::Network(source, family.address_length(), R0),
            Step::Mask(R0, octets(net.netmask())),
            Step::Equal(R0, octets(net.network())),
        ];
        rule(batch, &back, &from, status(Step::Masquerade));
    }

    batch.add_elements(BRIDGES, &[Element { key: name.clone(), target: Target::None }]);
    for (map, element) in jumps(&bridge) {
        batch.add_elements(map, &[element]);
    }
}

/// A bridge network that is gone.
pub fn network_removed(family: Family, network: &Network) -> Batch {
    let bridge = network.bridge();
    let mut batch = Batch::new(family, TABLE);
    batch.remove_elements(BRIDGES, &[Element { key: device(&bridge), target: Target::None }]);
    for (map, element) in jumps(&bridge) {
        batch.remove_elements(map, &[element]);
    }
    for (_, chain) in chains(&bridge) {
        batch.remove_chain(&chain);
    }
    batch
}

fn element(published: &Published, to: IpAddr) -> (&'static str, Element) {
    let protocol = [published.protocol.number(), 0, 0, 0];
    let target = Target::Value([&octets(to)[..], &port(published.port)].concat());
    if published.host.is_unspecified() {
        let key = [protocol, port(published.host_port)].concat();
        (PUBLISHED_ANY, Element { key, target })
    } else {
        let key = [&protocol[..], &octets(published.host), &port(published.host_port)].concat();
        (PUBLISHED, Element { key, target })
    }
}

fn add_published(batch: &mut Batch, published: &Published, to: IpAddr) {
    let (map, element) = element(published, to);
    batch.add_elements(map, &[element]);
}

/// Ports of the host that lead to an address of a container from now on, or no more.
pub fn published(family: Family, ports: &[Published], to: IpAddr, lead: bool) -> Batch {
    let mut batch = Batch::new(family, TABLE);
    for port in ports.iter().filter(|port| family_of(port.host) == family) {
        let (map, element) = element(port, to);
        if lead {
            batch.add_elements(map, &[element]);
        } else {
            batch.remove_elements(map, &[element]);
        }
    }
    batch
}

/// In a container's own namespace: questions to the name server's address go to the ports where it listens.
pub fn name_server(server: IpAddr, udp: u16, tcp: u16) -> Batch {
    let family = family_of(server);
    let mut batch = Batch::new(family, "orlop_dns");
    batch.add_table().remove_table().add_table();
    batch.add_chain("output", Some(Hook { number: OUTPUT, priority: DSTNAT, kind: "nat" }));
    for (protocol, number) in [(17, udp), (6, tcp)] {
        batch.add_rule(
            "output",
            &[
                Step::Network(16, 4, R0),
                Step::Equal(R0, octets(server)),
                Step::Meta(PROTOCOL, R0),
                Step::Equal(R0, vec![protocol]),
                Step::Transport(2, 2, R0),
                Step::Equal(R0, vec![0, 53]),
                Step::Load(R0, octets(server)),
                Step::Load(R0 + 1, number.to_be_bytes().to_vec()),
                Step::Destination(R0, R0 + 1),
            ],
        );
    }
    batch
}
