//! Network devices that move into the container's network namespace.

use oci_spec::runtime::Linux;
use orlop_proto::error::Result;

use super::namespaces::Namespaces;
use super::{Host, refuse};

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    /// Its name on the host.
    pub name: String,
    /// Its name in the container; one that ends in `%d` gets a number from the kernel.
    pub new_name: String,
}

pub(super) fn plan(linux: &Linux, namespaces: &Namespaces, host: &Host) -> Result<Vec<NetDevice>> {
    let Some(configured) = linux.net_devices().as_ref().filter(|devices| !devices.is_empty()) else {
        return Ok(Vec::new());
    };
    if !namespaces.is_new_or_joined(libc::CLONE_NEWNET) {
        return Err(refuse("unable to move network devices without a NET namespace"));
    }
    if host.user {
        return Err(refuse("network devices are not supported for rootless containers"));
    }
    let mut devices = Vec::new();
    for (name, device) in configured {
        let new_name = device.name().as_ref().filter(|name| !name.is_empty()).unwrap_or(name);
        for name in [name, new_name] {
            if !is_name(name) {
                return Err(refuse(format!("invalid network device name {name:?}")));
            }
        }
        devices.push(NetDevice { name: name.clone(), new_name: new_name.clone() });
    }
    devices.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(devices)
}

/// Whether the kernel takes it as a device's name (`dev_valid_name`): shorter than `IFNAMSIZ`, and no path.
fn is_name(name: &str) -> bool {
    let fits = !name.is_empty() && name.len() < libc::IFNAMSIZ;
    let is_path = name == "." || name == "..";
    fits && !is_path && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_with(devices: serde_json::Value, namespaces: serde_json::Value) -> Result<Vec<NetDevice>> {
        let linux: Linux =
            serde_json::from_value(serde_json::json!({"netDevices": devices, "namespaces": namespaces}))
                .unwrap();
        let host = Host::default();
        let namespaces = Namespaces::for_container(&linux, &host, &mut Vec::new()).unwrap();
        plan(&linux, &namespaces, &host)
    }

    #[test]
    fn names_and_namespaces() {
        let network = serde_json::json!([{"type": "network"}]);
        let devices = serde_json::json!({"veth1": {}, "eth0": {"name": "e%d"}});
        let planned = plan_with(devices.clone(), network.clone()).unwrap();
        let names: Vec<_> = planned.iter().map(|d| (d.name.as_str(), d.new_name.as_str())).collect();
        assert_eq!(names, [("eth0", "e%d"), ("veth1", "veth1")]);
        plan_with(devices, serde_json::json!([])).unwrap_err();
        for name in [".", "..", "a/b", "a:b", "a b", "sixteen-letters0"] {
            plan_with(serde_json::json!({"eth0": {"name": name}}), network.clone()).unwrap_err();
        }
        let unnamed = plan_with(serde_json::json!({"eth0": {"name": ""}}), network).unwrap();
        assert_eq!(unnamed[0].new_name, "eth0");
    }
}
