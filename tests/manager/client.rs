//! The containerd API as a blocking client, for tests that need more than `ctr` says.

use std::path::Path;
use std::time::Duration;

use orlop_proto::containerd::services::containers::v1 as containers;
use orlop_proto::containerd::services::content::v1 as content;
use orlop_proto::containerd::services::diff::v1 as diff;
use orlop_proto::containerd::services::images::v1 as images;
use orlop_proto::containerd::services::leases::v1 as leases;
use orlop_proto::containerd::services::snapshots::v1 as snapshots;
use orlop_proto::containerd::services::tasks::v1 as tasks;
use orlop_proto::containerd::types::{Descriptor, Mount};
use orlop_tests::image::Blob;
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// A connection on behalf of one namespace.
pub struct Client {
    runtime: Runtime,
    channel: Channel,
    namespace: String,
    lease: Option<String>,
}

/// Everything that a write is told in one message besides its data.
#[derive(Default)]
pub struct Put<'a> {
    pub reference: &'a str,
    pub total: i64,
    pub expected: &'a str,
    pub labels: &'a [(&'a str, &'a str)],
}

impl Client {
    pub fn new(socket: &Path, namespace: &str) -> Client {
        Client::connect(socket, namespace).expect("the daemon serves")
    }

    /// A connection to a daemon that may be gone.
    pub fn connect(socket: &Path, namespace: &str) -> Result<Client, tonic::transport::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let channel = runtime.block_on(endpoint.connect())?;
        Ok(Client { runtime, channel, namespace: namespace.to_owned(), lease: None })
    }

    pub fn with_lease(mut self, lease: &str) -> Client {
        self.lease = Some(lease.to_owned());
        self
    }

    /// Calls any method of the API.
    pub fn call<A>(
        &self,
        work: impl AsyncFnOnce(Channel) -> Result<tonic::Response<A>, Status>,
    ) -> Result<A, Status> {
        self.runtime.block_on(work(self.channel.clone())).map(tonic::Response::into_inner)
    }

    /// A message with the headers of this client.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.parse().unwrap());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.parse().unwrap());
        }
        request
    }

    /// Sends messages of one write and returns the answers, or the first error.
    pub fn write(
        &self,
        messages: Vec<content::WriteContentRequest>,
    ) -> Result<Vec<content::WriteContentResponse>, Status> {
        self.runtime.block_on(async {
            let mut client = content::content_client::ContentClient::new(self.channel.clone());
            let request = self.request(tokio_stream::iter(messages));
            let mut answers = client.write(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(answer) = answers.next().await {
                all.push(answer?);
            }
            Ok(all)
        })
    }

    /// Writes a blob in pieces and commits it; returns the answer to the commit.
    pub fn put(
        &self,
        put: &Put<'_>,
        bytes: &[u8],
        piece: usize,
    ) -> Result<content::WriteContentResponse, Status> {
        let mut messages = vec![content::WriteContentRequest {
            action: content::WriteAction::Stat.into(),
            r#ref: put.reference.to_owned(),
            total: put.total,
            expected: put.expected.to_owned(),
            ..Default::default()
        }];
        messages.extend(pieces(0, bytes, piece));
        messages.push(content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            total: put.total,
            offset: bytes.len() as i64,
            expected: put.expected.to_owned(),
            labels: put.labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Default::default()
        });
        self.write(messages).map(|mut answers| answers.pop().unwrap())
    }

    /// Reads a range of a blob; returns the messages.
    pub fn read(
        &self,
        digest: &str,
        offset: i64,
        size: i64,
    ) -> Result<Vec<content::ReadContentResponse>, Status> {
        self.runtime.block_on(async {
            let mut client = content::content_client::ContentClient::new(self.channel.clone());
            let request =
                self.request(content::ReadContentRequest { digest: digest.to_owned(), offset, size });
            let mut answers = client.read(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(answer) = answers.next().await {
                all.push(answer?);
            }
            Ok(all)
        })
    }

    /// A whole blob.
    pub fn blob(&self, digest: &str) -> Result<Vec<u8>, Status> {
        Ok(self.read(digest, 0, 0)?.into_iter().flat_map(|message| message.data).collect())
    }

    /// Digests of all blobs.
    pub fn digests(&self) -> Result<Vec<String>, Status> {
        self.runtime.block_on(async {
            let mut client = content::content_client::ContentClient::new(self.channel.clone());
            let request = self.request(content::ListContentRequest::default());
            let mut answers = client.list(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(answer) = answers.next().await {
                all.extend(answer?.info.into_iter().map(|info| info.digest));
            }
            Ok(all)
        })
    }

    pub fn status(&self, reference: &str) -> Result<content::Status, Status> {
        let mut client = content::content_client::ContentClient::new(self.channel.clone());
        let request = self.request(content::StatusRequest { r#ref: reference.to_owned() });
        let answer = self.runtime.block_on(client.status(request))?;
        Ok(answer.into_inner().status.unwrap())
    }

    /// Gives up all unfinished writes; returns how many there were.
    pub fn abort_all(&self) -> Result<usize, Status> {
        let mut client = content::content_client::ContentClient::new(self.channel.clone());
        let request = self.request(content::ListStatusesRequest { filters: Vec::new() });
        let statuses = self.runtime.block_on(client.list_statuses(request))?.into_inner().statuses;
        for status in &statuses {
            let request = self.request(content::AbortRequest { r#ref: status.r#ref.clone() });
            self.runtime.block_on(client.abort(request))?;
        }
        Ok(statuses.len())
    }

    pub fn create_image(&self, name: &str, digest: &str, size: i64) -> Result<(), Status> {
        let mut client = images::images_client::ImagesClient::new(self.channel.clone());
        let target =
            Descriptor { media_type: "text/plain".into(), digest: digest.into(), size, ..Default::default() };
        let image = images::Image { name: name.into(), target: Some(target), ..Default::default() };
        let request = self.request(images::CreateImageRequest { image: Some(image), ..Default::default() });
        self.runtime.block_on(client.create(request)).map(drop)
    }

    pub fn delete_image(&self, name: &str, sync: bool) -> Result<(), Status> {
        let mut client = images::images_client::ImagesClient::new(self.channel.clone());
        let request =
            self.request(images::DeleteImageRequest { name: name.into(), sync, ..Default::default() });
        self.runtime.block_on(client.delete(request)).map(drop)
    }

    /// Name and digest of all images.
    pub fn images(&self) -> Result<Vec<(String, String)>, Status> {
        let mut client = images::images_client::ImagesClient::new(self.channel.clone());
        let request = self.request(images::ListImagesRequest::default());
        let images = self.runtime.block_on(client.list(request))?.into_inner().images;
        Ok(images.into_iter().map(|image| (image.name, image.target.unwrap().digest)).collect())
    }

    pub fn create_container(
        &self,
        container: containers::Container,
    ) -> Result<containers::Container, Status> {
        let mut client = containers::containers_client::ContainersClient::new(self.channel.clone());
        let request = self.request(containers::CreateContainerRequest { container: Some(container) });
        Ok(self.runtime.block_on(client.create(request))?.into_inner().container.unwrap())
    }

    pub fn container(&self, id: &str) -> Result<containers::Container, Status> {
        let mut client = containers::containers_client::ContainersClient::new(self.channel.clone());
        let request = self.request(containers::GetContainerRequest { id: id.to_owned() });
        Ok(self.runtime.block_on(client.get(request))?.into_inner().container.unwrap())
    }

    pub fn update_container(
        &self,
        container: containers::Container,
        paths: &[&str],
    ) -> Result<containers::Container, Status> {
        let mut client = containers::containers_client::ContainersClient::new(self.channel.clone());
        let mask = prost_types::FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() };
        let request = self.request(containers::UpdateContainerRequest {
            container: Some(container),
            update_mask: Some(mask),
        });
        Ok(self.runtime.block_on(client.update(request))?.into_inner().container.unwrap())
    }

    pub fn delete_container(&self, id: &str) -> Result<(), Status> {
        let mut client = containers::containers_client::ContainersClient::new(self.channel.clone());
        let request = self.request(containers::DeleteContainerRequest { id: id.to_owned() });
        self.runtime.block_on(client.delete(request)).map(drop)
    }

    pub fn create_lease(&self, id: &str) -> Result<(), Status> {
        let mut client = leases::leases_client::LeasesClient::new(self.channel.clone());
        let request = self.request(leases::CreateRequest { id: id.to_owned(), ..Default::default() });
        self.runtime.block_on(client.create(request)).map(drop)
    }

    pub fn delete_lease(&self, id: &str) -> Result<(), Status> {
        let mut client = leases::leases_client::LeasesClient::new(self.channel.clone());
        let request = self.request(leases::DeleteRequest { id: id.to_owned(), sync: true });
        self.runtime.block_on(client.delete(request)).map(drop)
    }

    pub fn prepare(&self, snapshotter: &str, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let mut client = snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone());
        let request = self.request(snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        });
        Ok(self.runtime.block_on(client.prepare(request))?.into_inner().mounts)
    }

    pub fn commit(&self, snapshotter: &str, name: &str, key: &str) -> Result<(), Status> {
        let mut client = snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone());
        let request = self.request(snapshots::CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            ..Default::default()
        });
        self.runtime.block_on(client.commit(request)).map(drop)
    }

    pub fn remove(&self, snapshotter: &str, key: &str) -> Result<(), Status> {
        let mut client = snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone());
        let request = self.request(snapshots::RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        });
        self.runtime.block_on(client.remove(request)).map(drop)
    }

    /// Name and parent of all snapshots.
    pub fn snapshots(&self, snapshotter: &str) -> Result<Vec<(String, String)>, Status> {
        self.runtime.block_on(async {
            let mut client = snapshots::snapshots_client::SnapshotsClient::new(self.channel.clone());
            let request = self.request(snapshots::ListSnapshotsRequest {
                snapshotter: snapshotter.to_owned(),
                ..Default::default()
            });
            let mut answers = client.list(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(answer) = answers.next().await {
                all.extend(answer?.info.into_iter().map(|info| (info.name, info.parent)));
            }
            Ok(all)
        })
    }

    /// Unpacks a layer of the content store into mounts.
    pub fn apply(&self, blob: &Blob, mounts: Vec<Mount>) -> Result<(), Status> {
        let mut client = diff::diff_client::DiffClient::new(self.channel.clone());
        let descriptor = Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            digest: blob.digest.clone(),
            size: blob.bytes.len() as i64,
            ..Default::default()
        };
        let request = diff::ApplyRequest { diff: Some(descriptor), mounts, ..Default::default() };
        self.runtime.block_on(client.apply(self.request(request))).map(drop)
    }

    /// Makes a task of a container with a root file system of its own, and starts it.
    pub fn start_task(&self, id: &str, options: prost_types::Any) -> Result<u32, Status> {
        let mut client = tasks::tasks_client::TasksClient::new(self.channel.clone());
        let container_id = || id.to_owned();
        let request = tasks::CreateTaskRequest {
            container_id: container_id(),
            options: Some(options),
            ..Default::default()
        };
        self.runtime.block_on(client.create(self.request(request)))?;
        let request = tasks::StartRequest { container_id: container_id(), exec_id: String::new() };
        Ok(self.runtime.block_on(client.start(self.request(request)))?.into_inner().pid)
    }

    /// Changes a task's limits to `linux.resources` of the OCI runtime specification.
    pub fn update_task(&self, id: &str, resources: &serde_json::Value) -> Result<(), Status> {
        let mut client = tasks::tasks_client::TasksClient::new(self.channel.clone());
        let resources = prost_types::Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: resources.to_string().into_bytes(),
        };
        let request = tasks::UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(resources),
            ..Default::default()
        };
        self.runtime.block_on(client.update(self.request(request))).map(drop)
    }

    /// A call whose caller gives it no time.
    pub fn hurried_list(&self) -> Status {
        let mut client = images::images_client::ImagesClient::new(self.channel.clone());
        let mut request = self.request(images::ListImagesRequest::default());
        request.set_timeout(Duration::from_nanos(1));
        self.runtime.block_on(client.list(request)).unwrap_err()
    }
}

/// Data messages of a write that begins at an offset.
pub fn pieces(
    start: usize,
    bytes: &[u8],
    piece: usize,
) -> impl Iterator<Item = content::WriteContentRequest> + '_ {
    bytes.chunks(piece).enumerate().map(move |(index, data)| content::WriteContentRequest {
        action: content::WriteAction::Write.into(),
        offset: (start + index * piece) as i64,
        data: data.to_vec().into(),
        ..Default::default()
    })
}
