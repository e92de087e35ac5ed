//! The manager alone beside containerd: many containers, many clients, and the way back after a kill.

use std::path::Path;
use std::time::{Duration, Instant};

use orlop_proto::containerd::services::containers::v1 as containers;
use orlop_proto::containerd::services::snapshots::v1 as snapshots;
use orlop_proto::containerd::services::tasks::v1 as tasks;
use orlop_proto::containerd::v1::types::Status;
use orlop_tests::{Containerd, Daemon, Image, Orlopd, Root};
use tonic::transport::{Channel, Endpoint};

use crate::{Plan, Samples, print_table};

/// Clients that create and delete at once, and how often each does.
const CLIENTS: usize = 10;
const TURNS: usize = 20;

/// Lists, creations and restarts, with `BENCH_CONTAINERS` (500) containers for the lists and a fifth of them for the restarts.
pub fn bench(plan: Plan) {
    let count = std::env::var("BENCH_CONTAINERS").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    let root = Root::new();
    let (mut orlopd, mut containerd) = (Orlopd::start(&root), Containerd::start(&root));
    throughput(plan, &orlopd, &containerd);
    let image = import(&root, &orlopd);
    import(&root, &containerd);
    let few = (count / 5).max(1);
    restarts(plan, &mut orlopd, &mut containerd, &image, few);
    lists(plan, &orlopd, &containerd, &image, few, count);
    remove(&orlopd);
    remove(&containerd);
    orlopd.stop();
    containerd.stop();
}

fn import(root: &Root, daemon: &impl Daemon) -> String {
    let (archive, name) = (root.join("image.tar"), "example.org/busybox:1");
    Image::busybox().oci_archive(&archive, name);
    daemon.ctr(["images", "import"]).arg(archive).run().success();
    name.to_owned()
}

fn start(daemon: &impl Daemon, prefix: &str, image: &str, from: usize, to: usize) {
    for first in (from..to).step_by(4) {
        let clients: Vec<_> = (first..to.min(first + 4))
            .map(|n| {
                daemon
                    .ctr(["run", "-d", "--null-io", image, &format!("{prefix}{n}"), "sleep", "100000"])
                    .spawn()
            })
            .collect();
        clients.into_iter().for_each(|client| drop(client.wait(Duration::from_secs(120)).success()));
    }
}

fn remove(daemon: &impl Daemon) {
    for id in daemon.ctr(["containers", "ls", "-q"]).run().success().stdout.lines() {
        daemon.ctr(["tasks", "rm", "-f", id]).run();
        daemon.ctr(["containers", "rm", id]).run();
    }
}

/// A connection of its own.
struct Client {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    namespace: String,
}

impl Client {
    fn connect(socket: &Path, namespace: &str) -> Option<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("an address");
        let channel = runtime.block_on(endpoint.connect()).ok()?;
        Some(Client { runtime, channel, namespace: namespace.to_owned() })
    }

    fn of(daemon: &impl Daemon) -> Client {
        Client::connect(daemon.address(), daemon.namespace()).expect("the daemon serves")
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.parse().expect("a name"));
        request
    }

    fn containers(&self) -> Option<usize> {
        let mut client = containers::containers_client::ContainersClient::new(self.channel.clone());
        let request = self.request(containers::ListContainersRequest::default());
        Some(self.runtime.block_on(client.list(request)).ok()?.into_inner().containers.len())
    }

    /// How many tasks run.
    fn running(&self) -> Option<usize> {
        let mut client = tasks::tasks_client::TasksClient::new(self.channel.clone());
        let request = self.request(tasks::ListTasksRequest::default());
        let all = self.runtime.block_on(client.list(request)).ok()?.into_inner().tasks;
        Some(all.iter().filter(|task| task.status() == Status::Running).count())
    }

    fn create_and_delete(&self, id: &str) {
        let mut layers = snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone());
        let mut records = containers::containers_client::ContainersClient::new(self.channel.clone());
        self.runtime.block_on(async {
            let prepare = snapshots::PrepareSnapshotRequest {
                snapshotter: "overlayfs".into(),
                key: id.into(),
                // A collection may come at any moment.
                labels: [("containerd.io/gc.root".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            };
            layers.prepare(self.request(prepare)).await.expect("prepare");
            let container = containers::Container {
                id: id.into(),
                runtime: Some(containers::container::Runtime {
                    name: "io.containerd.runc.v2".into(),
                    options: None,
                }),
                spec: Some(prost_types::Any::default()),
                snapshotter: "overlayfs".into(),
                snapshot_key: id.into(),
                ..Default::default()
            };
            let create = containers::CreateContainerRequest { container: Some(container) };
            records.create(self.request(create)).await.expect("create");
            records
                .delete(self.request(containers::DeleteContainerRequest { id: id.into() }))
                .await
                .expect("delete");
            let remove = snapshots::RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key: id.into() };
            layers.remove(self.request(remove)).await.expect("remove");
        });
    }
}

/// Ten clients at once; a sample is the time of all.
fn throughput(plan: Plan, orlopd: &Orlopd, containerd: &Containerd) {
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for round in 0..plan.rounds.div_ceil(4) {
        together(plan, &mut ours, orlopd, round);
        together(plan, &mut theirs, containerd, round);
    }
    let rows = [("orlopd".to_owned(), vec![ours]), ("containerd".to_owned(), vec![theirs])];
    let title = format!("{CLIENTS} clients, each {TURNS} times: a snapshot and a container made and deleted");
    print_table(&title, &["all"], &rows);
}

fn together(plan: Plan, samples: &mut Samples, daemon: &impl Daemon, round: usize) {
    let (socket, namespace) = (daemon.address(), daemon.namespace());
    let clients: Vec<Client> =
        (0..CLIENTS).map(|_| Client::connect(socket, namespace).expect("it serves")).collect();
    plan.sample(samples, || {
        std::thread::scope(|scope| {
            for (number, client) in clients.into_iter().enumerate() {
                scope.spawn(move || {
                    (0..TURNS)
                        .for_each(|turn| client.create_and_delete(&format!("t{round}-{number}-{turn}")));
                });
            }
        });
    });
}

/// SIGKILL and a start, with containers that run: until calls are answered, and until every container is known to run.
fn restarts(plan: Plan, orlopd: &mut Orlopd, containerd: &mut Containerd, image: &str, count: usize) {
    start(orlopd, "a", image, 0, count);
    start(containerd, "b", image, 0, count);
    let (mut ours, mut theirs) =
        ([Samples::default(), Samples::default()], [Samples::default(), Samples::default()]);
    for _ in 0..plan.rounds.div_ceil(4) {
        orlopd.kill();
        back(&mut ours, orlopd, Orlopd::begin, count);
        containerd.kill();
        back(&mut theirs, containerd, Containerd::begin, count);
    }
    let rows = [("orlopd".to_owned(), ours.to_vec()), ("containerd".to_owned(), theirs.to_vec())];
    print_table(
        &format!("Start after SIGKILL with {count} containers that run"),
        &["serving", "all back"],
        &rows,
    );
}

fn back<D: Daemon>(samples: &mut [Samples; 2], daemon: &mut D, begin: impl FnOnce(&mut D), count: usize) {
    let started = Instant::now();
    begin(daemon);
    let client = until(|| {
        let client = Client::connect(daemon.address(), daemon.namespace())?;
        client.containers().map(|_| client)
    });
    samples[0].add(started.elapsed());
    until(|| client.running().filter(|running| *running == count));
    samples[1].add(started.elapsed());
}

/// Asks every millisecond: the harness's own polling is too coarse for what is measured.
fn until<T>(mut value: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = value() {
            return found;
        }
        assert!(Instant::now() < end, "it does not come back");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lists with many containers that sleep.
fn lists(plan: Plan, orlopd: &Orlopd, containerd: &Containerd, image: &str, from: usize, count: usize) {
    start(orlopd, "a", image, from, count);
    start(containerd, "b", image, from, count);
    let mut rows = Vec::new();
    for (name, client) in [("orlopd", Client::of(orlopd)), ("containerd", Client::of(containerd))] {
        let (mut records, mut running) = (Samples::default(), Samples::default());
        for _ in 0..plan.rounds {
            plan.sample(&mut records, || assert_eq!(client.containers(), Some(count)));
            plan.sample(&mut running, || assert_eq!(client.running(), Some(count)));
        }
        rows.push((name.to_owned(), vec![records, running]));
    }
    print_table(&format!("Lists of {count} containers that sleep"), &["containers", "tasks"], &rows);
}
