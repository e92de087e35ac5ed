//! A container in all detail.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Container;
use super::record::{MountPoint, Record};
use crate::docker::Engine;

impl Engine {
    /// `docker inspect`.
    pub(super) async fn inspect_container(&self, container: &Container, with_size: bool) -> Value {
        let record = container.record();
        let directory = self.container_directory(&record.id);
        let path = |name: &str| directory.join(name).display().to_string();
        let words = record.words();
        let (program, arguments) =
            words.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
        let log = container.log.path().map(|path| path.display().to_string()).unwrap_or_default();
        let mut document = json!({
            "Id": record.id,
            "Created": record.created,
            "Path": program,
            "Args": arguments,
            "State": record.state.document(),
            "Image": record.image,
            "ResolvConfPath": path("resolv.conf"),
            "HostnamePath": path("hostname"),
            "HostsPath": path("hosts"),
            "LogPath": log,
            "Name": format!("/{}", record.name),
            "RestartCount": record.state.restart_count,
            "Driver": "overlayfs",
            "Platform": "linux",
            "MountLabel": "",
            "ProcessLabel": "",
            "AppArmorProfile": record.apparmor,
            "ExecIDs": self.exec_ids(&record.id),
            "HostConfig": record.host,
            "GraphDriver": { "Data": null, "Name": "overlayfs" },
            "Mounts": record.mounts.iter().filter(|place| place.kind != "tmpfs").map(shown).collect::<Vec<_>>(),
            "Config": record.config,
            "NetworkSettings": self.network_settings(&record),
        });
        if with_size {
            let (own, all) = self.sizes(&record).await;
            document["SizeRw"] = json!(own);
            document["SizeRootFs"] = json!(all);
        }
        document
    }
}

/// A place as clients see it.
pub(super) fn shown(place: &MountPoint) -> Value {
    let mut document = json!({
        "Type": place.kind,
        "Source": place.source,
        "Destination": place.destination,
        "Mode": place.mode,
        "RW": place.writable,
        "Propagation": place.propagation,
    });
    if place.kind == "volume" {
        document["Name"] = json!(place.name);
        document["Driver"] = json!(place.driver);
    }
    document
}

/// What a container without networks has.
pub(super) fn no_networks(record: &Record) -> Value {
    let mut networks = BTreeMap::new();
    if matches!(record.host.network_mode.as_str(), "none" | "host") {
        networks.insert(
            record.host.network_mode.clone(),
            json!({
                "IPAMConfig": null, "Links": null, "Aliases": null, "MacAddress": "", "DriverOpts": null,
                "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0,
                "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "DNSNames": null,
            }),
        );
    }
    json!({
        "Bridge": "",
        "SandboxID": "",
        "SandboxKey": "",
        "Ports": {},
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "EndpointID": "",
        "Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "MacAddress": "",
        "Networks": networks,
    })
}
