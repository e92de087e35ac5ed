//! A differ: a program that applies layers to mounts and makes layers of them.

use std::fs;
use std::sync::{Arc, Mutex};

use orlop_proto::containerd::services::content::v1 as content;
use orlop_proto::containerd::services::content::v1::content_client::ContentClient;
use orlop_proto::containerd::services::diff::v1 as api;
use orlop_proto::containerd::services::diff::v1::diff_server::{Diff, DiffServer};
use orlop_proto::containerd::types::Descriptor;
use orlop_tests::image::digest;
use orlop_tests::{Cmd, Daemon, Image, Orlopd, Registry, Root};
use tokio_stream::StreamExt;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use super::Plugin;

/// What the plugin does.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Apply,
    Refuse,
    Lie,
    LeaveIt,
}

struct Service {
    /// Where the content is.
    daemon: String,
    mode: Arc<Mutex<Mode>>,
    /// Digests of the layers that it was asked to apply.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Service {
    async fn read(&self, digest: &str, headers: &tonic::metadata::MetadataMap) -> Result<Vec<u8>, Status> {
        let channel = Endpoint::from_shared(self.daemon.clone()).unwrap().connect().await.unwrap();
        let mut request =
            Request::new(content::ReadContentRequest { digest: digest.to_owned(), ..Default::default() });
        let namespace = headers.get("containerd-namespace").expect("a namespace").clone();
        request.metadata_mut().insert("containerd-namespace", namespace);
        let mut answers = ContentClient::new(channel).read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(answer) = answers.next().await {
            bytes.extend(answer?.data);
        }
        Ok(bytes)
    }
}

#[tonic::async_trait]
impl Diff for Service {
    async fn apply(
        &self,
        request: Request<api::ApplyRequest>,
    ) -> Result<Response<api::ApplyResponse>, Status> {
        let headers = request.metadata().clone();
        let api::ApplyRequest { diff, mounts, .. } = request.into_inner();
        let layer = diff.expect("a layer");
        self.asked.lock().unwrap().push(layer.digest.clone());
        let mode = *self.mode.lock().unwrap();
        let tar = match mode {
            Mode::LeaveIt => return Err(Status::unimplemented("not mine")),
            Mode::Refuse => return Err(Status::permission_denied("no key for this layer")),
            Mode::Lie => b"something else".to_vec(),
            Mode::Apply => {
                // It is stored as it is.
                let tar = self.read(&layer.digest, &headers).await?;
                assert_eq!(mounts[0].r#type, "bind");
                let unpack = Cmd::new("tar").args(["-x", "-C", &mounts[0].source]).input(tar.clone());
                unpack.run().success();
                fs::write(format!("{}/by-the-plugin", mounts[0].source), "yes\n").unwrap();
                tar
            }
        };
        let applied = Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            digest: digest(&tar),
            size: tar.len() as i64,
            ..Descriptor::default()
        };
        Ok(Response::new(api::ApplyResponse { applied: Some(applied) }))
    }

    async fn diff(&self, request: Request<api::DiffRequest>) -> Result<Response<api::DiffResponse>, Status> {
        if *self.mode.lock().unwrap() == Mode::LeaveIt {
            return Err(Status::unimplemented("not mine"));
        }
        let diff = Descriptor { media_type: request.get_ref().media_type.clone(), ..Descriptor::default() };
        Ok(Response::new(api::DiffResponse { diff: Some(Descriptor { digest: digest(b"made"), ..diff }) }))
    }
}

#[test]
fn a_program_applies_and_makes_layers_before_orlopd_does() {
    let root = Root::new();
    let registry = Registry::start(&root);
    // Of a type that orlopd does not know.
    let image = Image::new().layer(orlop_tests::Layer::busybox().compressed(orlop_tests::Compression::None));
    let name = image.push(&registry, "diff", "1");
    let (mode, asked) = (Arc::new(Mutex::new(Mode::Apply)), Arc::new(Mutex::new(Vec::new())));
    let socket = root.join("plugin.sock");
    let config = format!("[proxy_plugins.external]\ntype = \"diff\"\naddress = {socket:?}\n");
    let mut daemon = Orlopd::start_with(&root, &config);
    let service = Service {
        daemon: format!("unix://{}", daemon.address().display()),
        mode: mode.clone(),
        asked: asked.clone(),
    };
    let plugin = Plugin::serve(&socket, |mut server| server.add_service(DiffServer::new(service)));
    let set = |new: Mode| *mode.lock().unwrap() = new;
    let pull = || daemon.orlopctl(["images", "pull", &name]).run();
    let remove = || {
        daemon.orlopctl(["images", "rm", "--sync", &name]).run().success();
    };
    let run = || {
        let words = ["run", "--rm", &name, "c", "cat", "/by-the-plugin"];
        daemon.orlopctl(words).run()
    };
    pull().success();
    assert_eq!(run().success().stdout, "yes\n");
    assert_eq!(*asked.lock().unwrap(), [image.layers()[0].digest.clone()]);
    // Debian's client has the layer applied by the diff service.
    remove();
    daemon.ctr(["images", "pull", "--plain-http", &name]).run().success();
    assert_eq!(run().success().stdout, "yes\n");
    remove();

    // What it leaves is done here; what it refuses or does wrong fails the pull and leaves nothing.
    for (bad, text) in [(Mode::Refuse, "no key for this layer"), (Mode::Lie, "the configuration says")] {
        set(bad);
        let refused = pull().failure();
        assert!(refused.stderr.contains(text), "{refused}");
        let left = daemon.ctr(["snapshots", "ls"]).run().success().stdout;
        assert_eq!(left.lines().count(), 1, "{left}");
    }
    set(Mode::LeaveIt);
    pull().success();
    assert!(run().failure().stderr.contains("by-the-plugin"));
    daemon.ctr(["snapshots", "prepare", "work"]).run().success();
    daemon.ctr(["snapshots", "diff", "work"]).run().success();
    drop(plugin);
    let gone = daemon.ctr(["snapshots", "diff", "work"]).run().failure();
    assert!(gone.stderr.contains("external"), "{gone}");
    daemon.stop();
    drop(registry);
    root.assert_clean();
}
