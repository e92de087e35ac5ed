//! Which names mean which containers. Pure.

use std::net::IpAddr;

use super::super::held::{AllHeld, Endpoint, Held};

/// What is known about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is a container's: its addresses, of which there may be none of the family that was asked for.
    Addresses(Vec<IpAddr>),
    /// It is nobody's here.
    No,
}

/// Whether a name is one of a container's on a network: its own, its host name, its short id, an alias, each also with the network's
/// name behind a dot.
fn is_called(held: &Held, id: &str, endpoint: &Endpoint, name: &str) -> bool {
    let short = id.get(..12).unwrap_or(id);
    let plain = name.strip_suffix(&format!(".{}", endpoint.network_name.to_lowercase())).unwrap_or(name);
    let own = [held.name.as_str(), held.hostname.as_str(), short];
    let mut all = own.into_iter().chain(endpoint.aliases.iter().map(String::as_str));
    all.any(|known| {
        !known.is_empty() && (known.eq_ignore_ascii_case(name) || known.eq_ignore_ascii_case(plain))
    })
}

fn addresses(endpoint: &Endpoint, is_v6: bool) -> impl Iterator<Item = IpAddr> {
    let address = if is_v6 { endpoint.ipv6 } else { endpoint.ipv4 };
    address.map(|(address, _)| address).into_iter()
}

/// The addresses that a name, in small letters and without a dot at its end, has for a container.
pub fn lookup(all: &AllHeld, asking: &str, name: &str, is_v6: bool) -> Known {
    let Some(asker) = all.get(asking) else { return Known::No };
    let (mut found, mut known) = (Vec::new(), false);
    for own in asker.endpoints.iter().filter(|endpoint| endpoint.has_names) {
        let linked = own.links.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
        for (id, held) in all {
            for endpoint in held.endpoints.iter().filter(|endpoint| endpoint.network == own.network) {
                let is_meant = match linked {
                    Some((_, container)) => container == id,
                    None => is_called(held, id, endpoint, name),
                };
                if is_meant {
                    known = true;
                    found.extend(addresses(endpoint, is_v6));
                }
            }
        }
    }
    if known { Known::Addresses(found) } else { Known::No }
}

/// The name of the container that has an address on a network of the asking one.
pub fn reverse(all: &AllHeld, asking: &str, address: IpAddr) -> Option<String> {
    let asker = all.get(asking)?;
    let own = asker.endpoints.iter().filter(|endpoint| endpoint.has_names);
    for network in own.map(|endpoint| &endpoint.network) {
        for held in all.values() {
            for endpoint in held.endpoints.iter().filter(|endpoint| endpoint.network == *network) {
                if addresses(endpoint, address.is_ipv6()).any(|other| other == address) {
                    return Some(format!("{}.{}", held.name, endpoint.network_name));
                }
            }
        }
    }
    None
}

/// The address that a name for backward questions means (RFC 1035, section 3.5; RFC 3596, section 2.5).
pub fn reversed_address(name: &str) -> Option<IpAddr> {
    let name = name.to_ascii_lowercase();
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<u8> = rest.split('.').rev().map(str::parse).collect::<Result<_, _>>().ok()?;
        return <[u8; 4]>::try_from(parts).ok().map(IpAddr::from);
    }
    let digits: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    if digits.len() != 32 || digits.iter().any(|digit| digit.len() != 1) {
        return None;
    }
    u128::from_str_radix(&digits.concat(), 16).ok().map(|bits| IpAddr::V6(bits.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(network: &str, address: &str, aliases: &[&str], has_names: bool) -> Endpoint {
        Endpoint {
            id: "e".into(),
            network: network.into(),
            network_name: format!("{network}-name"),
            device: "eth0".into(),
            host_device: None,
            ipv4: Some((address.parse().unwrap(), 16)),
            ipv6: None,
            gateway: None,
            gateway6: None,
            mac: [0; 6],
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            links: Vec::new(),
            gateway_priority: 0,
            internal: false,
            has_names,
        }
    }

    fn all() -> AllHeld {
        let held = |name: &str, endpoints: Vec<Endpoint>| Held {
            name: name.into(),
            hostname: format!("host-{name}"),
            endpoints,
            ..Held::default()
        };
        AllHeld::from([
            ("a".repeat(64), held("web", vec![endpoint("n", "10.0.0.2", &["www", "both"], true)])),
            ("b".repeat(64), held("db", vec![endpoint("n", "10.0.0.3", &["both"], true)])),
            ("c".repeat(64), held("far", vec![endpoint("m", "10.1.0.2", &[], true)])),
            ("d".repeat(64), held("old", vec![endpoint("bridge", "172.17.0.2", &[], false)])),
            ("e".repeat(64), held("old2", vec![endpoint("bridge", "172.17.0.3", &[], false)])),
        ])
    }

    fn found(all: &AllHeld, asking: char, name: &str) -> Option<Vec<String>> {
        match lookup(all, &asking.to_string().repeat(64), name, false) {
            Known::Addresses(list) => Some(list.iter().map(IpAddr::to_string).collect()),
            Known::No => None,
        }
    }

    #[test]
    fn names_aliases_and_ids_are_those_of_the_networks_one_is_on() {
        let all = all();
        for name in ["db", "DB", "host-db", "bbbbbbbbbbbb", "db.n-name"] {
            assert_eq!(found(&all, 'a', name), Some(vec!["10.0.0.3".to_owned()]), "{name}");
        }
        assert_eq!(found(&all, 'a', "both").unwrap().len(), 2);
        assert_eq!(found(&all, 'b', "www").unwrap(), ["10.0.0.2"]);
        for name in ["far", "nobody", "db.other", ""] {
            assert_eq!(found(&all, 'a', name), None, "{name}");
        }
        assert_eq!(found(&all, 'd', "old2"), None, "the default network has no names");
        assert_eq!(lookup(&all, &"a".repeat(64), "db", true), Known::Addresses(Vec::new()));
    }

    #[test]
    fn links_are_names_of_one_container_alone() {
        let mut all = all();
        let links = &mut all.get_mut(&"a".repeat(64)).unwrap().endpoints[0].links;
        links.push(("store".into(), "b".repeat(64)));
        assert_eq!(found(&all, 'a', "store").unwrap(), ["10.0.0.3"]);
        assert_eq!(found(&all, 'b', "store"), None);
    }

    #[test]
    fn backward() {
        let all = all();
        let name = |text: &str| reversed_address(text).and_then(|at| reverse(&all, &"a".repeat(64), at));
        assert_eq!(name("3.0.0.10.in-addr.arpa").unwrap(), "db.n-name");
        assert_eq!(name("2.0.1.10.in-addr.arpa"), None);
        let six = format!("1.{}d.f.ip6.arpa", "0.".repeat(29));
        assert_eq!(reversed_address(&six), "fd00::1".parse().ok());
        for wrong in ["in-addr.arpa", "1.2.3.in-addr.arpa", "300.1.1.1.in-addr.arpa", "x.ip6.arpa"] {
            assert_eq!(reversed_address(wrong), None, "{wrong}");
        }
    }
}
