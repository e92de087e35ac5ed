//! What the Docker API keeps: containers with their file systems, networks and volumes.

use std::collections::BTreeSet;
use std::path::Path;

use orlop_proto::error::Result;

use super::Problem;
use crate::db::{Query, Read, key};
use crate::docker::NAMESPACE;
use crate::docker::container::{CONTAINERS, Record};
use crate::image::DEFAULT_SNAPSHOTTER;
use crate::network::record::{ATTACHMENTS, NETWORKS};
use crate::snapshot::SNAPSHOTS;
use crate::volume::VOLUMES;

/// Checks what the records say of each other and of the files below `root`.
pub(super) fn check(tx: &Read, root: &Path) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let volumes: BTreeSet<String> = tx.keys(&VOLUMES)?.into_iter().collect();
    let mut names = BTreeSet::new();
    for (id, stored) in tx.scan(&CONTAINERS, "")? {
        let record = match Record::decode(&stored) {
            Ok(record) => record,
            Err(error) => {
                problems.push(Problem::damage("container", NAMESPACE, &id, error.to_string()));
                continue;
            }
        };
        let mut damaged = |text: String| problems.push(Problem::damage("container", NAMESPACE, &id, text));
        if record.id != id {
            damaged(format!("its record is that of {}", record.id));
        }
        if !names.insert(record.name.clone()) {
            damaged(format!("another one has its name, {}", record.name));
        }
        if tx.get(&SNAPSHOTS, &key(&[NAMESPACE, DEFAULT_SNAPSHOTTER, &id]))?.is_none() {
            damaged("its file system is not there".to_owned());
        }
        let places = record.mounts.iter().filter(|place| place.kind == "volume");
        for place in places.filter(|place| !volumes.contains(&place.name)) {
            // It is made anew, empty, when the container starts.
            let text = format!("its volume {} is not there", place.name);
            problems.push(Problem::notice("container", NAMESPACE, &id, text));
        }
    }
    for name in &volumes {
        if !root.join("volumes").join(name).join("_data").is_dir() {
            problems.push(Problem::damage("volume", NAMESPACE, name, "its directory is not there"));
        }
    }
    for name in stray(&root.join("volumes"), &volumes) {
        problems.push(Problem::notice("volume", NAMESPACE, &name, "a directory is there and no record"));
    }
    let mut taken = BTreeSet::new();
    for (id, network) in tx.scan(&NETWORKS, "")? {
        if network.id != id || !taken.insert(network.name.clone()) {
            let text = format!("it is not the one network {} with the name {}", network.id, network.name);
            problems.push(Problem::damage("network", NAMESPACE, &id, text));
        }
        for subnet in &network.subnets {
            if let Err(error) = subnet.net() {
                problems.push(Problem::damage("network", NAMESPACE, &network.name, error.to_string()));
            }
        }
    }
    for container in tx.keys(&ATTACHMENTS)? {
        if tx.get(&CONTAINERS, &container)?.is_none() {
            // One that is being made has its networks first; what a kill leaves goes at the next start.
            let text = "it has networks and is not there";
            problems.push(Problem::notice("container", NAMESPACE, &container, text));
        }
    }
    Ok(problems)
}

/// Names in the directory of volumes that no volume has.
fn stray(directory: &Path, known: &BTreeSet<String>) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| !known.contains(name)).collect()
}
