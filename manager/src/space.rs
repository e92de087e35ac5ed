//! What every byte below the root directory is for.
//!
//! Counts as du(1) does: blocks on the disk, a file with several names once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use orlop_proto::error::{Context, Result};

use crate::content::ContentStore;
use crate::content::digest::Digest;
use crate::content::health::places;
use crate::db::{Database, Query};
use crate::gc::explain::Explainer;
use crate::snapshot::{SNAPSHOTS, Snapshots};
use crate::task::TASKS as WORK;

/// Bytes per block in stat(2).
const BLOCK: u64 = 512;

/// What bytes are for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// `content`, `ingest`, `snapshot`, `task`, `docker`, `database`, `removed` (being deleted), `directories` or `other`.
    pub kind: &'static str,
    /// Digest, reference, snapshotter and name, or path.
    pub name: String,
    /// The namespaces that have it.
    pub namespaces: Vec<String>,
    /// What keeps it, or nothing.
    pub kept_by: Option<String>,
}

impl Owner {
    fn plain(kind: &'static str, name: impl Into<String>) -> Owner {
        Owner { kind, name: name.into(), namespaces: Vec::new(), kept_by: None }
    }
}

/// What somebody takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Number of inodes.
    pub inodes: u64,
}

/// Where the stores keep things, by path below the root.
struct Map {
    root: PathBuf,
    /// Snapshotters by their directory.
    snapshotters: HashMap<PathBuf, String>,
    layers: HashMap<(String, u64), Owner>,
    blobs: HashMap<Digest, Owner>,
    ingests: HashMap<String, Owner>,
}

/// Attributes everything below the root. Blocks for as long as reading all directories takes.
pub fn usage(
    root: &Path,
    db: &Database,
    content: &ContentStore,
    snapshots: &Snapshots,
    explainer: &Explainer,
) -> Result<BTreeMap<Owner, Taken>> {
    let map = Map::new(root, db, content, snapshots, explainer)?;
    let mut taken: BTreeMap<Owner, Taken> = BTreeMap::new();
    let mut seen = HashSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let found = match fs::symlink_metadata(&path) {
            // It went while the directories were read.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            found => found.context("inspect", path.display().to_string())?,
        };
        if found.nlink() > 1 && !found.is_dir() && !seen.insert((found.dev(), found.ino())) {
            continue;
        }
        let own = taken.entry(map.owner(&path)).or_default();
        own.bytes += found.blocks() * BLOCK;
        own.inodes += 1;
        if found.is_dir() {
            match fs::read_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                entries => {
                    for entry in entries.context("read", path.display().to_string())? {
                        open.push(entry.context("read", path.display().to_string())?.path());
                    }
                }
            }
        }
    }
    Ok(taken)
}

impl Map {
    fn new(
        root: &Path,
        db: &Database,
        content: &ContentStore,
        snapshots: &Snapshots,
        explainer: &Explainer,
    ) -> Result<Map> {
        let mut map = Map {
            root: root.to_owned(),
            snapshotters: HashMap::new(),
            layers: HashMap::new(),
            blobs: HashMap::new(),
            ingests: HashMap::new(),
        };
        for snapshotter in snapshots.snapshotters() {
            map.snapshotters.insert(snapshotter.root().to_owned(), snapshotter.name().to_owned());
        }
        for (key, record) in db.read_now(|tx| tx.scan(&SNAPSHOTS, ""))? {
            let mut parts = key.splitn(3, '\0');
            let (Some(namespace), Some(snapshotter), Some(name)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let owner = Owner {
                kind: "snapshot",
                name: format!("{snapshotter}/{name}"),
                namespaces: vec![namespace.to_owned()],
                kept_by: explainer.keeps_snapshot(namespace, snapshotter, name),
            };
            map.layers.insert((snapshotter.to_owned(), record.layer), owner);
        }
        for (digest, places) in places(db)? {
            let namespaces: Vec<String> = places.into_iter().map(|(namespace, _)| namespace).collect();
            let keeps = |namespace: &String| explainer.keeps_content(namespace, digest.as_str());
            let kept_by = namespaces.iter().find_map(keeps);
            let owner = Owner { kind: "content", name: digest.to_string(), namespaces, kept_by };
            map.blobs.insert(digest, owner);
        }
        for ingest in content.ingests().all()? {
            let record = ingest.record;
            let namespace = crate::request::Namespace::new(record.namespace.as_str())?;
            let path = content.ingests().path(&namespace, &record.reference);
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let kept_by = explainer.keeps_ingest(&record.namespace, &record.reference);
            let namespaces = vec![record.namespace];
            map.ingests.insert(name, Owner { kind: "ingest", name: record.reference, namespaces, kept_by });
        }
        Ok(map)
    }

    fn owner(&self, path: &Path) -> Owner {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        let parts: Vec<&str> = below
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => name.to_str(),
                _ => None,
            })
            .collect();
        let directories = || Owner::plain("directories", "of orlopd itself");
        let removed = |what: &str| Owner::plain("removed", format!("{what} being deleted"));
        match parts.as_slice() {
            [] => directories(),
            ["lock" | "meta.redb" | "meta.reserve"] => Owner::plain("database", "metadata"),
            [name] if name.starts_with("meta.schema-") => {
                Owner::plain("database", "as an older version left it")
            }
            ["content"] | ["content", "blobs" | "ingest"] | ["content", "blobs", _] => directories(),
            ["content", "blobs", "trash", ..] => removed("content"),
            ["content", "blobs", algorithm, hex] => Digest::parse(&format!("{algorithm}:{hex}"))
                .ok()
                .and_then(|digest| self.blobs.get(&digest).cloned())
                .unwrap_or_else(|| self.other(below)),
            ["content", "ingest", name, ..] => {
                self.ingests.get(*name).cloned().unwrap_or_else(|| self.other(below))
            }
            ["docker", ..] => Owner::plain("docker", "the Docker API's own"),
            [WORK] | [WORK, _] => directories(),
            [WORK, namespace, id, ..] => Owner {
                namespaces: vec![(*namespace).to_owned()],
                kept_by: Some(format!("container {id}")),
                ..Owner::plain("task", *id)
            },
            _ => self.layer(path).unwrap_or_else(|| self.other(below)),
        }
    }

    /// The owner of what lies in a snapshotter's directory.
    fn layer(&self, path: &Path) -> Option<Owner> {
        let (directory, snapshotter) =
            self.snapshotters.iter().find(|(directory, _)| path.starts_with(directory))?;
        let mut parts = path.strip_prefix(directory).ok()?.components();
        let Some(first) = parts.next() else {
            return Some(Owner::plain("directories", "of orlopd itself"));
        };
        match first.as_os_str().to_str()? {
            "trash" if parts.next().is_none() => Some(Owner::plain("directories", "of orlopd itself")),
            "trash" => Some(Owner::plain("removed", format!("layers of {snapshotter} being deleted"))),
            number => self.layers.get(&(snapshotter.clone(), number.parse().ok()?)).cloned(),
        }
    }

    /// What nobody knows, by the topmost name.
    fn other(&self, below: &Path) -> Owner {
        let top: PathBuf =
            below.components().take(if below.starts_with("content") { 4 } else { 2 }).collect();
        Owner::plain("other", top.display().to_string())
    }
}
