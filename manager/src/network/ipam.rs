//! Address management: which ranges networks get, and which addresses containers. Pure.

use std::collections::HashSet;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::record::{Network, Subnet};

/// What a client asks for when it makes a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Address and prefix length; empty for one of the default pools.
    pub subnet: String,
    /// The part of it from which containers get addresses.
    pub range: String,
    /// The host's address.
    pub gateway: String,
    /// Addresses that others have, by a name for them.
    pub reserved: Vec<(String, String)>,
}

/// A range that networks without a subnet of their own are taken from, and the length of their prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The whole range.
    pub base: Ipv4Net,
    /// Prefix length of a network's part.
    pub size: u8,
}

/// Docker's default pools.
pub fn default_pools() -> Vec<Pool> {
    let sixteen = |second: u8, length: u8| Pool {
        base: Ipv4Net::new_assert(Ipv4Addr::new(172, second, 0, 0), length),
        size: 16,
    };
    let mut pools: Vec<Pool> = (17..20).map(|second| sixteen(second, 16)).collect();
    pools.extend([20, 24, 28].map(|second| sixteen(second, 14)));
    pools.push(Pool { base: Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16), size: 20 });
    pools
}

fn refused(text: impl Into<String>) -> Error {
    Error::exactly(Kind::InvalidArgument, text)
}

/// Whether two ranges have an address in common.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The address ranges of a new network: those that the client wants, then what is missing from the pools.
///
/// `taken` are the ranges of other networks, which nobody may want; `routed` those of the host, which we do not choose.
pub fn subnets(
    wanted: &[Wanted],
    has_v6: bool,
    has_gateways: bool,
    pools: &[Pool],
    unique_local: Ipv6Net,
    (taken, routed): (&[IpNet], &[IpNet]),
) -> Result<Vec<Subnet>> {
    let mut found: Vec<Subnet> = Vec::new();
    let mut all = taken.to_vec();
    for want in wanted.iter().filter(|want| !want.subnet.is_empty()) {
        let subnet = chosen(want, has_gateways)?;
        let net = subnet.net()?;
        if all.iter().any(|other| overlap(&net, other)) {
            return Err(Error::exactly(
                Kind::PermissionDenied,
                "Pool overlaps with other one on this address space",
            ));
        }
        all.push(net);
        found.push(subnet);
    }
    let has = |found: &[Subnet], v6: bool| {
        found.iter().any(|subnet| subnet.net().is_ok_and(|net| matches!(net, IpNet::V6(_)) == v6))
    };
    if !has(&found, false) {
        let net = from_pools(pools, &all, routed)?;
        let unnamed = wanted.iter().find(|want| want.subnet.is_empty());
        let mut want = unnamed.cloned().unwrap_or_default();
        want.subnet = net.to_string();
        found.insert(0, chosen(&want, has_gateways)?);
    }
    if has_v6 && !has(&found, true) {
        let net = from_unique_local(unique_local, &all, routed)?;
        found.push(chosen(&Wanted { subnet: net.to_string(), ..Wanted::default() }, has_gateways)?);
    }
    found.sort_by_key(|subnet| subnet.net().is_ok_and(|net| matches!(net, IpNet::V6(_))));
    Ok(found)
}

fn chosen(want: &Wanted, has_gateway: bool) -> Result<Subnet> {
    let invalid =
        || refused(format!("Invalid subnet {} : invalid CIDR address: {}", want.subnet, want.subnet));
    let net: IpNet = want.subnet.parse().map_err(|_| invalid())?;
    let net = net.trunc();
    let inside = |what: &str, text: &str| -> Result<IpAddr> {
        let address: IpAddr = text.parse().map_err(|_| refused(format!("invalid {what} address: {text}")))?;
        if net.contains(&address) {
            return Ok(address);
        }
        Err(refused(format!("no matching subnet for {what} {text}")))
    };
    let gateway = match want.gateway.as_str() {
        "" if has_gateway => first(&net).map(|address| address.to_string()).unwrap_or_default(),
        "" => String::new(),
        // A gateway may come with its prefix.
        text => inside("gateway", text.split('/').next().unwrap_or(text))?.to_string(),
    };
    if !want.range.is_empty() {
        let range: IpNet = want.range.parse().map_err(|_| {
            refused(format!("Invalid range {} : invalid CIDR address: {}", want.range, want.range))
        })?;
        if !net.contains(&range) {
            return Err(refused(format!("no matching subnet for range {}", want.range)));
        }
    }
    let reserved = want
        .reserved
        .iter()
        .map(|(name, text)| Ok((name.clone(), inside("aux-address", text)?.to_string())))
        .collect::<Result<_>>()?;
    Ok(Subnet { subnet: net.to_string(), gateway, range: want.range.clone(), reserved })
}

/// The first address of a range that a host may have.
fn first(net: &IpNet) -> Option<IpAddr> {
    net.hosts().next().map(|host| match host {
        // The very first address of version 6 is the anycast address of routers.
        IpAddr::V6(six) if six == net.network() && net.prefix_len() < 127 => {
            IpAddr::V6(Ipv6Addr::from(u128::from(six) + 1))
        }
        other => other,
    })
}

fn from_pools(pools: &[Pool], taken: &[IpNet], routed: &[IpNet]) -> Result<IpNet> {
    let free = |net: &IpNet| !taken.iter().chain(routed).any(|other| overlap(net, other));
    let candidates = pools.iter().filter_map(|pool| pool.base.subnets(pool.size).ok()).flatten();
    candidates.map(IpNet::V4).find(free).ok_or_else(|| {
        let text = "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network";
        Error::exactly(Kind::NotFound, text)
    })
}

fn from_unique_local(base: Ipv6Net, taken: &[IpNet], routed: &[IpNet]) -> Result<IpNet> {
    let free = |net: &IpNet| !taken.iter().chain(routed).any(|other| overlap(net, other));
    let found = base.subnets(64).ok().and_then(|mut all| all.find(|net| free(&IpNet::V6(*net))));
    found.map(IpNet::V6).ok_or_else(|| {
        let text = "could not find an available, non-overlapping IPv6 address pool among the defaults to assign to the network";
        Error::exactly(Kind::NotFound, text)
    })
}

/// The range of unique local addresses (RFC 4193) of an installation, whose identity chooses it.
pub fn unique_local(installation: &str) -> Ipv6Net {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(installation.as_bytes());
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&hash[..5]);
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 48)
}

/// An address of a network for a container: the wanted one, or the lowest free one of the family. `None` if the network has no
/// range of that family.
///
/// # Errors
///
/// `PermissionDenied` for a wanted address that is in use or lies outside; `NotFound` when all are in use.
pub fn address<S: BuildHasher>(
    network: &Network,
    is_v6: bool,
    wanted: Option<IpAddr>,
    in_use: &HashSet<IpAddr, S>,
) -> Result<Option<IpAddr>> {
    let mut any = false;
    for subnet in &network.subnets {
        let net = subnet.net()?;
        if matches!(net, IpNet::V6(_)) != is_v6 {
            continue;
        }
        any = true;
        let is_free = |address: &IpAddr| {
            !in_use.contains(address)
                && subnet.gateway() != Some(*address)
                && !subnet.reserved.values().any(|text| text.parse() == Ok(*address))
        };
        match wanted {
            Some(address) if net.contains(&address) => {
                if is_free(&address) {
                    return Ok(Some(address));
                }
                return Err(Error::exactly(Kind::PermissionDenied, "Address already in use"));
            }
            Some(_) => {}
            None => {
                let range: IpNet = subnet.range.parse().unwrap_or(net);
                let edges = [net.network(), net.broadcast()];
                let usable = |address: &IpAddr| net.addr_count() <= 2 || !edges.contains(address);
                let mut all = addresses(&range).filter(|address| usable(address) && is_free(address));
                if let Some(address) = all.next() {
                    return Ok(Some(address));
                }
            }
        }
    }
    match (any, wanted) {
        (false, None) => Ok(None),
        (_, Some(address)) => Err(Error::exactly(
            Kind::InvalidArgument,
            format!("Invalid address {address}: It does not belong to any of this network's subnets"),
        )),
        (true, None) => Err(Error::exactly(
            Kind::NotFound,
            format!(
                "no available {} addresses on this network's address pools: {} ({})",
                if is_v6 { "IPv6" } else { "IPv4" },
                network.name,
                network.id
            ),
        )),
    }
}

/// All addresses of a range.
fn addresses(net: &IpNet) -> Box<dyn Iterator<Item = IpAddr>> {
    match *net {
        IpNet::V4(four) => {
            let (start, end) = (u32::from(four.network()), u32::from(four.broadcast()));
            Box::new((start..=end).map(|bits| IpAddr::V4(bits.into())))
        }
        IpNet::V6(six) => {
            let (start, end) = (u128::from(six.network()), u128::from(six.broadcast()));
            Box::new((start..=end).map(|bits| IpAddr::V6(bits.into())))
        }
    }
}

/// Counts addresses for containers.
trait Count {
    /// How many addresses there are, at most `u128::MAX`.
    fn addr_count(&self) -> u128;
}

impl Count for IpNet {
    fn addr_count(&self) -> u128 {
        1u128.checked_shl(u32::from(self.max_prefix_len() - self.prefix_len())).unwrap_or(u128::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ula() -> Ipv6Net {
        unique_local("x")
    }

    fn want(subnet: &str, range: &str, gateway: &str) -> Wanted {
        Wanted { subnet: subnet.into(), range: range.into(), gateway: gateway.into(), reserved: Vec::new() }
    }

    fn choose(wanted: &[Wanted], taken: &[&str]) -> Result<Vec<Subnet>> {
        subnets(wanted, false, true, &default_pools(), ula(), (&nets(taken), &[]))
    }

    #[test]
    fn pools_are_used_in_order_and_around_what_others_have() {
        let one = |taken: &[&str], routed: &[&str]| {
            let found = subnets(&[], false, true, &default_pools(), ula(), (&nets(taken), &nets(routed)));
            found.map(|found| (found[0].subnet.clone(), found[0].gateway.clone()))
        };
        assert_eq!(one(&[], &[]).unwrap(), ("172.17.0.0/16".into(), "172.17.0.1".into()));
        assert_eq!(one(&["172.17.0.0/16"], &["172.18.3.0/24"]).unwrap().0, "172.19.0.0/16");
        assert_eq!(one(&["172.0.0.0/8"], &[]).unwrap().0, "192.168.0.0/20");
        let error = one(&["172.0.0.0/8", "192.168.0.0/16"], &[]).unwrap_err();
        assert!(error.to_string().starts_with("could not find an available"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused_in_dockers_words() {
        for (wanted, taken, words) in [
            (
                want("10.1.0.0/33", "", ""),
                "10.9.0.0/24",
                "Invalid subnet 10.1.0.0/33 : invalid CIDR address: 10.1.0.0/33",
            ),
            (want("10.1.0.0/24", "", "10.2.0.1"), "10.9.0.0/24", "no matching subnet for gateway 10.2.0.1"),
            (
                want("10.1.0.0/24", "10.2.0.0/28", ""),
                "10.9.0.0/24",
                "no matching subnet for range 10.2.0.0/28",
            ),
            (want("10.1.0.0/24", "", ""), "10.0.0.0/8", "Pool overlaps with other one on this address space"),
        ] {
            assert_eq!(choose(&[wanted], &[taken]).unwrap_err().to_string(), words);
        }
    }

    #[test]
    fn version_six_comes_from_the_installations_own_range() {
        let found = subnets(&[], true, true, &default_pools(), ula(), (&[], &[])).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[1].subnet.starts_with("fd") && found[1].subnet.ends_with("/64"), "{found:?}");
        assert!(found[1].gateway.ends_with("::1"), "{found:?}");
    }

    fn network(subnet: &str, range: &str, gateway: &str) -> Network {
        let subnets = vec![Subnet {
            subnet: subnet.into(),
            gateway: gateway.into(),
            range: range.into(),
            reserved: [("other".to_owned(), "10.5.0.3".to_owned())].into(),
        }];
        Network { name: "tiny".into(), id: "id".into(), subnets, ..Network::default() }
    }

    #[test]
    fn the_lowest_free_address_and_none_when_all_are_used() {
        let tiny = network("10.5.0.0/29", "", "10.5.0.1");
        let mut used = HashSet::new();
        let mut order = Vec::new();
        while let Ok(Some(address)) = address(&tiny, false, None, &used) {
            order.push(address.to_string());
            used.insert(address);
        }
        assert_eq!(order, ["10.5.0.2", "10.5.0.4", "10.5.0.5", "10.5.0.6"]);
        let error = address(&tiny, false, None, &used).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no available IPv4 addresses on this network's address pools: tiny (id)"
        );
        used.remove(&"10.5.0.4".parse().unwrap());
        assert_eq!(address(&tiny, false, None, &used).unwrap(), "10.5.0.4".parse().ok());
        assert_eq!(address(&tiny, true, None, &used).unwrap(), None);
    }

    #[test]
    fn wanted_addresses() {
        let tiny = network("10.5.0.0/24", "10.5.0.128/25", "10.5.0.1");
        let none = HashSet::new();
        let get = |text: &str| address(&tiny, false, Some(text.parse().unwrap()), &none);
        assert_eq!(get("10.5.0.9").unwrap(), "10.5.0.9".parse().ok());
        for taken in ["10.5.0.1", "10.5.0.3"] {
            assert_eq!(get(taken).unwrap_err().to_string(), "Address already in use");
        }
        assert_eq!(
            get("10.6.0.1").unwrap_err().to_string(),
            "Invalid address 10.6.0.1: It does not belong to any of this network's subnets"
        );
        assert_eq!(address(&tiny, false, None, &none).unwrap(), "10.5.0.128".parse().ok());
    }
}
