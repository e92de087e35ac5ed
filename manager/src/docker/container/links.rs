//! The variables that `--link` on the default network gives a container: where the other one is reached, and its own variables.

use crate::docker::Engine;
use crate::docker::container::record::Record;

impl Engine {
    /// The variables of a container's links to others that run.
    pub(super) fn link_variables(&self, record: &Record) -> Vec<String> {
        if !["bridge", "default", ""].contains(&record.host.network_mode.as_str()) {
            return Vec::new();
        }
        let mut all = Vec::new();
        for link in &record.host.links {
            let (name, alias) = link.split_once(':').unwrap_or((link, link));
            let Ok(other) = self.containers.get(name) else { continue };
            let held = self.networks.held_of(&other.id);
            let endpoint = held
                .as_ref()
                .and_then(|held| held.endpoints.iter().find(|endpoint| endpoint.network_name == "bridge"));
            let Some((address, _)) = endpoint.and_then(|endpoint| endpoint.ipv4) else { continue };
            let alias = alias.rsplit('/').next().unwrap_or(alias);
            all.extend(variables(&record.name, alias, &address.to_string(), &other.record()));
        }
        all
    }
}

/// A port of the other container: protocol and number, TCP first.
fn ports(other: &Record) -> Vec<(String, u16)> {
    let parse = |text: &String| {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        Some((protocol.to_lowercase(), number.parse().ok()?))
    };
    let mut ports: Vec<(String, u16)> = other.config.exposed_ports.keys().filter_map(parse).collect();
    ports.sort_by_key(|(protocol, number)| (protocol != "tcp", protocol.clone(), *number));
    ports
}

/// The variables of one link, as dockerd names them.
fn variables(own: &str, alias: &str, address: &str, other: &Record) -> Vec<String> {
    let name = alias.to_uppercase().replace('-', "_");
    let ports = ports(other);
    let mut all = Vec::new();
    if let Some((protocol, number)) = ports.first() {
        all.push(format!("{name}_PORT={protocol}://{address}:{number}"));
    }
    for (protocol, number) in &ports {
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_uppercase());
        all.push(format!("{prefix}={protocol}://{address}:{number}"));
        all.push(format!("{prefix}_ADDR={address}"));
        all.push(format!("{prefix}_PORT={number}"));
        all.push(format!("{prefix}_PROTO={protocol}"));
    }
    for range in ports.chunk_by(|left, right| left.0 == right.0 && left.1.checked_add(1) == Some(right.1)) {
        if let [(protocol, first), .., (_, last)] = range {
            let prefix = format!("{name}_PORT_{first}_{}", protocol.to_uppercase());
            all.push(format!("{prefix}_START={protocol}://{address}:{first}"));
            all.push(format!("{prefix}_PORT_START={first}"));
            all.push(format!("{prefix}_END={protocol}://{address}:{last}"));
            all.push(format!("{prefix}_PORT_END={last}"));
        }
    }
    all.push(format!("{name}_NAME=/{own}/{alias}"));
    // What every image has says nothing about the other one.
    let own_variables = other.config.env.iter().filter_map(|entry| entry.split_once('='));
    let own_variables = own_variables.filter(|(key, _)| !["HOME", "PATH"].contains(key));
    all.extend(own_variables.map(|(key, value)| format!("{name}_ENV_{key}={value}")));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_tells_ports_and_variables() {
        let mut other = Record::default();
        other.config.env = ["PATH=/bin".to_owned(), "A=1".to_owned()].into();
        for port in ["53/udp", "81/tcp", "80/tcp"] {
            other.config.exposed_ports.insert(port.to_owned(), serde_json::json!({}));
        }
        let all = variables("web", "my-db", "172.17.0.2", &other);
        for wanted in [
            "MY_DB_PORT=tcp://172.17.0.2:80",
            "MY_DB_PORT_81_TCP_PORT=81",
            "MY_DB_PORT_53_UDP=udp://172.17.0.2:53",
            "MY_DB_PORT_80_TCP_END=tcp://172.17.0.2:81",
            "MY_DB_NAME=/web/my-db",
            "MY_DB_ENV_A=1",
        ] {
            assert!(all.iter().any(|entry| entry == wanted), "{wanted}: {all:?}");
        }
        assert!(!all.iter().any(|entry| entry.contains("PATH") || entry.contains("53_UDP_START")));
    }
}
