//! Network devices of the host that a container gets (runtime-spec, "Network Devices").

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use orlop_host::file;
use orlop_host::netlink::{Address, Devices};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::plan::network::NetDevice;
use crate::undo::Undo;

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

/// Moves the devices into the network namespace of a new process, or the one that it joins; each is taken back if a later step fails.
pub fn give(devices: &[NetDevice], joined: Option<OwnedFd>, pid: i32, undo: &mut Undo) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let namespace = match joined {
        Some(namespace) => namespace,
        None => open_namespace(&format!("/proc/{pid}/ns/net"))?,
    };
    let here = Devices::own().context("move", "network devices")?;
    let there = Devices::within(namespace.as_fd()).context("enter", "the network namespace")?;
    for device in devices {
        let failed = |error| Error::io("move network device", &*device.name, error);
        let moved = hand_over(device, &here, &there, namespace.as_fd()).map_err(failed)?;
        undo.push({
            let (name, index, is_up) = (device.name.clone(), moved.index, moved.was_up);
            let namespace = namespace.try_clone().context("keep", "the network namespace")?;
            move || {
                take_back(&name, index, is_up, namespace.as_fd())
                    .map_err(|error| Error::io("take back network device", &*name, error))
            }
        });
        settle(&there, &moved, true).map_err(failed)?;
    }
    Ok(())
}

fn open_namespace(path: &str) -> Result<OwnedFd> {
    file::open(Path::new(path), OFlag::O_RDONLY).context("open", path)
}

/// A device in its new namespace, which has lost what the kernel takes away as it switches a device off for a move.
struct Moved {
    /// Its index there.
    index: i32,
    /// The addresses that it had.
    addresses: Vec<Address>,
    /// Whether it was switched on.
    was_up: bool,
}

/// Moves a device. One that cannot move is left as it was.
fn hand_over(
    device: &NetDevice,
    here: &Devices,
    there: &Devices,
    namespace: BorrowedFd,
) -> io::Result<Moved> {
    let index = here.index(&device.name)?;
    let addresses = here.addresses(index)?;
    let was_up = here.links()?.iter().any(|link| link.index == index && link.is_up);
    let is_template = device.new_name.ends_with(TEMPLATE);
    let before = if is_template { there.indices()? } else { Vec::new() };
    here.hand_over(index, namespace, &device.new_name)?;
    let index = if is_template {
        let now = there.indices()?;
        let found = now.into_iter().find(|one| !before.contains(one));
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?
    } else {
        there.index(&device.new_name)?
    };
    Ok(Moved { index, addresses, was_up })
}

/// Gives a device its lasting addresses again, and switches it on.
fn settle(there: &Devices, moved: &Moved, is_up: bool) -> io::Result<()> {
    for address in moved.addresses.iter().filter(|address| address.is_permanent && address.is_global) {
        there.add_address(moved.index, address)?;
    }
    if is_up { there.set_up(moved.index) } else { Ok(()) }
}

/// Undoes a move: under its old name, with the addresses that it has by now, on if it was on. One that is gone is nobody's any more.
fn take_back(name: &str, index: i32, is_up: bool, namespace: BorrowedFd) -> io::Result<()> {
    let there = Devices::within(namespace)?;
    if !there.indices()?.contains(&index) {
        return Ok(());
    }
    let home = file::open(Path::new("/proc/self/ns/net"), OFlag::O_RDONLY)?;
    let here = Devices::own()?;
    let addresses = there.addresses(index)?;
    there.hand_over(index, home.as_fd(), name)?;
    settle(&here, &Moved { index: here.index(name)?, addresses, was_up: is_up }, is_up)
}
