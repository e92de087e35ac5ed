//! The networks that there are: making, finding and removing them, and the wishes of containers to be on them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use orlop_host::netlink::Devices;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::held::Held;
use super::ipam::{self, Wanted};
pub use super::record::Wish;
use super::record::{ATTACHMENTS, Attachments, DEFAULT, NETWORKS, Network, PREDEFINED};
use super::{Networks, plan, store};
use crate::db::{Query, Write, blocking};
use crate::store::now;

/// The default network's device.
pub(super) const DEFAULT_BRIDGE: &str = "docker0";
/// Longest name of a device.
const DEVICE_NAME: usize = 15;

/// A network to be made.
#[derive(Clone, Debug, Default)]
pub struct Definition {
    /// Name.
    pub name: String,
    /// Driver; empty for `bridge`.
    pub driver: String,
    /// Nothing leaves it.
    pub internal: bool,
    /// Its containers have addresses of version 6.
    pub enable_ipv6: bool,
    /// Kept for clients.
    pub attachable: bool,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Address ranges.
    pub wanted: Vec<Wanted>,
    /// Driver of the address manager.
    pub ipam_driver: String,
    /// Options of the address manager.
    pub ipam_options: BTreeMap<String, String>,
}

fn refused(kind: Kind, text: impl Into<String>) -> Error {
    Error::exactly(kind, text)
}

/// The ranges that the host has routes to.
async fn routed() -> Result<Vec<IpNet>> {
    blocking(|| {
        let host = Devices::own().context("open", "a netlink socket")?;
        let routes = host.routes().context("list", "routes")?;
        Ok(routes.into_iter().filter_map(|(at, length)| IpNet::new(at, length).ok()).collect())
    })
    .await
}

impl Networks {
    /// All networks, by name.
    pub async fn list(&self) -> Result<Vec<Network>> {
        let all = self.0.db.read(|tx| tx.scan(&NETWORKS, "")).await?;
        let mut all: Vec<Network> = all.into_iter().map(|(_, network)| network).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// The network that a name, an id or the beginning of an id means.
    ///
    /// # Errors
    ///
    /// `NotFound`, or `InvalidArgument` where several are meant.
    pub async fn find(&self, text: &str) -> Result<Network> {
        found(&self.list().await?, text).cloned()
    }

    /// Makes a network, with its device where it has one.
    pub async fn create(&self, definition: Definition) -> Result<Network> {
        let driver = if definition.driver.is_empty() { "bridge" } else { &definition.driver };
        let routed = routed().await?;
        let mut network = Network {
            id: store::identifier()?,
            name: definition.name.clone(),
            driver: driver.to_owned(),
            created_at: now(),
            internal: definition.internal,
            enable_ipv6: definition.enable_ipv6,
            attachable: definition.attachable,
            options: self.options(driver, &definition.options),
            labels: definition.labels.clone(),
            subnets: Vec::new(),
            ipam_options: definition.ipam_options.clone(),
            has_chosen_subnets: definition.wanted.iter().any(|want| !want.subnet.is_empty()),
        };
        check(&network, &definition)?;
        let (installation, pools) = (self.0.installation.clone(), self.0.defaults.pools());
        let network = self
            .0
            .db
            .write(move |tx| {
                let all = all(tx)?;
                if all.iter().any(|other| other.name == network.name) {
                    let text = format!("network with name {} already exists", network.name);
                    return Err(refused(Kind::AlreadyExists, text));
                }
                check_device(&network, &all)?;
                let taken: Vec<IpNet> = all.iter().flat_map(Network::nets).collect();
                network.subnets = ipam::subnets(
                    &definition.wanted,
                    network.enable_ipv6,
                    true,
                    &pools,
                    ipam::unique_local(&installation),
                    (&taken, &routed),
                )?;
                tx.put(&NETWORKS, &network.id, &network)?;
                Ok(network)
            })
            .await?;
        if let Err(error) = self.0.bridges.ensure(&network).await {
            let id = network.id.clone();
            let gone = self.0.db.free(move |tx| tx.remove(&NETWORKS, &id)).await;
            return Err(super::with_others(error, gone.err().into_iter().collect()));
        }
        Ok(network)
    }

    /// Options of a new network: the client's, then those that the administrator wants for its driver.
    fn options(&self, driver: &str, wanted: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut options = self.0.defaults.options.get(driver).cloned().unwrap_or_default();
        options.extend(wanted.clone());
        options
    }

    /// Forgets the default network if it is to be another one now, unless containers that run are on it.
    async fn renew_default(&self, alive: &[Held]) -> Result<()> {
        let defaults = &self.0.defaults;
        let all = self.list().await?;
        let Some(old) = all.iter().find(|network| network.name == DEFAULT) else { return Ok(()) };
        let wanted = defaults.bridge_subnets();
        let is_there = |want: &Wanted| {
            old.subnets.iter().any(|subnet| {
                let has_gateway = want.gateway.is_empty() || subnet.gateway == want.gateway;
                subnet.subnet == want.subnet && subnet.range == want.range && has_gateway
            })
        };
        let is_same = old.options == defaults.bridge_options()
            && old.enable_ipv6 == defaults.has_v6
            && old.has_chosen_subnets != wanted.is_empty()
            && wanted.iter().all(is_there);
        if is_same {
            return Ok(());
        }
        if alive.iter().flat_map(|held| &held.endpoints).any(|endpoint| endpoint.network == old.id) {
            tracing::warn!("the default network changes when no container is on it");
            return Ok(());
        }
        self.0.bridges.remove(old).await?;
        let id = old.id.clone();
        self.0.db.free(move |tx| tx.remove(&NETWORKS, &id)).await.map(drop)
    }

    /// Makes the three networks that are always there, if they are not.
    pub(super) async fn predefine(&self, alive: &[Held]) -> Result<()> {
        self.renew_default(alive).await?;
        let routed = routed().await?;
        let (installation, defaults) = (self.0.installation.clone(), self.0.defaults.clone());
        let there = self.0.db.read(all).await?;
        if PREDEFINED.iter().all(|name| there.iter().any(|network| network.name == *name)) {
            return Ok(());
        }
        self.0
            .db
            .write(move |tx| {
                let mut all = all(tx)?;
                for (name, driver) in [("bridge", "bridge"), ("host", "host"), ("none", "null")] {
                    if all.iter().any(|network| network.name == name) {
                        continue;
                    }
                    let mut network = Network {
                        id: store::identifier()?,
                        name: name.to_owned(),
                        driver: driver.to_owned(),
                        created_at: now(),
                        ..Network::default()
                    };
                    if name == DEFAULT {
                        let wanted = defaults.bridge_subnets();
                        network.options = defaults.bridge_options();
                        network.enable_ipv6 = defaults.has_v6;
                        network.has_chosen_subnets = !wanted.is_empty();
                        let taken: Vec<IpNet> = all.iter().flat_map(Network::nets).collect();
                        network.subnets = ipam::subnets(
                            &wanted,
                            defaults.has_v6,
                            true,
                            &defaults.pools(),
                            ipam::unique_local(&installation),
                            (&taken, &routed),
                        )?;
                    }
                    tx.put(&NETWORKS, &network.id, &network)?;
                    all.push(network);
                }
                Ok(())
            })
            .await
    }

    /// Removes a network that nobody is on.
    pub async fn remove(&self, text: &str) -> Result<Network> {
        let network = self.find(text).await?;
        if PREDEFINED.contains(&network.name.as_str()) {
            let text = format!("{} is a pre-defined network and cannot be removed", network.name);
            return Err(refused(Kind::PermissionDenied, text));
        }
        if self.has_endpoints(&network.id) {
            let text = format!(
                "error while removing network: network {} id {} has active endpoints",
                network.name, network.id
            );
            return Err(refused(Kind::PermissionDenied, text));
        }
        self.0.bridges.remove(&network).await?;
        let id = network.id.clone();
        self.0.db.free(move |tx| tx.remove(&NETWORKS, &id)).await?;
        Ok(network)
    }

    /// Whether a running container is on a network.
    pub fn has_endpoints(&self, id: &str) -> bool {
        self.held().values().flat_map(|held| &held.endpoints).any(|endpoint| endpoint.network == id)
    }

    /// What a container wishes for.
    pub async fn attachments(&self, container: &str) -> Result<Attachments> {
        let container = container.to_owned();
        Ok(self.0.db.read(move |tx| tx.get(&ATTACHMENTS, &container)).await?.unwrap_or_default())
    }

    /// Notes what a container wishes for; nothing forgets it.
    pub async fn attach(&self, container: &str, wishes: Vec<Wish>) -> Result<()> {
        let container = container.to_owned();
        self.0.db.write(move |tx| set_wishes(tx, &container, wishes)).await
    }

    /// Forgets what a container wished for: it is gone.
    pub async fn detach(&self, container: &str) -> Result<()> {
        let container = container.to_owned();
        self.0.db.free(move |tx| tx.remove(&ATTACHMENTS, &container).map(drop)).await
    }

    /// The networks that are wished for, in that order.
    pub(super) async fn networks_of(&self, attachments: &Attachments) -> Result<Vec<Network>> {
        let all = self.list().await?;
        let mut chosen: Vec<Network> = Vec::new();
        for wish in &attachments.wishes {
            let network = found(&all, &wish.network)?;
            check_wish(network, wish)?;
            chosen.push(network.clone());
        }
        Ok(chosen)
    }

    /// Puts a container, running or not, on one more network.
    ///
    /// # Errors
    ///
    /// In dockerd's words.
    pub async fn connect(&self, container: &str, name: &str, wish: Wish) -> Result<Network> {
        let network = self.find(&wish.network).await?;
        check_wish(&network, &wish)?;
        let mut attachments = self.attachments(container).await?;
        let others = self.networks_of(&attachments).await?;
        check_others(&network, &others, name)?;
        let wish = Wish { network: network.id.clone(), ..wish };
        self.join(container, &wish, &network).await?;
        attachments.wishes.push(wish);
        self.attach(container, attachments.wishes).await?;
        Ok(network)
    }

    /// Takes a container, running or not, off a network.
    pub async fn disconnect(&self, container: &str, network: &str) -> Result<Network> {
        let network = self.find(network).await?;
        let mut attachments = self.attachments(container).await?;
        let others = self.networks_of(&attachments).await?;
        if network.driver == "host" && others.iter().any(|other| other.id == network.id) {
            return Err(refused(Kind::PermissionDenied, HOST_MODE));
        }
        let Some(at) = others.iter().position(|other| other.id == network.id) else {
            let text = format!("container {container} is not connected to network {}", network.name);
            return Err(refused(Kind::PermissionDenied, text));
        };
        self.leave(container, &network.id).await?;
        attachments.wishes.remove(at);
        self.attach(container, attachments.wishes).await?;
        Ok(network)
    }
}

const HOST_MODE: &str = "container cannot be disconnected from host network or connected to host network";

fn check_others(network: &Network, others: &[Network], name: &str) -> Result<()> {
    let is_private = |network: &Network| network.driver == "null";
    if network.driver == "host" || others.iter().any(|other| other.driver == "host") {
        return Err(refused(Kind::PermissionDenied, HOST_MODE));
    }
    if others.iter().any(|other| other.id == network.id) {
        let text = format!("endpoint with name {name} already exists in network {}", network.name);
        return Err(refused(Kind::PermissionDenied, text));
    }
    if !others.is_empty() && (is_private(network) || others.iter().any(is_private)) {
        let text = "container cannot be connected to multiple networks with one of the networks in private (none) mode";
        return Err(refused(Kind::PermissionDenied, text));
    }
    Ok(())
}

/// Refuses a wish that its network cannot fulfil.
pub fn check_wish(network: &Network, wish: &Wish) -> Result<()> {
    let has_address = !wish.ipv4.is_empty() || !wish.ipv6.is_empty();
    let is_own = !PREDEFINED.contains(&network.name.as_str());
    for text in [&wish.ipv4, &wish.ipv6] {
        if !text.is_empty() && text.parse::<std::net::IpAddr>().is_err() {
            return Err(refused(Kind::InvalidArgument, format!("invalid IP address: {text}")));
        }
    }
    if has_address && !is_own {
        let text = "user specified IP address is supported on user defined networks only";
        return Err(refused(Kind::InvalidArgument, text));
    }
    if has_address && !network.has_chosen_subnets {
        let text = "user specified IP address is supported only when connecting to networks with user configured subnets";
        return Err(refused(Kind::InvalidArgument, text));
    }
    if !wish.aliases.is_empty() && !is_own {
        let text = "network-scoped alias is supported only for containers in user defined networks";
        return Err(refused(Kind::InvalidArgument, text));
    }
    Ok(())
}

/// Writes what a container wishes for, in a transaction of the caller's.
pub fn set_wishes(tx: &Write, container: &str, wishes: Vec<Wish>) -> Result<()> {
    tx.put(&ATTACHMENTS, container, &Attachments { wishes })
}

fn all(tx: &impl Query) -> Result<Vec<Network>> {
    Ok(tx.scan(&NETWORKS, "")?.into_iter().map(|(_, network)| network).collect())
}

fn found<'a>(all: &'a [Network], text: &str) -> Result<&'a Network> {
    let text = if text == "default" { DEFAULT } else { text };
    let exact =
        all.iter().find(|network| network.id == text).or_else(|| all.iter().find(|one| one.name == text));
    if let Some(network) = exact {
        return Ok(network);
    }
    let mut begin = all.iter().filter(|network| !text.is_empty() && network.id.starts_with(text));
    match (begin.next(), begin.next()) {
        (Some(network), None) => Ok(network),
        (Some(_), Some(_)) => Err(refused(
            Kind::InvalidArgument,
            format!("network {text} is ambiguous (2 matches found based on ID prefix)"),
        )),
        (None, _) => Err(refused(Kind::NotFound, format!("network {text} not found"))),
    }
}

fn check(network: &Network, definition: &Definition) -> Result<()> {
    let name = network.name.as_str();
    if PREDEFINED.contains(&name) || name == "default" {
        let text = format!("operation is not permitted on predefined {name} network");
        return Err(refused(Kind::PermissionDenied, text));
    }
    if name.trim().is_empty() || name.contains('\0') || name.contains('/') {
        return Err(refused(
            Kind::InvalidArgument,
            format!("invalid name: \"{name}\" is not a valid network name"),
        ));
    }
    match network.driver.as_str() {
        "bridge" => {}
        "host" | "null" => {
            let text = format!("only one instance of \"{}\" network is allowed", network.driver);
            return Err(refused(Kind::PermissionDenied, text));
        }
        "macvlan" | "ipvlan" => plan::check_mode(network)?,
        other => return Err(refused(Kind::NotFound, format!("plugin \"{other}\" not found"))),
    }
    if !matches!(definition.ipam_driver.as_str(), "" | "default") {
        let text = format!(
            "failed to retrieve ipam driver for network \"{}\" (\"{name}\"): could not resolve driver {} in registry",
            network.id, definition.ipam_driver
        );
        return Err(refused(Kind::InvalidArgument, text));
    }
    Ok(())
}

fn check_device(network: &Network, all: &[Network]) -> Result<()> {
    if network.driver != "bridge" {
        let parent = network.options.get("parent");
        let same = |other: &&Network| parent.is_some() && other.options.get("parent") == parent;
        // Two drivers cannot share a device.
        if let Some(other) = all.iter().filter(|other| other.driver != "bridge").find(same)
            && other.driver != network.driver
        {
            let text = format!(
                "network {} is already using parent interface {}",
                other.name,
                parent.map_or("", String::as_str)
            );
            return Err(refused(Kind::PermissionDenied, text));
        }
        return Ok(());
    }
    let bridge = network.bridge();
    if bridge.is_empty() || bridge.len() > DEVICE_NAME || bridge.contains(['/', ' ', ':', '\0']) {
        return Err(refused(Kind::InvalidArgument, format!("invalid bridge name: {bridge}")));
    }
    if let Some(other) = all.iter().find(|other| other.driver == "bridge" && other.bridge() == bridge) {
        let text = format!(
            "cannot create network {} ({bridge}): conflicts with network {} ({}): networks have same bridge name",
            network.id,
            other.id,
            other.bridge()
        );
        return Err(refused(Kind::PermissionDenied, text));
    }
    Ok(())
}
