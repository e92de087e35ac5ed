//! The connection to the manager: one channel over its unix socket, with namespace and lease on every call.

use std::path::Path;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use orlop_proto::containerd::services::containers::v1::containers_client::ContainersClient;
use orlop_proto::containerd::services::content::v1::content_client::ContentClient;
use orlop_proto::containerd::services::diff::v1::diff_client::DiffClient;
use orlop_proto::containerd::services::events::v1::events_client::EventsClient;
use orlop_proto::containerd::services::images::v1::images_client::ImagesClient;
use orlop_proto::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use orlop_proto::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_proto::containerd::services::leases::v1::{CreateRequest, DeleteRequest};
use orlop_proto::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use orlop_proto::containerd::services::sandbox::v1::controller_client::ControllerClient;
use orlop_proto::containerd::services::sandbox::v1::store_client::StoreClient;
use orlop_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_proto::containerd::services::streaming::v1::streaming_client::StreamingClient;
use orlop_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use orlop_proto::containerd::services::transfer::v1::transfer_client::TransferClient;
use orlop_proto::containerd::services::version::v1::version_client::VersionClient;
use orlop_proto::contract::time::rfc3339;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::orlop::admin::v1::admin_client::AdminClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};

/// The longest message either side accepts, containerd's limit.
const MAX_MESSAGE: usize = 16 << 20;
/// How long a lease of one command lives if the command dies.
const LEASE_TIME: Duration = Duration::from_secs(24 * 3600);
/// How often a connection is tried again within the time allowed for it.
const RETRY: Duration = Duration::from_millis(50);

/// A connected client of one namespace, and of one lease if it has one.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    headers: Headers,
}

/// What goes with every call.
#[derive(Clone)]
pub struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

/// The transport under every service.
pub type Service = InterceptedService<Channel, Headers>;

macro_rules! services {
    ($($(#[$doc:meta])* $name:ident: $client:ident,)*) => {
        impl Client {
            $($(#[$doc])*
            pub fn $name(&self) -> $client<Service> {
                $client::with_interceptor(self.channel.clone(), self.headers.clone())
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
            })*
        }
    };
}

services! {
    /// What only orlopd can be asked.
    admin: AdminClient,
    /// Containers.
    containers: ContainersClient,
    /// The content store.
    content: ContentClient,
    /// Applying layers to snapshots.
    diff: DiffClient,
    /// Events.
    events: EventsClient,
    /// Names of images.
    images: ImagesClient,
    /// What the server is made of.
    introspection: IntrospectionClient,
    /// Leases.
    leases: LeasesClient,
    /// Namespaces.
    namespaces: NamespacesClient,
    /// What makes sandboxes run.
    sandbox_controller: ControllerClient,
    /// Records of sandboxes.
    sandbox_store: StoreClient,
    /// Snapshots.
    snapshots: SnapshotsClient,
    /// Byte streams for transfers.
    streaming: StreamingClient,
    /// Running containers.
    tasks: TasksClient,
    /// Pull, push, import, export.
    transfer: TransferClient,
    /// The server's version.
    version: VersionClient,
}

impl Client {
    /// Connects to the manager's socket.
    ///
    /// Within `timeout` a socket that is not there or not served yet is tried again; zero tries once.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a namespace that cannot be sent, otherwise what the connection met.
    pub async fn connect(address: &Path, namespace: &str, timeout: Duration) -> Result<Client> {
        let headers = Headers { namespace: header("namespace", namespace)?, lease: None };
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let error = match dial(address).await {
                Ok(channel) => return Ok(Client { channel, headers }),
                Err(error) => error,
            };
            if tokio::time::Instant::now() + RETRY >= deadline {
                return Err(error);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// A client without a server, for what calls none.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a namespace that cannot be sent.
    pub fn unconnected(namespace: &str) -> Result<Client> {
        let headers = Headers { namespace: header("namespace", namespace)?, lease: None };
        Ok(Client { channel: Endpoint::from_static("http://localhost").connect_lazy(), headers })
    }

    /// The same client under a lease that is there: what it makes is held by that.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a name that cannot be sent.
    pub fn under_lease(&self, id: &str) -> Result<Client> {
        let headers = Headers { lease: Some(header("lease", id)?), ..self.headers.clone() };
        Ok(Client { channel: self.channel.clone(), headers })
    }

    /// Asks for a collection of garbage, as the end of a lease does; returns when it is over, if that is to be waited for.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn collect(&self, is_awaited: bool) -> Result<()> {
        let id = format!("orlopctl-{}", random_id());
        self.leases().create(CreateRequest { id: id.clone(), ..CreateRequest::default() }).await?;
        self.leases().delete(DeleteRequest { id, sync: is_awaited }).await?;
        Ok(())
    }

    /// Runs `work` under a lease of its own, so that nothing it makes is collected before it is referred to.
    ///
    /// # Errors
    ///
    /// Those of `work`; the lease is removed in any case, and expires if this process is killed.
    pub async fn with_lease<T>(&self, work: impl AsyncFnOnce(&Client) -> Result<T>) -> Result<T> {
        let expire = rfc3339(SystemTime::now() + LEASE_TIME);
        let request = CreateRequest {
            id: format!("orlopctl-{}", random_id()),
            labels: [("containerd.io/gc.expire".to_owned(), expire)].into(),
        };
        let id = request.id.clone();
        self.leases().create(request).await?;
        let mut leased = self.clone();
        leased.headers.lease = Some(header("lease", &id)?);
        let outcome = work(&leased).await;
        let removed = self.leases().delete(DeleteRequest { id, sync: false }).await;
        match (outcome, removed) {
            (Ok(value), Ok(_)) => Ok(value),
            (Ok(_), Err(status)) => Err(status.into()),
            (Err(error), _) => Err(error),
        }
    }
}

/// A name unlike any other: nanoseconds and process ID.
pub fn random_id() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", now.as_nanos(), std::process::id())
}

fn header(what: &'static str, text: &str) -> Result<MetadataValue<Ascii>> {
    if text.is_empty() {
        return Err(Error::because(Kind::FailedPrecondition, what, "", format!("{what} is required")));
    }
    text.parse().map_err(|error| {
        Error::because(Kind::InvalidArgument, what, format!("{text:?}"), Box::new(error) as Box<_>)
    })
}

async fn dial(address: &Path) -> Result<Channel> {
    let path = address.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The host name is what containerd's clients send as authority.
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await.map_err(|error| unreachable(address, &error))
}

/// A failed connection in one sentence: the system's reason, and what to do about it.
fn unreachable(address: &Path, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            let again = io.raw_os_error().map_or_else(|| io.kind().into(), std::io::Error::from_raw_os_error);
            let reason = Error::io("", "", again).to_string();
            let reason = reason.trim_start_matches([':', ' ']).to_owned();
            let hint = match io.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                    "; is orlopd running there?"
                }
                _ => "",
            };
            return Error::because(
                Kind::Unavailable,
                "connect to",
                address.display().to_string(),
                format!("{reason}{hint}"),
            );
        }
        cause = error.source();
    }
    Error::because(Kind::Unavailable, "connect to", address.display().to_string(), error.to_string())
}
