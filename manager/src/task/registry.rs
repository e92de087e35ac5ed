//! Which tasks there are. The lock is held for look-ups only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tokio::sync::watch;

use super::{Task, no_task};
use crate::request::Namespace;

/// All tasks, by namespace and name. Clones share them.
#[derive(Clone, Default)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    slots: Mutex<BTreeMap<String, BTreeMap<String, Slot>>>,
    /// Told whenever a recovery has come to a result.
    settled: watch::Sender<()>,
}

enum Slot {
    /// Being brought up or down: the name is taken, there is no task.
    Reserved,
    /// Found at start, not reached yet.
    Recovering,
    Ready(Arc<Task>),
}

/// A name that nobody else can take. Dropped, it is free again, unless it became a task.
pub struct Reservation {
    registry: Registry,
    namespace: Namespace,
    id: String,
}

impl Registry {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, BTreeMap<String, Slot>>> {
        self.shared.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many names are taken, in all namespaces.
    pub fn count(&self) -> usize {
        self.slots().values().map(BTreeMap::len).sum()
    }

    /// Takes a name for a task to be made.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` in containerd's words.
    pub fn reserve(&self, namespace: &Namespace, id: &str) -> Result<Reservation> {
        self.take(namespace, id, Slot::Reserved)
    }

    /// Takes the name of a task found at start; who asks for it waits.
    pub fn recover(&self, namespace: &Namespace, id: &str) -> Result<Reservation> {
        self.take(namespace, id, Slot::Recovering)
    }

    fn take(&self, namespace: &Namespace, id: &str, slot: Slot) -> Result<Reservation> {
        let mut slots = self.slots();
        let own = slots.entry(namespace.as_str().to_owned()).or_default();
        if own.contains_key(id) {
            return Err(Error::new(Kind::AlreadyExists, format!("task {id}"), ""));
        }
        own.insert(id.to_owned(), slot);
        let (namespace, id) = (namespace.clone(), id.to_owned());
        Ok(Reservation { registry: self.clone(), namespace, id })
    }

    /// Takes a task out of reach while it is brought down; its name stays taken.
    pub fn withdraw(&self, namespace: &Namespace, id: &str) -> Reservation {
        if let Some(slot) = self.slots().get_mut(namespace.as_str()).and_then(|own| own.get_mut(id)) {
            *slot = Slot::Reserved;
        }
        Reservation { registry: self.clone(), namespace: namespace.clone(), id: id.to_owned() }
    }

    /// The task of a name, waiting for its recovery if need be.
    ///
    /// # Errors
    ///
    /// `NotFound` in containerd's words.
    pub async fn get(&self, namespace: &Namespace, id: &str) -> Result<Arc<Task>> {
        let mut settled = self.shared.settled.subscribe();
        loop {
            settled.mark_unchanged();
            match self.slots().get(namespace.as_str()).and_then(|own| own.get(id)) {
                Some(Slot::Ready(task)) => return Ok(task.clone()),
                Some(Slot::Recovering) => {}
                Some(Slot::Reserved) | None => return Err(no_task(id)),
            }
            // The sender lives as long as the registry.
            let _ = settled.changed().await;
        }
    }

    /// The task of a name if it can be had now.
    pub fn peek(&self, namespace: &str, id: &str) -> Option<Arc<Task>> {
        match self.slots().get(namespace)?.get(id)? {
            Slot::Ready(task) => Some(task.clone()),
            Slot::Reserved | Slot::Recovering => None,
        }
    }

    /// A namespace's tasks by name, after their recovery.
    pub async fn list(&self, namespace: &Namespace) -> Vec<Arc<Task>> {
        let mut settled = self.shared.settled.subscribe();
        loop {
            settled.mark_unchanged();
            if let Some(tasks) = self.list_now(namespace) {
                return tasks;
            }
            // The sender lives as long as the registry.
            let _ = settled.changed().await;
        }
    }

    /// Nothing while one is being recovered.
    fn list_now(&self, namespace: &Namespace) -> Option<Vec<Arc<Task>>> {
        let slots = self.slots();
        let mut tasks = Vec::new();
        for slot in slots.get(namespace.as_str()).into_iter().flat_map(BTreeMap::values) {
            match slot {
                Slot::Ready(task) => tasks.push(task.clone()),
                Slot::Recovering => return None,
                Slot::Reserved => {}
            }
        }
        Some(tasks)
    }
}

impl Reservation {
    /// Namespace of the name.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Stops the wait for a recovery that found no task; the name stays taken.
    pub fn hide(&self) {
        self.put(Slot::Reserved);
    }

    /// Puts the task in its place.
    pub fn fulfil(self, task: Arc<Task>) {
        self.put(Slot::Ready(task));
    }

    fn put(&self, slot: Slot) {
        if let Some(own) = self.registry.slots().get_mut(self.namespace.as_str()) {
            own.insert(self.id.clone(), slot);
        }
        self.registry.shared.settled.send_replace(());
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut slots = self.registry.slots();
        let Some(own) = slots.get_mut(self.namespace.as_str()) else { return };
        if !matches!(own.get(&self.id), Some(Slot::Ready(_))) {
            own.remove(&self.id);
        }
        if own.is_empty() {
            slots.remove(self.namespace.as_str());
        }
        drop(slots);
        self.registry.shared.settled.send_replace(());
    }
}
