//! Records: all of them can be read, and what one says of another is true.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use orlop_proto::error::Result;
use prost::Message;

use super::{Outcome, Problem};
use crate::content::CONTENT;
use crate::db::{Database, META, Query, Table, Write, key};
use crate::docker::container as docker;
use crate::image::restore::LayerSources;
use crate::mount::ACTIVATIONS;
use crate::network::record::{ATTACHMENTS, NETWORKS};
use crate::snapshot::{CHILDREN, Child, Record, SNAPSHOTS, SnapshotKind};
use crate::store::containers::CONTAINERS;
use crate::store::images::IMAGES;
use crate::store::leases::{LEASES, RESOURCES};
use crate::store::namespaces::NAMESPACES;
use crate::store::sandboxes::SANDBOXES;
use crate::volume::VOLUMES;

/// Reads every record; returns their number, and those that cannot be read.
pub fn decode_all(db: &Database) -> Result<(u64, Vec<Problem>)> {
    let (mut records, mut problems) = (0, Vec::new());
    db.read_now(|tx| {
        count(tx, &META, "meta", &mut records, &mut problems)?;
        count(tx, &NAMESPACES, "namespaces", &mut records, &mut problems)?;
        count(tx, &CONTENT, "content", &mut records, &mut problems)?;
        count(tx, &SNAPSHOTS, "snapshots", &mut records, &mut problems)?;
        count(tx, &CHILDREN, "snapshot_children", &mut records, &mut problems)?;
        count(tx, &IMAGES, "images", &mut records, &mut problems)?;
        count(tx, &CONTAINERS, "containers", &mut records, &mut problems)?;
        count(tx, &LEASES, "leases", &mut records, &mut problems)?;
        count(tx, &RESOURCES, "lease_resources", &mut records, &mut problems)?;
        count(tx, &SANDBOXES, "sandboxes", &mut records, &mut problems)?;
        count(tx, &ACTIVATIONS, "activations", &mut records, &mut problems)?;
        count(tx, &docker::CONTAINERS, "docker.containers", &mut records, &mut problems)?;
        count(tx, &NETWORKS, "networks", &mut records, &mut problems)?;
        count(tx, &ATTACHMENTS, "network_attachments", &mut records, &mut problems)?;
        count(tx, &VOLUMES, "volumes", &mut records, &mut problems)
    })?;
    Ok((records, problems))
}

fn count<M: Message + Default>(
    tx: &impl Query,
    table: &Table<M>,
    name: &str,
    records: &mut u64,
    problems: &mut Vec<Problem>,
) -> Result<()> {
    let read = tx.each(table, "", |_, _| {
        *records += 1;
        Ok(ControlFlow::Continue(()))
    });
    if let Err(error) = read {
        problems.push(Problem::damage("database", "", name, error.to_string()));
    }
    Ok(())
}

/// Checks what records say of each other, in one view of them all.
pub fn check(db: &Database, sources: &LayerSources, repair: bool) -> Result<Vec<Problem>> {
    let mut problems = db.read_now(|tx| {
        let mut problems = Vec::new();
        children(tx, &mut problems)?;
        holders(tx, &mut problems)?;
        content(tx, sources, &mut problems)?;
        Ok(problems)
    })?;
    let is_index = |problem: &Problem| matches!(problem.kind, "index" | "lease");
    if repair && problems.iter().any(is_index) {
        let done = db.write_now(restate).map_err(|error| error.to_string());
        for problem in problems.iter_mut().filter(|problem| is_index(problem)) {
            problem.outcome = match &done {
                Ok(()) => Outcome::Repaired("the index is written anew".to_owned()),
                Err(error) => Outcome::Left(error.clone()),
            };
        }
    }
    Ok(problems)
}

/// A snapshot's key in parts.
fn parts(key: &str) -> Option<(&str, &str, &str)> {
    let mut parts = key.splitn(3, '\0');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

/// The keys of the index that the records ask for.
fn wanted_children(records: &BTreeMap<String, Record>) -> BTreeSet<String> {
    let child = |(key, record): (&String, &Record)| {
        let (namespace, snapshotter, name) = parts(key)?;
        let is_child = !record.parent.is_empty();
        is_child.then(|| crate::db::key(&[namespace, snapshotter, &record.parent, name]))
    };
    records.iter().filter_map(child).collect()
}

fn children(tx: &impl Query, problems: &mut Vec<Problem>) -> Result<()> {
    let records: BTreeMap<String, Record> = tx.scan(&SNAPSHOTS, "")?.into_iter().collect();
    for (key_, record) in &records {
        let Some((namespace, snapshotter, name)) = parts(key_) else { continue };
        if record.parent.is_empty() {
            continue;
        }
        let shown = format!("{snapshotter}/{name}");
        let parent = records.get(&key(&[namespace, snapshotter, &record.parent]));
        let text = match parent.map(Record::kind) {
            None => format!("its parent {} is not there", record.parent),
            Some(SnapshotKind::Committed) => continue,
            Some(_) => format!("its parent {} is not committed", record.parent),
        };
        problems.push(Problem::damage("snapshot", namespace, &shown, text));
    }
    let wanted = wanted_children(&records);
    let found: BTreeSet<String> = tx.scan(&CHILDREN, "")?.into_iter().map(|(key, _)| key).collect();
    for one in wanted.symmetric_difference(&found) {
        let text = match found.contains(one) {
            true => "the index of children names one that is not there",
            false => "the index of children lacks it",
        };
        let namespace = one.split('\0').next().unwrap_or_default();
        problems.push(Problem::damage("index", namespace, &one.replace('\0', "/"), text));
    }
    Ok(())
}

fn holders(tx: &impl Query, problems: &mut Vec<Problem>) -> Result<()> {
    let leases: BTreeSet<String> = tx.scan(&LEASES, "")?.into_iter().map(|(key, _)| key).collect();
    for (held, _) in tx.scan(&RESOURCES, "")? {
        let Some((namespace, lease, _)) = parts(&held) else { continue };
        if !leases.contains(&key(&[namespace, lease])) {
            let text = "something is held for it and it is not there";
            problems.push(Problem::damage("lease", namespace, lease, text));
        }
    }
    for (place, container) in tx.scan(&CONTAINERS, "")? {
        let Some((namespace, id)) = place.split_once('\0') else { continue };
        let snapshot = [namespace, container.snapshotter.as_str(), container.snapshot_key.as_str()];
        if !container.snapshot_key.is_empty() && tx.get(&SNAPSHOTS, &key(&snapshot))?.is_none() {
            let text = format!("its snapshot {} is not there", container.snapshot_key);
            problems.push(Problem::notice("container", namespace, id, text));
        }
    }
    Ok(())
}

/// Images can be named before their content is there, and an index names platforms that nobody fetched: none of
/// this is damage.
fn content(tx: &impl Query, sources: &LayerSources, problems: &mut Vec<Problem>) -> Result<()> {
    for (place, image) in tx.scan(&IMAGES, "")? {
        let Some((namespace, name)) = place.split_once('\0') else { continue };
        if tx.get(&CONTENT, &key(&[namespace, &image.target.digest]))?.is_none() {
            let text = format!("its content {} is not there; pull it again", image.target.digest);
            problems.push(Problem::notice("image", namespace, name, text));
        }
    }
    // The blobs of layers that an external snapshotter had already were never fetched.
    let adopted: BTreeSet<(String, String)> = tx
        .scan(&SNAPSHOTS, "")?
        .iter()
        .filter(|(_, record)| !record.adopted.is_empty())
        .filter_map(|(key, _)| parts(key).map(|(namespace, _, name)| (namespace.to_owned(), name.to_owned())))
        .collect();
    let mut told = BTreeSet::new();
    for ((namespace, snapshot), source) in sources {
        if adopted.contains(&(namespace.clone(), snapshot.clone())) {
            continue;
        }
        let is_missing = tx.get(&CONTENT, &key(&[namespace, source.blob.as_str()]))?.is_none();
        if is_missing && told.insert((namespace, &source.blob)) {
            let text = format!("its blob {} is not there; a pull brings it back", source.blob);
            problems.push(Problem::notice("image", namespace, snapshot, text));
        }
    }
    Ok(())
}

/// Writes the indexes anew from the records.
fn restate(tx: &Write) -> Result<()> {
    let records: BTreeMap<String, Record> = tx.scan(&SNAPSHOTS, "")?.into_iter().collect();
    let wanted = wanted_children(&records);
    let found: BTreeSet<String> = tx.scan(&CHILDREN, "")?.into_iter().map(|(key, _)| key).collect();
    for one in found.difference(&wanted) {
        tx.remove(&CHILDREN, one)?;
    }
    for one in wanted.difference(&found) {
        tx.put(&CHILDREN, one, &Child {})?;
    }
    for (held, _) in tx.scan(&RESOURCES, "")? {
        let Some((namespace, lease, _)) = parts(&held) else { continue };
        if tx.get(&LEASES, &key(&[namespace, lease]))?.is_none() {
            tx.remove(&RESOURCES, &held)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Blob;

    #[test]
    fn a_record_of_mounts_that_cannot_be_read_is_told() {
        // The same name with records of another kind.
        static BYTES: Table<Blob> = Table::new("activations");
        let directory = tempfile::tempdir().unwrap();
        let db = Database::open(&directory.path().join("db")).unwrap();
        let (before, problems) = decode_all(&db).unwrap();
        assert!(problems.is_empty());
        db.write_now(|tx| tx.put(&ACTIVATIONS, "n\0one", &Default::default())).unwrap();
        assert_eq!(decode_all(&db).unwrap(), (before + 1, vec![]));
        db.write_now(|tx| tx.put(&BYTES, "n\0two", &Blob { value: vec![1] })).unwrap();
        let (_, problems) = decode_all(&db).unwrap();
        assert_eq!(problems.iter().map(|problem| problem.name.as_str()).collect::<Vec<_>>(), ["activations"]);
    }
}
