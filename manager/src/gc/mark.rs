//! The graph of everything that could be collected, and what of it the roots reach. Pure once the records are
//! read.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use orlop_proto::error::Result;
use prost_types::Timestamp;

use super::is_stale;
use crate::content::CONTENT;
use crate::content::ingest::Ingest;
use crate::db::Query;
use crate::labels::Labels;
use crate::mount::ACTIVATIONS;
use crate::snapshot::SNAPSHOTS;
use crate::store::containers::CONTAINERS;
use crate::store::images::IMAGES;
use crate::store::leases::{self, EXPIRE_LABEL, FLAT_LABEL, LEASES, RESOURCES};

/// Label that makes content or a snapshot a root.
const ROOT_LABEL: &str = "containerd.io/gc.root";
/// Label, or prefix of labels, whose value is the digest of content that is needed.
const CONTENT_LABEL: &str = "containerd.io/gc.ref.content";
/// Prefix of labels, followed by a snapshotter, whose value is the name of a snapshot that is needed.
const SNAPSHOT_LABEL: &str = "containerd.io/gc.ref.snapshot.";

/// Label, or prefix of labels, whose value is the name of a mount that is needed.
const MOUNT_LABEL: &str = "containerd.io/gc.ref.mount";
/// Labels of a mount, or prefixes of them, whose value names what keeps it.
const BACK_LABEL: &str = "containerd.io/gc.bref.";

/// Something that can be collected, within a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Resource {
    Content(String),
    Snapshot(String, String),
    Ingest(String),
    Mount(String),
}

pub(super) type Node = (String, Resource);

/// What a node needs.
#[derive(Default)]
pub(super) struct References {
    /// The snapshot below.
    pub parent: Option<Resource>,
    /// What labels name, each with its label.
    pub labels: Vec<(Resource, String)>,
}

/// Why something is kept for its own sake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// An image of that name, by its target or a label.
    Image(String, String),
    /// A container of that name, by its snapshot or a label.
    Container(String, String),
    /// A lease.
    Lease(String),
    /// Its own label.
    Label,
    /// A write that has not been idle for long, or a mount that is being made.
    Recent,
}

/// Something that is kept for its own sake.
pub(super) struct Root {
    pub node: Node,
    /// Whether all that it refers to is kept too, and not its parents alone.
    pub is_deep: bool,
    pub reason: Reason,
}

/// Everything that the records say, at one moment.
#[derive(Default)]
pub struct Survey {
    /// Blobs: namespace and digest.
    pub content: Vec<(String, String)>,
    /// Snapshots: namespace, snapshotter and name.
    pub snapshots: Vec<(String, String, String)>,
    /// Mounts made for clients: namespace and name.
    pub mounts: Vec<(String, String)>,
    /// Leases whose time is over: namespace and name.
    pub expired_leases: Vec<(String, String)>,
    /// When the next lease or unfinished write expires.
    pub expiry: Option<SystemTime>,
    pub(super) roots: Vec<Root>,
    pub(super) references: HashMap<Node, References>,
}

/// What is kept.
pub struct Marked(HashSet<Node>);

impl Marked {
    /// Whether a blob is kept.
    pub fn keeps_content(&self, namespace: &str, digest: &str) -> bool {
        self.0.contains(&(namespace.to_owned(), Resource::Content(digest.to_owned())))
    }

    /// Whether a snapshot is kept.
    pub fn keeps_snapshot(&self, namespace: &str, snapshotter: &str, name: &str) -> bool {
        self.0.contains(&(namespace.to_owned(), Resource::Snapshot(snapshotter.to_owned(), name.to_owned())))
    }

    /// Whether a mount is kept.
    pub fn keeps_mount(&self, namespace: &str, name: &str) -> bool {
        self.0.contains(&(namespace.to_owned(), Resource::Mount(name.to_owned())))
    }

    /// Whether an unfinished write is kept.
    pub fn keeps_ingest(&self, ingest: &Ingest) -> bool {
        let record = &ingest.record;
        self.0.contains(&(record.namespace.clone(), Resource::Ingest(record.reference.clone())))
    }
}

impl Survey {
    /// Reads the records. Unfinished writes that no lease knows are kept until they were idle for `age`.
    pub fn take(tx: &impl Query, ingests: &[Ingest], age: Duration) -> Result<Survey> {
        let mut survey = Survey::default();
        let live = survey.leases(tx)?;
        survey.held(tx, &live)?;
        survey.names(tx)?;
        survey.contents(tx)?;
        survey.layers(tx)?;
        for ingest in ingests {
            survey.ingest(ingest, &live, age);
        }
        survey.activations(tx, &live)?;
        Ok(survey)
    }

    /// Finds the expired leases; returns the others, each with whether it keeps all that it refers to.
    fn leases(&mut self, tx: &impl Query) -> Result<HashMap<(String, String), bool>> {
        let mut live = HashMap::new();
        for (key, lease) in tx.scan(&LEASES, "")? {
            let Some((namespace, id)) = split(&key) else { continue };
            match expiry(&lease.labels) {
                Some(expiry) if expiry <= SystemTime::now() => self.expired_leases.push((namespace, id)),
                expiry => {
                    self.note_expiry(expiry);
                    live.insert((namespace, id), !lease.labels.contains_key(FLAT_LABEL));
                }
            }
        }
        Ok(live)
    }

    /// What living leases hold is a root.
    fn held(&mut self, tx: &impl Query, live: &HashMap<(String, String), bool>) -> Result<()> {
        for (key, _) in tx.scan(&RESOURCES, "")? {
            let mut parts = key.splitn(3, '\0');
            let (Some(namespace), Some(lease), Some(rest)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let Some(deep) = live.get(&(namespace.to_owned(), lease.to_owned())) else { continue };
            let Some(held) = leases::parse_held(rest) else { continue };
            let resource = match held.kind.split_once('/') {
                Some((leases::SNAPSHOTS, snapshotter)) => Resource::Snapshot(snapshotter.to_owned(), held.id),
                _ if held.kind == leases::INGESTS => Resource::Ingest(held.id),
                _ => Resource::Content(held.id),
            };
            let (node, reason) = ((namespace.to_owned(), resource), Reason::Lease(lease.to_owned()));
            self.roots.push(Root { node, is_deep: *deep, reason });
        }
        Ok(())
    }

    /// Images and containers are roots.
    fn names(&mut self, tx: &impl Query) -> Result<()> {
        for (key, image) in tx.scan(&IMAGES, "")? {
            let Some((namespace, name)) = split(&key) else { continue };
            let by = |how: &str| Reason::Image(name.clone(), how.to_owned());
            self.root(&namespace, Resource::Content(image.target.digest), by("target"));
            for (resource, label) in label_references(&image.labels) {
                self.root(&namespace, resource, by(&format!("label {label}")));
            }
        }
        for (key, container) in tx.scan(&CONTAINERS, "")? {
            let Some((namespace, id)) = split(&key) else { continue };
            let by = |how: &str| Reason::Container(id.clone(), how.to_owned());
            if !container.snapshotter.is_empty() {
                let snapshot = Resource::Snapshot(container.snapshotter, container.snapshot_key);
                self.root(&namespace, snapshot, by("root file system"));
            }
            for (resource, label) in label_references(&container.labels) {
                self.root(&namespace, resource, by(&format!("label {label}")));
            }
        }
        Ok(())
    }

    fn contents(&mut self, tx: &impl Query) -> Result<()> {
        for (key, record) in tx.scan(&CONTENT, "")? {
            let Some((namespace, digest)) = split(&key) else { continue };
            let node = (namespace.clone(), Resource::Content(digest.clone()));
            self.node(node, None, &record.labels);
            self.content.push((namespace, digest));
        }
        Ok(())
    }

    fn layers(&mut self, tx: &impl Query) -> Result<()> {
        for (key, record) in tx.scan(&SNAPSHOTS, "")? {
            let mut parts = key.splitn(3, '\0').map(str::to_owned);
            let (Some(namespace), Some(snapshotter), Some(name)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let parent = (!record.parent.is_empty())
                .then(|| Resource::Snapshot(snapshotter.clone(), record.parent.clone()));
            let node = (namespace.clone(), Resource::Snapshot(snapshotter.clone(), name.clone()));
            self.node(node, parent, &record.labels);
            self.snapshots.push((namespace, snapshotter, name));
        }
        Ok(())
    }

    /// A write is kept by its lease, or while it is young; it keeps the blob that it expects.
    fn ingest(&mut self, ingest: &Ingest, live: &HashMap<(String, String), bool>, age: Duration) {
        let record = &ingest.record;
        let node = (record.namespace.clone(), Resource::Ingest(record.reference.clone()));
        if record.lease.is_empty() {
            if !is_stale(ingest, age) {
                self.note_expiry(ingest.updated.checked_add(age));
                self.roots.push(Root { node: node.clone(), is_deep: true, reason: Reason::Recent });
            }
        } else if live.contains_key(&(record.namespace.clone(), record.lease.clone())) {
            let reason = Reason::Lease(record.lease.clone());
            self.roots.push(Root { node: node.clone(), is_deep: true, reason });
        }
        if !record.expected.is_empty() {
            let labels = vec![(Resource::Content(record.expected.clone()), "expected digest".to_owned())];
            self.references.insert(node, References { parent: None, labels });
        }
    }

    /// A mount is kept by its lease, and by whatever its labels name: it refers back.
    fn activations(&mut self, tx: &impl Query, live: &HashMap<(String, String), bool>) -> Result<()> {
        for (key, record) in tx.scan(&ACTIVATIONS, "")? {
            let Some((namespace, name)) = split(&key) else { continue };
            let resource = Resource::Mount(name.clone());
            if !record.is_complete {
                self.root(&namespace, resource.clone(), Reason::Recent);
            }
            if live.contains_key(&(namespace.clone(), record.lease.clone())) {
                self.root(&namespace, resource.clone(), Reason::Lease(record.lease));
            }
            for (label, value) in &record.labels {
                let Some(by) = back_reference(label, value) else { continue };
                let how = format!("label {label} of mount {name}");
                let own = crate::db::key(&[&namespace, value]);
                match by {
                    Back::Container if tx.get(&CONTAINERS, &own)?.is_some() => {
                        self.root(&namespace, resource.clone(), Reason::Container(value.clone(), how));
                    }
                    Back::Image if tx.get(&IMAGES, &own)?.is_some() => {
                        self.root(&namespace, resource.clone(), Reason::Image(value.clone(), how));
                    }
                    Back::Container | Back::Image => {}
                    Back::Resource(by) => {
                        let references = self.references.entry((namespace.clone(), by)).or_default();
                        references.labels.push((resource.clone(), how));
                    }
                }
            }
            self.mounts.push((namespace, name));
        }
        Ok(())
    }

    /// Notes what a node needs, and that it is a root if its label says so.
    fn node(&mut self, node: Node, parent: Option<Resource>, labels: &Labels) {
        if labels.contains_key(ROOT_LABEL) {
            self.roots.push(Root { node: node.clone(), is_deep: true, reason: Reason::Label });
        }
        let named = |(resource, label)| (resource, format!("label {label}"));
        let labels: Vec<_> = label_references(labels).into_iter().map(named).collect();
        if parent.is_some() || !labels.is_empty() {
            self.references.insert(node, References { parent, labels });
        }
    }

    fn root(&mut self, namespace: &str, resource: Resource, reason: Reason) {
        self.roots.push(Root { node: (namespace.to_owned(), resource), is_deep: true, reason });
    }

    fn note_expiry(&mut self, expiry: Option<SystemTime>) {
        self.expiry = match (self.expiry, expiry) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// What the roots reach. A flat root reaches the parents of its snapshot and nothing else.
    pub fn mark(&self) -> Marked {
        let mut deep: HashSet<Node> = HashSet::new();
        let mut flat: HashSet<Node> = HashSet::new();
        let mut open: Vec<(Node, bool)> =
            self.roots.iter().map(|root| (root.node.clone(), root.is_deep)).collect();
        while let Some((node, is_deep)) = open.pop() {
            if deep.contains(&node) || (!is_deep && flat.contains(&node)) {
                continue;
            }
            if let Some(references) = self.references.get(&node) {
                let labels = references.labels.iter().filter(|_| is_deep).map(|(resource, _)| resource);
                for resource in references.parent.iter().chain(labels) {
                    open.push(((node.0.clone(), resource.clone()), is_deep));
                }
            }
            if is_deep {
                deep.insert(node)
            } else {
                flat.insert(node)
            };
        }
        deep.extend(flat);
        Marked(deep)
    }

    /// Whether there is no record to remove.
    pub fn is_clean(&self, marked: &Marked) -> bool {
        self.expired_leases.is_empty()
            && self.content.iter().all(|(namespace, digest)| marked.keeps_content(namespace, digest))
            && self
                .snapshots
                .iter()
                .all(|(namespace, snapshotter, name)| marked.keeps_snapshot(namespace, snapshotter, name))
            && self.mounts.iter().all(|(namespace, name)| marked.keeps_mount(namespace, name))
    }
}

fn split(key: &str) -> Option<(String, String)> {
    key.split_once('\0').map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
}

/// When a lease ends; one whose label is no time never does.
fn expiry(labels: &Labels) -> Option<SystemTime> {
    let time: Timestamp = labels.get(EXPIRE_LABEL)?.parse().ok()?;
    SystemTime::try_from(time).ok()
}

/// What keeps a mount by one of the mount's labels.
enum Back {
    Container,
    Image,
    Resource(Resource),
}

fn back_reference(label: &str, value: &str) -> Option<Back> {
    let rest = label.strip_prefix(BACK_LABEL)?;
    let (kind, after) = rest.split_once(['.', '/']).unwrap_or((rest, ""));
    Some(match kind {
        "container" => Back::Container,
        "image" => Back::Image,
        "content" => Back::Resource(Resource::Content(value.to_owned())),
        "snapshot" => {
            let snapshotter = after.split('/').next().unwrap_or(after);
            Back::Resource(Resource::Snapshot(snapshotter.to_owned(), value.to_owned()))
        }
        _ => return None,
    })
}

/// What labels refer to, each with its label.
pub(super) fn label_references(labels: &Labels) -> Vec<(Resource, String)> {
    let reference = |(key, value): (&String, &String)| {
        if let Some(rest) = key.strip_prefix(SNAPSHOT_LABEL) {
            let snapshotter = rest.split('/').next().unwrap_or(rest);
            return Some((Resource::Snapshot(snapshotter.to_owned(), value.clone()), key.clone()));
        }
        let is_reference = |rest: &str| rest.is_empty() || rest.starts_with(['.', '/']);
        if key.strip_prefix(MOUNT_LABEL).is_some_and(is_reference) {
            return Some((Resource::Mount(value.clone()), key.clone()));
        }
        let is_content = key.strip_prefix(CONTENT_LABEL).is_some_and(is_reference);
        is_content.then(|| (Resource::Content(value.clone()), key.clone()))
    };
    labels.iter().filter_map(reference).collect()
}
