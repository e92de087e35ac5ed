//! What `ctr` does not reach: field masks, limits of labels, filters and headers, call by call beside Debian's containerd. The code
//! and the text must be the same, and what a change leaves too.

use std::collections::HashMap;

use orlop_proto::containerd::services::containers::v1 as containers;
use orlop_proto::containerd::services::containers::v1::containers_client::ContainersClient;
use orlop_proto::containerd::services::content::v1 as content;
use orlop_proto::containerd::services::content::v1::content_client::ContentClient;
use orlop_proto::containerd::services::images::v1 as images;
use orlop_proto::containerd::services::images::v1::images_client::ImagesClient;
use orlop_proto::containerd::services::leases::v1 as leases;
use orlop_proto::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_proto::containerd::services::namespaces::v1 as namespaces;
use orlop_proto::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use orlop_proto::containerd::services::snapshots::v1 as snapshots;
use orlop_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_proto::containerd::services::tasks::v1 as tasks;
use orlop_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use orlop_proto::containerd::types::Descriptor;
use orlop_tests::daemon::Variant;
use orlop_tests::image::digest;
use orlop_tests::{Containerd, Daemon, Orlopd, Root};
use prost_types::{Any, FieldMask};
use tonic::Status;

use crate::client::{Client, Put};

const BLOB: &[u8] = b"some bytes";

/// The answers of one daemon, in order.
struct Answers {
    client: Client,
    lines: Vec<String>,
}

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() })
}

/// A map in the order of its keys.
fn shown(map: &HashMap<String, String>) -> String {
    let mut pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.sort();
    pairs.join(",")
}

macro_rules! call {
    ($client:expr, $stub:ident.$method:ident($message:expr)) => {
        $client.call(async |channel| $stub::new(channel).$method($client.request($message)).await)
    };
}

impl Answers {
    fn note<A>(&mut self, what: &str, answer: Result<A, Status>, show: impl FnOnce(A) -> String) {
        let text = match answer {
            Ok(answer) => show(answer),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        self.lines.push(format!("{what} -> {text}"));
    }
}

fn image(name: &str, pairs: &[(&str, &str)]) -> images::Image {
    let target = Descriptor {
        media_type: "text/plain".to_owned(),
        digest: digest(BLOB),
        size: BLOB.len() as i64,
        annotations: labels(&[("note", "n")]),
    };
    images::Image { name: name.to_owned(), labels: labels(pairs), target: Some(target), ..Default::default() }
}

fn images(answers: &mut Answers) {
    let show = |image: Option<images::Image>| {
        let image = image.unwrap();
        let target = image.target.unwrap();
        format!("{} {} {} {}", image.name, shown(&image.labels), target.size, shown(&target.annotations))
    };
    for image in [image("a", &[("k", "v"), ("empty", "")]), image("a", &[]), image("", &[])] {
        let what = format!("create image {:?}", image.name);
        let made = call!(
            answers.client,
            ImagesClient.create(images::CreateImageRequest { image: Some(image), ..Default::default() })
        );
        answers.note(&what, made, |made| show(made.image));
    }
    let long = "x".repeat(4096);
    let made = call!(
        answers.client,
        ImagesClient.create(images::CreateImageRequest {
            image: Some(image("long", &[("key", &long)])),
            ..Default::default()
        })
    );
    answers.note("create image with a long label", made, |made| show(made.image));
    for (name, pairs, paths) in [
        ("a", &[("l", "w")][..], &["labels.l"][..]),
        ("a", &[], &["labels.l"]),
        ("a", &[("m", "1"), ("n", "2")], &["labels.m", "labels.n"]),
        ("a", &[("only", "this")], &["labels"]),
        ("a", &[], &["target"]),
        ("a", &[], &["annotations"]),
        ("a", &[], &["annotations.note"]),
        ("a", &[], &["name"]),
        ("a", &[], &["nonsense"]),
        ("a", &[("fresh", "x")], &[]),
        ("b", &[], &[]),
        ("", &[], &["labels"]),
    ] {
        let request = images::UpdateImageRequest {
            image: Some(image(name, pairs)),
            update_mask: mask(paths),
            ..Default::default()
        };
        let updated = call!(answers.client, ImagesClient.update(request));
        answers.note(&format!("update image {name:?} {pairs:?} {paths:?}"), updated, |updated| {
            show(updated.image)
        });
    }
    for filters in [
        &["name==a"][..],
        &["labels.fresh"],
        &["labels.fresh==y"],
        &["labels.\"fresh\"==x"],
        &["name~=\"^a$\""],
        &["name!=a"],
        &["name==b", "labels.fresh==x"],
        &["name==a,labels.none"],
        &["target.mediatype==\"text/plain\""],
        &["target.digest~=\"^sha256:\""],
        &["annotations.note==n"],
        &["nosuch==x"],
        &["name="],
        &["=="],
        &["name~=\"(\""],
    ] {
        let filters: Vec<String> = filters.iter().map(|&filter| filter.to_owned()).collect();
        let listed =
            call!(answers.client, ImagesClient.list(images::ListImagesRequest { filters: filters.clone() }));
        answers.note(&format!("list images {filters:?}"), listed, |listed| {
            listed.images.into_iter().map(|image| image.name).collect::<Vec<_>>().join(",")
        });
    }
    let deleted = call!(
        answers.client,
        ImagesClient.delete(images::DeleteImageRequest { name: "none".to_owned(), ..Default::default() })
    );
    answers.note("delete an image that is not there", deleted, |()| String::new());
}

fn container(id: &str, pairs: &[(&str, &str)]) -> containers::Container {
    let any = |text: &str| Any { type_url: "t".to_owned(), value: text.as_bytes().to_vec() };
    containers::Container {
        id: id.to_owned(),
        labels: labels(pairs),
        image: "i".to_owned(),
        runtime: Some(containers::container::Runtime {
            name: "io.containerd.runc.v2".to_owned(),
            options: None,
        }),
        spec: Some(any("spec")),
        snapshotter: "native".to_owned(),
        snapshot_key: "key".to_owned(),
        extensions: [("e".to_owned(), any("extension"))].into(),
        ..Default::default()
    }
}

fn containers(answers: &mut Answers) {
    let show = |made: Option<containers::Container>| {
        let made = made.unwrap();
        let mut extensions: Vec<String> =
            made.extensions.into_iter().map(|(key, any)| format!("{key}={any:?}")).collect();
        extensions.sort();
        let value = made.spec.map(|spec| String::from_utf8_lossy(&spec.value).into_owned());
        format!(
            "{} {} {} {value:?} {}/{} {extensions:?}",
            made.id,
            shown(&made.labels),
            made.image,
            made.snapshotter,
            made.snapshot_key
        )
    };
    let mut odd = vec![
        ("well", container("c", &[("k", "v")])),
        ("twice", container("c", &[])),
        ("bad name", container("a/b", &[])),
        ("no name", container("", &[])),
        ("long name", container(&"n".repeat(77), &[])),
        ("no runtime", containers::Container { runtime: None, ..container("d", &[]) }),
        ("no spec", containers::Container { spec: None, ..container("d", &[]) }),
        ("no snapshotter", containers::Container { snapshotter: String::new(), ..container("d", &[]) }),
    ];
    let mut unnamed = container("d", &[]);
    unnamed.extensions.insert(String::new(), Any::default());
    odd.push(("extension without a name", unnamed));
    odd.push(("long label", container("d", &[("key", &"v".repeat(5000))])));
    for (what, container) in odd {
        let made = call!(
            answers.client,
            ContainersClient.create(containers::CreateContainerRequest { container: Some(container) })
        );
        answers.note(&format!("create container: {what}"), made, |made| show(made.container));
    }
    let mut changed = container("c", &[("l", "w")]);
    changed.image = "other".to_owned();
    changed.snapshot_key = "elsewhere".to_owned();
    changed.extensions = [("f".to_owned(), Any { type_url: "u".to_owned(), value: vec![1] })].into();
    for paths in [
        &["labels.l"][..],
        &["labels"],
        &["extensions.f"],
        &["extensions"],
        &["image", "snapshotkey"],
        &["spec"],
        &["runtime"],
        &["snapshotter"],
        &["id"],
        &["created_at"],
        &[],
    ] {
        let request =
            containers::UpdateContainerRequest { container: Some(changed.clone()), update_mask: mask(paths) };
        let updated = call!(answers.client, ContainersClient.update(request));
        answers.note(&format!("update container {paths:?}"), updated, |updated| show(updated.container));
    }
    for (what, other) in [
        ("another runtime", containers::Container { runtime: None, ..changed.clone() }),
        (
            "another snapshotter",
            containers::Container { snapshotter: "overlayfs".to_owned(), ..changed.clone() },
        ),
        ("no name", containers::Container { id: String::new(), ..changed.clone() }),
        ("none of that name", containers::Container { id: "nope".to_owned(), ..changed.clone() }),
    ] {
        let request = containers::UpdateContainerRequest { container: Some(other), update_mask: None };
        let updated = call!(answers.client, ContainersClient.update(request));
        answers.note(&format!("update container: {what}"), updated, |updated| show(updated.container));
    }
    for filter in ["id==c", "runtime.name~=\"runc\"", "image==other", "labels.l==w", "labels.k", "id=="] {
        let request = containers::ListContainersRequest { filters: vec![filter.to_owned()] };
        let listed = call!(answers.client, ContainersClient.list(request));
        answers.note(&format!("list containers {filter}"), listed, |listed| {
            listed.containers.into_iter().map(|one| one.id).collect::<Vec<_>>().join(",")
        });
    }
    for id in ["c", "nope"] {
        let got = call!(
            answers.client,
            TasksClient.get(tasks::GetRequest { container_id: id.to_owned(), ..Default::default() })
        );
        answers.note(&format!("get task of {id}"), got, |_| String::new());
        let killed = call!(
            answers.client,
            TasksClient.kill(tasks::KillRequest {
                container_id: id.to_owned(),
                signal: 9,
                ..Default::default()
            })
        );
        answers.note(&format!("kill task of {id}"), killed, |()| String::new());
        let deleted = call!(
            answers.client,
            ContainersClient.delete(containers::DeleteContainerRequest { id: id.to_owned() })
        );
        answers.note(&format!("delete container {id}"), deleted, |()| String::new());
    }
}

fn contents(answers: &mut Answers) {
    let put = Put { reference: "r", total: 0, expected: "", labels: &[("first", "1")] };
    answers.client.put(&put, BLOB, 4).unwrap();
    let show = |info: Option<content::Info>| {
        let info = info.unwrap();
        format!("{} {} {}", info.digest, info.size, shown(&info.labels))
    };
    for (pairs, paths) in [
        (&[("second", "2")][..], &["labels.second"][..]),
        (&[], &["labels.second"]),
        (&[("third", "3")], &["labels"]),
        (&[("empty", "")], &["labels.empty"]),
        (&[], &["size"]),
        (&[], &["labels."]),
        (&[("fourth", "4")], &[]),
    ] {
        let info = content::Info { digest: digest(BLOB), labels: labels(pairs), ..Default::default() };
        let updated = call!(
            answers.client,
            ContentClient.update(content::UpdateRequest { info: Some(info), update_mask: mask(paths) })
        );
        answers.note(&format!("update content {pairs:?} {paths:?}"), updated, |updated| show(updated.info));
    }
    let absent = digest(b"absent");
    for text in [absent.as_str(), "sha256:abc", "", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
        let found =
            call!(answers.client, ContentClient.info(content::InfoRequest { digest: text.to_owned() }));
        answers.note(&format!("info of content {text:?}"), found, |found| show(found.info));
        let info = content::Info { digest: text.to_owned(), ..Default::default() };
        let updated = call!(
            answers.client,
            ContentClient.update(content::UpdateRequest { info: Some(info), update_mask: mask(&["labels"]) })
        );
        answers.note(&format!("update content {text:?}"), updated, |updated| show(updated.info));
        let deleted = call!(
            answers.client,
            ContentClient.delete(content::DeleteContentRequest { digest: text.to_owned() })
        );
        answers.note(&format!("delete content {text:?}"), deleted, |()| String::new());
    }
    for (offset, size) in [(0, 0), (5, 3), (10, 0), (11, 0), (-1, 0), (0, -1), (0, 100)] {
        let read = answers.client.read(&digest(BLOB), offset, size);
        answers.note(&format!("read {offset} {size}"), read, |messages| {
            let bytes: Vec<u8> = messages.into_iter().flat_map(|message| message.data).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        });
    }
    let status =
        call!(answers.client, ContentClient.status(content::StatusRequest { r#ref: "none".to_owned() }));
    answers.note("status of no write", status, |_| String::new());
    let aborted =
        call!(answers.client, ContentClient.abort(content::AbortRequest { r#ref: "none".to_owned() }));
    answers.note("abort of no write", aborted, |()| String::new());
    let wrong = Put { reference: "w", total: 3, expected: "", labels: &[] };
    answers
        .note("write more than said", answers_put(&answers.client, &wrong, BLOB), |_| "written".to_owned());
    let expected = digest(b"other");
    let wrong = Put { reference: "x", total: 0, expected: &expected, labels: &[] };
    answers.note("write something else", answers_put(&answers.client, &wrong, b"this"), |_| {
        "written".to_owned()
    });
    let known = digest(BLOB);
    let known = Put { reference: "y", total: 0, expected: &known, labels: &[] };
    answers.note("write what is there", answers_put(&answers.client, &known, BLOB), |_| "written".to_owned());
    let unnamed = Put::default();
    answers
        .note("write without a name", answers_put(&answers.client, &unnamed, BLOB), |_| "written".to_owned());
}

fn answers_put(client: &Client, put: &Put<'_>, bytes: &[u8]) -> Result<(), Status> {
    client.put(put, bytes, 4).map(drop)
}

fn layers(answers: &mut Answers) {
    let show = |info: Option<snapshots::Info>| {
        let info = info.unwrap();
        format!("{} {:?} {} {}", info.name, info.kind(), info.parent, shown(&info.labels))
    };
    let snapshotter = || "native".to_owned();
    let long = "v".repeat(5000);
    for (key, parent, pairs) in [
        ("s", "", &[("k", "v"), ("empty", "")][..]),
        ("s", "", &[]),
        ("t", "none", &[]),
        ("t", "s", &[]),
        ("t", "", &[("key", &long)]),
        ("t", "", &[("containerd.io/snapshot.ref", "s")]),
    ] {
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels(pairs),
        };
        let made = call!(answers.client, SnapshotsClient.prepare(request));
        answers.note(&format!("prepare {key:?} {parent:?} {}", pairs.len()), made, |made| {
            made.mounts.len().to_string()
        });
    }
    for (name, pairs, paths) in [
        ("s", &[("l", "w")][..], &["labels.l"][..]),
        ("s", &[], &["labels.l"]),
        ("s", &[("m", "x")], &["labels"]),
        ("s", &[], &["kind"]),
        ("s", &[], &["parent"]),
        ("s", &[("all", "y")], &[]),
        ("none", &[], &["labels"]),
        ("", &[], &["labels"]),
    ] {
        let info = snapshots::Info { name: name.to_owned(), labels: labels(pairs), ..Default::default() };
        let request = snapshots::UpdateSnapshotRequest {
            snapshotter: snapshotter(),
            info: Some(info),
            update_mask: mask(paths),
        };
        let updated = call!(answers.client, SnapshotsClient.update(request));
        answers.note(&format!("update snapshot {name:?} {pairs:?} {paths:?}"), updated, |updated| {
            show(updated.info)
        });
    }
    for (key, name) in [("s", "s"), ("none", "n"), ("s", "committed"), ("s", "again"), ("committed", "more")]
    {
        let request = snapshots::CommitSnapshotRequest {
            snapshotter: snapshotter(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: labels(&[("containerd.io/gc.root", "1")]),
        };
        let committed = call!(answers.client, SnapshotsClient.commit(request));
        answers.note(&format!("commit {key} as {name}"), committed, |()| "done".to_owned());
    }
    for key in ["committed", "none", ""] {
        let found = call!(
            answers.client,
            SnapshotsClient
                .stat(snapshots::StatSnapshotRequest { snapshotter: snapshotter(), key: key.to_owned() })
        );
        answers.note(&format!("stat {key:?}"), found, |found| show(found.info));
        let usage = call!(
            answers.client,
            SnapshotsClient
                .usage(snapshots::UsageRequest { snapshotter: snapshotter(), key: key.to_owned() })
        );
        answers.note(&format!("usage {key:?}"), usage, |usage| usage.inodes.to_string());
    }
    let stat = snapshots::StatSnapshotRequest { snapshotter: String::new(), key: "k".to_owned() };
    answers.note("stat without a snapshotter", call!(answers.client, SnapshotsClient.stat(stat)), |_| {
        String::new()
    });
}

fn holders(answers: &mut Answers) {
    for (id, pairs) in [("l", &[("k", "v"), ("empty", "")][..]), ("l", &[]), ("", &[])] {
        let made = call!(
            answers.client,
            LeasesClient.create(leases::CreateRequest { id: id.to_owned(), labels: labels(pairs) })
        );
        answers.note(&format!("create lease {id:?}"), made, |made| {
            let lease = made.lease.unwrap();
            format!("{} {}", lease.id, shown(&lease.labels))
        });
    }
    let resource =
        |id: &str, kind: &str| Some(leases::Resource { id: id.to_owned(), r#type: kind.to_owned() });
    for (lease, id, kind) in [
        ("l", digest(BLOB), "content"),
        ("l", "nonsense".to_owned(), "content"),
        ("l", "k".to_owned(), "snapshots/native"),
        ("l", "k".to_owned(), "snapshots"),
        ("l", "w".to_owned(), "ingests"),
        ("l", "x".to_owned(), "nonsense"),
        ("none", "w".to_owned(), "ingests"),
    ] {
        let request = leases::AddResourceRequest { id: lease.to_owned(), resource: resource(&id, kind) };
        let added = call!(answers.client, LeasesClient.add_resource(request));
        answers.note(&format!("add {kind} {id} to {lease}"), added, |()| "added".to_owned());
    }
    for lease in ["l", "none"] {
        let listed = call!(
            answers.client,
            LeasesClient.list_resources(leases::ListResourcesRequest { id: lease.to_owned() })
        );
        answers.note(&format!("resources of {lease}"), listed, |listed| {
            let mut all: Vec<String> =
                listed.resources.into_iter().map(|one| format!("{} {}", one.r#type, one.id)).collect();
            all.sort();
            all.join(",")
        });
    }
    let request =
        leases::DeleteResourceRequest { id: "l".to_owned(), resource: resource("not there", "ingests") };
    answers.note(
        "delete a resource that is not there",
        call!(answers.client, LeasesClient.delete_resource(request)),
        |()| String::new(),
    );
    for filter in ["id==l", "labels.k==v", "labels.none", "id=~"] {
        let listed = call!(
            answers.client,
            LeasesClient.list(leases::ListRequest { filters: vec![filter.to_owned()] })
        );
        answers.note(&format!("list leases {filter}"), listed, |listed| listed.leases.len().to_string());
    }
    let deleted = call!(
        answers.client,
        LeasesClient.delete(leases::DeleteRequest { id: "none".to_owned(), sync: false })
    );
    answers.note("delete a lease that is not there", deleted, |()| String::new());
}

fn spaces(answers: &mut Answers) {
    let named = |name: &str, pairs: &[(&str, &str)]| namespaces::Namespace {
        name: name.to_owned(),
        labels: labels(pairs),
    };
    for (name, pairs, paths) in [
        ("sem", &[("a", "1")][..], &["labels.a"][..]),
        ("sem", &[("b", "2")], &["labels.b"]),
        ("sem", &[], &["labels.a"]),
        ("sem", &[], &["name"]),
        ("sem", &[("c", "3")], &[]),
        ("a/b", &[], &[]),
    ] {
        let request = namespaces::UpdateNamespaceRequest {
            namespace: Some(named(name, pairs)),
            update_mask: mask(paths),
        };
        let updated = call!(answers.client, NamespacesClient.update(request));
        answers.note(&format!("update namespace {name} {pairs:?} {paths:?}"), updated, |updated| {
            shown(&updated.namespace.unwrap().labels)
        });
    }
    let got = call!(
        answers.client,
        NamespacesClient.get(namespaces::GetNamespaceRequest { name: "none".to_owned() })
    );
    answers.note("get a namespace that is not there", got, |got| format!("{:?}", got.namespace));
}

fn headers(answers: &mut Answers, socket: &std::path::Path) {
    for namespace in ["", "a/b", "-a"] {
        let client = Client::new(socket, namespace);
        let listed = call!(client, ImagesClient.list(images::ListImagesRequest::default()));
        answers.note(&format!("a call in namespace {namespace:?}"), listed, |_| String::new());
    }
    let client = Client::new(socket, "sem").with_lease("none");
    let put = answers_put(&client, &Put { reference: "q", ..Put::default() }, b"leased");
    answers.note("a write under a lease that is not there", put, |()| "written".to_owned());
    let made = client.prepare("native", "q", "");
    answers.note("a snapshot under a lease that is not there", made, |_| "made".to_owned());
}

fn answers(daemon: &impl Daemon) -> Vec<String> {
    let client = Client::new(daemon.address(), "sem");
    let mut answers = Answers { client, lines: Vec::new() };
    images(&mut answers);
    containers(&mut answers);
    contents(&mut answers);
    layers(&mut answers);
    holders(&mut answers);
    spaces(&mut answers);
    headers(&mut answers, daemon.address());
    answers.lines
}

/// What begins so is answered in another way, on purpose.
const OTHERWISE: [(&str, &str); 6] = [
    // An update replaces all extensions in the answer of both; containerd goes on keeping the old ones.
    ("update container [\"image\", \"snapshotkey\"]", "the replaced extensions are gone"),
    ("update container [\"spec\"]", "the replaced extensions are gone"),
    ("prepare \"t\" \"s\"", "the error names the client's key"),
    ("commit committed as more", "the error names the client's key"),
    ("create lease \"\"", "the name is made up"),
    // containerd answers with nothing, and takes any name.
    ("update namespace", "the answer has the labels, the name is checked"),
];

/// An answer without what newer versions of containerd add to it.
fn plain(answer: &str) -> String {
    let Some((before, rest)) = answer.split_once("value length (") else { return answer.to_owned() };
    let (_, after) = rest.split_once(" bytes) ").expect("the length has an end");
    format!("{before}value {after}")
}

fn differences(expected: &[String], found: &[String]) -> String {
    let is_excepted = |answer: &str| OTHERWISE.iter().any(|(begin, _)| answer.starts_with(begin));
    let both = expected
        .iter()
        .zip(found)
        .filter(|(expected, found)| **expected != plain(found) && !is_excepted(expected));
    both.map(|(expected, found)| format!("containerd: {expected}\norlopd:     {found}\n")).collect()
}

#[test]
fn every_call_is_answered_as_by_containerd() {
    let root = Root::new();
    // Both collect what nothing holds a moment after a deletion: held off, so that the answers depend on no clock. containerd
    // looks for the first time when this delay is over, and not before.
    let later = "[plugins.\"io.containerd.gc.v1.scheduler\"]\nstartup_delay = \"1h\"\n".to_owned();
    let variant = Variant { containerd_config: later, ..Variant::default() };
    let expected = answers(&Containerd::start_as(&root, &variant));
    let found = answers(&Orlopd::start_with(&root, "[gc]\nschedule_delay = 3600000\n"));
    assert_eq!(expected.len(), found.len());
    let differences = differences(&expected, &found);
    assert!(differences.is_empty(), "{differences}");
}
