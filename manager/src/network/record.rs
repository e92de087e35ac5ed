//! What is stored of networks and of the wish of containers to be on them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use crate::db::Table;
use crate::store::Timestamp;

/// Networks by id.
pub static NETWORKS: Table<Network> = Table::new("networks");
/// What containers wish for, by their id.
pub static ATTACHMENTS: Table<Attachments> = Table::new("network_attachments");

/// The name of the network that containers are on that name none.
pub const DEFAULT: &str = "bridge";
/// Names that only the engine may give to networks.
pub const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

/// Option of a bridge network: the name of its device.
pub const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// Option of a bridge network: whether containers on it may talk to each other.
pub const BRIDGE_ICC: &str = "com.docker.network.bridge.enable_icc";
/// Option of a bridge network: whether what leaves it carries the host's address.
pub const BRIDGE_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
/// Option of a bridge network: the host's address for ports that name none.
pub const BRIDGE_HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
/// Option of a network: bytes of a packet.
pub const MTU: &str = "com.docker.network.driver.mtu";

/// A network.
#[derive(Clone, PartialEq, Message)]
pub struct Network {
    /// 64 hexadecimal digits.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Name, which no other network has.
    #[prost(string, tag = "2")]
    pub name: String,
    /// `bridge`, `host`, `null`, `macvlan` or `ipvlan`.
    #[prost(string, tag = "3")]
    pub driver: String,
    /// When it was made.
    #[prost(message, required, tag = "4")]
    pub created_at: Timestamp,
    /// Nothing leaves it.
    #[prost(bool, tag = "5")]
    pub internal: bool,
    /// Its containers have addresses of version 6.
    #[prost(bool, tag = "6")]
    pub enable_ipv6: bool,
    /// Kept for clients; only clusters use it.
    #[prost(bool, tag = "7")]
    pub attachable: bool,
    /// Options of the driver.
    #[prost(btree_map = "string, string", tag = "8")]
    pub options: BTreeMap<String, String>,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "9")]
    pub labels: BTreeMap<String, String>,
    /// Its address ranges, those of version 4 first.
    #[prost(message, repeated, tag = "10")]
    pub subnets: Vec<Subnet>,
    /// Options of the address manager, kept for clients.
    #[prost(btree_map = "string, string", tag = "11")]
    pub ipam_options: BTreeMap<String, String>,
    /// Whether the client chose the subnets, so that containers may choose addresses.
    #[prost(bool, tag = "12")]
    pub has_chosen_subnets: bool,
}

/// An address range of a network.
#[derive(Clone, PartialEq, Message)]
pub struct Subnet {
    /// Address and prefix length.
    #[prost(string, tag = "1")]
    pub subnet: String,
    /// The host's address in it; empty on networks without a gateway.
    #[prost(string, tag = "2")]
    pub gateway: String,
    /// The part of it from which containers get addresses, if not all of it.
    #[prost(string, tag = "3")]
    pub range: String,
    /// Addresses that others have, by a name for them.
    #[prost(btree_map = "string, string", tag = "4")]
    pub reserved: BTreeMap<String, String>,
}

impl Subnet {
    /// Address and prefix length.
    pub fn net(&self) -> Result<IpNet> {
        self.subnet.parse().map_err(|error| damaged(&self.subnet, error))
    }

    /// The host's address.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.gateway.parse().ok()
    }
}

fn damaged(text: &str, error: ipnet::AddrParseError) -> Error {
    Error::because(Kind::DataLoss, "decode subnet", text, error)
}

impl Network {
    /// The name of a bridge network's device.
    pub fn bridge(&self) -> String {
        match self.options.get(BRIDGE_NAME) {
            Some(name) => name.clone(),
            None => format!("br-{}", self.short_id()),
        }
    }

    /// The first twelve digits of its id.
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    /// Whether containers find each other by name on it.
    pub fn has_names(&self) -> bool {
        self.name != DEFAULT && !matches!(self.driver.as_str(), "host" | "null")
    }

    /// Whether an option that is on by default is on.
    pub fn is_on(&self, option: &str) -> bool {
        self.options.get(option).is_none_or(|value| value != "false" && value != "0")
    }

    /// Bytes of a packet; 0 for the kernel's own.
    pub fn mtu(&self) -> u32 {
        self.options.get(MTU).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// The address ranges as addresses.
    pub fn nets(&self) -> Vec<IpNet> {
        self.subnets.iter().filter_map(|subnet| subnet.net().ok()).collect()
    }
}

/// What a container wishes for.
#[derive(Clone, PartialEq, Message)]
pub struct Attachments {
    /// The networks, in the order in which they were asked for.
    #[prost(message, repeated, tag = "1")]
    pub wishes: Vec<Wish>,
}

/// A container's wish to be on a network.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Wish {
    /// The network as the client named it: a name, an id, or its beginning.
    #[prost(string, tag = "1")]
    pub network: String,
    /// Further names on the network.
    #[prost(string, repeated, tag = "2")]
    pub aliases: Vec<String>,
    /// Names that only this container uses for others: `CONTAINER:ALIAS`.
    #[prost(string, repeated, tag = "3")]
    pub links: Vec<String>,
    /// The address of version 4 to have.
    #[prost(string, tag = "4")]
    pub ipv4: String,
    /// The address of version 6 to have.
    #[prost(string, tag = "5")]
    pub ipv6: String,
    /// The hardware address to have.
    #[prost(string, tag = "6")]
    pub mac: String,
    /// Options of the driver.
    #[prost(btree_map = "string, string", tag = "7")]
    pub options: BTreeMap<String, String>,
    /// The network with the highest one has the default route.
    #[prost(int64, tag = "8")]
    pub gateway_priority: i64,
    /// Link-local addresses, kept for clients.
    #[prost(string, repeated, tag = "9")]
    pub link_local: Vec<String>,
    /// Whether the client gave an address configuration, which it wants to see again even if it is empty.
    #[prost(bool, tag = "10")]
    pub has_address_config: bool,
}
