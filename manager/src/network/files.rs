//! The hosts file and the resolver configuration of a container. Pure, but for reading the host's.

use std::fmt::Write;
use std::net::IpAddr;

use super::held::{AllHeld, Held, Resolver};

/// Where a container that is on a network with names asks for them.
pub const NAME_SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 11));
/// Servers for containers whose host asks only itself.
const PUBLIC: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

const STANDARD: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                        ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// The host's resolver configuration; an empty one if there is none.
pub fn host_resolver() -> Resolver {
    parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

/// Reads a resolver configuration (resolv.conf(5)).
pub fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        let first = words.next();
        let rest = words.map(str::to_owned);
        match first {
            Some("nameserver") => resolver.servers.extend(rest.take(1)),
            Some("search" | "domain") => resolver.search = rest.collect(),
            Some("options") => resolver.options.extend(rest),
            _ => {}
        }
    }
    resolver
}

fn is_loopback(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A container's resolver configuration.
pub fn resolver(held: &Held, host: &Resolver) -> String {
    let wanted = &held.resolver;
    let pick = |wanted: &[String], host: &[String]| -> Vec<String> {
        if wanted.is_empty() { host.to_vec() } else { wanted.to_vec() }
    };
    let mut search = pick(&wanted.search, &host.search);
    // A single dot asks for no search at all.
    search.retain(|domain| domain != ".");
    let mut options = pick(&wanted.options, &host.options);
    let servers = if held.has_names() {
        if !options.iter().any(|option| option.starts_with("ndots:")) {
            options.push("ndots:0".to_owned());
        }
        vec![NAME_SERVER.to_string()]
    } else if wanted.servers.is_empty() {
        let reachable: Vec<_> = host
            .servers
            .iter()
            .filter(|server| held.endpoints.is_empty() || !is_loopback(server))
            .cloned()
            .collect();
        if reachable.is_empty() { PUBLIC.map(str::to_owned).to_vec() } else { reachable }
    } else {
        wanted.servers.clone()
    };
    let mut text = String::new();
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

/// Whom the engine's name server asks for names that it does not know.
pub fn upstream(held: &Held, host: &Resolver) -> Vec<IpAddr> {
    let servers = if held.resolver.servers.is_empty() { &host.servers } else { &held.resolver.servers };
    servers.iter().filter_map(|server| server.parse().ok()).collect()
}

/// A container's hosts file.
pub fn hosts(held: &Held, all: &AllHeld) -> String {
    let mut text = STANDARD.to_owned();
    for (address, names) in &held.hosts {
        let _ = writeln!(text, "{address}\t{names}");
    }
    // On the default network, where nobody answers for names, links are lines.
    for endpoint in held.endpoints.iter().filter(|endpoint| !endpoint.has_names) {
        for (alias, other) in &endpoint.links {
            let Some(target) = all.get(other) else { continue };
            let place = target.endpoints.iter().find(|place| place.network == endpoint.network);
            if let Some((address, _)) = place.and_then(|place| place.ipv4) {
                let short = other.get(..12).unwrap_or(other);
                let names = if alias == &target.name {
                    format!("{alias} {short}")
                } else {
                    format!("{alias} {short} {}", target.name)
                };
                let _ = writeln!(text, "{address}\t{names}");
            }
        }
    }
    if !held.hostname.is_empty() {
        let own = &held.hostname;
        let names = if held.domain.is_empty() { own.clone() } else { format!("{own}.{} {own}", held.domain) };
        for endpoint in &held.endpoints {
            for (address, _) in [endpoint.ipv4, endpoint.ipv6].into_iter().flatten() {
                let _ = writeln!(text, "{address}\t{names}");
            }
        }
    }
    text
}

/// The files of a container that is on the host's own network.
pub fn of_host(hosts: &[(String, String)], wanted: &Resolver) -> (String, String) {
    let mut text = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    for (address, names) in hosts {
        let _ = writeln!(text, "{address}\t{names}");
    }
    (text, resolver_of_host(wanted))
}

/// The resolver's configuration of a container that is on no network of its own: the host's, with what is wanted in its place.
pub fn resolver_of_host(wanted: &Resolver) -> String {
    let held = Held { resolver: wanted.clone(), ..Held::default() };
    let unchanged = *wanted == Resolver::default();
    match std::fs::read_to_string("/etc/resolv.conf") {
        Ok(own) if unchanged => own,
        _ => resolver(&held, &host_resolver()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::held::Endpoint;
    use super::*;

    fn endpoint(has_names: bool) -> Endpoint {
        Endpoint {
            id: "e".into(),
            network: "n".into(),
            network_name: "net".into(),
            device: "eth0".into(),
            host_device: None,
            ipv4: Some(("172.17.0.2".parse().unwrap(), 16)),
            ipv6: None,
            gateway: None,
            gateway6: None,
            mac: [2, 0x42, 0xac, 0x11, 0, 2],
            aliases: Vec::new(),
            links: vec![("web".into(), "0123456789abcdef".into())],
            gateway_priority: 0,
            internal: false,
            has_names,
        }
    }

    fn held(has_names: bool) -> Held {
        Held { hostname: "a3553626a7b2".into(), endpoints: vec![endpoint(has_names)], ..Held::default() }
    }

    #[test]
    fn the_resolver_configuration_is_dockerds() {
        let host = parse("# no\nsearch a b\nnameserver 127.0.0.53\nnameserver 10.0.0.1\noptions edns0\n");
        assert_eq!(resolver(&held(false), &host), "search a b\nnameserver 10.0.0.1\noptions edns0\n");
        assert_eq!(
            resolver(&held(true), &host),
            "search a b\nnameserver 127.0.0.11\noptions edns0 ndots:0\n"
        );
        assert_eq!(resolver(&held(true), &Resolver::default()), "nameserver 127.0.0.11\noptions ndots:0\n");
        let local = parse("nameserver 127.0.0.53\n");
        assert_eq!(resolver(&held(false), &local), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
        let mut wanting = held(false);
        wanting.resolver = Resolver {
            servers: vec!["9.9.9.9".into()],
            search: vec!["ex".into()],
            options: vec!["ndots:2".into()],
        };
        assert_eq!(resolver(&wanting, &host), "search ex\nnameserver 9.9.9.9\noptions ndots:2\n");
        wanting.resolver.search = vec![".".into()];
        assert!(!resolver(&wanting, &host).contains("search"));
    }

    #[test]
    fn the_hosts_file_has_extra_hosts_links_and_the_containers_own_name() {
        let mut one = held(false);
        one.hosts = vec![("1.2.3.4".into(), "a".into())];
        let mut target = held(false);
        target.name = "p1".into();
        target.endpoints[0].ipv4 = Some(("172.17.0.9".parse().unwrap(), 16));
        let all = AllHeld::from([("0123456789abcdef".to_owned(), target)]);
        let expected =
            format!("{STANDARD}1.2.3.4\ta\n172.17.0.9\tweb 0123456789ab p1\n172.17.0.2\ta3553626a7b2\n");
        assert_eq!(hosts(&one, &all), expected);
    }
}
