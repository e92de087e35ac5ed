//! A remote snapshotter: one that has layers before they are unpacked, which then need not be fetched.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use orlop_proto::containerd::services::snapshots::v1 as api;
use orlop_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_proto::containerd::services::snapshots::v1::snapshots_server::{Snapshots, SnapshotsServer};
use orlop_proto::containerd::types::Mount;
use orlop_tests::image::digest;
use orlop_tests::{Cmd, Daemon, Image, Orlopd, Registry, Root, poll_until};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};

use super::Plugin;
use crate::client::Client;

const REFERENCE: &str = "containerd.io/snapshot.ref";

#[derive(Clone)]
struct Kept {
    info: api::Info,
    files: PathBuf,
}

/// What the plugin has, and what it was told.
#[derive(Default)]
struct Store {
    directory: PathBuf,
    /// Layers elsewhere, by the name of the snapshot that they are: their files.
    remote: BTreeMap<String, PathBuf>,
    kept: BTreeMap<String, Kept>,
    /// The labels of each preparation.
    told: Vec<HashMap<String, String>>,
    made: usize,
}

impl Store {
    fn get(&self, name: &str) -> Result<&Kept, Status> {
        self.kept.get(name).ok_or_else(|| Status::not_found(format!("snapshot {name}")))
    }

    fn add(
        &mut self,
        name: &str,
        parent: &str,
        kind: api::Kind,
        labels: HashMap<String, String>,
        files: PathBuf,
    ) {
        let info = api::Info {
            name: name.to_owned(),
            parent: parent.to_owned(),
            kind: kind.into(),
            labels,
            ..api::Info::default()
        };
        self.kept.insert(name.to_owned(), Kept { info, files });
    }

    fn create(
        &mut self,
        key: &str,
        parent: &str,
        kind: api::Kind,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        self.told.push(labels.clone());
        if !parent.is_empty() {
            self.get(parent)?;
        }
        if let Some(target) = labels.get(REFERENCE).cloned()
            && let Some(files) = self.remote.get(&target).cloned()
        {
            let name = format!("theirs/{target}");
            if !self.kept.contains_key(&name) {
                self.add(&name, parent, api::Kind::Committed, labels, files);
            }
            return Err(Status::already_exists(format!("target snapshot {target:?}")));
        }
        if self.kept.contains_key(key) {
            return Err(Status::already_exists(key));
        }
        self.made += 1;
        let directory = self.directory.join(self.made.to_string());
        fs::create_dir_all(directory.join("fs")).unwrap();
        fs::create_dir_all(directory.join("work")).unwrap();
        self.add(key, parent, kind, labels, directory.join("fs"));
        self.mounts(key)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let own = self.get(key)?;
        let mut lower = Vec::new();
        let mut parent = own.info.parent.clone();
        while !parent.is_empty() {
            let below = self.get(&parent)?;
            lower.push(below.files.display().to_string());
            parent = below.info.parent.clone();
        }
        let bind = |files: String, access: &str| Mount {
            r#type: "bind".to_owned(),
            source: files,
            options: vec![access.to_owned(), "rbind".to_owned()],
            ..Mount::default()
        };
        if own.info.kind() == api::Kind::View || lower.is_empty() {
            let files = own.files.display().to_string();
            return Ok(vec![if lower.is_empty() { bind(files, "rw") } else { bind(lower[0].clone(), "ro") }]);
        }
        Ok(vec![Mount {
            r#type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![
                format!("workdir={}", own.files.with_file_name("work").display()),
                format!("upperdir={}", own.files.display()),
                format!("lowerdir={}", lower.join(":")),
            ],
            ..Mount::default()
        }])
    }
}

#[derive(Clone)]
struct Service(Arc<Mutex<Store>>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Answer<api::PrepareSnapshotResponse> {
        let api::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.0.lock().unwrap().create(&key, &parent, api::Kind::Active, labels)?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<api::ViewSnapshotRequest>) -> Answer<api::ViewSnapshotResponse> {
        let api::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.0.lock().unwrap().create(&key, &parent, api::Kind::View, labels)?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let mounts = self.0.lock().unwrap().mounts(&request.get_ref().key)?;
        Ok(Response::new(api::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let api::CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        let mut store = self.0.lock().unwrap();
        let Kept { info, files } = store.get(&key)?.clone();
        store.kept.remove(&key);
        store.add(&name, &info.parent, api::Kind::Committed, labels, files);
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        let mut store = self.0.lock().unwrap();
        store.get(&key)?;
        if store.kept.values().any(|kept| kept.info.parent == key) {
            return Err(Status::failed_precondition("cannot remove snapshot with child"));
        }
        store.kept.remove(&key);
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<api::StatSnapshotRequest>) -> Answer<api::StatSnapshotResponse> {
        let info = self.0.lock().unwrap().get(&request.get_ref().key)?.info.clone();
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(&self, _: Request<api::UpdateSnapshotRequest>) -> Answer<api::UpdateSnapshotResponse> {
        Err(Status::unimplemented("update"))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<api::ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, _: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let info = self.0.lock().unwrap().kept.values().map(|kept| kept.info.clone()).collect();
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(api::ListSnapshotsResponse { info })))))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        self.0.lock().unwrap().get(&request.get_ref().key)?;
        Ok(Response::new(api::UsageResponse { size: 7, inodes: 1 }))
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Answer<()> {
        Ok(Response::new(()))
    }
}

/// Unpacks a layer as the other place has it.
fn unpack(image: &Image, layer: usize, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    Cmd::new("tar").args(["-xz", "-C"]).arg(to).input(image.layers()[layer].bytes.clone()).run().success();
    to.to_owned()
}

/// The name of the snapshot of a layer and those below it.
fn chain(image: &Image, layers: usize) -> String {
    let ids = image.layers()[..layers].iter().map(|layer| layer.diff_id.clone());
    ids.reduce(|below, own| digest(format!("{below} {own}").as_bytes())).expect("a layer")
}

#[test]
fn layers_that_the_snapshotter_has_are_not_fetched() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let image = Image::two_layers().layer(orlop_tests::Layer::new().file("etc/third", b"three\n", 0o644));
    let name = image.push(&registry, "remote", "1");
    let store = Arc::new(Mutex::new(Store { directory: root.join("theirs"), ..Store::default() }));
    let first = unpack(&image, 0, &root.join("first"));
    store.lock().unwrap().remote.insert(chain(&image, 1), first);
    let service = Service(store.clone());
    let plugin = Plugin::serve(&root.join("plugin.sock"), |mut server| {
        server.add_service(SnapshotsServer::new(service))
    });
    let mut daemon = Orlopd::start_with(&root, &plugin.config("remote", "snapshot"));
    let pull = |daemon: &Orlopd| {
        daemon.orlopctl(["images", "pull", "--snapshotter", "remote", &name]).run().success();
    };
    pull(&daemon);

    // Only the lowest layer was there already.
    let content = |daemon: &Orlopd| daemon.ctr(["content", "ls", "-q"]).run().success().stdout;
    let digests: Vec<&str> = image.layers().iter().map(|layer| layer.digest.as_str()).collect();
    let fetched = content(&daemon);
    assert!(!fetched.contains(digests[0]), "{fetched}");
    assert!(fetched.contains(digests[1]) && fetched.contains(digests[2]), "{fetched}");
    let told = store.lock().unwrap().told.clone();
    assert_eq!(told[0][REFERENCE], chain(&image, 1));
    let cri = |key: &str| told[0].get(&format!("containerd.io/snapshot/cri.{key}")).map(String::as_str);
    assert_eq!(cri("image-ref"), Some(name.as_str()));
    assert_eq!(cri("layer-digest"), Some(digests[0]));
    assert_eq!(cri("image-layers"), Some(digests.join(",").as_str()));
    assert_eq!(cri("manifest-digest"), Some(image.digest().as_str()));

    let run = |daemon: &Orlopd, id: &str| {
        let script = "cat /etc/changed /etc/kept /etc/third; ls /etc/deleted 2>/dev/null; echo end";
        let words = ["run", "--rm", "--snapshotter", "remote", &name, id, "sh", "-c", script];
        let output = daemon.orlopctl(words).run().success().stdout;
        // Whether the second layer's whiteout is understood is for the plugin's mounts to say.
        assert!(output.starts_with("two\nkept\nthree\n") && output.ends_with("end\n"), "{output}");
    };
    run(&daemon, "one");
    daemon.kill();
    daemon.restart();
    run(&daemon, "two");
    let check = daemon.orlopctl(["fsck"]).run().success().stdout;
    assert!(!check.contains("is not there"), "{check}");
    // A second pull finds all of it.
    pull(&daemon);
    assert!(!content(&daemon).contains(digests[0]));

    daemon.orlopctl(["images", "rm", "--sync", &name]).run().success();
    poll_until(Duration::from_secs(20), "nothing is kept", || store.lock().unwrap().kept.is_empty());
    daemon.stop();
    drop(plugin);
    drop(registry);
    root.assert_clean();
}

#[test]
fn a_client_that_unpacks_by_itself_is_told_that_the_snapshot_is_there() {
    let root = Root::new();
    let image = Image::busybox();
    let store = Arc::new(Mutex::new(Store { directory: root.join("theirs"), ..Store::default() }));
    let files = unpack(&image, 0, &root.join("first"));
    store.lock().unwrap().remote.insert(chain(&image, 1), files);
    let service = Service(store.clone());
    let plugin = Plugin::serve(&root.join("plugin.sock"), |mut server| {
        server.add_service(SnapshotsServer::new(service))
    });
    let mut daemon = Orlopd::start_with(&root, &plugin.config("remote", "snapshot"));
    let client = Client::new(daemon.address(), daemon.namespace());
    let target = chain(&image, 1);
    let prepare = |key: &str, target: &str| {
        let request = api::PrepareSnapshotRequest {
            snapshotter: "remote".to_owned(),
            key: key.to_owned(),
            labels: [(REFERENCE.to_owned(), target.to_owned())].into(),
            ..api::PrepareSnapshotRequest::default()
        };
        client.call(async |channel| SnapshotsClient::new(channel).prepare(client.request(request)).await)
    };
    assert_eq!(prepare("extract", &target).unwrap_err().code(), Code::AlreadyExists);
    let listed = daemon.ctr(["snapshots", "--snapshotter", "remote", "ls"]).run().success().stdout;
    assert!(
        listed.contains(&target) && listed.contains("Committed") && !listed.contains("extract"),
        "{listed}"
    );
    assert_eq!(prepare("extract", "sha256:other").unwrap().mounts.len(), 1);
    let mounts = client.prepare("remote", "work", &target).unwrap();
    let lower = format!("lowerdir={}", root.join("first").display());
    assert!(mounts[0].options.contains(&lower), "{mounts:?}");
    daemon.stop();
    drop(plugin);
    root.assert_clean();
}
