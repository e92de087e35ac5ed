//! What a running container has of the host's networks.
//!
//! It is decided in memory and written to a file below the state directory before anything is made, so that after a kill
//! everything that may be there is known. It does not go to the database: it means nothing after a reboot, and a durable write
//! at each start and stop would cost more than the devices do (docs/decisions/0940-networks.md).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A transport protocol whose ports can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number in the header of version 4.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// By its name, as in `80/tcp`.
    pub fn parse(text: &str) -> Option<Protocol> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Some(Protocol::Tcp),
            "udp" => Some(Protocol::Udp),
            "sctp" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads to one of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Protocol of both.
    pub protocol: Protocol,
    /// The host's address; the unspecified one for all of its family.
    pub host: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub port: u16,
}

/// A container's place on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Id of the network.
    pub network: String,
    /// Name of the network when it was joined.
    pub network_name: String,
    /// Name of the device in the container.
    pub device: String,
    /// Name of the host's end of the pair; none where the device has no other end.
    pub host_device: Option<String>,
    /// Address of version 4, with the length of its prefix.
    pub ipv4: Option<(IpAddr, u8)>,
    /// Address of version 6, with the length of its prefix.
    pub ipv6: Option<(IpAddr, u8)>,
    /// The network's gateway of version 4.
    pub gateway: Option<IpAddr>,
    /// The network's gateway of version 6.
    pub gateway6: Option<IpAddr>,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Further names on the network, the container's own and its short id left out.
    pub aliases: Vec<String>,
    /// Names that only this container uses for others, with the container that is meant.
    pub links: Vec<(String, String)>,
    /// The network with the highest one has the default route.
    pub gateway_priority: i64,
    /// Nothing leaves the network.
    pub internal: bool,
    /// Whether names are answered on it.
    pub has_names: bool,
}

/// All that a running container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The container's id.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Its host name, where it has one of its own.
    pub hostname: String,
    /// Its domain; empty for none.
    #[serde(default)]
    pub domain: String,
    /// Its places on networks, in the order of their devices.
    pub endpoints: Vec<Endpoint>,
    /// Ports of the host that lead to it.
    pub published: Vec<Published>,
    /// Servers that names are asked of which nobody here has; empty for the host's.
    pub dns: Vec<IpAddr>,
    /// The container's hosts file, which follows the networks it is on; empty for none.
    pub hosts_file: String,
    /// The container's resolver configuration; empty for none.
    pub resolv_file: String,
    /// What the client asked to have in the resolver configuration.
    pub resolver: Resolver,
    /// Further lines of the hosts file: address and names.
    pub hosts: Vec<(String, String)>,
}

/// A resolver configuration, as asked for by a client; what is empty is the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolver {
    /// Addresses of servers.
    pub servers: Vec<String>,
    /// Domains to search.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl Held {
    /// The endpoint whose gateway has the default route: the highest priority, then the first name; internal networks have none.
    pub fn gateway(&self, is_v6: bool) -> Option<&Endpoint> {
        let with = self.endpoints.iter().filter(|endpoint| {
            let gateway = if is_v6 { endpoint.gateway6 } else { endpoint.gateway };
            !endpoint.internal && gateway.is_some()
        });
        with.min_by_key(|endpoint| (-endpoint.gateway_priority, endpoint.network_name.clone()))
    }

    /// Whether it uses the name server of the engine.
    pub fn has_names(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.has_names)
    }

    /// The endpoint that published ports lead to, and its address of a family.
    pub fn published_address(&self, is_v6: bool) -> Option<IpAddr> {
        let address = |endpoint: &Endpoint| {
            let address = if is_v6 { endpoint.ipv6 } else { endpoint.ipv4 };
            address.map(|(address, _)| address)
        };
        self.gateway(is_v6).and_then(address)
    }

    /// The first device name of a container that none of its endpoints has.
    pub fn free_device(&self) -> String {
        let taken = |name: &String| self.endpoints.iter().any(|endpoint| endpoint.device == *name);
        let mut all = (0..).map(|number| format!("eth{number}"));
        all.find(|name| !taken(name)).unwrap_or_default()
    }
}

/// Running containers by id.
pub type AllHeld = BTreeMap<String, Held>;
