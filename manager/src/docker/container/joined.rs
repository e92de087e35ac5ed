//! Networks and volumes of containers: where the engine meets the modules that make them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use orlop_proto::kind::Kind;
use serde::Deserialize;
use serde_json::{Value, json};

use super::inspect::no_networks;
use super::record::{MountPoint, Record};
use crate::db::blocking;
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::image::mounts;
use crate::network::held::{Held, Protocol, Resolver};
use crate::network::ports::{self, Request};
use crate::network::{Start, Wish, check_wish, files};
use crate::owners::Owners;
use crate::volume::{Definition, fill};

/// Settings of a container on a network, as clients send them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Settings {
    #[serde(rename = "IPAMConfig")]
    addresses: Option<Addresses>,
    links: Vec<String>,
    aliases: Vec<String>,
    mac_address: String,
    driver_opts: BTreeMap<String, String>,
    gw_priority: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Addresses {
    #[serde(rename = "IPv4Address")]
    ipv4: String,
    #[serde(rename = "IPv6Address")]
    ipv6: String,
    #[serde(rename = "LinkLocalIPs")]
    link_local: Vec<String>,
}

/// A wish in the networks' own terms.
///
/// # Errors
///
/// 400 for settings of another form.
pub fn wish(network: &str, settings: &Value) -> Result<Wish> {
    let mut settings = settings.clone();
    crate::docker::message::without_nulls(&mut settings);
    let settings = if settings.is_null() { json!({}) } else { settings };
    let read: Settings = serde_json::from_value(settings)
        .map_err(|error| Failure::invalid(format!("invalid JSON: {error}")))?;
    let addresses = read.addresses.clone().unwrap_or_default();
    Ok(Wish {
        network: network.to_owned(),
        aliases: read.aliases,
        links: read.links,
        ipv4: addresses.ipv4,
        ipv6: addresses.ipv6,
        mac: read.mac_address,
        options: read.driver_opts,
        gateway_priority: read.gw_priority,
        link_local: addresses.link_local,
        has_address_config: read.addresses.is_some(),
    })
}

/// Whether a container has a network namespace with devices of its own.
fn has_networks(record: &Record) -> bool {
    let mode = record.host.network_mode.as_str();
    !matches!(mode, "none" | "host") && !mode.starts_with("container:")
}

/// What a container wishes for: the network of its mode first.
fn wishes(record: &Record) -> Result<Vec<Wish>> {
    let mode = record.host.network_mode.as_str();
    if !has_networks(record) {
        return Ok(Vec::new());
    }
    let is_mode = |name: &str| name == mode || (name == "default" && mode == "bridge");
    let own = record.networks.iter().find(|(name, _)| is_mode(name)).map(|(_, settings)| settings);
    let mut first = wish(mode, own.unwrap_or(&Value::Null))?;
    for link in
        record.host.links.iter().filter(|link| !first.links.contains(link)).cloned().collect::<Vec<_>>()
    {
        first.links.push(link);
    }
    if first.mac.is_empty() {
        first.mac.clone_from(&record.config.mac_address);
    }
    let mut all = vec![first];
    for (name, settings) in record.networks.iter().filter(|(name, _)| !is_mode(name)) {
        all.push(wish(name, settings)?);
    }
    Ok(all)
}

/// The ports that a container publishes.
///
/// # Errors
///
/// 400 in dockerd's words for what is no port.
fn published(record: &Record) -> Result<Vec<Request>> {
    let parse = |text: &str| -> Result<(u16, Protocol)> {
        let wrong = || Failure::invalid(format!("invalid port specification: {text:?}"));
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        Ok((number.parse().map_err(|_| wrong())?, Protocol::parse(protocol).ok_or_else(wrong)?))
    };
    let mut requests = Vec::new();
    for (text, bindings) in &record.host.port_bindings {
        let (port, protocol) = parse(text)?;
        for binding in bindings {
            let host = match binding.host_ip.as_str() {
                "" => None,
                text => Some(
                    text.parse::<IpAddr>()
                        .map_err(|_| Failure::invalid(format!("invalid IP address: {text}")))?,
                ),
            };
            requests.push(Request { port, protocol, host, host_ports: ports::range(&binding.host_port)? });
        }
    }
    if record.host.publish_all_ports {
        for text in
            record.config.exposed_ports.keys().filter(|port| !record.host.port_bindings.contains_key(*port))
        {
            let (port, protocol) = parse(text)?;
            requests.push(Request { port, protocol, host: None, host_ports: None });
        }
    }
    Ok(requests)
}

/// The namespace of a process.
fn namespace(pid: u32) -> Result<OwnedFd> {
    let opened = std::fs::File::open(format!("/proc/{pid}/ns/net"));
    Ok(opened.map_err(|error| Failure::internal(format!("open network namespace of {pid}: {error}")))?.into())
}

impl Engine {
    /// Notes what networks a new container wishes to be on.
    ///
    /// # Errors
    ///
    /// 400 for a wish that a network cannot fulfil, or a port that is none.
    pub(super) async fn attach_networks(&self, record: &Record) -> Result<()> {
        published(record)?;
        let wishes = wishes(record)?;
        for wish in &wishes {
            match self.networks.find(&wish.network).await {
                Ok(network) => check_wish(&network, wish)?,
                // As under dockerd it is missed at the start: clients take a 404 here for the image's.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !wishes.is_empty() {
            self.networks.attach(&record.id, wishes).await?;
        }
        Ok(())
    }

    /// Forgets it: the container is gone.
    pub(super) async fn forget_networks(&self, record: &Record) {
        if has_networks(record)
            && let Err(error) = self.networks.detach(&record.id).await
        {
            tracing::warn!(id = record.id, "{error}");
        }
    }

    /// Gives a container that is about to start its places on networks.
    ///
    /// # Errors
    ///
    /// Those of the networks.
    pub(super) async fn join_networks(&self, record: &Record, pid: u32) -> Result<()> {
        if !has_networks(record) {
            return Ok(());
        }
        let directory = self.container_directory(&record.id);
        let mut hosts = Vec::new();
        for line in &record.host.extra_hosts {
            let Some((name, address)) = line.split_once(':').or_else(|| line.split_once('=')) else {
                continue;
            };
            let address = match address {
                "host-gateway" => self.host_gateway().await?,
                address => address.to_owned(),
            };
            hosts.push((address, name.to_owned()));
        }
        let start = Start {
            container: record.id.clone(),
            name: record.name.clone(),
            hostname: record.config.hostname.clone(),
            domain: record.config.domainname.clone(),
            namespace: namespace(pid)?,
            ports: published(record)?,
            resolver: self.resolver(record),
            hosts,
            hosts_file: directory.join("hosts"),
            resolv_file: directory.join("resolv.conf"),
        };
        self.networks.up(start).await?;
        Ok(())
    }

    /// What a container's resolver configuration is to say, where it is not the host's.
    pub(super) fn resolver(&self, record: &Record) -> Resolver {
        let settings = self.settings();
        let [servers, options, search] = &settings.dns;
        let or =
            |own: &[String], usual: &[String]| if own.is_empty() { usual.to_vec() } else { own.to_vec() };
        Resolver {
            servers: or(&record.host.dns, servers),
            search: or(&record.host.dns_search, search),
            options: or(&record.host.dns_options, options),
        }
    }

    /// The host's address on the default network.
    pub(in crate::docker) async fn host_gateway(&self) -> Result<String> {
        let given = &self.settings().host_gateway;
        if !given.is_empty() {
            return Ok(given.clone());
        }
        let network = self.networks.find("bridge").await?;
        let gateway = network.subnets.iter().find_map(crate::network::record::Subnet::gateway);
        let gateway =
            gateway.ok_or_else(|| Failure::internal("unable to derive the IP value for host-gateway"))?;
        Ok(gateway.to_string())
    }

    /// Takes back what a container had that has ended: its places on networks, its mounts of volumes.
    pub(super) async fn leave_networks(&self, record: &Record) {
        if has_networks(record)
            && let Err(error) = self.networks.down(&record.id).await
        {
            tracing::warn!(id = record.id, "{error}");
        }
        for place in record.mounts.iter().filter(|place| place.kind == "volume") {
            if let Err(error) = self.volumes.close(&place.name, &record.id).await {
                tracing::warn!(id = record.id, "{error}");
            }
        }
    }

    /// `NetworkSettings` of a container.
    pub(super) fn network_settings(&self, record: &Record) -> Value {
        match self.networks.held_of(&record.id) {
            Some(held) => settings(record, &held),
            None => {
                let mut document = no_networks(record);
                if has_networks(record) {
                    let names = record.networks.keys().filter(|name| *name != "default");
                    for name in names.chain([&record.host.network_mode]) {
                        document["Networks"][name] = endpoint(None);
                    }
                }
                document
            }
        }
    }

    /// Makes the volumes that a new container names and that do not exist.
    ///
    /// # Errors
    ///
    /// Those of the volumes.
    pub(super) async fn make_volumes(&self, record: &mut Record) -> Result<()> {
        for place in record.mounts.iter_mut().filter(|place| place.kind == "volume") {
            let asked = record.host.mounts.iter().find(|mount| mount.target == place.destination);
            let options = asked.and_then(|mount| mount.volume_options.clone()).unwrap_or_default();
            let driver = options.driver_config.unwrap_or_default();
            let definition = Definition {
                name: place.name.clone(),
                driver: if driver.name.is_empty() { record.host.volume_driver.clone() } else { driver.name },
                labels: (!options.labels.is_empty()).then_some(options.labels),
                options: driver.options,
            };
            let (volume, is_new) = self.volumes.create(definition).await?;
            if is_new {
                let told = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
                self.events.tell("volume", "create", &volume.name, told);
            }
            place.source = self.volumes.data(&volume.name).display().to_string();
            place.name = volume.name;
        }
        Ok(())
    }

    /// Makes a volume ready for a container that is about to start.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub(super) async fn open_volume(
        &self,
        id: &str,
        place: &mut MountPoint,
        root: &[crate::snapshot::Mount],
        owners: Option<&Owners>,
    ) -> Result<()> {
        let source = self.volumes.open(&place.name, id, &place.subpath).await?;
        place.source = source.display().to_string();
        if place.copies {
            let (root, destination, owners) = (root.to_vec(), place.destination.clone(), owners.cloned());
            blocking(move || fill(&source, mounts::readable(&root)?, &destination, owners.as_ref())).await?;
        }
        Ok(())
    }

    /// Removes the anonymous volumes of a container that is gone, unless others use them.
    pub(super) async fn remove_volumes(&self, record: &Record) {
        for place in record.mounts.iter().filter(|place| place.kind == "volume" && place.anonymous) {
            let users = self.users_of_volume(&place.name);
            if users.is_empty()
                && let Err(error) = self.volumes.remove(&place.name, &users).await
            {
                tracing::warn!(id = record.id, "{error}");
            }
        }
    }

    /// The containers that use a volume.
    pub fn users_of_volume(&self, name: &str) -> Vec<String> {
        let uses =
            |record: &Record| record.mounts.iter().any(|place| place.kind == "volume" && place.name == name);
        let all = self.containers.all().into_iter();
        all.filter(|container| container.with(uses)).map(|container| container.id.clone()).collect()
    }

    /// Restores what running containers had on networks and of volumes, and removes what ended ones left.
    ///
    /// # Errors
    ///
    /// Those of the networks and volumes.
    pub(super) async fn recover_joined(&self) -> orlop_proto::error::Result<()> {
        let (mut namespaces, mut users) = (BTreeMap::new(), HashMap::<String, HashSet<String>>::new());
        for container in self.containers.all() {
            let record = container.record();
            let has_task = self.parts.supervisor.get(&self.context.namespace, &record.id).await.is_ok();
            if !record.state.is_running() || !has_task {
                continue;
            }
            if has_networks(&record)
                && let Ok(namespace) = namespace(record.state.pid)
            {
                namespaces.insert(record.id.clone(), namespace);
            }
            for place in record.mounts.iter().filter(|place| place.kind == "volume") {
                users.entry(place.name.clone()).or_default().insert(record.id.clone());
            }
        }
        self.networks.recover(namespaces).await?;
        self.volumes.recover(users).await
    }
}

/// A place on a network as clients see it; of a container that does not run, nothing is known.
fn endpoint(found: Option<&crate::network::held::Endpoint>) -> Value {
    let address =
        |found: Option<(IpAddr, u8)>| found.map_or(String::new(), |(address, _)| address.to_string());
    let length = |found: Option<(IpAddr, u8)>| found.map_or(0, |(_, length)| length);
    let text = |found: Option<IpAddr>| found.map_or(String::new(), |address| address.to_string());
    let mac = |found: [u8; 6]| found.map(|byte| format!("{byte:02x}")).join(":");
    json!({
        "IPAMConfig": null,
        "Links": null,
        "Aliases": found.map(|found| found.aliases.clone()).filter(|aliases| !aliases.is_empty()),
        "MacAddress": found.map_or(String::new(), |found| mac(found.mac)),
        "DriverOpts": null,
        "NetworkID": found.map_or(String::new(), |found| found.network.clone()),
        "EndpointID": found.map_or(String::new(), |found| found.id.clone()),
        "Gateway": text(found.and_then(|found| found.gateway)),
        "IPAddress": address(found.and_then(|found| found.ipv4)),
        "IPPrefixLen": length(found.and_then(|found| found.ipv4)),
        "IPv6Gateway": text(found.and_then(|found| found.gateway6)),
        "GlobalIPv6Address": address(found.and_then(|found| found.ipv6)),
        "GlobalIPv6PrefixLen": length(found.and_then(|found| found.ipv6)),
        "DNSNames": found.map(|found| found.aliases.clone()),
    })
}

/// `NetworkSettings` of a running container.
fn settings(record: &Record, held: &Held) -> Value {
    let mut document = no_networks(record);
    for found in &held.endpoints {
        document["Networks"][&found.network_name] = endpoint(Some(found));
        for name in ["IPAMConfig", "Links", "DriverOpts"] {
            let asked = record.networks.get(&found.network_name).and_then(|asked| asked.get(name));
            document["Networks"][&found.network_name][name] = asked.cloned().unwrap_or_default();
        }
        if found.network_name == "bridge" {
            // The default network's are at the top too, for old clients.
            let own = document["Networks"]["bridge"].clone();
            for name in [
                "EndpointID",
                "Gateway",
                "IPAddress",
                "IPPrefixLen",
                "MacAddress",
                "IPv6Gateway",
                "GlobalIPv6Address",
                "GlobalIPv6PrefixLen",
            ] {
                document[name] = own[name].clone();
            }
        }
    }
    let mut ports: BTreeMap<String, Value> =
        record.config.exposed_ports.keys().map(|port| (port.clone(), Value::Null)).collect();
    for published in &held.published {
        let key = format!("{}/{}", published.port, published.protocol.name());
        let binding =
            json!({ "HostIp": published.host.to_string(), "HostPort": published.host_port.to_string() });
        match ports.entry(key).or_insert(Value::Null) {
            Value::Array(bindings) => bindings.push(binding),
            other => *other = json!([binding]),
        }
    }
    document["Ports"] = json!(ports);
    document["SandboxID"] = json!(record.id);
    document["SandboxKey"] = json!(format!("/proc/{}/ns/net", record.state.pid));
    document
}

/// The hosts file of a container that is on no network.
pub(super) fn plain_hosts(record: &Record) -> String {
    let held = Held { hosts: extra_hosts(record), ..Held::default() };
    files::hosts(&held, &BTreeMap::new())
}

/// Lines of `--add-host`: address and name.
pub(super) fn extra_hosts(record: &Record) -> Vec<(String, String)> {
    let lines = record.host.extra_hosts.iter();
    let pairs = lines.filter_map(|line| line.split_once(':').or_else(|| line.split_once('=')));
    pairs.map(|(name, address)| (address.to_owned(), name.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(mode: &str) -> Record {
        let mut record = Record::default();
        record.host.network_mode = mode.to_owned();
        record
    }

    #[test]
    fn the_modes_network_comes_first() {
        let mut on = record("front");
        on.networks.insert("back".to_owned(), json!({ "Aliases": ["db"], "Links": null }));
        on.networks.insert("front".to_owned(), json!({ "IPAMConfig": { "IPv4Address": "10.0.0.5" } }));
        let wished = wishes(&on).unwrap();
        assert_eq!((wished[0].network.as_str(), wished[0].ipv4.as_str()), ("front", "10.0.0.5"));
        assert_eq!(
            (wished[1].network.as_str(), wished[1].aliases.as_slice()),
            ("back", &["db".to_owned()][..])
        );
        assert!(
            wishes(&record("none")).unwrap().is_empty() && wishes(&record("container:x")).unwrap().is_empty()
        );
    }

    #[test]
    fn ports_have_forms() {
        let mut on = record("bridge");
        let binding =
            super::super::config::PortBinding { host_ip: "127.0.0.1".into(), host_port: "8080-8090".into() };
        on.host.port_bindings.insert("80/tcp".to_owned(), vec![binding]);
        on.config.exposed_ports.insert("53/udp".to_owned(), json!({}));
        on.host.publish_all_ports = true;
        let asked = published(&on).unwrap();
        assert_eq!((asked[0].port, asked[0].host_ports.clone()), (80, Some(8080..=8090)));
        assert_eq!(
            (asked[1].port, asked[1].protocol, asked[1].host_ports.clone()),
            (53, Protocol::Udp, None)
        );
        on.host.port_bindings.insert("x".to_owned(), Vec::new());
        assert_eq!(published(&on).unwrap_err().status, 400);
    }
}
