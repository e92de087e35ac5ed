//! Volumes: directories that outlive containers, below `volumes/NAME/_data` of the root.
//!
//! A volume with options of mount(8) is mounted there while a container uses it. Who uses a volume is what containers say: the
//! engine asks before it removes one.

mod options;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::mount::{MntFlags, mount, umount2};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::db::{Database, Query, Table, blocking};
use crate::owners::Owners;
use crate::snapshot::copy::copy_tree;
use crate::snapshot::usage::usage;
use crate::store::{Timestamp, now};
use options::Options;

/// Volumes by name.
pub static VOLUMES: Table<Volume> = Table::new("volumes");

/// The one driver there is.
pub const LOCAL: &str = "local";

/// A volume.
#[derive(Clone, PartialEq, Message)]
pub struct Volume {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// When it was made.
    #[prost(message, required, tag = "2")]
    pub created_at: Timestamp,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: BTreeMap<String, String>,
    /// Options of the driver.
    #[prost(btree_map = "string, string", tag = "4")]
    pub options: BTreeMap<String, String>,
    /// Whether it has no name of a person's choice.
    #[prost(bool, tag = "5")]
    pub anonymous: bool,
    /// Whether the client gave labels, which it wants to see again even if there are none.
    #[prost(bool, tag = "6")]
    pub has_labels: bool,
}

/// The volumes; clones are handles of the same.
#[derive(Clone)]
pub struct Volumes {
    db: Database,
    root: PathBuf,
    /// User and group of new ones, where they are not the daemon's.
    owner: Option<(u32, u32)>,
    /// Containers that use a mounted volume, by its name.
    mounted: Arc<Mutex<HashMap<String, HashSet<String>>>>,
    /// Whose turn it is to mount or unmount: a second user has to wait for the first one's mount.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A volume to be made.
#[derive(Clone, Debug, Default)]
pub struct Definition {
    /// Name; empty for one of chance.
    pub name: String,
    /// Driver; empty for the local one.
    pub driver: String,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

fn refused(kind: Kind, text: impl Into<String>) -> Error {
    Error::exactly(kind, text)
}

/// Refuses a name that no volume may have, in dockerd's words.
pub fn check_name(name: &str) -> Result<()> {
    let mut letters = name.chars();
    let first = letters.next().is_some_and(|letter| letter.is_ascii_alphanumeric());
    let rest = letters.all(|letter| letter.is_ascii_alphanumeric() || "_.-".contains(letter));
    if name.len() == 1 {
        let text = "volume name is too short, names should be at least two alphanumeric characters";
        return Err(refused(Kind::InvalidArgument, text));
    }
    if !first || !rest {
        let text = format!(
            "create {name}: {name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. \
             If you intended to pass a host directory, use absolute path"
        );
        return Err(refused(Kind::InvalidArgument, text));
    }
    Ok(())
}

impl Volumes {
    /// The volumes below a root directory, new ones with this owner.
    pub fn new(db: Database, root: &Path, owner: Option<(u32, u32)>) -> Result<Volumes> {
        let root = root.join("volumes");
        fs::create_dir_all(&root).context("create", root.display().to_string())?;
        fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o701))
            .context("change mode of", root.display().to_string())?;
        Ok(Volumes { db, root, owner, mounted: Arc::default(), turn: Arc::default() })
    }

    /// Where a volume's files are.
    pub fn data(&self, name: &str) -> PathBuf {
        self.root.join(name).join("_data")
    }

    /// All volumes, by name.
    pub async fn list(&self) -> Result<Vec<Volume>> {
        let all = self.db.read(|tx| tx.scan(&VOLUMES, "")).await?;
        Ok(all.into_iter().map(|(_, volume)| volume).collect())
    }

    /// One volume.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn get(&self, name: &str) -> Result<Volume> {
        let key = name.to_owned();
        let found = self.db.read(move |tx| tx.get(&VOLUMES, &key)).await?;
        found.ok_or_else(|| refused(Kind::NotFound, format!("get {name}: no such volume")))
    }

    /// Makes a volume; one that is there already stays as it is. Says whether it is new.
    pub async fn create(&self, definition: Definition) -> Result<(Volume, bool)> {
        let anonymous = definition.name.is_empty();
        let name = if anonymous { crate::network::identifier()? } else { definition.name };
        if !matches!(definition.driver.as_str(), "" | LOCAL) {
            let driver = &definition.driver;
            let text = format!(
                "create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found"
            );
            return Err(refused(Kind::NotFound, text));
        }
        check_name(&name)?;
        Options::parse(&definition.options)
            .map_err(|error| refused(error.kind(), format!("create {name}: {error}")))?;
        if let Ok(there) = self.get(&name).await {
            return Ok((there, false));
        }
        let data = self.data(&name);
        let directory = self.root.join(&name);
        let owner = self.owner;
        blocking(move || {
            fs::create_dir_all(&data).context("create", data.display().to_string())?;
            if let Some((uid, gid)) = owner {
                lchown(&data, Some(uid), Some(gid)).context("change owner of", data.display().to_string())?;
            }
            // The directory is there for good before its name is.
            let sync = || File::open(&directory)?.sync_all();
            sync().context("sync", directory.display().to_string())
        })
        .await?;
        let volume = Volume {
            name,
            created_at: now(),
            has_labels: definition.labels.is_some(),
            labels: definition.labels.unwrap_or_default(),
            options: definition.options,
            anonymous,
        };
        let record = volume.clone();
        // Two that make the same one at once get the same one.
        self.db
            .write(move |tx| match tx.get(&VOLUMES, &record.name)? {
                Some(there) => Ok((there, false)),
                None => {
                    tx.put(&VOLUMES, &record.name, &record)?;
                    Ok((record, true))
                }
            })
            .await
    }

    /// Removes a volume that nobody uses, with its files.
    ///
    /// # Errors
    ///
    /// `FailedPrecondition` in dockerd's words while containers use it.
    pub async fn remove(&self, name: &str, users: &[String]) -> Result<()> {
        let volume = self.get(name).await?;
        if !users.is_empty() {
            let text = format!("remove {name}: volume is in use - [{}]", users.join(", "));
            return Err(refused(Kind::FailedPrecondition, text));
        }
        // A mount that a kill left would lose its files otherwise.
        let (data, directory) = (self.data(name), self.root.join(name));
        let was_mounted = !volume.options.is_empty();
        let key = name.to_owned();
        self.db.free(move |tx| tx.remove(&VOLUMES, &key)).await?;
        blocking(move || {
            if was_mounted {
                unmount(&data)?;
            }
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(error).context("remove", directory.display().to_string())
                }
                _ => Ok(()),
            }
        })
        .await
    }

    /// Bytes of a volume's files.
    pub async fn size(&self, name: &str) -> Result<u64> {
        let data = self.data(name);
        blocking(move || usage(&data).map(|usage| usage.size)).await
    }

    /// Makes a volume ready for a container that is about to start; returns the directory to mount.
    ///
    /// # Errors
    ///
    /// In dockerd's words when it cannot be mounted, or has no such directory.
    pub async fn open(&self, name: &str, container: &str, subpath: &str) -> Result<PathBuf> {
        let volume = self.get(name).await?;
        let data = self.data(name);
        let options = Options::parse(&volume.options)?;
        let turn = if options.is_some() { Some(self.turn.lock().await) } else { None };
        let first = {
            let mut mounted = self.mounted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let users = mounted.entry(name.to_owned()).or_default();
            let first = users.is_empty();
            users.insert(container.to_owned());
            first
        };
        let (subpath, inside) = (subpath.to_owned(), data.clone());
        let opened = blocking(move || {
            fs::create_dir_all(&inside).context("create", inside.display().to_string())?;
            if let Some(options) = options.filter(|_| first) {
                unmount(&inside)?;
                mount_at(&options, &inside)?;
            }
            if subpath.is_empty() { Ok(inside) } else { below(&inside, &subpath) }
        })
        .await;
        drop(turn);
        if opened.is_err() {
            self.close(name, container).await?;
        }
        opened
    }

    /// A container needs a volume no more.
    pub async fn close(&self, name: &str, container: &str) -> Result<()> {
        let has_options = self.get(name).await.is_ok_and(|volume| !volume.options.is_empty());
        let turn = if has_options { Some(self.turn.lock().await) } else { None };
        let is_last = {
            let mut mounted = self.mounted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let Some(users) = mounted.get_mut(name) else { return Ok(()) };
            users.remove(container);
            let is_last = users.is_empty();
            if is_last {
                mounted.remove(name);
            }
            is_last
        };
        if !is_last || !has_options {
            return Ok(());
        }
        let data = self.data(name);
        let unmounted = blocking(move || unmount(&data)).await;
        drop(turn);
        unmounted
    }

    /// Notes that running containers use volumes, and unmounts those that nobody uses: what a kill left.
    pub async fn recover(&self, users: HashMap<String, HashSet<String>>) -> Result<()> {
        let all = self.list().await?;
        let idle: Vec<PathBuf> = all
            .iter()
            .filter(|volume| !volume.options.is_empty() && !users.contains_key(&volume.name))
            .map(|volume| self.data(&volume.name))
            .collect();
        *self.mounted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = users;
        blocking(move || idle.iter().try_for_each(|path| unmount(path))).await
    }
}

/// Fills an empty volume with what the image has at the place where it will be mounted, attributes of the directory included. An image
/// that has nothing there leaves it empty.
///
/// `root` is the image's file system; the volume's files get the owners that a container sees as those of the image. Blocks.
pub fn fill(data: &Path, root: impl std::os::fd::AsFd, place: &str, owners: Option<&Owners>) -> Result<()> {
    let name = || data.display().to_string();
    if fs::read_dir(data).context("read", name())?.next().is_some() {
        return Ok(());
    }
    let place = place.trim_start_matches('/');
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat2(root, place, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(from) => copy_tree(Path::new(&format!("/proc/self/fd/{}/.", from.as_raw_fd())), data, owners),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(()),
        Err(error) => Err(error).context("open", place),
    }
}

/// A directory or file within a volume, and nothing outside of it.
fn below(data: &Path, subpath: &str) -> Result<PathBuf> {
    let name = || data.join(subpath).display().to_string();
    if Path::new(subpath).is_absolute() || subpath.split('/').any(|part| part == "..") {
        let text = format!("invalid volume subpath: {subpath}: must be a relative path within the volume");
        return Err(refused(Kind::InvalidArgument, text));
    }
    let root = File::open(data).context("open", data.display().to_string())?;
    let found = rustix::fs::openat2(
        &root,
        subpath,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    );
    let found = found.map_err(|error| {
        let why = io::Error::from(error).to_string().to_lowercase();
        let why = why.split(" (os").next().unwrap_or_default().to_owned();
        refused(Kind::InvalidArgument, format!("cannot access path {}: {why}", name()))
    })?;
    // What the links in it lead to, seen from here.
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).context("resolve", name())
}

fn mount_at(options: &Options, data: &Path) -> Result<()> {
    let result = mount(
        Some(options.device.as_str()),
        data,
        Some(options.kind.as_str()),
        options.flags,
        Some(options.data.as_str()).filter(|data| !data.is_empty()),
    );
    result.map_err(|errno| {
        let why = io::Error::from(errno).to_string().to_lowercase();
        let why = why.split(" (os").next().unwrap_or_default();
        let path = data.display();
        let text = format!(
            "error while mounting volume '{path}': failed to mount local volume: mount {}:{path}{}, {}: {why}",
            options.device,
            if options.flags.is_empty() { String::new() } else { format!(", flags: {:#x}", options.flags.bits()) },
            if options.data.is_empty() { String::new() } else { format!("data: {}", options.data) },
        );
        refused(Kind::Internal, text.replace(", :", ":"))
    })
}

/// Unmounts what is mounted on a directory, all of it; nothing for one on which there is nothing.
fn unmount(path: &Path) -> Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno).context("unmount", path.display().to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn volumes(directory: &Path) -> Volumes {
        Volumes::new(Database::open(&directory.join("db")).unwrap(), directory, None).unwrap()
    }

    fn named(name: &str) -> Definition {
        Definition { name: name.to_owned(), ..Definition::default() }
    }

    fn with(options: &[(&str, &str)]) -> Definition {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Definition { name: "v4".to_owned(), options, ..Definition::default() }
    }

    #[tokio::test]
    async fn made_once_found_and_removed_with_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = volumes(directory.path());
        let (volume, is_new) = volumes.create(named("v1")).await.unwrap();
        assert!(is_new && !volume.anonymous);
        fs::write(volumes.data("v1").join("kept"), "x").unwrap();
        assert!(!volumes.create(named("v1")).await.unwrap().1);
        assert!(volumes.data("v1").join("kept").exists());
        let (anonymous, _) = volumes.create(named("")).await.unwrap();
        assert_eq!((anonymous.name.len(), anonymous.anonymous), (64, true));
        assert_eq!(volumes.list().await.unwrap().len(), 2);
        let users = ["c1".to_owned(), "c2".to_owned()];
        let error = volumes.remove("v1", &users).await.unwrap_err();
        assert_eq!(error.to_string(), "remove v1: volume is in use - [c1, c2]");
        volumes.remove("v1", &[]).await.unwrap();
        assert!(!directory.path().join("volumes/v1").exists());
        let error = volumes.remove("v1", &[]).await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::NotFound, "get v1: no such volume"));
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_in_dockers_words() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = volumes(directory.path());
        for (definition, words) in [
            (
                named("a/b"),
                "create a/b: \"a/b\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are \
                 allowed. If you intended to pass a host directory, use absolute path",
            ),
            (named("v"), "volume name is too short, names should be at least two alphanumeric characters"),
            (
                Definition { driver: "nope".to_owned(), ..named("v2") },
                "create v2: error looking up volume plugin nope: plugin \"nope\" not found",
            ),
            (with(&[("foo", "bar")]), "create v4: invalid option: \"foo\""),
            (with(&[("type", "tmpfs")]), "create v4: missing required option: \"device\""),
        ] {
            assert_eq!(volumes.create(definition).await.unwrap_err().to_string(), words);
        }
        assert!(volumes.list().await.unwrap().is_empty());
        assert_eq!(fs::read_dir(directory.path().join("volumes")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn mounted_while_it_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = volumes(directory.path());
        volumes
            .create(with(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,noexec")]))
            .await
            .unwrap();
        let mounts = || {
            let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
            all.lines().filter(|line| line.contains(directory.path().to_str().unwrap())).count()
        };
        let path = volumes.open("v4", "one", "").await.unwrap();
        fs::write(path.join("file"), "x").unwrap();
        assert_eq!(volumes.open("v4", "two", "").await.unwrap(), path);
        assert_eq!(mounts(), 1);
        volumes.close("v4", "one").await.unwrap();
        assert!(path.join("file").exists());
        // After a kill the users are told of anew, and what nobody uses is unmounted.
        volumes.recover(HashMap::from([("v4".to_owned(), HashSet::from(["two".to_owned()]))])).await.unwrap();
        assert_eq!(mounts(), 1);
        volumes.close("v4", "two").await.unwrap();
        assert_eq!(mounts(), 0);
        volumes.open("v4", "three", "").await.unwrap();
        volumes.recover(HashMap::new()).await.unwrap();
        assert_eq!(mounts(), 0);
    }

    #[tokio::test]
    async fn a_mount_that_fails_is_told_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = volumes(directory.path());
        volumes.create(with(&[("type", "none"), ("device", "/nosuch"), ("o", "bind")])).await.unwrap();
        let path = volumes.data("v4").display().to_string();
        let error = volumes.open("v4", "one", "").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "error while mounting volume '{path}': failed to mount local volume: mount /nosuch:{path}, flags: 0x1000: no such file or \
                 directory"
            )
        );
        volumes.remove("v4", &[]).await.unwrap();
    }

    #[test]
    fn an_empty_volume_takes_what_the_image_has() {
        let directory = tempfile::tempdir().unwrap();
        let (image, data) = (directory.path().join("image"), directory.path().join("data"));
        fs::create_dir_all(image.join("srv/www/sub")).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(image.join("srv/www/page"), "hello").unwrap();
        std::os::unix::fs::chown(image.join("srv/www"), Some(33), Some(44)).unwrap();
        fs::set_permissions(image.join("srv/www"), PermissionsExt::from_mode(0o2750)).unwrap();
        symlink("/srv/www", image.join("link")).unwrap();
        let root = File::open(&image).unwrap();
        // A link of the image's leads to its own directories, and not to the host's.
        fill(&data, &root, "/link", None).unwrap();
        assert_eq!(fs::read_to_string(data.join("page")).unwrap(), "hello");
        let found = fs::metadata(&data).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (33, 44, 0o2750));
        fs::write(image.join("srv/www/page"), "other").unwrap();
        fill(&data, &root, "/srv/www", None).unwrap();
        assert_eq!(fs::read_to_string(data.join("page")).unwrap(), "hello");
        let empty = directory.path().join("empty");
        fs::create_dir(&empty).unwrap();
        fill(&empty, &root, "/nothing/here", None).unwrap();
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_part_of_a_volume_is_within_it() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = volumes(directory.path());
        volumes.create(named("v1")).await.unwrap();
        let data = volumes.data("v1");
        fs::create_dir_all(data.join("a/b")).unwrap();
        symlink("/a", data.join("in")).unwrap();
        symlink("/etc", data.join("out")).unwrap();
        assert_eq!(volumes.open("v1", "c", "a/b").await.unwrap(), data.join("a/b"));
        assert_eq!(volumes.open("v1", "c", "in/b").await.unwrap(), data.join("a/b"));
        for wrong in ["../x", "/a", "out", "nothing"] {
            assert!(volumes.open("v1", "c", wrong).await.is_err(), "{wrong}");
        }
    }
}
