//! Snapshotters that run as programs of their own, reached by containerd's proxy plugin protocol: the snapshots service on
//! a unix socket.
//!
//! Names, parents and labels stay here; the program knows a layer by its number. What it keeps is marked as a root, so
//! that one which collects garbage itself, as containerd does, leaves it alone. A remote snapshotter may have a layer when it
//! is asked to prepare it; that one keeps the name that it has over there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use orlop_proto::containerd::services::snapshots::v1 as api;
use orlop_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tokio::runtime::Handle;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::TARGET_LABEL;
use super::snapshotter::{Layer, LayerMounts, SnapshotKind, Snapshotter, Usage};
use crate::api::convert::decode_mounts;
use crate::config::ProxyPlugin;
use crate::external;
use crate::labels::Labels;
use crate::request::NAMESPACE_HEADER;

/// The namespace of everything that we ask for.
const NAMESPACE: &str = "orlopd";
/// What the names of our layers begin with.
const PREFIX: &str = "orlopd/";
/// What the name of a layer ends with until it is committed.
const ACTIVE: &str = "/active";
/// Label that keeps a snapshot from a collection on the other side.
const ROOT_LABEL: &str = "containerd.io/gc.root";
/// Prefix of the labels that snapshotters look at; others are ours alone.
const INHERITED: &str = "containerd.io/snapshot";

/// A snapshotter behind a socket.
pub struct Proxy {
    name: String,
    plugin: ProxyPlugin,
    /// Its name over there.
    theirs: String,
    channel: Channel,
    /// Layers to be removed, which is possible only once those above are gone.
    discarded: Mutex<BTreeSet<u64>>,
    /// Layers that were there before we asked for them, with their names.
    adopted: Mutex<BTreeMap<u64, String>>,
}

impl Proxy {
    /// A snapshotter of a name; the program is reached when it is first needed, and again whenever it comes back.
    ///
    /// # Errors
    ///
    /// For an address that is none.
    pub fn new(name: &str, plugin: &ProxyPlugin) -> Result<Proxy> {
        Ok(Proxy {
            name: name.to_owned(),
            theirs: plugin.snapshotter.clone().unwrap_or_else(|| name.to_owned()),
            plugin: plugin.clone(),
            channel: external::channel(name, plugin)?,
            discarded: Mutex::default(),
            adopted: Mutex::default(),
        })
    }

    /// Waits for an answer on a thread that may block.
    fn call<T>(&self, work: impl AsyncFnOnce(SnapshotsClient<Channel>) -> Result<T, Status>) -> Result<T> {
        let client = SnapshotsClient::new(self.channel.clone());
        let answer = tokio::task::block_in_place(|| Handle::current().block_on(work(client)));
        answer.map_err(|status| {
            let error = Error::from(status);
            Error::because(error.kind(), "snapshotter", self.name.as_str(), error)
        })
    }

    fn message<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert(NAMESPACE_HEADER, tonic::metadata::MetadataValue::from_static(NAMESPACE));
        request
    }

    fn adopted(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, id: u64, kind: SnapshotKind) -> String {
        if let Some(name) = self.adopted().get(&id) {
            return name.clone();
        }
        match kind {
            SnapshotKind::Committed => format!("{PREFIX}{id}"),
            SnapshotKind::Active | SnapshotKind::View => format!("{PREFIX}{id}{ACTIVE}"),
        }
    }

    fn usage_of(&self, key: String) -> Result<Usage> {
        let request = self.message(api::UsageRequest { snapshotter: self.theirs.clone(), key });
        let usage = self.call(async |mut client| client.usage(request).await)?.into_inner();
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Usage { size: count(usage.size), inodes: count(usage.inodes) })
    }

    /// Removes a layer under either of its names; says whether it is gone.
    fn remove(&self, id: u64) -> Result<bool> {
        {
            let mut adopted = self.adopted();
            let is_shared = adopted
                .get(&id)
                .is_some_and(|name| adopted.iter().any(|(other, theirs)| *other != id && theirs == name));
            if is_shared {
                adopted.remove(&id);
                return Ok(true);
            }
        }
        for kind in [SnapshotKind::Active, SnapshotKind::Committed] {
            let (snapshotter, key) = (self.theirs.clone(), self.key(id, kind));
            let request = self.message(api::RemoveSnapshotRequest { snapshotter, key });
            match self.call(async |mut client| client.remove(request).await) {
                Err(error) if error.kind() == Kind::NotFound => {}
                // There are layers above.
                Err(error) if error.kind() == Kind::FailedPrecondition => return Ok(false),
                result => drop(result?),
            }
        }
        self.adopted().remove(&id);
        Ok(true)
    }
}

/// What the program is told of a snapshot's labels.
fn told(labels: &Labels) -> std::collections::HashMap<String, String> {
    let inherited = labels.iter().filter(|(key, _)| key.starts_with(INHERITED));
    let inherited = inherited.map(|(key, value)| (key.clone(), value.clone()));
    inherited.chain([(ROOT_LABEL.to_owned(), "orlopd".to_owned())]).collect()
}

impl Snapshotter for Proxy {
    fn name(&self) -> &str {
        &self.name
    }

    fn root(&self) -> &Path {
        // Nothing of it lies below our own root, whatever the program says of its own.
        &self.plugin.address
    }

    fn exports(&self) -> Vec<(String, String)> {
        let own = self.plugin.exports.iter().map(|(key, value)| (key.clone(), value.clone()));
        own.chain([("address".to_owned(), self.plugin.address.display().to_string())]).collect()
    }

    fn capabilities(&self) -> Vec<String> {
        self.plugin.capabilities.clone()
    }

    fn create(&self, layer: &Layer) -> Result<()> {
        let (snapshotter, key) = (self.theirs.clone(), self.key(layer.id, layer.kind));
        let parent = layer.parents.first();
        let parent = parent.map(|id| self.key(*id, SnapshotKind::Committed)).unwrap_or_default();
        let labels = told(&layer.labels);
        match layer.kind {
            SnapshotKind::View => {
                let request = self.message(api::ViewSnapshotRequest { snapshotter, key, parent, labels });
                self.call(async |mut client| client.view(request).await).map(drop)
            }
            SnapshotKind::Active | SnapshotKind::Committed => {
                let request = self.message(api::PrepareSnapshotRequest { snapshotter, key, parent, labels });
                self.call(async |mut client| client.prepare(request).await).map(drop)
            }
        }
    }

    fn mounts(&self, layer: &Layer) -> Result<LayerMounts> {
        let (snapshotter, key) = (self.theirs.clone(), self.key(layer.id, layer.kind));
        let request = self.message(api::MountsRequest { snapshotter, key });
        let answer = self.call(async |mut client| client.mounts(request).await)?;
        Ok(LayerMounts::from(decode_mounts(answer.into_inner().mounts)))
    }

    fn usage(&self, id: u64) -> Result<Usage> {
        self.usage_of(self.key(id, SnapshotKind::Active))
    }

    fn commit(&self, id: u64) -> Result<Usage> {
        let (key, name) = (self.key(id, SnapshotKind::Active), self.key(id, SnapshotKind::Committed));
        let labels = told(&Labels::new());
        let snapshotter = self.theirs.clone();
        let request =
            self.message(api::CommitSnapshotRequest { snapshotter, name: name.clone(), key, labels });
        match self.call(async |mut client| client.commit(request).await) {
            // A kill may have come between the program's commit and our record of it.
            Err(error) if error.kind() == Kind::AlreadyExists => {}
            result => drop(result?),
        }
        self.usage_of(name)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn find(&self, target: &str, parents: &[u64]) -> Result<Option<String>> {
        let parent = parents.first().map(|id| self.key(*id, SnapshotKind::Committed)).unwrap_or_default();
        let filters = vec![format!("labels.{TARGET_LABEL:?}=={target:?},parent=={parent:?}")];
        let request = self.message(api::ListSnapshotsRequest { snapshotter: self.theirs.clone(), filters });
        self.call(async |mut client| {
            let mut answers = client.list(request).await?.into_inner();
            while let Some(answer) = answers.next().await {
                // A program may not know filters.
                let is_it = |info: &api::Info| {
                    info.kind() == api::Kind::Committed
                        && info.parent == parent
                        && info.labels.get(TARGET_LABEL).is_some_and(|label| label == target)
                };
                if let Some(info) = answer?.info.into_iter().find(is_it) {
                    return Ok(Some(info.name));
                }
            }
            Ok(None)
        })
    }

    fn adopt(&self, id: u64, name: &str) {
        self.adopted().insert(id, name.to_owned());
    }

    fn discard(&self, id: u64) -> Result<()> {
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        Ok(())
    }

    fn clean(&self) -> Result<()> {
        let mut pending = std::mem::take(&mut *self.discarded.lock().unwrap_or_else(PoisonError::into_inner));
        let mut result = Ok(());
        loop {
            let before = pending.len();
            // From the top: a layer's number is higher than those of the layers below.
            for id in pending.clone().into_iter().rev() {
                match self.remove(id) {
                    Ok(true) => drop(pending.remove(&id)),
                    Ok(false) => {}
                    Err(error) => result = result.and(Err(error)),
                }
            }
            if pending.is_empty() || pending.len() == before {
                break;
            }
        }
        // What could not be removed is tried again the next time.
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner).extend(pending);
        result
    }

    fn layers(&self) -> Result<Vec<u64>> {
        let request =
            self.message(api::ListSnapshotsRequest { snapshotter: self.theirs.clone(), filters: Vec::new() });
        let listed = self.call(async |mut client| {
            let mut answers = client.list(request).await?.into_inner();
            let mut layers = BTreeSet::new();
            while let Some(answer) = answers.next().await {
                let names = answer?.info.into_iter().map(|info| info.name);
                layers.extend(names.filter_map(|name| number(&name)));
            }
            Ok(layers.into_iter().collect())
        });
        match listed {
            // The program may start after us; what it keeps for nothing is found the next time.
            Err(error) if error.kind() == Kind::Unavailable => {
                tracing::warn!("{error}");
                Ok(Vec::new())
            }
            listed => listed,
        }
    }
}

/// The number of one of our layers.
fn number(name: &str) -> Option<u64> {
    let name = name.strip_prefix(PREFIX)?;
    name.strip_suffix(ACTIVE).unwrap_or(name).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_numbers() {
        assert_eq!(number("orlopd/7"), Some(7));
        assert_eq!(number("orlopd/7/active"), Some(7));
        for other in ["7", "default/7", "orlopd/x", "orlopd/7/other"] {
            assert_eq!(number(other), None);
        }
    }

    #[test]
    fn the_program_sees_its_labels_alone() {
        let labels = ["containerd.io/snapshot/uidmapping", "containerd.io/snapshot.ref", "mine"];
        let labels = labels.map(|key| (key.to_owned(), "v".to_owned())).into();
        let told = told(&labels);
        assert_eq!(told.len(), 3);
        assert!(told.contains_key(ROOT_LABEL) && !told.contains_key("mine"));
    }
}
