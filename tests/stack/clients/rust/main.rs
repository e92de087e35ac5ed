//! What users of the crate containerd-client do, told line by line: they list what is there, run a container on an image's layers,
//! hear of its end, and remove what they made.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::events::{ContainerDelete, TaskExit};
use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteRequest, DeleteTaskRequest, GetContainerRequest, KillRequest, ListContainersRequest,
    ListContentRequest, ListImagesRequest, ListNamespacesRequest, PublishRequest, StartRequest,
    SubscribeRequest, WaitRequest,
};
use containerd_client::tonic::{Code, Request};
use containerd_client::types::Envelope;
use containerd_client::{Client, to_any, with_namespace};
use prost_types::Any;
use tokio::sync::mpsc::{Receiver, channel};

type Failure = Box<dyn std::error::Error>;

const ID: &str = "rust";
const SNAPSHOTTER: &str = "overlayfs";
/// Topic of the event by which a subscription is known to hold.
const READY: &str = "/walk/ready";
const SPEC: &str = r#"{
  "ociVersion": "1.0.2",
  "process": {
    "user": {"uid": 0, "gid": 0},
    "args": ["sh", "-c", "cat /etc/changed; echo complaint >&2; exit 7"],
    "env": ["PATH=/bin"],
    "cwd": "/"
  },
  "root": {"path": "rootfs"},
  "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
  "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]}
}"#;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, namespace, directory] = &words[..] else {
        return Err("ADDRESS NAMESPACE DIRECTORY".into());
    };
    tokio::time::timeout(Duration::from_secs(60), walk(address, namespace, directory)).await?
}

async fn walk(address: &str, namespace: &str, directory: &str) -> Result<(), Failure> {
    let client = Client::from_path(address).await?;
    let version = client.version().version(()).await?.into_inner();
    assert!(!version.version.is_empty());

    let namespaces =
        client.namespaces().list(ListNamespacesRequest::default()).await?.into_inner().namespaces;
    assert!(namespaces.iter().any(|found| found.name == namespace), "{namespaces:?}");
    let request = with_namespace!(ListImagesRequest::default(), namespace);
    for image in client.images().list(request).await?.into_inner().images {
        println!("image {}", image.name);
    }
    let request = with_namespace!(ListContainersRequest::default(), namespace);
    println!("containers {}", client.containers().list(request).await?.into_inner().containers.len());

    // Whoever unpacked the image has noted at its configuration what its uppermost layer is called.
    let label = format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}");
    let filters = vec![format!("labels.\"{label}\"")];
    let request = with_namespace!(ListContentRequest { filters }, namespace);
    let mut parts = client.content().list(request).await?.into_inner();
    let mut parent = None;
    while let Some(part) = parts.message().await? {
        parent = part.info.into_iter().find_map(|info| info.labels.get(&label).cloned()).or(parent);
    }
    let parent = parent.ok_or("no image is unpacked")?;

    let mut events = subscribe(&client, namespace).await?;

    // What is made under a lease stays until something refers to it.
    let lease = CreateRequest { id: "rust-lease".to_owned(), labels: HashMap::new() };
    client.leases().create(with_namespace!(lease, namespace)).await?;
    let request = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: ID.to_owned(),
        parent,
        ..Default::default()
    };
    let mut request = with_namespace!(request, namespace);
    request.metadata_mut().insert("containerd-lease", "rust-lease".parse()?);
    let rootfs = client.snapshots().prepare(request).await?.into_inner().mounts;
    let container = Container {
        id: ID.to_owned(),
        labels: HashMap::from([("made-by".to_owned(), "containerd-client".to_owned())]),
        runtime: Some(Runtime { name: "io.containerd.runc.v2".to_owned(), options: None }),
        spec: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
            value: SPEC.into(),
        }),
        snapshotter: SNAPSHOTTER.to_owned(),
        snapshot_key: ID.to_owned(),
        ..Default::default()
    };
    let request = CreateContainerRequest { container: Some(container) };
    client.containers().create(with_namespace!(request.clone(), namespace)).await?;
    let again = client.containers().create(with_namespace!(request, namespace)).await;
    println!("again {:?}", again.err().map(|status| status.code()));
    let request = DeleteRequest { id: "rust-lease".to_owned(), sync: true };
    client.leases().delete(with_namespace!(request, namespace)).await?;
    let filters = vec!["labels.\"made-by\"==containerd-client".to_owned()];
    let request = with_namespace!(ListContainersRequest { filters }, namespace);
    let found = client.containers().list(request).await?.into_inner().containers;
    println!("container {} on {}", found[0].id, found[0].snapshot_key);

    // The crate's own example has output go to files.
    let (stdout, stderr) = (format!("{directory}/stdout"), format!("{directory}/stderr"));
    std::fs::write(&stdout, "")?;
    std::fs::write(&stderr, "")?;
    let mut tasks = client.tasks();
    let request = CreateTaskRequest {
        container_id: ID.to_owned(),
        rootfs,
        stdout: stdout.clone(),
        stderr: stderr.clone(),
        ..Default::default()
    };
    tasks.create(with_namespace!(request, namespace)).await?;
    let waiting = tokio::spawn({
        let (mut tasks, request) =
            (tasks.clone(), WaitRequest { container_id: ID.to_owned(), ..Default::default() });
        let request = with_namespace!(request, namespace);
        async move { tasks.wait(request).await }
    });
    let request = StartRequest { container_id: ID.to_owned(), ..Default::default() };
    let started = tasks.start(with_namespace!(request, namespace)).await?.into_inner();
    assert!(started.pid > 0);
    let ended = waiting.await??.into_inner();
    let deleted =
        tasks.delete(with_namespace!(DeleteTaskRequest { container_id: ID.to_owned() }, namespace)).await?;
    println!("ended with {} and {}", ended.exit_status, deleted.into_inner().exit_status);
    println!("said {:?} and {:?}", std::fs::read_to_string(stdout)?, std::fs::read_to_string(stderr)?);
    let request = KillRequest { container_id: ID.to_owned(), signal: 9, ..Default::default() };
    let gone = tasks.kill(with_namespace!(request, namespace)).await;
    println!("kill {:?}", gone.err().map(|status| status.code()));

    let request = DeleteContainerRequest { id: ID.to_owned() };
    client.containers().delete(with_namespace!(request, namespace)).await?;
    let request = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: ID.to_owned() };
    client.snapshots().remove(with_namespace!(request, namespace)).await?;
    let request = with_namespace!(GetContainerRequest { id: ID.to_owned() }, namespace);
    let gone = client.containers().get(request).await.err().map(|status| status.code());
    assert_eq!(gone, Some(Code::NotFound));
    hear(&mut events).await
}

/// Subscribes to the events of tasks. containerd answers a subscription with the first event, and not before; one of our own, sent
/// until it is heard, says that none is missed from now on.
async fn subscribe(client: &Client, namespace: &str) -> Result<Receiver<Envelope>, Failure> {
    let filters =
        ["/tasks/", READY].map(|topic| format!("namespace=={namespace},topic~=\"^{topic}\"")).to_vec();
    let (send, mut events) = channel(64);
    let mut service = client.events();
    tokio::spawn(async move {
        let Ok(answer) = service.subscribe(SubscribeRequest { filters }).await else { return };
        let mut answer = answer.into_inner();
        while let Ok(Some(envelope)) = answer.message().await {
            if send.send(envelope).await.is_err() {
                return;
            }
        }
    });
    loop {
        let event = Some(to_any(&ContainerDelete { id: ID.to_owned() }));
        let request = PublishRequest { topic: READY.to_owned(), event };
        client.events().publish(with_namespace!(request, namespace)).await?;
        if let Ok(heard) = tokio::time::timeout(Duration::from_millis(100), events.recv()).await {
            heard.ok_or("the events ended")?;
            return Ok(events);
        }
    }
}

/// Tells of the task's events up to its deletion.
async fn hear(events: &mut Receiver<Envelope>) -> Result<(), Failure> {
    while let Some(Envelope { topic, event, .. }) = events.recv().await {
        if topic == READY {
            continue;
        }
        println!("event {topic}");
        if topic == "/tasks/exit" {
            let mut event = event.ok_or("an event")?;
            // Go's types come without the slash that the type asks for.
            if !event.type_url.contains('/') {
                event.type_url.insert(0, '/');
            }
            let exit: TaskExit = event.to_msg()?;
            assert_eq!((exit.container_id.as_str(), exit.exit_status), (ID, 7));
        }
        if topic == "/tasks/delete" {
            return Ok(());
        }
    }
    Err("the events ended".into())
}
