//! Bridges and the table of the firewall: made when a container first needs them, restored after a restart.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use orlop_host::netlink::Devices;
use orlop_host::netlink::nftables::Family;
use orlop_proto::error::{Context, Error, Result};
use tokio::sync::Mutex;

use super::apply::with_others;
use super::firewall;
use super::held::{Held, Published};
use super::record::Network;
use super::store::{Files, identifier};
use crate::db::blocking;

/// The bridges; clones are handles of the same.
#[derive(Clone)]
pub struct Bridges {
    files: Files,
    /// What is there. Held while one is made: two containers that start at once need the same one, and one of them waits.
    made: Arc<Mutex<Made>>,
}

#[derive(Clone, Debug, Default)]
struct Made {
    families: BTreeSet<Family>,
    networks: BTreeSet<String>,
}

impl Bridges {
    /// None is there yet.
    pub fn new(files: Files) -> Bridges {
        Bridges { files, made: Arc::default() }
    }

    /// Makes what a network needs on the host, if it is not there.
    pub async fn ensure(&self, network: &Network) -> Result<()> {
        if !matches!(network.driver.as_str(), "bridge" | "macvlan" | "ipvlan") {
            return Ok(());
        }
        let mut made = self.made.lock().await;
        if made.networks.contains(&network.id) {
            return Ok(());
        }
        let (files, wanted, mut next) = (self.files.clone(), network.clone(), made.clone());
        *made = blocking(move || {
            if wanted.driver == "bridge" {
                make(&wanted, &mut next, &files)?;
            } else {
                make_parent(&wanted, &files)?;
            }
            next.networks.insert(wanted.id);
            Ok(next)
        })
        .await?;
        Ok(())
    }

    /// Removes what a network had on the host.
    pub async fn remove(&self, network: &Network) -> Result<()> {
        let mut made = self.made.lock().await;
        let was_made = made.networks.contains(&network.id);
        let (files, gone) = (self.files.clone(), network.clone());
        let families = made.families.clone();
        blocking(move || {
            if was_made {
                for family in families.into_iter().filter(|family| firewall::has_family(&gone, *family)) {
                    ignore_missing(firewall::network_removed(family, &gone).commit())
                        .context("change", "the firewall")?;
                }
            }
            remove_device(&gone.bridge(), &files)
        })
        .await?;
        made.networks.remove(&network.id);
        Ok(())
    }

    /// Restores the bridges that were there and the firewall as it has to be, and removes those of networks that are gone.
    pub async fn recover(&self, networks: &[Network], held: &[Held]) -> Result<()> {
        let mut made = self.made.lock().await;
        let (files, networks, held) = (self.files.clone(), networks.to_vec(), held.to_vec());
        *made = blocking(move || {
            let noted = files.bridges()?;
            let mut next = Made::default();
            let mut there = Vec::new();
            for (name, id) in &noted {
                match networks.iter().find(|network| network.id == *id) {
                    Some(network) => there.push(network.clone()),
                    None => remove_device(name, &files)?,
                }
            }
            let bridges: Vec<_> =
                there.iter().filter(|network| network.driver == "bridge").cloned().collect();
            if noted.is_empty() {
                return Ok(next);
            }
            for family in [Family::V4, Family::V6] {
                if bridges.iter().any(|network| firewall::has_family(network, family)) {
                    let published = published(&held, family);
                    let batch = firewall::rebuilt(family, &bridges, &published);
                    batch.commit().context("change", "the firewall")?;
                    next.families.insert(family);
                } else {
                    ignore_missing(firewall::removed(family).commit()).context("change", "the firewall")?;
                }
            }
            for network in &there {
                if network.driver == "bridge" {
                    make_device(network)?;
                } else {
                    make_parent(network, &files)?;
                }
                next.networks.insert(network.id.clone());
            }
            Ok(next)
        })
        .await?;
        Ok(())
    }
}

/// The published ports of a family, and where they lead.
fn published(held: &[Held], family: Family) -> Vec<(Published, IpAddr)> {
    let is_v6 = family == Family::V6;
    held.iter()
        .filter_map(|held| Some((held, held.published_address(is_v6)?)))
        .flat_map(|(held, to)| held.published.iter().cloned().map(move |port| (port, to)))
        .collect()
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn remove_device(name: &str, files: &Files) -> Result<()> {
    let noted = files.bridges()?.iter().any(|(other, _)| other == name);
    if noted {
        let host = Devices::own().context("open", "a netlink socket")?;
        host.delete(name).context("remove network device", name)?;
        files.forget_bridge(name)?;
    }
    Ok(())
}

/// Makes a network's bridge with its rules, or nothing.
fn make(network: &Network, made: &mut Made, files: &Files) -> Result<()> {
    let name = network.bridge();
    for family in [Family::V4, Family::V6] {
        if firewall::has_family(network, family) {
            if made.families.insert(family) {
                // A table that an earlier run left: nothing that it says holds any more.
                firewall::rebuilt(family, &[], &[]).commit().context("make", "the firewall's table")?;
            }
            forward(family)?;
        }
    }
    files.note_bridge(&name, &network.id)?;
    let result = make_device(network).and_then(|()| {
        for family in [Family::V4, Family::V6] {
            if firewall::has_family(network, family) {
                firewall::network_added(family, network).commit().context("change", "the firewall")?;
            }
        }
        Ok(())
    });
    result.map_err(|error| with_others(error, remove_device(&name, files).err().into_iter().collect()))
}

/// Makes the device; one that is there with the right address is taken over, as dockerd does.
fn make_device(network: &Network) -> Result<()> {
    let name = network.bridge();
    let host = Devices::own().context("open", "a netlink socket")?;
    let has_v6 = firewall::has_family(network, Family::V6);
    let mac = {
        let id = identifier()?;
        let digit = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).unwrap_or(0);
        [0x02, 0x42, digit(0), digit(2), digit(4), digit(6)]
    };
    let index = match host.add_bridge(&name, mac, network.mtu()) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => host.index(&name),
        result => result,
    };
    let index = index.context("make bridge", &*name)?;
    if !has_v6 {
        host.set_no_link_local(index).context("set up bridge", &*name)?;
    }
    host.set_up(index).context("switch on bridge", &*name)?;
    for subnet in &network.subnets {
        let (net, Some(gateway)) = (subnet.net()?, subnet.gateway()) else { continue };
        match host.assign(index, gateway, net.prefix_len()) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            result => result.context("give address", format!("{gateway} to {name}"))?,
        }
    }
    if firewall::has_family(network, Family::V4) {
        // So that published ports work on 127.0.0.1; the firewall keeps others out.
        setting(&format!("ipv4/conf/{name}/route_localnet"), "1")?;
    }
    Ok(())
}

/// The device that a macvlan or ipvlan network lies on: the client's, a VLAN of it, or one of its own that leads nowhere.
fn make_parent(network: &Network, files: &Files) -> Result<()> {
    let host = Devices::own().context("open", "a netlink socket")?;
    let Some(parent) = network.options.get("parent") else {
        let name = network.bridge();
        files.note_bridge(&name, &network.id)?;
        let mac = super::chosen_mac(None, None);
        let index = match host.add_bridge(&name, mac, network.mtu()) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => host.index(&name),
            result => result,
        };
        let index = index.context("make network device", &*name)?;
        host.set_no_link_local(index).context("set up network device", &*name)?;
        return host.set_up(index).context("switch on network device", &*name);
    };
    if host.index(parent).is_ok() {
        return Ok(());
    }
    let vlan = parent.rsplit_once('.').and_then(|(base, id)| Some((base, id.parse::<u16>().ok()?)));
    let Some((base, id)) = vlan else {
        return Err(Error::io(
            "find network device",
            parent.as_str(),
            io::Error::from_raw_os_error(libc::ENODEV),
        ));
    };
    let index = host.index(base).context("find network device", base)?;
    files.note_bridge(parent, &network.id)?;
    host.add_vlan(index, parent, id).context("make network device", parent.as_str())?;
    Ok(())
}

/// Lets the host pass packets on.
fn forward(family: Family) -> Result<()> {
    match family {
        Family::V4 => setting("ipv4/ip_forward", "1"),
        Family::V6 => {
            setting("ipv6/conf/default/forwarding", "1")?;
            setting("ipv6/conf/all/forwarding", "1")
        }
    }
}

/// Writes a setting of this network namespace, if it is another one.
fn setting(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).context("set", path)
}
