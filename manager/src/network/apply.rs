//! Carries plans out: one step after the other, and back again when one fails.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use orlop_host::netlink::link::Veth;
use orlop_host::netlink::{Devices, conntrack};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::held::Protocol;
use super::plan::Operation;

/// The namespaces that a plan is about.
pub struct Place {
    host: Devices,
    inside: Devices,
    namespace: OwnedFd,
}

impl Place {
    /// The host's own and a container's.
    pub fn new(namespace: OwnedFd) -> Result<Place> {
        let host = Devices::own().context("open", "a netlink socket")?;
        let inside = super::namespace::within(namespace.as_fd(), || {
            Devices::own().context("open", "a netlink socket in the container")
        })?;
        Ok(Place { host, inside, namespace })
    }
}

/// Carries out all steps, or none: when one fails, those before it are undone.
pub fn apply(plan: &[Operation], place: &Place) -> Result<()> {
    for (number, step) in plan.iter().enumerate() {
        if let Err(error) = run(step, Some(place)) {
            return Err(with_others(error, undo(&plan[..number], Some(place))));
        }
    }
    Ok(())
}

/// Undoes steps, the last one first, whatever fails; returns what did.
pub fn undo(plan: &[Operation], place: Option<&Place>) -> Vec<Error> {
    let inverses = plan.iter().rev().filter_map(Operation::inverse);
    inverses.filter_map(|step| run(&step, place).err()).collect()
}

/// An error and what went wrong on the way back.
pub fn with_others(error: Error, others: Vec<Error>) -> Error {
    if others.is_empty() {
        return error;
    }
    let others: Vec<String> = others.iter().map(Error::to_string).collect();
    Error::exactly(error.kind(), format!("{error} (and while undoing it: {})", others.join("; ")))
}

/// Carries out one step; steps on a container whose namespace is gone have happened already.
fn run(step: &Operation, place: Option<&Place>) -> Result<()> {
    if let Some(batch) = step.batch() {
        match batch.commit() {
            // What is not there need not go.
            Err(error) if matches!(step, Operation::Unpublish(..)) && is_missing(&error) => {}
            result => result.context("change", "the firewall")?,
        }
        forget_streams(step);
        return Ok(());
    }
    if let Operation::Delete(name) = step {
        let host = Devices::own().context("open", "a netlink socket")?;
        return host.delete(name).context("remove network device", name.as_str());
    }
    match place {
        Some(place) => run_at(step, place),
        None => Ok(()),
    }
}

/// Has streams of datagrams to ports that lead elsewhere from now on take the new way.
fn forget_streams(step: &Operation) {
    let (Operation::Publish(ports, to) | Operation::Unpublish(ports, to)) = step else { return };
    let udp = ports.iter().filter(|port| port.protocol == Protocol::Udp);
    let udp: Vec<_> = udp.map(|port| (port.host, port.host_port)).collect();
    if !udp.is_empty()
        && let Err(error) = conntrack::forget(to.is_ipv6(), &udp)
    {
        // A kernel that cannot do that still leads every new stream the right way.
        tracing::debug!("forget streams of datagrams: {error}");
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

fn run_at(step: &Operation, place: &Place) -> Result<()> {
    let inside =
        |device: &str| place.inside.index(device).context("find network device of the container", device);
    match step {
        Operation::Pair { host, bridge, device, mac, mtu, isolated } => {
            let index = place.host.index(bridge).context("find bridge", bridge.as_str())?;
            let veth = Veth { name: host, bridge: index, peer: device, mac: *mac, mtu: *mtu };
            let made = place.host.add_veth(&veth, place.namespace.as_fd());
            made.context("make network device", host.as_str())?;
            let port = || {
                let index = place.host.index(host)?;
                place.host.set_no_link_local(index)?;
                place.host.set_port(index, true, *isolated)?;
                place.host.set_up(index)
            };
            if let Err(error) = port() {
                let error = Error::io("set up network device", host.as_str(), error);
                let others = place.host.delete(host).context("remove network device", host.as_str()).err();
                return Err(with_others(error, others.into_iter().collect()));
            }
            Ok(())
        }
        Operation::Below { parent, kind, device, mac, mtu } => {
            let index = place.host.index(parent).context("find network device", parent.as_str())?;
            let made = place.host.add_below(index, *kind, device, *mac, *mtu, place.namespace.as_fd());
            made.context("make network device on", parent.as_str())
        }
        Operation::Address(device, address, prefix) => {
            let given = place.inside.assign(inside(device)?, *address, *prefix);
            given.context("give address", format!("{address}/{prefix}"))
        }
        Operation::NoLinkLocal(device) => {
            let set = place.inside.set_no_link_local(inside(device)?);
            set.context("set up network device", device.as_str())
        }
        Operation::Up(device) => {
            place.inside.set_up(inside(device)?).context("switch on network device", device.as_str())
        }
        Operation::Route { device, gateway, is_v6 } => {
            let index = inside(device)?;
            let set = place.inside.set_default_route(index, *gateway, *is_v6);
            set.context("set default route to", device.as_str())
        }
        Operation::NoRoute { is_v6 } => {
            place.inside.remove_default_route(*is_v6).context("remove", "default route")
        }
        Operation::DeleteInside(device) => {
            place.inside.delete(device).context("remove network device of the container", device.as_str())
        }
        Operation::Publish(..) | Operation::Unpublish(..) | Operation::Delete(_) => {
            Err(Error::new(Kind::Internal, "carry out a step at the wrong place", ""))
        }
    }
}
