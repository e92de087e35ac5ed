//! The metadata database: redb in one file, one transaction per change.
//!
//! A table maps a string key to a protobuf record, so that records can gain fields without a migration. Keys
//! with several parts are joined by NUL ([`key`]); only the last part may be arbitrary text, the others are
//! checked identifiers. A change commits durably or leaves no trace; what a caller wants to tell the world it
//! tells after the commit. Changes that come together are synced together ([`group`]). redb refuses all work after a
//! failed write (a full disk), so the file is then opened again, which goes back to the last commit. A file beside it
//! reserves what a change needs that frees something: one can delete on a full disk.

mod group;
mod schema;

use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use redb::{Durability, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use tokio::sync::Notify;

use group::{Group, Place, Writer};

use crate::content::blobs::sync_directory;

/// Bytes kept free for changes that free something.
const RESERVE: u64 = 1 << 20;
/// Bytes of memory that redb may keep as a cache of its file: what all changes go through. The kernel has the rest.
const CACHE: usize = 256 << 10;

/// A record's bytes by its key.
type Definition = TableDefinition<'static, &'static str, &'static [u8]>;

/// Facts on the database itself and on the installation.
pub static META: Table<Blob> = Table::new("meta");

/// A table of records of one type.
pub struct Table<M> {
    name: &'static str,
    record: PhantomData<fn() -> M>,
}

/// A record that is bytes and nothing else.
#[derive(Clone, PartialEq, Message)]
pub struct Blob {
    /// The bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub value: Vec<u8>,
}

impl<M> Table<M> {
    /// Declares a table.
    pub const fn new(name: &'static str) -> Table<M> {
        Table { name, record: PhantomData }
    }

    fn definition(&self) -> Definition {
        TableDefinition::new(self.name)
    }
}

/// Joins the parts of a key.
pub fn key(parts: &[&str]) -> String {
    parts.join("\0")
}

/// The prefix of all keys that begin with these parts.
pub fn prefix(parts: &[&str]) -> String {
    let mut prefix = key(parts);
    prefix.push('\0');
    prefix
}

/// The database; cheap to clone.
#[derive(Clone)]
pub struct Database {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    /// Read-locked by each transaction; write-locked only to open the file again. Empty while that fails.
    open: RwLock<Option<redb::Database>>,
    group: Group,
    /// Held while a change uses the reserved space.
    freeing: Mutex<()>,
    changes: Changes,
}

/// What was changed since the database was opened. The numbers only grow: two looks tell what came between.
#[derive(Default)]
pub struct Changes {
    /// Number of committed changes.
    pub commits: AtomicU64,
    /// Number of those that may have freed something.
    pub deletions: AtomicU64,
    /// Woken by each commit.
    pub committed: Notify,
    /// A number for each state of the records, those that count for nobody included: what was read stays true as long as it is
    /// what it was before the reading.
    state: AtomicU64,
}

impl Database {
    /// Opens or makes the database, and brings an older one to the present layout ([`schema`]).
    ///
    /// Refuses a file that a newer version wrote or that another process holds.
    pub fn open(path: &Path) -> Result<Database> {
        Database::open_with(path, schema::STEPS)
    }

    fn open_with(path: &Path, steps: &[schema::Step]) -> Result<Database> {
        let database = Database {
            shared: Arc::new(Shared {
                path: path.to_owned(),
                open: RwLock::new(Some(open_file(path)?)),
                group: Group::default(),
                freeing: Mutex::default(),
                changes: Changes::default(),
            }),
        };
        schema::upgrade(&database, steps)?;
        database.shared.reserve();
        Ok(database)
    }

    /// The file.
    fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Runs a query on a consistent view.
    pub async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Read) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let database = self.clone();
        blocking(move || database.read_now(query)).await
    }

    /// Runs a change; it is durable when this returns, or has not happened.
    pub async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Write) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let database = self.clone();
        blocking(move || database.write_now(change)).await
    }

    /// Runs a change that frees something, with the reserved space if there is no other; a second time then.
    pub async fn free<T: Send + 'static>(
        &self,
        change: impl Fn(&Write) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let database = self.clone();
        blocking(move || database.free_now(change)).await
    }

    /// [`Database::free`] for callers that may block.
    pub fn free_now<T>(&self, change: impl Fn(&Write) -> Result<T>) -> Result<T> {
        let freeing = |tx: &Write| {
            tx.mark_deleted();
            change(tx)
        };
        match self.write_now(freeing) {
            // Unavailable: it came upon a file that another's failure had left.
            Err(error)
                if error.operation() == BROKEN
                    && matches!(error.kind(), Kind::ResourceExhausted | Kind::Unavailable) =>
            {
                // One at a time: changes that failed together would take the reserve from each other.
                let _turn = self.shared.freeing.lock().unwrap_or_else(PoisonError::into_inner);
                self.shared.release()?;
                let result = self.write_now(freeing);
                self.shared.reserve();
                result
            }
            result => result,
        }
    }

    /// [`Database::read`] for callers that may block.
    pub fn read_now<T>(&self, query: impl FnOnce(&Read) -> Result<T>) -> Result<T> {
        self.guarded(|database| {
            let transaction = database.begin_read().map_err(failed)?;
            query(&Read(transaction))
        })
    }

    /// [`Database::read_now`], and waits until all that it saw is synced: for who does by it what no change takes back.
    pub fn read_synced_now<T>(&self, query: impl FnOnce(&Read) -> Result<T>) -> Result<T> {
        let (value, seen) = self.guarded(|database| {
            let transaction = database.begin_read().map_err(failed)?;
            let value = query(&Read(transaction))?;
            Ok((value, self.shared.group.last()))
        })?;
        self.shared.group.wait(seen, |writer| self.sync(writer))?;
        Ok(value)
    }

    /// [`Database::write`] for callers that may block.
    pub fn write_now<T>(&self, change: impl FnOnce(&Write) -> Result<T>) -> Result<T> {
        let (value, place, deleted, counted) = self.commit(change)?;
        if !place.is_last {
            self.shared.group.wait(place, |writer| self.sync(writer))?;
        }
        if counted {
            let changes = &self.shared.changes;
            changes.commits.fetch_add(1, Ordering::Relaxed);
            changes.deletions.fetch_add(u64::from(deleted), Ordering::Relaxed);
            changes.committed.notify_one();
        }
        Ok(value)
    }

    /// Runs a change and commits it in its place; returns whether it may have freed something, and whether it counts.
    fn commit<T>(&self, change: impl FnOnce(&Write) -> Result<T>) -> Result<(T, Place, bool, bool)> {
        let writer = self.shared.group.enter();
        self.guarded(|database| {
            let mut write = Write {
                transaction: database.begin_write().map_err(failed)?,
                deleted: false.into(),
                counted: true.into(),
            };
            let value = change(&write)?;
            let place = writer.place();
            if !place.is_last {
                write.transaction.set_durability(Durability::None).map_err(failed)?;
            }
            write.transaction.commit().map_err(failed)?;
            self.shared.changes.state.fetch_add(1, Ordering::AcqRel);
            if place.is_last {
                writer.synced(place);
            }
            Ok((value, place, write.deleted.get(), write.counted.get()))
        })
    }

    /// Syncs what is committed, by a commit of nothing.
    fn sync(&self, writer: &Writer) -> Result<()> {
        self.guarded(|database| {
            let transaction = database.begin_write().map_err(failed)?;
            let place = writer.place();
            transaction.commit().map_err(failed)?;
            writer.synced(place);
            Ok(())
        })
    }

    /// Checks the file's own structure, and repairs it; says whether it was intact. Blocks, and nobody else may use the
    /// database meanwhile.
    pub fn verify(&self) -> Result<bool> {
        let mut open = self.shared.open.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let database = open.as_mut().ok_or_else(|| {
            Error::new(Kind::Unavailable, "open database", self.shared.path.display().to_string())
        })?;
        // What others still wait for must not get in its way.
        commit_nothing(database)?;
        self.shared.group.all_synced();
        database.check_integrity().map_err(|error| {
            Error::because(Kind::DataLoss, "check database", self.shared.path.display().to_string(), error)
        })
    }

    /// What was changed.
    pub fn changes(&self) -> &Changes {
        &self.shared.changes
    }

    /// The number of the records' present state: read before a query, it tells later whether the answer still holds.
    pub fn state(&self) -> u64 {
        self.shared.changes.state.load(Ordering::Acquire)
    }

    /// Runs a transaction and opens the file again when redb has given up on it.
    fn guarded<T>(&self, work: impl FnOnce(&redb::Database) -> Result<T>) -> Result<T> {
        let result = {
            let guard = self.opened()?;
            let database = guard.as_ref().ok_or_else(|| {
                Error::new(Kind::Unavailable, "open database", self.shared.path.display().to_string())
            })?;
            let result = work(database);
            if let Err(error) = &result
                && error.operation() == BROKEN
            {
                // Before anybody can open it again.
                self.shared.group.fail(error.kind());
            }
            result
        };
        if result.as_ref().is_err_and(|error| error.operation() == BROKEN) {
            self.shared.open_again();
        }
        result
    }

    /// The open file; tried again if the last attempt failed.
    fn opened(&self) -> Result<RwLockReadGuard<'_, Option<redb::Database>>> {
        let guard = self.shared.open.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if guard.is_some() {
            return Ok(guard);
        }
        drop(guard);
        let mut open = self.shared.open.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if open.is_none() {
            *open = Some(open_file(&self.shared.path)?);
        }
        drop(open);
        Ok(self.shared.open.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Shared {
    /// Opens the file again, unless somebody else has done so since it failed.
    fn open_again(&self) {
        let mut open = self.open.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        // redb syncs what waits in a file that works when it closes it, so that nothing of it may be told to be lost.
        if open.as_ref().is_some_and(|database| commit_nothing(database).is_ok()) {
            return self.group.all_synced();
        }
        *open = None;
        self.group.end();
        *open = open_file(&self.path).ok();
        // Back to the last commit that was synced.
        self.changes.state.fetch_add(1, Ordering::AcqRel);
    }

    fn reserve_path(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }

    /// Reserves space, if there is any; what is there already stays.
    fn reserve(&self) {
        let path = self.reserve_path();
        let reserved = crate::stores::private_file().open(&path).is_ok_and(|file| {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE).is_ok()
        });
        if !reserved {
            tracing::warn!(path = %path.display(), "no space can be reserved for deletions");
        }
    }

    /// Gives the reserved space back to the file system.
    fn release(&self) -> Result<()> {
        match std::fs::remove_file(self.reserve_path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove", self.reserve_path().display().to_string())
            }
            _ => Ok(()),
        }
    }
}

/// Operation of errors after which redb must be opened again.
const BROKEN: &str = "write database";

/// Opens the file; a new one has its name when it is on the disk, since one that a power cut has torn apart is none that can be opened.
fn open_file(path: &Path) -> Result<redb::Database> {
    if !path.exists() {
        let unfinished = path.with_extension("new");
        // Ignoring: mostly there is none.
        let _ = std::fs::remove_file(&unfinished);
        drop(open_or_make(&unfinished)?);
        std::fs::rename(&unfinished, path).context("make", path.display().to_string())?;
        sync_directory(path.parent().unwrap_or(Path::new("/")))?;
    }
    open_or_make(path)
}

fn open_or_make(path: &Path) -> Result<redb::Database> {
    let file = crate::stores::private_file().open(path).context("open", path.display().to_string())?;
    redb::Builder::new().set_cache_size(CACHE).create_file(file).map_err(|error| {
        let kind = match &error {
            redb::DatabaseError::DatabaseAlreadyOpen => Kind::FailedPrecondition,
            redb::DatabaseError::Storage(StorageError::Io(error)) => Kind::from_io(error),
            _ => Kind::DataLoss,
        };
        Error::because(kind, "open database", path.display().to_string(), error)
    })
}

/// Syncs all commits before it.
fn commit_nothing(database: &redb::Database) -> Result<()> {
    database.begin_write().map_err(failed)?.commit().map_err(failed)
}

/// The error of a failed storage call.
fn failed(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Io(error) => Error::io(BROKEN, "", error),
        redb::Error::PreviousIo => {
            Error::because(Kind::Unavailable, BROKEN, "", "a write failed before; the file is opened again")
        }
        error => Error::because(Kind::Internal, "use database", "", error),
    }
}

/// Runs blocking work off the asynchronous threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::because(Kind::Internal, "run", "blocking work", error)),
    }
}

/// A consistent view.
pub struct Read(redb::ReadTransaction);

/// A change in the making.
pub struct Write {
    transaction: redb::WriteTransaction,
    deleted: std::cell::Cell<bool>,
    counted: std::cell::Cell<bool>,
}

/// What views and changes can both be asked.
pub trait Query {
    /// The record of a key.
    fn get<M: Message + Default>(&self, table: &Table<M>, key: &str) -> Result<Option<M>>;

    /// Shows each record whose key begins with the prefix, in the order of keys, by the rest of its key.
    fn each<M: Message + Default>(
        &self,
        table: &Table<M>,
        prefix: &str,
        show: impl FnMut(&str, M) -> Result<ControlFlow<()>>,
    ) -> Result<()>;

    /// All records whose key begins with the prefix, by the rest of their keys.
    fn scan<M: Message + Default>(&self, table: &Table<M>, prefix: &str) -> Result<Vec<(String, M)>> {
        let mut found = Vec::new();
        self.each(table, prefix, |rest, record| {
            found.push((rest.to_owned(), record));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// Whether any key begins with the prefix.
    fn any<M: Message + Default>(&self, table: &Table<M>, prefix: &str) -> Result<bool> {
        let mut found = false;
        self.each(table, prefix, |_, _| {
            found = true;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

impl Read {
    /// How many records a table has, without reading them.
    pub fn count<M>(&self, table: &Table<M>) -> Result<u64> {
        match self.0.open_table(table.definition()) {
            Ok(opened) => redb::ReadableTableMetadata::len(&opened).map_err(failed),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
            Err(error) => Err(failed(error)),
        }
    }

    /// All keys of a table, whether or not their records can be read.
    pub fn keys<M>(&self, table: &Table<M>) -> Result<Vec<String>> {
        let opened = match self.0.open_table(table.definition()) {
            Ok(opened) => opened,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let entries = opened.iter().map_err(failed)?;
        entries.map(|entry| Ok(entry.map_err(failed)?.0.value().to_owned())).collect()
    }
}

impl Query for Read {
    fn get<M: Message + Default>(&self, table: &Table<M>, key: &str) -> Result<Option<M>> {
        match self.0.open_table(table.definition()) {
            Ok(opened) => get(&opened, key),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn each<M: Message + Default>(
        &self,
        table: &Table<M>,
        prefix: &str,
        show: impl FnMut(&str, M) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        match self.0.open_table(table.definition()) {
            Ok(opened) => each(&opened, prefix, show),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Query for Write {
    fn get<M: Message + Default>(&self, table: &Table<M>, key: &str) -> Result<Option<M>> {
        get(&self.transaction.open_table(table.definition()).map_err(failed)?, key)
    }

    fn each<M: Message + Default>(
        &self,
        table: &Table<M>,
        prefix: &str,
        show: impl FnMut(&str, M) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        each(&self.transaction.open_table(table.definition()).map_err(failed)?, prefix, show)
    }
}

impl Write {
    /// Writes a record, whether or not the key was there.
    pub fn put<M: Message>(&self, table: &Table<M>, key: &str, record: &M) -> Result<()> {
        let mut opened = self.transaction.open_table(table.definition()).map_err(failed)?;
        opened.insert(key, record.encode_to_vec().as_slice()).map_err(failed)?;
        Ok(())
    }

    /// Removes a record; says whether it was there.
    pub fn remove<M>(&self, table: &Table<M>, key: &str) -> Result<bool> {
        let mut opened = self.transaction.open_table(table.definition()).map_err(failed)?;
        let found = opened.remove(key).map_err(failed)?.is_some();
        Ok(found)
    }

    /// Leaves the change out of [`Changes`]: it is the collector's own.
    pub fn do_not_count(&self) {
        self.counted.set(false);
    }

    /// Notes that the change may have freed something, so that a collection follows soon.
    fn mark_deleted(&self) {
        self.deleted.set(true);
    }
}

fn get<M: Message + Default>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<M>> {
    match table.get(key).map_err(failed)? {
        Some(value) => decode(key, value.value()).map(Some),
        None => Ok(None),
    }
}

fn each<M: Message + Default>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    prefix: &str,
    mut show: impl FnMut(&str, M) -> Result<ControlFlow<()>>,
) -> Result<()> {
    for entry in table.range(prefix..).map_err(failed)? {
        let (key, value) = entry.map_err(failed)?;
        let Some(rest) = key.value().strip_prefix(prefix) else { break };
        if show(rest, decode(key.value(), value.value())?)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn decode<M: Message + Default>(key: &str, bytes: &[u8]) -> Result<M> {
    M::decode(bytes)
        .map_err(|error| Error::because(Kind::DataLoss, "decode record", key.replace('\0', "/"), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    static TEST: Table<Blob> = Table::new("test");

    fn record(text: &str) -> Blob {
        Blob { value: text.into() }
    }

    #[test]
    fn a_failed_change_leaves_no_trace() {
        let directory = tempfile::tempdir().unwrap();
        let db = Database::open(&directory.path().join("db")).unwrap();
        db.write_now(|tx| tx.put(&TEST, "a", &record("1"))).unwrap();
        let refused = db.write_now(|tx| {
            tx.put(&TEST, "a", &record("2"))?;
            tx.put(&TEST, "b", &record("2"))?;
            Err::<(), _>(Error::new(Kind::Aborted, "stop", ""))
        });
        assert_eq!(refused.unwrap_err().kind(), Kind::Aborted);
        let all = db.read_now(|tx| tx.scan(&TEST, "")).unwrap();
        assert_eq!(all, [("a".to_owned(), record("1"))]);
    }

    #[test]
    fn prefixes_do_not_bleed() {
        let directory = tempfile::tempdir().unwrap();
        let db = Database::open(&directory.path().join("db")).unwrap();
        db.write_now(|tx| {
            for parts in [["n", "a"], ["n", "b"], ["n2", "c"], ["m", "d"]] {
                tx.put(&TEST, &key(&parts), &record("x"))?;
            }
            Ok(())
        })
        .unwrap();
        let names = |ns: &str| {
            let prefix = prefix(&[ns]);
            db.read_now(|tx| tx.scan(&TEST, &prefix))
                .unwrap()
                .into_iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names("n"), ["a", "b"]);
        assert_eq!(names("n2"), ["c"]);
        assert!(names("x").is_empty());
    }

    #[test]
    fn refuses_a_newer_schema_and_a_second_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let db = Database::open(&path).unwrap();
        assert_eq!(Database::open(&path).err().unwrap().kind(), Kind::FailedPrecondition);
        db.write_now(|tx| tx.put(&META, "schema", &Blob { value: 9u32.to_be_bytes().to_vec() })).unwrap();
        drop(db);
        let error = Database::open(&path).err().unwrap();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("written by a newer version of orlopd (schema 9"), "{error}");
    }

    #[test]
    fn counts_what_the_collector_waits_for() {
        let directory = tempfile::tempdir().unwrap();
        let db = Database::open(&directory.path().join("db")).unwrap();
        let before = db.changes().commits.load(Ordering::Relaxed);
        db.write_now(|tx| tx.put(&TEST, "a", &record("1"))).unwrap();
        assert_eq!(db.changes().deletions.load(Ordering::Relaxed), 0);
        db.free_now(|tx| tx.remove(&TEST, "a")).unwrap();
        assert_eq!(db.changes().deletions.load(Ordering::Relaxed), 1);
        assert_eq!(db.changes().commits.load(Ordering::Relaxed), before + 2);
    }

    #[test]
    fn every_change_makes_another_state() {
        let directory = tempfile::tempdir().unwrap();
        let db = Database::open(&directory.path().join("db")).unwrap();
        let first = db.state();
        db.read_now(|tx| tx.get(&TEST, "a")).unwrap();
        assert_eq!(db.state(), first);
        db.write_now(|tx| {
            tx.do_not_count();
            tx.put(&TEST, "a", &record("1"))
        })
        .unwrap();
        let second = db.state();
        assert!(second > first);
        db.shared.open_again();
        assert!(db.state() >= second);
    }

    /// What a database has that is opened with the file as it is now.
    fn on_disk(path: &Path, name: &str) -> bool {
        let copy = path.with_extension("copy");
        std::fs::copy(path, &copy).unwrap();
        Database::open(&copy).unwrap().read_now(|tx| tx.get(&TEST, name)).unwrap().is_some()
    }

    #[test]
    fn a_change_that_others_wait_behind_is_synced_with_them_or_without() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let db = Database::open(&path).unwrap();
        let group = &db.shared.group;
        for (first, second) in [("a", Some("b")), ("c", None)] {
            std::thread::scope(|scope| {
                let (begun, is_begun) = std::sync::mpsc::channel();
                let db = &db;
                let writing = scope.spawn(move || {
                    db.write_now(|tx| {
                        begun.send(()).unwrap();
                        while group.writers() < 2 {
                            std::thread::yield_now();
                        }
                        tx.put(&TEST, first, &record("1"))
                    })
                });
                is_begun.recv().unwrap();
                let last = db.write_now(|tx| match second {
                    Some(name) => tx.put(&TEST, name, &record("2")),
                    None => Err(Error::new(Kind::Canceled, "give", "up")),
                });
                assert_eq!(last.is_ok(), second.is_some());
                writing.join().unwrap().unwrap();
            });
            assert_eq!(group.writers(), 0);
            assert!(on_disk(&path, first), "{first}");
            assert!(second.is_none_or(|name| on_disk(&path, name)));
        }
    }

    #[test]
    fn what_is_not_synced_is_lost_with_the_file_that_failed() {
        let group = Group::default();
        let (first, second) = (group.enter(), group.enter());
        let lost = first.place();
        assert!(!lost.is_last);
        drop(first);
        drop(second);
        // Whoever comes upon the file later knows no more than that.
        group.fail(Kind::ResourceExhausted);
        group.fail(Kind::Unavailable);
        group.end();
        let error = group.wait(lost, |_| Ok(())).unwrap_err();
        assert_eq!((error.operation(), error.kind()), (BROKEN, Kind::ResourceExhausted));
        // What comes later does not bring it back, and is there by itself.
        let writer = group.enter();
        let next = writer.place();
        assert!(next.is_last);
        writer.synced(next);
        drop(writer);
        group.wait(next, |_| Ok(())).unwrap();
        assert!(group.wait(lost, |_| Ok(())).is_err());
        // One that nobody syncs does it by itself.
        let (first, second) = (group.enter(), group.enter());
        let alone = first.place();
        drop(first);
        drop(second);
        let sync = |writer: &Writer| {
            // Others who wait leave it to this one.
            assert_eq!(group.writers(), 1);
            let place = writer.place();
            writer.synced(place);
            Ok(())
        };
        group.wait(alone, sync).unwrap();
        assert_eq!(group.writers(), 0);
        // One that another one synced is not lost by what comes then.
        let (first, second) = (group.enter(), group.enter());
        let synced = first.place();
        drop(first);
        drop(second);
        let late = |writer: &Writer| {
            sync(writer)?;
            Err(Error::new(Kind::Unavailable, BROKEN, ""))
        };
        group.wait(synced, late).unwrap();
    }

    /// Does something while a change is made and not synced, since another is about to come; what it is given lets go of that one.
    fn while_one_is_not_synced(work: impl FnOnce(&Database, &Path, &mut dyn FnMut())) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let db = Database::open(&path).unwrap();
        std::thread::scope(|scope| {
            let mut other = Some(db.shared.group.enter());
            let writing = scope.spawn(|| db.write_now(|tx| tx.put(&TEST, "a", &record("1"))));
            while db.read_now(|tx| tx.get(&TEST, "a")).unwrap().is_none() {
                std::thread::yield_now();
            }
            work(&db, &path, &mut || drop(other.take()));
            writing.join().unwrap().unwrap();
        });
        assert!(on_disk(&path, "a"));
    }

    #[test]
    fn who_comes_upon_a_file_that_is_open_again_takes_nothing_from_others() {
        while_one_is_not_synced(|db, _, let_go| {
            let late = db.guarded(|_| Err::<(), _>(Error::new(Kind::Unavailable, BROKEN, "")));
            assert_eq!(late.unwrap_err().kind(), Kind::Unavailable);
            let_go();
        });
    }

    #[test]
    fn a_file_that_was_being_made_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        std::fs::write(path.with_extension("new"), [0; 8192]).unwrap();
        drop(Database::open(&path).unwrap());
        drop(Database::open(&path).unwrap());
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn what_is_read_to_be_acted_on_is_synced() {
        while_one_is_not_synced(|db, path, let_go| {
            assert!(!on_disk(path, "a"));
            let_go();
            assert!(db.read_synced_now(|tx| tx.get(&TEST, "a")).unwrap().is_some());
            assert!(on_disk(path, "a"));
        });
    }

    #[test]
    fn nobody_waits_for_others_without_end() {
        let group = Group::default();
        let (writer, _other) = (group.enter(), group.enter());
        let waiting = std::iter::repeat_with(|| writer.place()).take_while(|place| !place.is_last).count();
        assert_eq!(waiting, 63);
    }
}
