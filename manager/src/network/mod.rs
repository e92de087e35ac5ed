//! Networks of containers: which there are, who is on them, and what the kernel has to know of it.
//!
//! `ipam`, `plan`, `firewall`, `ports` and `dns::names` decide; `apply` and `bridge` carry out; `Networks` puts them in order. What
//! is made for a running container is written to a file first ([`held`]), so that after a kill [`Networks::recover`] finds what
//! to restore and what to remove. The host is left alone until the first container needs a bridge.

mod apply;
mod bridge;
mod defaults;
mod definitions;
mod dns;
pub mod files;
mod firewall;
pub mod held;
pub mod ipam;
mod namespace;
mod plan;
pub mod ports;
mod proxy;
pub mod record;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use ipnet::IpNet;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use tokio::sync::watch;

use crate::db::{Database, blocking};
use apply::{Place, apply, undo, with_others};
use bridge::Bridges;
pub use defaults::Defaults;
pub use definitions::{Definition, Wish, check_wish};
use dns::{Registry, Server};
use held::{AllHeld, Endpoint, Held, Resolver};
use ports::{HeldPort, Request, Taken};
use record::{Attachments, Network};
use store::Files;
pub use store::identifier;

/// The networks; clones are handles of one.
#[derive(Clone)]
pub struct Networks(Arc<Shared>);

struct Shared {
    db: Database,
    /// Identity of this installation, which chooses its addresses of version 6.
    installation: String,
    defaults: Defaults,
    registry: Registry,
    files: Files,
    bridges: Bridges,
    /// What running containers have in this process. One container's is locked while it changes; the map never for long.
    live: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Live>>>>,
}

/// What lives in this process for a running container.
#[derive(Default)]
struct Live {
    namespace: Option<Arc<OwnedFd>>,
    server: Option<Server>,
    ports: Vec<OwnedFd>,
    proxies: Vec<proxy::Proxy>,
    /// Where the proxies lead.
    target: watch::Sender<Option<IpAddr>>,
}

/// A container that starts.
#[derive(Debug)]
pub struct Start {
    /// Its id.
    pub container: String,
    /// Its name, without a slash.
    pub name: String,
    /// Its host name, which stands in its hosts file; empty if it is not its own.
    pub hostname: String,
    /// Its domain; empty for none.
    pub domain: String,
    /// Its network namespace.
    pub namespace: OwnedFd,
    /// Ports to publish.
    pub ports: Vec<Request>,
    /// What the client asked of the resolver configuration.
    pub resolver: Resolver,
    /// Further lines of the hosts file: address and names.
    pub hosts: Vec<(String, String)>,
    /// The hosts file to write; empty for none.
    pub hosts_file: PathBuf,
    /// The resolver configuration to write; empty for none.
    pub resolv_file: PathBuf,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Networks {
    /// The networks in a database, and what containers had when this program last ran.
    pub fn new(
        db: Database,
        state: &std::path::Path,
        installation: &str,
        defaults: Defaults,
    ) -> Result<Networks> {
        let files = Files::open(&state.join("network"))?;
        let bridges = Bridges::new(files.clone());
        Ok(Networks(Arc::new(Shared {
            db,
            installation: installation.to_owned(),
            defaults,
            registry: Registry::default(),
            files,
            bridges,
            live: Mutex::default(),
        })))
    }

    /// The running containers that have something, as they are now.
    pub fn held(&self) -> AllHeld {
        lock(&self.0.registry).clone()
    }

    /// What one running container has.
    pub fn held_of(&self, container: &str) -> Option<Held> {
        lock(&self.0.registry).get(container).cloned()
    }

    fn live(&self, container: &str) -> Arc<tokio::sync::Mutex<Live>> {
        lock(&self.0.live).entry(container.to_owned()).or_default().clone()
    }

    /// Gives a container that is about to start its places on networks, and published ports.
    ///
    /// # Errors
    ///
    /// In dockerd's words. Nothing is left then.
    pub async fn up(&self, start: Start) -> Result<Held> {
        let live = self.live(&start.container);
        let mut live = live.lock().await;
        let wishes = self.attachments(&start.container).await?;
        let networks = self.networks_of(&wishes).await?;
        for network in &networks {
            self.0.bridges.ensure(network).await?;
        }
        let namespace = Arc::new(start.namespace);
        let held =
            self.decide(&start.container, &start.name, &start.hostname, &wishes, &networks, |held| {
                held.domain.clone_from(&start.domain);
                held.resolver = start.resolver.clone();
                held.hosts = start.hosts.clone();
                held.hosts_file = start.hosts_file.display().to_string();
                held.resolv_file = start.resolv_file.display().to_string();
            })?;
        let container = held.container.clone();
        let result = self.make(held, start.ports, &networks, namespace.clone(), &mut live).await;
        match result {
            Ok(held) => {
                live.namespace = Some(namespace);
                Ok(held)
            }
            Err(error) => {
                *live = Live::default();
                Err(with_others(error, self.release(&container).err().into_iter().collect()))
            }
        }
    }

    /// Chooses addresses and names, and makes the choice known. What follows may fail; until [`Networks::release`] nobody else gets them.
    fn decide(
        &self,
        container: &str,
        name: &str,
        hostname: &str,
        wishes: &Attachments,
        networks: &[Network],
        fill: impl FnOnce(&mut Held),
    ) -> Result<Held> {
        let mut registry = lock(&self.0.registry);
        let mut held = Held {
            container: container.to_owned(),
            name: name.to_owned(),
            hostname: hostname.to_owned(),
            ..Held::default()
        };
        fill(&mut held);
        for (wish, network) in wishes.wishes.iter().zip(networks) {
            let endpoint = endpoint(network, wish, &held, &registry)?;
            held.endpoints.push(endpoint);
        }
        registry.insert(container.to_owned(), held.clone());
        Ok(held)
    }

    /// Makes what was decided on.
    async fn make(
        &self,
        mut held: Held,
        wanted: Vec<Request>,
        networks: &[Network],
        namespace: Arc<OwnedFd>,
        live: &mut Live,
    ) -> Result<Held> {
        let held_ports = self.hold_ports(&mut held, wanted, networks)?;
        self.remember(&held)?;
        let mut steps = Vec::new();
        for (endpoint, network) in held.endpoints.iter().zip(networks) {
            steps.extend(plan::join(network, endpoint)?);
        }
        steps.extend(plan::routes(&held));
        steps.extend(plan::publish(&held));
        let place = namespace.clone();
        let all = lock(&self.0.registry).clone();
        let written = held.clone();
        blocking(move || {
            let place = Place::new(place.try_clone().context("keep", "the network namespace")?)?;
            apply(&steps, &place)?;
            write_files(&written, &all).map_err(|error| with_others(error, undo(&steps, Some(&place))))
        })
        .await?;
        let started = serve(&held, held_ports, live).and_then(|()| self.name_server(&held, &namespace, live));
        if let Err(error) = started {
            let steps = teardown(&held);
            let others = blocking(move || Ok(undo(&steps, None))).await?;
            return Err(with_others(error, others));
        }
        Ok(held)
    }

    /// Holds the host's ports, and notes which they are.
    fn hold_ports(
        &self,
        held: &mut Held,
        mut wanted: Vec<Request>,
        networks: &[Network],
    ) -> Result<Vec<HeldPort>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let Some(endpoint) = held.gateway(false).or_else(|| held.gateway(true)) else {
            // Without a way to the outside there is nothing to publish.
            return Ok(Vec::new());
        };
        let network = networks.iter().find(|network| network.id == endpoint.network);
        // Ports that name no address of the host get the network's.
        let binding =
            network.and_then(|network| network.options.get(record::BRIDGE_HOST_BINDING)?.parse().ok());
        let binding = binding.filter(|address: &IpAddr| !address.is_unspecified());
        let context = format!(
            "driver failed programming external connectivity on endpoint {} ({})",
            held.name, endpoint.id
        );
        let to = held.published_address(false);
        for request in wanted.iter_mut().filter(|request| request.host.is_none()) {
            request.host = binding;
        }
        let mut registry = lock(&self.0.registry);
        let mut taken = Taken::of(registry.values());
        let mut all = Vec::new();
        for request in &wanted {
            let got = ports::hold(request, &mut taken, to)
                .map_err(|error| Error::because(error.kind(), context.clone(), "", error.to_string()))?;
            all.extend(got);
        }
        held.published = all.iter().map(|port| port.published.clone()).collect();
        registry.insert(held.container.clone(), held.clone());
        Ok(all)
    }

    /// Writes what is held to the container's file and the registry.
    fn remember(&self, held: &Held) -> Result<()> {
        self.0.files.write(held)?;
        lock(&self.0.registry).insert(held.container.clone(), held.clone());
        Ok(())
    }

    /// Starts the container's name server where one of its networks has names.
    fn name_server(&self, held: &Held, namespace: &OwnedFd, live: &mut Live) -> Result<()> {
        live.server = None;
        if held.has_names() {
            let outside = held.endpoints.iter().any(|endpoint| !endpoint.internal);
            let upstream = if outside { files::upstream(held, &files::host_resolver()) } else { Vec::new() };
            let registry = self.0.registry.clone();
            live.server = Some(Server::start(
                namespace.as_fd(),
                &held.container,
                registry,
                upstream,
                // The container's own servers may be known to it alone.
                !held.resolver.servers.is_empty(),
            )?);
        }
        Ok(())
    }

    /// Forgets what a container had: its addresses are free.
    fn release(&self, container: &str) -> Result<()> {
        lock(&self.0.registry).remove(container);
        lock(&self.0.live).remove(container);
        self.0.files.remove(container)
    }

    /// Takes away what a container had that has ended; nothing for one that had nothing.
    ///
    /// # Errors
    ///
    /// All that went wrong; the rest is gone all the same.
    pub async fn down(&self, container: &str) -> Result<()> {
        let live = self.live(container);
        let mut live = live.lock().await;
        *live = Live::default();
        let Some(held) = self.held_of(container) else {
            lock(&self.0.live).remove(container);
            return Ok(());
        };
        let steps = teardown(&held);
        let errors = blocking(move || Ok(undo(&steps, None))).await?;
        let mut errors: Vec<Error> = errors;
        errors.extend(self.release(container).err());
        first_of(errors)
    }

    /// Puts a running container on one more network.
    pub async fn join(&self, container: &str, wish: &Wish, network: &Network) -> Result<()> {
        let live = self.live(container);
        let mut live = live.lock().await;
        let (Some(namespace), Some(before)) = (live.namespace.clone(), self.held_of(container)) else {
            return Ok(());
        };
        self.0.bridges.ensure(network).await?;
        let held = {
            let mut registry = lock(&self.0.registry);
            let mut held = before.clone();
            let endpoint = endpoint(network, wish, &held, &registry)?;
            held.endpoints.push(endpoint);
            registry.insert(container.to_owned(), held.clone());
            held
        };
        let result = self.change(&before, &held, Some(network), &namespace, &mut live).await;
        if result.is_err() {
            self.remember(&before)?;
        }
        result
    }

    /// Takes a running container off a network.
    pub async fn leave(&self, container: &str, network: &str) -> Result<()> {
        let live = self.live(container);
        let mut live = live.lock().await;
        let (Some(namespace), Some(before)) = (live.namespace.clone(), self.held_of(container)) else {
            return Ok(());
        };
        let mut held = before.clone();
        held.endpoints.retain(|endpoint| endpoint.network != network);
        self.change(&before, &held, None, &namespace, &mut live).await
    }

    /// Makes of what a running container has what it is to have: one network more or less, ports that lead elsewhere.
    async fn change(
        &self,
        before: &Held,
        after: &Held,
        joined: Option<&Network>,
        namespace: &Arc<OwnedFd>,
        live: &mut Live,
    ) -> Result<()> {
        self.0.files.write(if joined.is_some() { after } else { before })?;
        let (published, publish) = (plan::publish(before), plan::publish(after));
        let is_moved = published != publish;
        let mut steps = Vec::new();
        if let (Some(network), Some(endpoint)) = (joined, after.endpoints.last()) {
            steps.extend(plan::join(network, endpoint)?);
        }
        let gone: Vec<Endpoint> = before
            .endpoints
            .iter()
            .filter(|old| !after.endpoints.iter().any(|kept| kept.network == old.network))
            .cloned()
            .collect();
        let routes = plan::routes(after);
        let all = {
            let mut registry = lock(&self.0.registry);
            registry.insert(after.container.clone(), after.clone());
            registry.clone()
        };
        let (place, written) = (namespace.clone(), after.clone());
        blocking(move || {
            let place = Place::new(place.try_clone().context("keep", "the network namespace")?)?;
            if is_moved {
                first_of(undo(&published, Some(&place)))?;
            }
            apply(&steps, &place)?;
            let removal: Vec<_> = gone.iter().map(removal).collect();
            for step in &removal {
                apply(std::slice::from_ref(step), &place)?;
            }
            apply(&routes, &place)?;
            if is_moved {
                apply(&publish, &place)?;
            }
            write_files(&written, &all)
        })
        .await?;
        self.remember(after)?;
        live.target.send_replace(proxy_target(after));
        if live.server.is_some() != after.has_names() || joined.is_some() {
            self.name_server(after, namespace, live)?;
        }
        Ok(())
    }

    /// A container has another name from now on.
    pub async fn rename(&self, container: &str, name: &str) -> Result<()> {
        let Some(mut held) = self.held_of(container) else { return Ok(()) };
        name.clone_into(&mut held.name);
        self.remember(&held)
    }

    /// Restores what running containers had when this program last ran, and removes what is left of others. `running` leads from their
    /// ids to their network namespaces.
    ///
    /// # Errors
    ///
    /// The first of what went wrong; the rest is restored all the same.
    pub async fn recover(&self, mut running: BTreeMap<String, OwnedFd>) -> Result<()> {
        let (alive, dead): (Vec<Held>, Vec<Held>) =
            self.0.files.read()?.into_iter().partition(|held| running.contains_key(&held.container));
        self.predefine(&alive).await?;
        let mut errors = Vec::new();
        for held in dead {
            let steps = teardown(&held);
            errors.extend(blocking(move || Ok(undo(&steps, None))).await?);
            errors.extend(self.0.files.remove(&held.container).err());
        }
        for held in &alive {
            lock(&self.0.registry).insert(held.container.clone(), held.clone());
        }
        let networks = self.list().await?;
        errors.extend(self.0.bridges.recover(&networks, &alive).await.err());
        for held in alive {
            let Some(namespace) = running.remove(&held.container) else { continue };
            let namespace = Arc::new(namespace);
            let live = self.live(&held.container);
            let mut live = live.lock().await;
            live.namespace = Some(namespace.clone());
            let sockets = held.published.iter().filter_map(|port| {
                // Somebody else may have taken it meanwhile; the firewall leads to the container all the same.
                let socket = ports::occupy(port.protocol, port.host, port.host_port).ok()?;
                Some(HeldPort { published: port.clone(), socket })
            });
            errors.extend(serve(&held, sockets.collect(), &mut live).err());
            errors.extend(self.name_server(&held, &namespace, &mut live).err());
        }
        first_of(errors)
    }
}

/// Keeps the sockets of published ports, and starts proxies where the kernel alone does not do.
fn serve(held: &Held, ports: Vec<HeldPort>, live: &mut Live) -> Result<()> {
    live.target.send_replace(proxy_target(held));
    for port in ports {
        if port.published.host.is_ipv6() {
            let (protocol, target) = (port.published.protocol, live.target.subscribe());
            live.proxies.extend(proxy::start(protocol, port.socket, target, port.published.port)?);
        } else {
            live.ports.push(port.socket);
        }
    }
    Ok(())
}

/// The address that proxies lead to.
fn proxy_target(held: &Held) -> Option<IpAddr> {
    held.published_address(false).or_else(|| held.published_address(true))
}

/// The steps whose inverses take away what the host has of a container.
fn teardown(held: &Held) -> Vec<plan::Operation> {
    let mut steps: Vec<plan::Operation> = held.endpoints.iter().map(placed).collect();
    steps.extend(plan::publish(held));
    steps
}

/// The step that made an endpoint's device, as far as its inverse needs it.
fn placed(endpoint: &Endpoint) -> plan::Operation {
    plan::Operation::Pair {
        host: endpoint.host_device.clone().unwrap_or_default(),
        bridge: String::new(),
        device: endpoint.device.clone(),
        mac: endpoint.mac,
        mtu: 0,
        isolated: false,
    }
}

fn removal(endpoint: &Endpoint) -> plan::Operation {
    match &endpoint.host_device {
        Some(host) => plan::Operation::Delete(host.clone()),
        None => plan::Operation::DeleteInside(endpoint.device.clone()),
    }
}

fn write_files(held: &Held, all: &AllHeld) -> Result<()> {
    // In place: the container has the very files mounted.
    if !held.hosts_file.is_empty() {
        std::fs::write(&held.hosts_file, files::hosts(held, all)).context("write", &*held.hosts_file)?;
    }
    if !held.resolv_file.is_empty() {
        let text = files::resolver(held, &files::host_resolver());
        std::fs::write(&held.resolv_file, text).context("write", &*held.resolv_file)?;
    }
    Ok(())
}

fn first_of(errors: Vec<Error>) -> Result<()> {
    let mut errors = errors.into_iter();
    match errors.next() {
        Some(first) => Err(with_others(first, errors.collect())),
        None => Ok(()),
    }
}

/// A container's place on a network: addresses that are free, and names of devices.
fn endpoint(network: &Network, wish: &Wish, held: &Held, registry: &AllHeld) -> Result<Endpoint> {
    let used: HashSet<IpAddr> = registry
        .values()
        .flat_map(|other| &other.endpoints)
        .chain(&held.endpoints)
        .filter(|endpoint| endpoint.network == network.id)
        .flat_map(|endpoint| [endpoint.ipv4, endpoint.ipv6])
        .flatten()
        .map(|(address, _)| address)
        .collect();
    let length = |address: IpAddr| {
        let net = network.nets().into_iter().find(|net: &IpNet| net.contains(&address));
        (address, net.map_or(32, |net| net.prefix_len()))
    };
    let one = |is_v6: bool, wanted: &str| -> Result<Option<(IpAddr, u8)>> {
        Ok(ipam::address(network, is_v6, wanted.parse().ok(), &used)?.map(length))
    };
    let (ipv4, ipv6) = (one(false, &wish.ipv4)?, one(true, &wish.ipv6)?);
    let mac = match parse_mac(&wish.mac) {
        Some(mac) => mac,
        None if wish.mac.is_empty() => chosen_mac(ipv4, ipv6),
        None => {
            let text = format!("invalid mac address: {}", wish.mac);
            return Err(Error::exactly(Kind::InvalidArgument, text));
        }
    };
    let gateway = |is_v6: bool| {
        let mut all = network.subnets.iter().filter_map(record::Subnet::gateway);
        all.find(|address| address.is_ipv6() == is_v6 && !network.internal)
    };
    let id = store::identifier()?;
    let links = wish
        .links
        .iter()
        .filter_map(|link| {
            let (target, alias) = link.split_once(':').unwrap_or((link, link));
            let found = registry.iter().find(|(id, other)| *id == target || other.name == target);
            Some((alias.to_owned(), found?.0.clone()))
        })
        .collect();
    Ok(Endpoint {
        host_device: (network.driver == "bridge").then(|| format!("veth{}", &id[..7])),
        id,
        network: network.id.clone(),
        network_name: network.name.clone(),
        device: if network.driver == "null" { String::new() } else { held.free_device() },
        ipv4,
        ipv6,
        gateway: gateway(false).filter(|_| network.driver != "ipvlan" || !is_layer_3(network)),
        gateway6: gateway(true),
        mac,
        aliases: wish.aliases.clone(),
        links,
        gateway_priority: wish.gateway_priority,
        internal: network.internal || network.driver == "null",
        has_names: network.has_names(),
    })
}

fn is_layer_3(network: &Network) -> bool {
    network.options.get("ipvlan_mode").is_some_and(|mode| mode.starts_with("l3"))
}

/// Reads a hardware address.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let parts: Vec<u8> = text
        .split([':', '-'])
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect::<Option<_>>()?;
    parts.try_into().ok()
}

/// A hardware address that follows from the container's address, so that neighbours need not learn a new one after a restart.
fn chosen_mac(ipv4: Option<(IpAddr, u8)>, ipv6: Option<(IpAddr, u8)>) -> [u8; 6] {
    let tail: [u8; 4] = match (ipv4, ipv6) {
        (Some((IpAddr::V4(four), _)), _) => four.octets(),
        (_, Some((IpAddr::V6(six), _))) => {
            let octets = six.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
        _ => [0; 4],
    };
    [0x02, 0x42, tail[0], tail[1], tail[2], tail[3]]
}
