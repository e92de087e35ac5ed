//! The contract of snapshotters, which every one of them must meet, and the rules of names above them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use tempfile::TempDir;

use super::*;
use crate::request::Namespace;
use crate::store::leases::Leases;

struct Place {
    directory: TempDir,
    db: Database,
    snapshots: Snapshots,
}

/// Opens them so that the database can be closed at any time: nobody is about to write to it.
fn open(directory: &TempDir, db: &Database) -> Snapshots {
    let snapshots = Snapshots::open(
        directory.path(),
        &directory.path().join("state"),
        &Default::default(),
        db.clone(),
        Exchange::default(),
    )
    .unwrap();
    snapshots.set_write_back_delay(std::time::Duration::from_secs(3600));
    snapshots
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let db = Database::open(&directory.path().join("db")).unwrap();
    let snapshots = open(&directory, &db);
    Place { directory, db, snapshots }
}

impl Place {
    fn restart(self) -> Place {
        let Place { directory, db, snapshots } = self;
        drop((db, snapshots));
        let db = Database::open(&directory.path().join("db")).unwrap();
        let snapshots = open(&directory, &db);
        snapshots.recover().unwrap();
        snapshots.clean().unwrap();
        Place { directory, db, snapshots }
    }
}

fn context(namespace: &str) -> RequestContext {
    RequestContext::new(Namespace::new(namespace).unwrap())
}

/// The snapshotters, by the names that clients use.
const ALL: [&str; 3] = ["overlayfs", "native", "erofs"];

/// The directory into which a layer without, or below, a mount is written: the bind mount's source or the upper
/// directory. Tests need not mount anything to write, only to read through several layers.
fn writable(mounts: &[Mount]) -> PathBuf {
    let [mount] = mounts else { panic!("one mount expected: {mounts:?}") };
    match mount.kind.as_str() {
        "bind" => mount.source.clone().into(),
        "overlay" => option(mount, "upperdir=").into(),
        other => panic!("unknown mount type {other}"),
    }
}

fn option<'a>(mount: &'a Mount, name: &str) -> &'a str {
    mount.options.iter().find_map(|option| option.strip_prefix(name)).unwrap()
}

fn has(mount: &Mount, option: &str) -> bool {
    mount.options.iter().any(|found| found == option)
}

#[tokio::test]
async fn layers_become_snapshots_and_snapshots_parents() {
    for name in ALL {
        let Place { snapshots, .. } = &place();
        let one = context("one");
        let mounts = snapshots.prepare(&one, name, "a", "", Labels::new()).await.unwrap();
        assert!(mounts[0].kind == "bind" && has(&mounts[0], "rw") && has(&mounts[0], "rbind"), "{mounts:?}");
        assert_eq!(snapshots.mounts(&one, name, "a").await.unwrap(), mounts);
        let files = writable(&mounts);
        assert_eq!(files.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
        fs::write(files.join("f"), vec![7; 10_000]).unwrap();
        fs::hard_link(files.join("f"), files.join("g")).unwrap();
        let active = snapshots.usage(&one, name, "a").await.unwrap();
        assert_eq!(active.inodes, 2, "{name}: the root and one file with two names");
        snapshots.commit(&one, name, "A", "a", Labels::new()).await.unwrap();
        let committed = snapshots.usage(&one, name, "A").await.unwrap();
        assert!(committed.inodes == 2 && committed.size >= 8192, "{name}: {committed:?}");
        let error = snapshots.mounts(&one, name, "A").await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert_eq!(snapshots.stat(&one, name, "a").await.unwrap_err().kind(), Kind::NotFound);
        let info = snapshots.stat(&one, name, "A").await.unwrap();
        assert_eq!((info.kind, info.parent.as_str()), (SnapshotKind::Committed, ""));

        let mounts = snapshots.prepare(&one, name, "b", "A", Labels::new()).await.unwrap();
        let own = snapshots.usage(&one, name, "b").await.unwrap();
        fs::write(writable(&mounts).join("h"), b"h").unwrap();
        assert_eq!(snapshots.usage(&one, name, "b").await.unwrap().inodes, own.inodes + 1);
        snapshots.commit(&one, name, "B", "b", Labels::new()).await.unwrap();
        let error = snapshots.remove(&one, name, "A").await.unwrap_err();
        assert_eq!(error.to_string(), "cannot remove snapshot with child: failed precondition");
        snapshots.remove(&one, name, "B").await.unwrap();
        snapshots.remove(&one, name, "A").await.unwrap();
        snapshots.cleanup(name).await.unwrap();
        let snapshotter = snapshots.snapshotter(name).unwrap();
        assert!(snapshotter.layers().unwrap().is_empty(), "{name}: no files are left");
        assert_eq!(fs::read_dir(snapshotter.root().join("trash")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn views_are_read_only_and_need_no_space() {
    for name in ALL {
        let Place { snapshots, .. } = &place();
        let one = context("one");
        let empty = snapshots.view(&one, name, "v0", "", Labels::new()).await.unwrap();
        assert!(empty[0].kind == "bind" && has(&empty[0], "ro"), "{empty:?}");
        snapshots.prepare(&one, name, "a", "", Labels::new()).await.unwrap();
        snapshots.commit(&one, name, "A", "a", Labels::new()).await.unwrap();
        let view = snapshots.view(&one, name, "v", "A", Labels::new()).await.unwrap();
        assert!(view[0].kind == "bind" && has(&view[0], "ro") && has(&view[0], "rbind"), "{view:?}");
        assert_eq!(snapshots.usage(&one, name, "v").await.unwrap(), Usage::default());
        let error = snapshots.commit(&one, name, "V", "v", Labels::new()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to commit snapshot: snapshot \"v\" is not active: failed precondition"
        );
        assert_eq!(snapshots.stat(&one, name, "v").await.unwrap().kind, SnapshotKind::View);
        snapshots.remove(&one, name, "v").await.unwrap();
        snapshots.remove(&one, name, "A").await.unwrap();
    }
}

#[tokio::test]
async fn overlay_mounts_are_containerds() {
    let Place { directory, snapshots, .. } = &place();
    let one = context("one");
    let mut parent = String::new();
    for name in ["A", "B", "C"] {
        snapshots.prepare(&one, "overlayfs", "x", &parent, Labels::new()).await.unwrap();
        snapshots.commit(&one, "overlayfs", name, "x", Labels::new()).await.unwrap();
        parent = name.to_owned();
    }
    let layer =
        |id: u64, what: &str| directory.path().join(format!("overlayfs/{id}/{what}")).display().to_string();
    let lower = format!("lowerdir={}:{}:{}", layer(3, "fs"), layer(2, "fs"), layer(1, "fs"));
    let [active] = &snapshots.prepare(&one, "overlayfs", "c", "C", Labels::new()).await.unwrap()[..] else {
        panic!("one mount expected")
    };
    assert_eq!((active.kind.as_str(), active.source.as_str()), ("overlay", "overlay"));
    let expected =
        [format!("workdir={}", layer(4, "work")), format!("upperdir={}", layer(4, "fs")), lower.clone()];
    assert!(active.options.ends_with(&expected), "{active:?}");
    let [view] = &snapshots.view(&one, "overlayfs", "v", "C", Labels::new()).await.unwrap()[..] else {
        panic!("one mount expected")
    };
    assert_eq!(view.kind, "overlay");
    assert!(view.options.ends_with(&[lower]) && view.options.len() == active.options.len() - 2, "{view:?}");
}

#[tokio::test]
async fn a_layer_belongs_to_who_owns_its_parent() {
    for name in ALL {
        let Place { snapshots, .. } = &place();
        let one = context("one");
        let files = writable(&snapshots.prepare(&one, name, "a", "", Labels::new()).await.unwrap());
        if std::os::unix::fs::chown(&files, Some(1234), Some(4321)).is_err() {
            // Only root can give files away.
            return;
        }
        snapshots.commit(&one, name, "A", "a", Labels::new()).await.unwrap();
        let files = writable(&snapshots.prepare(&one, name, "b", "A", Labels::new()).await.unwrap());
        let found = files.metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (1234, 4321), "{name}");
    }
}

#[tokio::test]
async fn a_native_layer_is_a_faithful_copy() {
    let Place { snapshots, .. } = &place();
    let one = context("one");
    let from = writable(&snapshots.prepare(&one, "native", "a", "", Labels::new()).await.unwrap());
    fs::create_dir(from.join("d")).unwrap();
    fs::write(from.join("d/f"), b"hello").unwrap();
    fs::set_permissions(from.join("d/f"), PermissionsExt::from_mode(0o4751)).unwrap();
    fs::hard_link(from.join("d/f"), from.join("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", from.join("s")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, from.join("p"), rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
    let has_attributes =
        rustix::fs::setxattr(from.join("d/f"), "user.note", b"v\0w", rustix::fs::XattrFlags::empty()).is_ok();
    fs::set_permissions(from.join("d"), PermissionsExt::from_mode(0o1777)).unwrap();
    snapshots.commit(&one, "native", "A", "a", Labels::new()).await.unwrap();
    let to = writable(&snapshots.prepare(&one, "native", "b", "A", Labels::new()).await.unwrap());
    assert_ne!(from, to);
    for name in ["", "d", "d/f", "link", "s", "p"] {
        let (a, b) = (from.join(name).symlink_metadata().unwrap(), to.join(name).symlink_metadata().unwrap());
        assert_eq!(
            (a.mode(), a.uid(), a.gid(), a.mtime_nsec()),
            (b.mode(), b.uid(), b.gid(), b.mtime_nsec()),
            "{name}"
        );
        assert_eq!((a.mtime(), a.nlink()), (b.mtime(), b.nlink()), "{name}");
    }
    assert_eq!(to.join("d/f").metadata().unwrap().ino(), to.join("link").metadata().unwrap().ino());
    assert_ne!(to.join("d/f").metadata().unwrap().ino(), from.join("d/f").metadata().unwrap().ino());
    assert_eq!(fs::read(to.join("d/f")).unwrap(), b"hello");
    assert_eq!(fs::read_link(to.join("s")).unwrap(), PathBuf::from("nowhere"));
    if has_attributes {
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(to.join("d/f"), "user.note", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"v\0w");
    }
}

#[tokio::test]
async fn refusals_have_containerds_words() {
    for name in ALL {
        let Place { snapshots, .. } = &place();
        let one = context("one");
        let prepare = async |key: &str, parent: &str| {
            snapshots
                .prepare(&one, name, key, parent, Labels::new())
                .await
                .map(|_| ())
                .map_err(|e| e.to_string())
        };
        prepare("a", "").await.unwrap();
        assert_eq!(prepare("a", "").await.unwrap_err(), "snapshot \"a\": already exists");
        assert_eq!(prepare("b", "nope").await.unwrap_err(), "parent snapshot nope does not exist: not found");
        assert_eq!(
            prepare("b", "a").await.unwrap_err(),
            "failed to create snapshot: parent \"a\" is not committed snapshot: invalid argument"
        );
        let error = snapshots.commit(&one, name, "A", "nope", Labels::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "snapshot nope does not exist: not found");
        snapshots.commit(&one, name, "A", "a", Labels::new()).await.unwrap();
        prepare("a", "A").await.unwrap();
        let error = snapshots.commit(&one, name, "A", "a", Labels::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "snapshot \"A\": already exists");
        let target = Labels::from([(TARGET_LABEL.to_owned(), "A".to_owned())]);
        let error = snapshots.prepare(&one, name, "new", "", target).await.unwrap_err();
        assert_eq!(error.to_string(), "target snapshot \"A\": already exists");
        assert_eq!(error.kind(), Kind::AlreadyExists);
        let error = snapshots.remove(&one, name, "nope").await.unwrap_err();
        assert_eq!(error.to_string(), "snapshot nope does not exist: not found");
        let layers = snapshots.snapshotter(name).unwrap().layers().unwrap();
        assert_eq!(layers.len(), 2, "{name}: refusals leave no files");
    }
    let Place { snapshots, .. } = &place();
    let error = snapshots.stat(&context("one"), "zfs", "a").await.unwrap_err();
    assert_eq!(error.to_string(), "snapshotter not loaded: zfs: invalid argument");
}

#[tokio::test]
async fn names_belong_to_a_namespace_and_a_snapshotter() {
    let Place { snapshots, .. } = &place();
    let (one, two) = (context("one"), context("two"));
    for (context, name) in [(&one, "overlayfs"), (&two, "overlayfs"), (&one, "native")] {
        snapshots.prepare(context, name, "same", "", Labels::new()).await.unwrap();
    }
    assert_eq!(snapshots.list(&one, "overlayfs", &[]).await.unwrap().len(), 1);
    snapshots.remove(&one, "overlayfs", "same").await.unwrap();
    snapshots.stat(&two, "overlayfs", "same").await.unwrap();
    snapshots.stat(&one, "native", "same").await.unwrap();
}

#[tokio::test]
async fn lists_are_filtered_and_labels_updated() {
    let Place { snapshots, .. } = &place();
    let one = context("one");
    let label = Labels::from([("k".to_owned(), "v".to_owned())]);
    snapshots.prepare(&one, "overlayfs", "a", "", label.clone()).await.unwrap();
    snapshots.commit(&one, "overlayfs", "A", "a", Labels::new()).await.unwrap();
    snapshots.prepare(&one, "overlayfs", "b", "A", label.clone()).await.unwrap();
    let names = async |filter: &str| -> Vec<String> {
        let found = snapshots.list(&one, "overlayfs", &[filter.to_owned()]).await.unwrap();
        found.into_iter().map(|info| info.name).collect()
    };
    assert_eq!(names("").await, ["A", "b"]);
    assert_eq!(names("kind==committed").await, ["A"]);
    assert_eq!(names("parent==A").await, ["b"]);
    assert_eq!(names("labels.k").await, ["b"], "a commit takes its own labels alone");
    snapshots.update(&one, "overlayfs", "A", label, vec!["labels.k".into()]).await.unwrap();
    assert_eq!(names("labels.k==v").await, ["A", "b"]);
    let error = snapshots.update(&one, "overlayfs", "A", Labels::new(), vec!["parent".into()]).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "cannot update \"parent\" field on snapshot \"A\": invalid argument"
    );
}

#[tokio::test]
async fn a_lease_follows_a_snapshot_to_its_final_name() {
    let Place { snapshots, db, .. } = &place();
    let one = context("one").with_lease("l");
    let error = snapshots.prepare(&one, "native", "a", "", Labels::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "lease does not exist: not found");
    let leases = Leases::new(db.clone());
    leases.create(&one, "l", Labels::new()).await.unwrap();
    snapshots.prepare(&one, "native", "a", "", Labels::new()).await.unwrap();
    snapshots.commit(&one, "native", "A", "a", Labels::new()).await.unwrap();
    let held = leases.resources(&one, "l").await.unwrap();
    let held: Vec<_> = held.iter().map(|one| (one.kind.as_str(), one.id.as_str())).collect();
    assert_eq!(held, [("snapshots/native", "A")]);
}

#[tokio::test]
async fn what_is_not_on_the_disk_yet_comes_lowest_first_whatever_its_number() {
    let Place { snapshots, .. } = &place();
    let one = context("one");
    // As layers that are unpacked side by side: each has its number before it is put on top of another.
    for key in ["top", "middle", "bottom"] {
        snapshots.prepare(&one, "overlayfs", key, "", Labels::new()).await.unwrap();
    }
    for (name, key, parent) in [("C", "bottom", ""), ("B", "middle", "C"), ("A", "top", "B")] {
        snapshots.commit_on(&one, "overlayfs", name, key, parent, Labels::new()).await.unwrap();
    }
    let names: Vec<String> = snapshots.unsynced().unwrap().into_iter().map(|layer| layer.name).collect();
    assert_eq!(names, ["C", "B", "A"]);
}

#[tokio::test]
async fn a_restart_keeps_what_was_recorded_and_nothing_else() {
    for name in ALL {
        let place = place();
        let one = context("one");
        let mounts = place.snapshots.prepare(&one, name, "a", "", Labels::new()).await.unwrap();
        fs::write(writable(&mounts).join("f"), b"f").unwrap();
        place.snapshots.commit(&one, name, "A", "a", Labels::new()).await.unwrap();
        let mounts = place.snapshots.prepare(&one, name, "b", "A", Labels::new()).await.unwrap();
        let root = place.snapshots.snapshotter(name).unwrap().root().to_owned();
        fs::create_dir_all(root.join("77/fs")).unwrap();
        let place = place.restart();
        assert_eq!(place.snapshots.mounts(&one, name, "b").await.unwrap(), mounts);
        let snapshotter = place.snapshots.snapshotter(name).unwrap();
        let mut layers = snapshotter.layers().unwrap();
        layers.sort_unstable();
        assert_eq!(layers, [1, 2], "{name}");
        place.snapshots.prepare(&one, name, "c", "A", Labels::new()).await.unwrap();
        assert!(snapshotter.layers().unwrap().contains(&78), "{name}: no number is used twice");
    }
}

/// A snapshotter whose mounts need something to be held meanwhile, as those of image files do.
struct Holding {
    inner: native::Native,
    held: Arc<AtomicUsize>,
}

struct Token(Arc<AtomicUsize>);

impl Drop for Token {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Snapshotter for Holding {
    fn name(&self) -> &'static str {
        "holding"
    }
    fn root(&self) -> &Path {
        self.inner.root()
    }
    fn create(&self, layer: &Layer) -> Result<()> {
        self.inner.create(layer)
    }
    fn mounts(&self, layer: &Layer) -> Result<LayerMounts> {
        self.held.fetch_add(1, Ordering::SeqCst);
        let LayerMounts { mounts, .. } = self.inner.mounts(layer)?;
        Ok(LayerMounts { mounts, hold: Some(Box::new(Token(self.held.clone()))) })
    }
    fn usage(&self, id: u64) -> Result<Usage> {
        self.inner.usage(id)
    }
    fn discard(&self, id: u64) -> Result<()> {
        self.inner.discard(id)
    }
    fn clean(&self) -> Result<()> {
        self.inner.clean()
    }
    fn layers(&self) -> Result<Vec<u64>> {
        self.inner.layers()
    }
}

#[tokio::test]
async fn what_mounts_need_is_held_until_the_layer_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let db = Database::open(&directory.path().join("db")).unwrap();
    let held = Arc::new(AtomicUsize::new(0));
    let inner = native::Native::open(&directory.path().join("files")).unwrap();
    let holding: Arc<dyn Snapshotter> = Arc::new(Holding { inner, held: held.clone() });
    let snapshots = Snapshots::with([holding], db, Exchange::default()).unwrap();
    let one = context("one");
    snapshots.prepare(&one, "holding", "a", "", Labels::new()).await.unwrap();
    snapshots.mounts(&one, "holding", "a").await.unwrap();
    assert_eq!(held.load(Ordering::SeqCst), 1, "asking again does not add up");
    snapshots.commit(&one, "holding", "A", "a", Labels::new()).await.unwrap();
    assert_eq!(held.load(Ordering::SeqCst), 0);
    snapshots.view(&one, "holding", "v", "A", Labels::new()).await.unwrap();
    assert_eq!(held.load(Ordering::SeqCst), 1);
    snapshots.remove(&one, "holding", "v").await.unwrap();
    assert_eq!(held.load(Ordering::SeqCst), 0);
}
