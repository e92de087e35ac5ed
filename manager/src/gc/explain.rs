//! Why something is kept: the shortest way to it from something that is kept for its own sake.

use std::collections::{HashMap, VecDeque};

use super::mark::{Node, Reason, Resource, Survey};
use crate::content::ingest::Ingest;

/// Beginnings of digests that are shorter name nothing.
const MIN_PREFIX: usize = 6;

/// One step on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it is: `image`, `container`, `lease`, `content`, `snapshot`, `mount`, `ingest`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Why the step before keeps it; of the first, why it is kept at all.
    pub because: String,
}

/// Why one thing is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Namespace.
    pub namespace: String,
    /// What it is.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The way to it; empty where nothing keeps it.
    pub path: Vec<Step>,
}

/// How a node was reached.
enum Reached {
    Root(usize),
    From(Node, bool, String),
}

/// Everything that is kept, and from where.
pub struct Explainer {
    survey: Survey,
    ingests: Vec<Node>,
    reached: HashMap<(Node, bool), Reached>,
}

fn kind(resource: &Resource) -> &'static str {
    match resource {
        Resource::Content(_) => "content",
        Resource::Snapshot(..) => "snapshot",
        Resource::Ingest(_) => "ingest",
        Resource::Mount(_) => "mount",
    }
}

/// The name of a resource; of a snapshot with its snapshotter.
fn name(resource: &Resource) -> String {
    match resource {
        Resource::Content(name) | Resource::Ingest(name) | Resource::Mount(name) => name.clone(),
        Resource::Snapshot(snapshotter, name) => format!("{snapshotter}/{name}"),
    }
}

impl Explainer {
    /// Goes everywhere that the roots lead, nearest first.
    pub fn new(survey: Survey, ingests: &[Ingest]) -> Explainer {
        let mut reached: HashMap<(Node, bool), Reached> = HashMap::new();
        let mut open: VecDeque<(Node, bool)> = VecDeque::new();
        for (index, root) in survey.roots.iter().enumerate() {
            let place = (root.node.clone(), root.is_deep);
            reached.entry(place.clone()).or_insert_with(|| {
                open.push_back(place);
                Reached::Root(index)
            });
        }
        while let Some((node, is_deep)) = open.pop_front() {
            let Some(references) = survey.references.get(&node) else { continue };
            let parent = references.parent.iter().map(|parent| (parent, "parent"));
            let labels = references.labels.iter().filter(|_| is_deep);
            for (resource, because) in
                parent.chain(labels.map(|(resource, label)| (resource, label.as_str())))
            {
                let place = ((node.0.clone(), resource.clone()), is_deep);
                reached.entry(place.clone()).or_insert_with(|| {
                    open.push_back(place);
                    Reached::From(node.clone(), is_deep, because.to_owned())
                });
            }
        }
        let node = |ingest: &Ingest| {
            (ingest.record.namespace.clone(), Resource::Ingest(ingest.record.reference.clone()))
        };
        Explainer { survey, ingests: ingests.iter().map(node).collect(), reached }
    }

    /// Why everything in a namespace that goes by a name is kept.
    pub fn explain(&self, namespace: &str, wanted: &str) -> Vec<Explanation> {
        let content = self
            .survey
            .content
            .iter()
            .map(|(namespace, digest)| (namespace.clone(), Resource::Content(digest.clone())));
        let snapshots = self.survey.snapshots.iter().map(|(namespace, snapshotter, name)| {
            (namespace.clone(), Resource::Snapshot(snapshotter.clone(), name.clone()))
        });
        let mounts = self
            .survey
            .mounts
            .iter()
            .map(|(namespace, name)| (namespace.clone(), Resource::Mount(name.clone())));
        let nodes = content.chain(snapshots).chain(mounts).chain(self.ingests.iter().cloned());
        nodes
            .filter(|(place, resource)| place == namespace && is_named(resource, wanted))
            .map(|node| Explanation {
                namespace: node.0.clone(),
                kind: kind(&node.1),
                name: name(&node.1),
                path: self.path(&node),
            })
            .collect()
    }

    /// What keeps a blob, in one phrase, or nothing.
    pub fn keeps_content(&self, namespace: &str, digest: &str) -> Option<String> {
        self.root_of(&(namespace.to_owned(), Resource::Content(digest.to_owned())))
    }

    /// What keeps a snapshot, in one phrase, or nothing.
    pub fn keeps_snapshot(&self, namespace: &str, snapshotter: &str, name: &str) -> Option<String> {
        self.root_of(&(namespace.to_owned(), Resource::Snapshot(snapshotter.to_owned(), name.to_owned())))
    }

    /// What keeps an unfinished write, in one phrase, or nothing.
    pub fn keeps_ingest(&self, namespace: &str, reference: &str) -> Option<String> {
        self.root_of(&(namespace.to_owned(), Resource::Ingest(reference.to_owned())))
    }

    fn root_of(&self, node: &Node) -> Option<String> {
        let first = self.path(node).into_iter().next()?;
        match first.kind {
            "image" | "container" | "lease" => Some(format!("{} {}", first.kind, first.name)),
            _ => Some(first.because),
        }
    }

    fn path(&self, node: &Node) -> Vec<Step> {
        let mut path = VecDeque::new();
        let mut at = [true, false]
            .map(|is_deep| (node.clone(), is_deep))
            .into_iter()
            .find(|place| self.reached.contains_key(place));
        while let Some(place) = at {
            let resource = &place.0.1;
            let (because, next) = match self.reached.get(&place) {
                Some(Reached::From(from, is_deep, because)) => {
                    (because.clone(), Some((from.clone(), *is_deep)))
                }
                Some(Reached::Root(index)) => {
                    let (because, holder) = root_step(&self.survey.roots[*index].reason);
                    path.push_front(Step { kind: kind(resource), name: name(resource), because });
                    if let Some(holder) = holder {
                        path.push_front(holder);
                    }
                    break;
                }
                None => break,
            };
            path.push_front(Step { kind: kind(resource), name: name(resource), because });
            at = next;
        }
        path.into()
    }
}

/// Why a root is kept, and what keeps it, unless it keeps itself.
fn root_step(reason: &Reason) -> (String, Option<Step>) {
    let step = |kind, name: &String, because: &str| {
        Some(Step { kind, name: name.clone(), because: because.to_owned() })
    };
    match reason {
        Reason::Label => ("label containerd.io/gc.root".to_owned(), None),
        Reason::Recent => ("recently written".to_owned(), None),
        Reason::Image(name, how) => (how.clone(), step("image", name, "images are kept")),
        Reason::Container(name, how) => (how.clone(), step("container", name, "containers are kept")),
        Reason::Lease(name) => ("held".to_owned(), step("lease", name, "it has not expired")),
    }
}

/// Whether a resource goes by a name: its own, that without the snapshotter, or the beginning of a digest.
fn is_named(resource: &Resource, wanted: &str) -> bool {
    let begins = |name: &str| {
        wanted.len() >= MIN_PREFIX
            && (name.starts_with(wanted)
                || name.split_once(':').is_some_and(|(_, hex)| hex.starts_with(wanted)))
            && name.contains(':')
    };
    match resource {
        Resource::Content(digest) => digest == wanted || begins(digest),
        Resource::Snapshot(snapshotter, name) => {
            name == wanted || format!("{snapshotter}/{name}") == wanted || begins(name)
        }
        Resource::Ingest(name) | Resource::Mount(name) => name == wanted,
    }
}
