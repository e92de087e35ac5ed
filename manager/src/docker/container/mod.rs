//! Containers as the Docker API has them: records that outlive the daemon, and tasks in the care of shims.
//!
//! One owner per container: what brings it up or down takes its turn (`Container::turn`); what it is doing is a record
//! that changes in an instant and is stored before anybody is told.

pub mod config;
pub mod state;

mod attach;
mod check;
mod create;
mod devices;
mod end;
mod exec;
mod files;
mod health;
mod inspect;
mod joined;
mod links;
mod list;
pub mod logs;
mod marks;
mod memory;
mod observe;
mod operate;
mod place;
mod record;
mod requests;
mod route;
mod start;
mod stream;
mod sweep;
mod wait;
mod websocket;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use orlop_proto::error::Error;
use tokio::sync::watch;

pub use exec::{Exec, answer as answer_exec};
pub use files::places;
pub use joined::wish;
pub use record::{CONTAINERS, Record, Stored};
pub use route::answer;
pub use start::{accounts_below, file_below};

use self::logs::Log;
use self::stream::Output;
use crate::db::Query;
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};

/// What has happened to a container, for those who wait.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Milestones {
    /// How often it ended.
    pub exits: u64,
    /// Exit code of the last end.
    pub code: i64,
    /// Whether it is gone.
    pub removed: bool,
}

/// A container.
pub struct Container {
    /// Its ID.
    pub id: String,
    /// Whose turn it is to bring it up or down.
    pub turn: tokio::sync::Mutex<()>,
    /// Its record; held for an instant only.
    record: Mutex<Record>,
    /// Whether it is removed from the database; held while the record changes: a change begins with what the one before it
    /// stored, and the last is the removal.
    is_forgotten: tokio::sync::Mutex<bool>,
    /// For those who wait.
    pub milestones: watch::Sender<Milestones>,
    /// How many of its exits the events have told.
    pub told: watch::Sender<u64>,
    /// Its output, for attached clients.
    pub output: Arc<Output>,
    /// Its log.
    pub log: Arc<Log>,
    /// How many restarts in a row its policy made; and a word that wakes one that waits.
    pub restarts: Mutex<u32>,
    /// Woken when a restart that waits is called off.
    pub called_off: tokio::sync::Notify,
}

impl Container {
    fn new(engine: &Engine, record: Record) -> Arc<Container> {
        let log = Log::new(&engine.container_directory(&record.id), &record);
        Arc::new(Container {
            id: record.id.clone(),
            turn: tokio::sync::Mutex::default(),
            record: Mutex::new(record),
            is_forgotten: tokio::sync::Mutex::default(),
            milestones: watch::Sender::default(),
            told: watch::Sender::default(),
            output: Arc::default(),
            log: Arc::new(log),
            restarts: Mutex::default(),
            called_off: tokio::sync::Notify::new(),
        })
    }

    fn locked(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of its record.
    pub fn record(&self) -> Record {
        self.locked().clone()
    }

    /// Looks at its record for an instant.
    pub fn with<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&self.locked())
    }
}

/// All containers.
#[derive(Default)]
pub struct Register {
    inner: Mutex<Known>,
    /// Processes added to containers, by ID.
    pub execs: Mutex<HashMap<String, Arc<Exec>>>,
}

#[derive(Default)]
struct Known {
    by_id: BTreeMap<String, Arc<Container>>,
    /// Name → ID; a name that is being given has an ID already.
    names: HashMap<String, String>,
}

impl Register {
    fn locked(&self) -> MutexGuard<'_, Known> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All containers.
    pub fn all(&self) -> Vec<Arc<Container>> {
        self.locked().by_id.values().cloned().collect()
    }

    /// The container that a name, an ID or the start of an ID means.
    ///
    /// # Errors
    ///
    /// 404 in dockerd's words.
    pub fn get(&self, name: &str) -> Result<Arc<Container>> {
        let known = self.locked();
        if let Some(container) = known.by_id.get(name) {
            return Ok(container.clone());
        }
        let plain = name.strip_prefix('/').unwrap_or(name);
        if let Some(container) = known.names.get(plain).and_then(|id| known.by_id.get(id)) {
            return Ok(container.clone());
        }
        let mut matching = known.by_id.range(name.to_owned()..).take_while(|(id, _)| id.starts_with(name));
        match (matching.next(), matching.next()) {
            (Some((_, container)), None) if !name.is_empty() => Ok(container.clone()),
            (Some(_), Some(_)) if !name.is_empty() => Err(Failure::new(
                StatusCode::BAD_REQUEST,
                format!("Multiple IDs found with provided prefix: {name}"),
            )),
            _ => Err(Failure::not_found(format!("No such container: {name}"))),
        }
    }

    /// Gives a name to an ID.
    ///
    /// # Errors
    ///
    /// 409 in dockerd's words while another has it.
    pub fn reserve(&self, name: &str, id: &str) -> Result<()> {
        let mut known = self.locked();
        if let Some(holder) = known.names.get(name) {
            return Err(Failure::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". You have to \
                 remove (or rename) that container to be able to reuse that name."
            )));
        }
        known.names.insert(name.to_owned(), id.to_owned());
        Ok(())
    }

    /// Takes a name from whoever has it.
    pub fn release(&self, name: &str) {
        self.locked().names.remove(name);
    }

    /// Makes a container known.
    pub fn add(&self, container: Arc<Container>) {
        self.locked().by_id.insert(container.id.clone(), container);
    }

    /// Forgets a container and its name.
    pub fn remove(&self, id: &str, name: &str) {
        let mut known = self.locked();
        known.by_id.remove(id);
        known.names.remove(name);
    }
}

impl Engine {
    /// The directory of a container's files.
    pub fn container_directory(&self, id: &str) -> std::path::PathBuf {
        self.parts.root.join("containers").join(id)
    }

    /// The directory of a container's pipes.
    pub fn pipe_directory(&self, id: &str) -> std::path::PathBuf {
        self.parts.state.join(id.get(..16).unwrap_or(id))
    }

    /// Changes a container's record, and stores it before anybody sees the change.
    ///
    /// # Errors
    ///
    /// Those of the database, 404 for a container that is removed; then nothing is changed.
    pub async fn change<T>(
        &self,
        container: &Arc<Container>,
        change: impl FnOnce(&mut Record) -> T,
    ) -> Result<T> {
        let is_forgotten = container.is_forgotten.lock().await;
        if *is_forgotten {
            return Err(Failure::not_found(format!("No such container: {}", container.id)));
        }
        let mut record = container.record();
        let told = change(&mut record);
        self.store(&record).await?;
        *container.locked() = record;
        Ok(told)
    }

    async fn store(&self, record: &Record) -> Result<(), Error> {
        let (id, stored) = (record.id.clone(), record.encode()?);
        self.parts.database.write(move |tx| tx.put(&CONTAINERS, &id, &stored)).await
    }

    async fn forget(&self, container: &Container) -> Result<(), Error> {
        let (mut is_forgotten, id) = (container.is_forgotten.lock().await, container.id.clone());
        self.parts.database.free(move |tx| tx.remove(&CONTAINERS, &id)).await?;
        *is_forgotten = true;
        Ok(())
    }

    /// Reads the stored containers and takes up those that run.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn recover(&self) -> Result<(), Error> {
        let all: Vec<(String, Stored)> = self.parts.database.read(|tx| tx.scan(&CONTAINERS, "")).await?;
        for (id, stored) in all {
            let record = match Record::decode(&stored) {
                Ok(record) => record,
                Err(error) => {
                    tracing::error!(id, "{error}");
                    continue;
                }
            };
            // Ignoring: two records of one name cannot have been stored.
            let _ = self.containers.reserve(&record.name, &record.id);
            self.containers.add(Container::new(self, record));
        }
        self.sweep().await?;
        self.watch_memory()?;
        self.recover_joined().await?;
        self.recover_builds().await;
        for container in self.containers.all() {
            tokio::spawn(self.clone().take_up(container));
        }
        Ok(())
    }

    /// Attributes of a container in its events.
    pub fn container_event(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        let (mut attributes, image, name) = container
            .with(|record| (record.config.labels.clone(), record.config.image.clone(), record.name.clone()));
        attributes.insert("image".to_owned(), image);
        attributes.insert("name".to_owned(), name);
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.events.tell("container", action, &container.id, attributes);
    }

    /// The containers of an image, and whether each runs.
    pub fn users_of(&self, image: &str) -> Vec<(String, bool)> {
        let all = self.containers.all().into_iter();
        let users = all.filter(|container| container.with(|record| record.image == image));
        users
            .map(|container| (container.id.clone(), container.with(|record| record.state.is_active())))
            .collect()
    }

    /// How many containers each image has.
    pub fn images_in_use(&self) -> BTreeMap<String, i64> {
        let mut used = BTreeMap::new();
        for container in self.containers.all() {
            *used.entry(container.with(|record| record.image.clone())).or_default() += 1;
        }
        used
    }
}

/// A fresh ID: 64 hexadecimal digits.
///
/// # Errors
///
/// That of getrandom(2).
pub fn fresh_id() -> Result<String> {
    let mut bytes = [0; 32];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    got.map_err(|error| Failure::internal(format!("getrandom: {error}")))?;
    Ok(crate::image::unpack::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_once() {
        let register = Register::default();
        register.reserve("web", "1").unwrap();
        let failure = register.reserve("web", "2").unwrap_err();
        assert_eq!(failure.status, 409);
        assert!(
            failure
                .message
                .starts_with("Conflict. The container name \"/web\" is already in use by container \"1\"")
        );
        register.release("web");
        register.reserve("web", "2").unwrap();
        assert_eq!(register.get("nope").err().unwrap().message, "No such container: nope");
    }

    #[test]
    fn ids_are_fresh() {
        let (one, other) = (fresh_id().unwrap(), fresh_id().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, other);
    }
}
