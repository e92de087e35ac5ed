//! What an administrator wants of the default network and of new ones.

use std::collections::BTreeMap;

use super::definitions::DEFAULT_BRIDGE;
use super::ipam::{self, Pool, Wanted};
use super::record::{BRIDGE_HOST_BINDING, BRIDGE_ICC, BRIDGE_MASQUERADE, BRIDGE_NAME, MTU};

/// Bytes of a packet on the default network.
const DEFAULT_MTU: u32 = 1500;

/// What an administrator wants; what is empty is as Docker has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    /// The host's address on the default network, with the length of its prefix.
    pub bridge_address: String,
    /// The same of version 6.
    pub bridge_address6: String,
    /// The part of the default network from which containers get addresses.
    pub range: String,
    /// The same of version 6.
    pub range6: String,
    /// Whether the default network has addresses of version 6.
    pub has_v6: bool,
    /// Bytes of a packet on the default network.
    pub mtu: Option<u32>,
    /// The host's address that ports of containers on the default network are published on.
    pub host_address: String,
    /// Whether containers on the default network do not reach each other.
    pub is_closed: bool,
    /// Whether packets from the default network keep their source addresses.
    pub is_routed: bool,
    /// Ranges that networks without a subnet are taken from.
    pub pools: Vec<Pool>,
    /// Driver → options of new networks.
    pub options: BTreeMap<String, BTreeMap<String, String>>,
}

impl Defaults {
    /// Options of the default network.
    pub(super) fn bridge_options(&self) -> BTreeMap<String, String> {
        let host = if self.host_address.is_empty() { "0.0.0.0" } else { &self.host_address };
        [
            ("com.docker.network.bridge.default_bridge", "true".to_owned()),
            (BRIDGE_ICC, (!self.is_closed).to_string()),
            (BRIDGE_MASQUERADE, (!self.is_routed).to_string()),
            (BRIDGE_HOST_BINDING, host.to_owned()),
            (BRIDGE_NAME, DEFAULT_BRIDGE.to_owned()),
            (MTU, self.mtu.unwrap_or(DEFAULT_MTU).to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Address ranges of the default network; none for the first that is free.
    pub(super) fn bridge_subnets(&self) -> Vec<Wanted> {
        let one = |address: &str, range: &str| -> Option<Wanted> {
            let subnet = if address.is_empty() { range } else { address };
            let net: ipnet::IpNet = subnet.parse().ok()?;
            let gateway = if address.is_empty() { String::new() } else { net.addr().to_string() };
            Some(Wanted {
                subnet: net.trunc().to_string(),
                range: range.to_owned(),
                gateway,
                reserved: Vec::new(),
            })
        };
        let v6 = self.has_v6.then(|| one(&self.bridge_address6, &self.range6)).flatten();
        one(&self.bridge_address, &self.range).into_iter().chain(v6).collect()
    }

    /// Ranges that networks without a subnet are taken from.
    pub(super) fn pools(&self) -> Vec<Pool> {
        if self.pools.is_empty() { ipam::default_pools() } else { self.pools.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_subnet_and_a_gateway() {
        let wanted = |address: &str, range: &str| {
            let defaults =
                Defaults { bridge_address: address.into(), range: range.into(), ..Defaults::default() };
            let all = defaults.bridge_subnets();
            all.into_iter().map(|one| (one.subnet, one.gateway, one.range)).collect::<Vec<_>>()
        };
        let text =
            |subnet: &str, gateway: &str, range: &str| vec![(subnet.into(), gateway.into(), range.into())];
        assert_eq!(wanted("10.9.0.1/24", ""), text("10.9.0.0/24", "10.9.0.1", ""));
        assert_eq!(wanted("10.9.0.1/16", "10.9.5.0/24"), text("10.9.0.0/16", "10.9.0.1", "10.9.5.0/24"));
        assert_eq!(wanted("", "10.9.5.0/24"), text("10.9.5.0/24", "", "10.9.5.0/24"));
        assert!(wanted("", "").is_empty());
        assert_eq!(Defaults { mtu: Some(1400), ..Defaults::default() }.bridge_options()[MTU], "1400");
    }
}
