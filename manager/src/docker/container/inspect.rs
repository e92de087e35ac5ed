//! A container in all detail.

use std::collections::BTreeMap;

use orlop_proto::spec::READONLY_PATHS;
use serde_json::{Value, json};

use super::Container;
use super::config::HostConfig;
use super::record::{MountPoint, Record};
use crate::docker::Engine;
use crate::docker::spec::masked_paths;

impl Engine {
    fn host_config(&self, record: &Record) -> Value {
        let mut shown = host(&record.host);
        if record.host.network_mode == "bridge" && !record.host.links.is_empty() {
            let links = record.host.links.iter().map(|link| {
                let (name, alias) = link.split_once(':').unwrap_or((link, link));
                let name = self
                    .containers
                    .get(name)
                    .map_or(name.to_owned(), |other| other.with(|other| other.name.clone()));
                format!("/{name}:/{}/{alias}", record.name)
            });
            shown["Links"] = json!(links.collect::<Vec<_>>());
        }
        shown
    }

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
            "HostConfig": self.host_config(&record),
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

/// What depends on the host, with what stands for an absent choice.
fn host(host: &HostConfig) -> Value {
    let mut shown = json!(host);
    if host.resources.memory_swappiness == Some(-1) {
        shown["MemorySwappiness"] = Value::Null;
    }
    if host.resources.pids_limit.is_some_and(|limit| limit <= 0) {
        shown["PidsLimit"] = Value::Null;
    }
    if host.masked_paths.is_none() && !host.privileged {
        shown["MaskedPaths"] = json!(masked_paths());
    }
    if host.readonly_paths.is_none() && !host.privileged {
        shown["ReadonlyPaths"] = json!(READONLY_PATHS);
    }
    shown
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
