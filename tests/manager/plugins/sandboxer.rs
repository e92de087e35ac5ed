//! A sandbox controller: a program that runs sandboxes, here by having a second orlopd run them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use orlop_proto::containerd::services::sandbox::v1 as api;
use orlop_proto::containerd::services::sandbox::v1::controller_client::ControllerClient;
use orlop_proto::containerd::services::sandbox::v1::controller_server::{Controller, ControllerServer};
use orlop_proto::containerd::services::sandbox::v1::store_client::StoreClient;
use orlop_proto::containerd::types::{Sandbox, sandbox};
use orlop_tests::{Daemon, Orlopd, Root, busybox_rootfs, host, poll_until};
use prost_types::Any;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::Plugin;
use crate::client::Client;

struct Service {
    backend: PathBuf,
    /// Which methods were called.
    called: Arc<Mutex<Vec<&'static str>>>,
}

impl Service {
    async fn backend(&self) -> ControllerClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.backend.display())).unwrap();
        ControllerClient::new(endpoint.connect().await.expect("the backend serves"))
    }
}

/// Has the backend's own controller do it.
macro_rules! forward {
    ($($method:ident($request:ident) -> $answer:ident;)*) => {
        #[tonic::async_trait]
        impl Controller for Service {
            $(async fn $method(&self, request: Request<api::$request>) -> Result<Response<api::$answer>, Status> {
                assert_eq!(request.get_ref().sandboxer, "external");
                self.called.lock().unwrap().push(stringify!($method));
                let namespace = request.metadata().get("containerd-namespace").expect("a namespace").clone();
                let mut message = Request::new(request.into_inner());
                message.metadata_mut().insert("containerd-namespace", namespace);
                message.get_mut().sandboxer = "shim".to_owned();
                self.backend().await.$method(message).await
            })*
        }
    };
}

forward! {
    create(ControllerCreateRequest) -> ControllerCreateResponse;
    start(ControllerStartRequest) -> ControllerStartResponse;
    platform(ControllerPlatformRequest) -> ControllerPlatformResponse;
    stop(ControllerStopRequest) -> ControllerStopResponse;
    wait(ControllerWaitRequest) -> ControllerWaitResponse;
    status(ControllerStatusRequest) -> ControllerStatusResponse;
    shutdown(ControllerShutdownRequest) -> ControllerShutdownResponse;
    metrics(ControllerMetricsRequest) -> ControllerMetricsResponse;
    update(ControllerUpdateRequest) -> ControllerUpdateResponse;
}

macro_rules! call {
    ($client:expr, $stub:ident.$method:ident($message:expr)) => {
        $client.call(async |channel| $stub::new(channel).$method($client.request($message)).await)
    };
}

#[test]
fn a_program_runs_sandboxes_and_containers_join_them() {
    let root = Root::new();
    let behind = Root::new();
    let mut backend = Orlopd::start(&behind);
    let called = Arc::new(Mutex::new(Vec::new()));
    let service = Service { backend: backend.address().to_owned(), called: called.clone() };
    let plugin = Plugin::serve(&root.join("plugin.sock"), |mut server| {
        server.add_service(ControllerServer::new(service))
    });
    let mut daemon = Orlopd::start_with(&root, &plugin.config("external", "sandbox"));
    let client = Client::new(daemon.address(), daemon.namespace());
    let name = || ("p".to_owned(), "external".to_owned());
    let record = Sandbox {
        sandbox_id: "p".to_owned(),
        runtime: Some(sandbox::Runtime { name: "io.containerd.runc.v2".to_owned(), options: None }),
        sandboxer: "external".to_owned(),
        ..Sandbox::default()
    };
    call!(client, StoreClient.create(api::StoreCreateRequest { sandbox: Some(record.clone()) })).unwrap();
    let (sandbox_id, sandboxer) = name();
    let create = api::ControllerCreateRequest {
        sandbox_id,
        sandboxer,
        sandbox: Some(record),
        ..api::ControllerCreateRequest::default()
    };
    call!(client, ControllerClient.create(create)).unwrap();
    let (sandbox_id, sandboxer) = name();
    let started =
        call!(client, ControllerClient.start(api::ControllerStartRequest { sandbox_id, sandboxer })).unwrap();
    assert!(started.pid > 0, "{started:?}");

    let rootfs = root.join("rootfs");
    busybox_rootfs(&rootfs);
    let rootfs = rootfs.display().to_string();
    daemon.ctr(["containers", "create", "--rootfs", &rootfs, "model", "sleep", "1000"]).run().success();
    let mut container = client.container("model").unwrap();
    (container.id, container.sandbox) = ("c".to_owned(), "p".to_owned());
    let spec = container.spec.as_mut().unwrap();
    spec.value = String::from_utf8(spec.value.clone()).unwrap().replace("/model\"", "/c\"").into_bytes();
    client.create_container(container).unwrap();
    let pid = client.start_task("c", Any::default()).unwrap();
    let parent = host::processes().into_iter().find(|process| process.pid == pid as i32).unwrap();
    assert_eq!(parent.parent, started.pid as i32, "the sandbox's shim has the container");
    let (sandbox_id, sandboxer) = name();
    let status = api::ControllerStatusRequest { sandbox_id, sandboxer, verbose: false };
    let ready = call!(client, ControllerClient.status(status.clone())).unwrap();
    assert_eq!(ready.state, "SANDBOX_READY");

    daemon.ctr(["tasks", "kill", "-s", "KILL", "c"]).run().success();
    poll_until(std::time::Duration::from_secs(20), "it has ended", || {
        daemon.ctr(["tasks", "ls"]).run().success().stdout.contains("STOPPED")
    });
    daemon.ctr(["tasks", "rm", "c"]).run();
    for container in ["c", "model"] {
        daemon.ctr(["containers", "rm", container]).run().success();
    }
    let (sandbox_id, sandboxer) = name();
    let stop = api::ControllerStopRequest { sandbox_id, sandboxer, timeout_secs: 1 };
    call!(client, ControllerClient.stop(stop)).unwrap();
    let (sandbox_id, sandboxer) = name();
    let ended = call!(client, ControllerClient.wait(api::ControllerWaitRequest { sandbox_id, sandboxer }));
    assert!(ended.unwrap().exited_at.is_some());
    let (sandbox_id, sandboxer) = name();
    call!(client, ControllerClient.shutdown(api::ControllerShutdownRequest { sandbox_id, sandboxer }))
        .unwrap();
    let called = called.lock().unwrap().clone();
    for method in ["create", "start", "status", "stop", "wait", "shutdown"] {
        assert!(called.contains(&method), "{called:?}");
    }
    drop(plugin);
    let gone = call!(client, ControllerClient.status(status)).unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable, "{gone}");
    daemon.stop();
    backend.stop();
    root.assert_clean();
    behind.assert_clean();
}
