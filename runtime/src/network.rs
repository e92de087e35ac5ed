//! Network devices of the host that a container gets (runtime-spec, "Network Devices").

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use orlop_host::netlink::Devices;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::plan::network::NetDevice;

/// What ends a name to which the kernel adds a number.
const TEMPLATE: &str = "%d";

/// Checks, before anything is changed, that the devices are there and that their names are free in a namespace that is joined.
///
/// # Errors
/// `NotFound` for a device, `AlreadyExists` for a name.
pub fn check(devices: &[NetDevice], joined: Option<BorrowedFd>) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let own = Devices::own().context("look for", "network devices")?;
    let there = joined.map(Devices::within).transpose().context("look into", "the network namespace")?;
    for device in devices {
        own.index(&device.name).context("find network device", &*device.name)?;
        let Some(there) = &there else { continue };
        if !device.new_name.ends_with(TEMPLATE) && there.index(&device.new_name).is_ok() {
            let why = "the network namespace has a device of this name";
            return Err(Error::because(Kind::AlreadyExists, "move network device", &*device.new_name, why));
        }
    }
    Ok(())
}

/// Moves the devices into the network namespace of a new process, or the one that it joins.
pub fn give(devices: &[NetDevice], joined: Option<OwnedFd>, pid: i32) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let namespace = match joined {
        Some(namespace) => namespace,
        None => {
            let path = format!("/proc/{pid}/ns/net");
            open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).context("open", path)?
        }
    };
    let here = Devices::own().context("move", "network devices")?;
    let there = Devices::within(namespace.as_fd()).context("enter", "the network namespace")?;
    for device in devices {
        move_one(device, &here, &there, namespace.as_fd())
            .map_err(|error| Error::io("move network device", &*device.name, error))?;
    }
    Ok(())
}

/// Moves a device with its lasting addresses, which the kernel takes away as it switches the device off for the move, and switches
/// it on. A device that cannot move is left as it was.
fn move_one(
    device: &NetDevice,
    here: &Devices,
    there: &Devices,
    namespace: BorrowedFd,
) -> std::io::Result<()> {
    let index = here.index(&device.name)?;
    let addresses = here.addresses(index)?;
    let before = if device.new_name.ends_with(TEMPLATE) { there.indices()? } else { Vec::new() };
    here.hand_over(index, namespace, &device.new_name)?;
    let index = if device.new_name.ends_with(TEMPLATE) {
        let now = there.indices()?;
        let found = now.into_iter().find(|one| !before.contains(one));
        found.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENODEV))?
    } else {
        there.index(&device.new_name)?
    };
    for address in addresses.iter().filter(|address| address.is_permanent && address.is_global) {
        there.add_address(index, address)?;
    }
    there.set_up(index)
}
