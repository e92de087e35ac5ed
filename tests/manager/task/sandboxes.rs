//! Sandboxes: their records, and the shims that serve them and their containers.

use orlop_proto::containerd::services::events::v1::SubscribeRequest;
use orlop_proto::containerd::services::events::v1::events_client::EventsClient;
use orlop_proto::containerd::services::sandbox::v1 as api;
use orlop_proto::containerd::services::sandbox::v1::controller_client::ControllerClient;
use orlop_proto::containerd::services::sandbox::v1::store_client::StoreClient;
use orlop_proto::containerd::types::{Sandbox, sandbox};
use orlop_tests::{Daemon, host};
use prost_types::Any;
use tokio_stream::StreamExt;
use tonic::{Code, Status};

use super::Stage;
use crate::client::Client;

fn record(id: &str) -> Sandbox {
    Sandbox {
        sandbox_id: id.to_owned(),
        runtime: Some(sandbox::Runtime { name: "io.containerd.runc.v2".to_owned(), options: None }),
        labels: [("a".to_owned(), "b".to_owned())].into(),
        extensions: [("x".to_owned(), Any { type_url: "t".to_owned(), value: vec![1, 2] })].into(),
        sandboxer: "shim".to_owned(),
        ..Default::default()
    }
}

macro_rules! call {
    ($client:expr, $stub:ident.$method:ident($message:expr)) => {
        $client.call(async |channel| $stub::new(channel).$method($client.request($message)).await)
    };
}

fn text<A: std::fmt::Debug>(result: Result<A, Status>) -> (Code, String) {
    let status = result.unwrap_err();
    (status.code(), status.message().to_owned())
}

#[test]
fn records_are_kept_as_containerd_keeps_them() {
    let stage = Stage::new("");
    let client = Client::new(stage.orlopd.address(), stage.orlopd.namespace());
    let create =
        |sandbox| call!(client, StoreClient.create(api::StoreCreateRequest { sandbox: Some(sandbox) }));
    let made = create(record("p")).unwrap().sandbox.unwrap();
    assert_eq!((made.sandboxer.as_str(), made.created_at), ("shim", made.updated_at));
    assert_eq!(
        text(create(record("p"))),
        (Code::AlreadyExists, "write error: sandbox bucket \"p\" already exists: already exists".to_owned())
    );
    let (code, message) = text(create(record("a/b")));
    assert_eq!(code, Code::InvalidArgument);
    assert!(
        message.starts_with("failed to validate sandbox: invalid sandbox ID: identifier \"a/b\""),
        "{message}"
    );
    let get = |id: &str| call!(client, StoreClient.get(api::StoreGetRequest { sandbox_id: id.to_owned() }));
    assert_eq!(get("p").unwrap().sandbox.unwrap().extensions["x"].value, [1, 2]);
    assert_eq!(text(get("q")), (Code::NotFound, "bucket \"q\" not found: not found".to_owned()));

    let update = |sandbox, fields: &[&str]| {
        let fields = fields.iter().map(|&field| field.to_owned()).collect();
        call!(client, StoreClient.update(api::StoreUpdateRequest { sandbox: Some(sandbox), fields }))
    };
    let mut other = record("p");
    other.labels = [("c".to_owned(), "d".to_owned()), ("e".to_owned(), "f".to_owned())].into();
    other.extensions.clear();
    let updated = update(other.clone(), &["labels.c"]).unwrap().sandbox.unwrap();
    assert_eq!(updated.labels.len(), 2);
    assert_eq!(updated.extensions.len(), 1);
    let updated = update(other.clone(), &[]).unwrap().sandbox.unwrap();
    assert_eq!((updated.labels.len(), updated.extensions.len()), (2, 0));
    assert_eq!(
        text(update(other.clone(), &["sandboxer"])),
        (
            Code::InvalidArgument,
            "cannot update \"sandboxer\" field on sandbox \"p\": invalid argument".to_owned()
        )
    );
    other.runtime.as_mut().unwrap().name = "another".to_owned();
    assert_eq!(
        text(update(other, &[])),
        (Code::InvalidArgument, "sandbox.Runtime.Name field is immutable: invalid argument".to_owned())
    );
    create(record("q")).unwrap();
    let list = |filter: &str| {
        let request = api::StoreListRequest { filters: vec![filter.to_owned()] };
        call!(client, StoreClient.list(request)).unwrap().list.len()
    };
    assert_eq!((list("labels.c==d"), list("id==q"), list("id~=\".\"")), (1, 1, 2));
    let delete =
        |id: &str| call!(client, StoreClient.delete(api::StoreDeleteRequest { sandbox_id: id.to_owned() }));
    delete("q").unwrap();
    assert_eq!(text(delete("q")), (Code::NotFound, "failed to delete sandbox \"q\": not found".to_owned()));
    stage.finish();
}

#[test]
fn a_sandbox_and_its_containers_share_a_shim_that_outlives_the_daemon() {
    let mut stage = Stage::new("");
    let client = Client::new(stage.orlopd.address(), stage.orlopd.namespace());
    let name = |sandboxer: &str| (String::from("p"), sandboxer.to_owned());
    for (sandboxer, code, message) in [
        ("", Code::InvalidArgument, "invalid argument: sandbox controller name can not be empty"),
        ("podsandbox", Code::NotFound, "not found: failed to get sandbox controller by podsandbox"),
    ] {
        let (sandbox_id, sandboxer) = name(sandboxer);
        let request = api::ControllerStatusRequest { sandbox_id, sandboxer, verbose: false };
        assert_eq!(text(call!(client, ControllerClient.status(request))), (code, message.to_owned()));
    }
    let create = || {
        let (sandbox_id, sandboxer) = name("shim");
        let sandbox = Some(record("p"));
        let request = api::ControllerCreateRequest { sandbox_id, sandboxer, sandbox, ..Default::default() };
        call!(client, ControllerClient.create(request))
    };
    create().unwrap();
    assert_eq!(text(create()), (Code::AlreadyExists, "sandbox p already running: already exists".to_owned()));
    let (sandbox_id, sandboxer) = name("shim");
    let started =
        call!(client, ControllerClient.start(api::ControllerStartRequest { sandbox_id, sandboxer })).unwrap();
    assert!(started.pid > 0 && started.address.starts_with("ttrpc+unix:///"), "{started:?}");

    // A container of the sandbox: made as ctr makes one.
    let rootfs = stage.rootfs.display().to_string();
    stage.ctr(&["containers", "create", "--rootfs", &rootfs, "model", "sleep", "1000"]).run().success();
    let mut container = client.container("model").unwrap();
    (container.id, container.sandbox) = ("c".to_owned(), "p".to_owned());
    let spec = container.spec.as_mut().unwrap();
    spec.value = String::from_utf8(spec.value.clone()).unwrap().replace("/model\"", "/c\"").into_bytes();
    client.create_container(container).unwrap();
    client.start_task("c", Any::default()).unwrap();
    assert_eq!(stage.status("c"), "RUNNING");
    let parent =
        host::processes().into_iter().find(|process| process.pid == stage.task("c").unwrap().0).unwrap();
    assert_eq!(parent.parent, started.pid as i32, "the sandbox's shim has the container");

    stage.orlopd.kill();
    stage.orlopd.restart();
    let client = Client::new(stage.orlopd.address(), stage.orlopd.namespace());
    let status = || {
        let (sandbox_id, sandboxer) = name("shim");
        let request = api::ControllerStatusRequest { sandbox_id, sandboxer, verbose: true };
        call!(client, ControllerClient.status(request)).unwrap()
    };
    assert_eq!((status().pid, status().state.as_str()), (started.pid, "SANDBOX_READY"));
    assert_eq!(stage.status("c"), "RUNNING");
    stage.remove("c");
    assert_eq!(status().state, "SANDBOX_READY", "the sandbox outlives its container");
    let (sandbox_id, sandboxer) = name("shim");
    let stop = api::ControllerStopRequest { sandbox_id, sandboxer, timeout_secs: 1 };
    call!(client, ControllerClient.stop(stop)).unwrap();
    let (sandbox_id, sandboxer) = name("shim");
    let wait = api::ControllerWaitRequest { sandbox_id, sandboxer };
    let told = client.call(async |channel| {
        let filters = vec!["topic~=\"^/sandboxes/\"".to_owned()];
        let subscribe = client.request(SubscribeRequest { filters });
        let mut events = EventsClient::new(channel.clone()).subscribe(subscribe).await?.into_inner();
        let ended = ControllerClient::new(channel).wait(client.request(wait)).await?.into_inner();
        assert!(ended.exited_at.is_some());
        Ok(tonic::Response::new(events.next().await.unwrap()?))
    });
    assert_eq!(told.unwrap().topic, "/sandboxes/exit");
    let (sandbox_id, sandboxer) = name("shim");
    let shutdown = api::ControllerShutdownRequest { sandbox_id, sandboxer };
    call!(client, ControllerClient.shutdown(shutdown.clone())).unwrap();
    assert_eq!(text(call!(client, ControllerClient.shutdown(shutdown))).0, Code::NotFound);
    assert_eq!(status().state, "", "one that does not run has no state");
    stage.ctr(&["containers", "rm", "model"]).run().success();
    stage.finish();
}
