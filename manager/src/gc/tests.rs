use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::events::Exchange;
use crate::labels::Labels;
use crate::request::{Namespace, RequestContext};
use crate::store::containers::{Container, Containers, Runtime};
use crate::store::images::{Descriptor, Image, Images};
use crate::store::leases::{Leases, Resource};

struct Place {
    directory: TempDir,
    content: ContentStore,
    snapshots: Snapshots,
    mounts: Mounts,
    images: Images,
    containers: Containers,
    leases: Leases,
    collector: Collector,
    one: RequestContext,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let db = Database::open(&directory.path().join("db")).unwrap();
    let exchange = Exchange::default();
    let content =
        ContentStore::open(&directory.path().join("content"), db.clone(), exchange.clone()).unwrap();
    let snapshots = Snapshots::open(
        directory.path(),
        &directory.path().join("state"),
        &Default::default(),
        db.clone(),
        exchange.clone(),
    )
    .unwrap();
    let mounts = Mounts::new(directory.path(), &directory.path().join("state"), db.clone());
    let collector =
        Collector::new(db.clone(), content.clone(), snapshots.clone(), mounts.clone(), config::Gc::default());
    Place {
        images: Images::new(db.clone(), exchange.clone()),
        containers: Containers::new(db.clone(), exchange),
        leases: Leases::new(db),
        one: RequestContext::new(Namespace::new("one").unwrap()),
        directory,
        content,
        snapshots,
        mounts,
        collector,
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl Place {
    async fn blob(&self, context: &RequestContext, text: &str, pairs: &[(&str, &str)]) -> Digest {
        let mut writer = self.content.writer(context, text, 0, None).await.unwrap();
        writer.write(Bytes::from(text.to_owned())).await.unwrap();
        writer.commit(0, None, labels(pairs)).await.unwrap()
    }

    async fn image(&self, name: &str, target: &Digest, pairs: &[(&str, &str)]) {
        let target = Descriptor {
            media_type: "m".into(),
            digest: target.to_string(),
            size: 1,
            ..Descriptor::default()
        };
        let image = Image { name: name.into(), labels: labels(pairs), target, ..Image::default() };
        self.images.create(&self.one, image).await.unwrap();
    }

    async fn committed(&self, name: &str, parent: &str, pairs: &[(&str, &str)]) {
        self.snapshots.prepare(&self.one, "overlayfs", "tmp", parent, Labels::new()).await.unwrap();
        self.snapshots.commit(&self.one, "overlayfs", name, "tmp", labels(pairs)).await.unwrap();
    }

    async fn snapshot_names(&self) -> Vec<String> {
        let all = self.snapshots.list(&self.one, "overlayfs", &[]).await.unwrap();
        all.into_iter().map(|info| info.name).collect()
    }

    fn layers(&self) -> usize {
        let overlay: PathBuf = self.directory.path().join("overlayfs");
        assert_eq!(fs::read_dir(overlay.join("trash")).unwrap().count(), 0);
        fs::read_dir(overlay).unwrap().count() - 1
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.directory.path().join("content/blobs/sha256")).unwrap().count()
    }
}

#[tokio::test]
async fn an_image_keeps_what_its_labels_reach() {
    let place = place();
    place.committed("base", "", &[]).await;
    place.committed("top", "base", &[]).await;
    place.committed("stray", "base", &[]).await;
    let layer = place.blob(&place.one, "layer", &[]).await;
    let by_slash = place.blob(&place.one, "by slash", &[]).await;
    let config =
        place.blob(&place.one, "config", &[("containerd.io/gc.ref.snapshot.overlayfs", "top")]).await;
    let manifest = place
        .blob(
            &place.one,
            "manifest",
            &[
                ("containerd.io/gc.ref.content.config", config.as_str()),
                ("containerd.io/gc.ref.content.l.0", layer.as_str()),
                ("containerd.io/gc.ref.content/x", by_slash.as_str()),
                ("containerd.io/gc.ref.contentious", Digest::of_bytes(b"stray").as_str()),
            ],
        )
        .await;
    place.blob(&place.one, "stray", &[]).await;
    place.image("i", &manifest, &[]).await;
    let removed = place.collector.collect().await.unwrap();
    assert_eq!(removed, Removed { content: 1, snapshots: 1, ..Removed::default() });
    assert_eq!(place.snapshot_names().await, ["base", "top"]);
    assert_eq!((place.blobs(), place.layers()), (4, 2));
    assert_eq!(place.collector.collect().await.unwrap(), Removed::default());

    place.images.delete(&place.one, "i", None).await.unwrap();
    let removed = place.collector.collect().await.unwrap();
    assert_eq!(removed, Removed { content: 4, snapshots: 2, ..Removed::default() });
    assert_eq!((place.blobs(), place.layers()), (0, 0));
}

#[tokio::test]
async fn containers_and_labels_are_roots() {
    let place = place();
    let referred = place.blob(&place.one, "referred", &[]).await;
    let rooted = place.blob(&place.one, "rooted", &[("containerd.io/gc.root", "now")]).await;
    place.committed("base", "", &[]).await;
    place.committed("labelled", "", &[("containerd.io/gc.root", "now")]).await;
    place.snapshots.prepare(&place.one, "overlayfs", "c", "base", Labels::new()).await.unwrap();
    let container = Container {
        id: "c".into(),
        runtime: Runtime { name: "r".into(), options: None },
        spec: Some(prost_types::Any::default()),
        snapshotter: "overlayfs".into(),
        snapshot_key: "c".into(),
        labels: labels(&[("containerd.io/gc.ref.content.0", referred.as_str())]),
        ..Container::default()
    };
    place.containers.create(&place.one, container).await.unwrap();
    assert_eq!(place.collector.collect().await.unwrap(), Removed::default());
    place.containers.delete(&place.one, "c").await.unwrap();
    let removed = place.collector.collect().await.unwrap();
    assert_eq!(removed, Removed { content: 1, snapshots: 2, ..Removed::default() });
    assert_eq!(place.snapshot_names().await, ["labelled"]);
    place.content.info(&place.one, &rooted).await.unwrap();
}

#[tokio::test]
async fn a_lease_keeps_until_it_ends() {
    let place = place();
    let leased = place.one.clone().with_lease("l");
    place.leases.create(&leased, "l", Labels::new()).await.unwrap();
    place.blob(&leased, "held", &[]).await;
    place.snapshots.prepare(&leased, "overlayfs", "s", "", Labels::new()).await.unwrap();
    drop(place.content.writer(&leased, "unfinished", 0, None).await.unwrap());
    assert_eq!(place.collector.collect().await.unwrap(), Removed::default());
    place.leases.delete(&leased, "l").await.unwrap();
    let removed = place.collector.collect().await.unwrap();
    assert_eq!(removed, Removed { content: 1, snapshots: 1, mounts: 0, ingests: 1, leases: 0 });
    assert_eq!((place.blobs(), place.layers()), (0, 0));
}

#[tokio::test]
async fn a_lease_ends_at_its_time() {
    let place = place();
    let expired = labels(&[("containerd.io/gc.expire", "2001-01-01T00:00:00Z")]);
    let later = labels(&[("containerd.io/gc.expire", "2999-01-01T00:00:00+01:00")]);
    let odd = labels(&[("containerd.io/gc.expire", "tomorrow")]);
    for (name, labels) in [("old", expired), ("new", later), ("odd", odd)] {
        place.leases.create(&place.one, name, labels).await.unwrap();
        place.blob(&place.one.clone().with_lease(name), name, &[]).await;
    }
    let removed = place.collector.collect().await.unwrap();
    assert_eq!(removed, Removed { content: 1, leases: 1, ..Removed::default() });
    let left = place.leases.list(&place.one, &[]).await.unwrap();
    assert_eq!(left.iter().map(|lease| lease.id.as_str()).collect::<Vec<_>>(), ["new", "odd"]);
    assert!(place.collector.shared.turn.lock().await.is_some_and(|next| next > SystemTime::now()));
}

#[tokio::test]
async fn a_flat_lease_keeps_parents_and_no_more() {
    let place = place();
    let referred = place.blob(&place.one, "referred", &[]).await;
    let reference = [("containerd.io/gc.ref.content.0", referred.as_str())];
    let flat = place.blob(&place.one, "flat", &reference).await;
    place.committed("base", "", &reference).await;
    place.committed("top", "base", &reference).await;
    place.leases.create(&place.one, "l", labels(&[("containerd.io/gc.flat", "yes")])).await.unwrap();
    for (kind, id) in [("content", flat.as_str()), ("snapshots/overlayfs", "top")] {
        let resource = Resource { kind: kind.into(), id: id.into() };
        place.leases.add_resource(&place.one, "l", resource).await.unwrap();
    }
    let removed = place.collector.collect().await.unwrap();
    assert_eq!(removed, Removed { content: 1, ..Removed::default() });
    assert_eq!(place.snapshot_names().await, ["base", "top"]);
}

#[tokio::test]
async fn an_unfinished_write_is_kept_while_it_is_young_or_open() {
    let mut place = place();
    let writer = place.content.writer(&place.one, "w", 0, None).await.unwrap();
    assert_eq!(place.collector.collect().await.unwrap().ingests, 0);
    let config = config::Gc { ingest_expiry: 0, ..config::Gc::default() };
    let shared = &place.collector.shared;
    place.collector = Collector::new(
        shared.db.clone(),
        place.content.clone(),
        place.snapshots.clone(),
        place.mounts.clone(),
        config,
    );
    assert_eq!(place.collector.collect().await.unwrap().ingests, 0, "it is open");
    drop(writer);
    assert_eq!(place.collector.collect().await.unwrap().ingests, 1);
}

#[tokio::test]
async fn lease_resources_are_checked() {
    let place = place();
    place.leases.create(&place.one, "l", Labels::new()).await.unwrap();
    let add = async |lease: &str, kind: &str, id: &str| {
        let resource = Resource { kind: kind.into(), id: id.into() };
        place.leases.add_resource(&place.one, lease, resource).await.unwrap_err().to_string()
    };
    assert_eq!(add("x", "content", "").await, "lease \"x\": not found");
    assert_eq!(
        add("l", "content", "abc").await,
        "invalid content resource id abc: invalid checksum digest format: invalid argument"
    );
    assert_eq!(add("l", "content/x", "").await, "invalid resource type content/x: invalid argument");
    assert_eq!(add("l", "snapshots", "").await, "invalid snapshot resource type snapshots: invalid argument");
    assert_eq!(add("l", "images", "").await, "resource type images not supported yet: not implemented");
}
