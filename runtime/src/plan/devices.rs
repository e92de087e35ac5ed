//! Device nodes: the defaults that every container has, and those of the configuration.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDeviceType};
use orlop_proto::error::Result;

use super::{clean, refuse};

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where in the container, cleaned and absolute.
    pub path: PathBuf,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
    pub kind: u32,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The configuration names it: what lies at its path and is no such device is an error then (runtime-spec, "Devices").
    pub is_configured: bool,
}

/// Devices of every container (runtime-spec, "Default Devices"); `console` and `ptmx` are made in other ways.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Symbolic links of every container: name below `/dev` and target.
pub const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

pub(super) fn plan(linux: &Linux) -> Result<Vec<Device>> {
    let mut devices: Vec<Device> = DEFAULTS
        .iter()
        .map(|&(path, major, minor)| Device {
            path: path.into(),
            kind: libc::S_IFCHR,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
            is_configured: false,
        })
        .collect();
    for device in linux.devices().iter().flatten() {
        let path = device.path();
        if !path.is_absolute() || clean(path) == Path::new("/") {
            return Err(refuse(format!("device path {path:?} is not an absolute path below the root")));
        }
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
            LinuxDeviceType::B => libc::S_IFBLK,
            LinuxDeviceType::P => libc::S_IFIFO,
            LinuxDeviceType::A => return Err(refuse(format!("device {path:?} has no type of its own"))),
        };
        let number = |number: i64| match kind {
            libc::S_IFIFO => Ok(0),
            _ => u32::try_from(number).map_err(|_| refuse(format!("device {path:?} has no valid number"))),
        };
        let planned = Device {
            path: clean(path),
            kind,
            major: number(device.major())?,
            minor: number(device.minor())?,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            is_configured: true,
        };
        match devices.iter_mut().find(|known| known.path == planned.path) {
            Some(known) => *known = planned,
            None => devices.push(planned),
        }
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_with(devices: serde_json::Value) -> Result<Vec<Device>> {
        plan(&serde_json::from_value(serde_json::json!({"devices": devices})).unwrap())
    }

    #[test]
    fn the_configuration_overrides_a_default_and_adds() {
        let devices = plan_with(serde_json::json!([
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 7},
            {"path": "/dev/../dev/pipe", "type": "p"},
        ]))
        .unwrap();
        assert_eq!(devices.len(), 7);
        assert_eq!((devices[0].mode, devices[0].uid), (0o600, 7));
        assert_eq!((devices[6].path.as_path(), devices[6].kind), (Path::new("/dev/pipe"), libc::S_IFIFO));
    }

    #[test]
    fn refuses_paths_and_numbers_that_cannot_be() {
        plan_with(serde_json::json!([{"path": "null", "type": "c", "major": 1, "minor": 3}])).unwrap_err();
        plan_with(serde_json::json!([{"path": "/dev/x", "type": "b", "major": -1, "minor": 3}])).unwrap_err();
        plan_with(serde_json::json!([{"path": "/dev/x", "type": "a"}])).unwrap_err();
    }
}
