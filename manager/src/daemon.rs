//! The whole procedure of the daemon, top to bottom: stores, recovery, domain, sockets, serving, stop.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use orlop_proto::containerd::services::containers::v1::containers_server::ContainersServer;
use orlop_proto::containerd::services::content::v1::content_server::ContentServer;
use orlop_proto::containerd::services::diff::v1::diff_server::DiffServer;
use orlop_proto::containerd::services::events::v1::events_server::EventsServer;
use orlop_proto::containerd::services::images::v1::images_server::ImagesServer;
use orlop_proto::containerd::services::introspection::v1::introspection_server::IntrospectionServer;
use orlop_proto::containerd::services::leases::v1::leases_server::LeasesServer;
use orlop_proto::containerd::services::namespaces::v1::namespaces_server::NamespacesServer;
use orlop_proto::containerd::services::sandbox::v1::controller_server::ControllerServer;
use orlop_proto::containerd::services::sandbox::v1::store_server::StoreServer;
use orlop_proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use orlop_proto::containerd::services::streaming::v1::streaming_server::StreamingServer;
use orlop_proto::containerd::services::tasks::v1::tasks_server::TasksServer;
use orlop_proto::containerd::services::transfer::v1::transfer_server::TransferServer;
use orlop_proto::containerd::services::version::v1::version_server::VersionServer;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::grpc::health::v1::health_server::HealthServer;
use orlop_proto::kind::Kind;
use orlop_proto::orlop::admin::v1::admin_server::AdminServer;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::api::admin::AdminService;
use crate::api::containers::ContainersService;
use crate::api::content::ContentService;
use crate::api::diff::DiffService;
use crate::api::events::{EventsService, from_shim};
use crate::api::health::HealthService;
use crate::api::images::ImagesService;
use crate::api::introspection::IntrospectionService;
use crate::api::layers::CallLayer;
use crate::api::leases::LeasesService;
use crate::api::namespaces::NamespacesService;
use crate::api::reflection::{Reflection, ReflectionAlpha};
use crate::api::sandboxes::{SandboxControllerService, SandboxStoreService};
use crate::api::snapshots::SnapshotsService;
use crate::api::streaming::{StreamingService, Streams};
use crate::api::tasks::TasksService;
use crate::api::transfer::TransferService;
use crate::api::version::VersionService;
use crate::config::Config;
use crate::docker;
use crate::restart::Monitor;
use crate::store::namespaces::installation;
use crate::stores::{Stores, directory};
use crate::task::Supervisor;
use crate::ttrpc;

/// How long calls may go on after the stop signal.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until a stop signal; returns when everything is closed.
pub async fn serve(config: Config) -> Result<()> {
    let config = config.absolute()?;
    // First of all: a stop signal that comes as soon as there is a socket must find somebody who waits for it.
    let signals = StopSignals::watch()?;
    directory(&config.state)?;
    let stores = Stores::open(&config)?;
    stores.recover().await?;
    let uuid = installation(&stores.database)?;
    let admin = AdminService {
        root: config.root.clone(),
        checker: stores.checker(),
        collector: stores.collector.clone(),
        images: stores.images.clone(),
        containers: stores.containers.clone(),
        leases: stores.leases.clone(),
    };
    let Stores {
        exchange,
        namespaces,
        containers,
        images,
        leases,
        sandboxes,
        content,
        snapshots,
        transfers,
        collector,
        ..
    } = &stores;
    let supervisor = Supervisor::new(&config, exchange.clone())?;
    let restarts = Monitor {
        namespaces: namespaces.clone(),
        containers: containers.clone(),
        snapshots: snapshots.clone(),
        supervisor: supervisor.clone(),
        exchange: exchange.clone(),
        interval: Duration::from_secs(config.restart.interval),
    };
    let streams = Streams::default();
    let engine = match config.docker_address() {
        None => None,
        Some(address) => {
            let parts = docker::Parts {
                database: stores.database.clone(),
                content: content.clone(),
                snapshots: snapshots.clone(),
                names: images.clone(),
                records: containers.clone(),
                images: transfers.clone(),
                supervisor: supervisor.clone(),
                root: config.root.join("docker"),
                state: config.state.join("docker"),
                id: uuid.clone(),
                cgroup_parent: config.docker.cgroup_parent.clone(),
            };
            Some((docker::Engine::new(parts)?, address))
        }
    };

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let listener = listen(&config.address(), config.grpc.uid, config.grpc.gid)?;
    let shims = listen(&config.ttrpc_address(), config.grpc.uid, config.grpc.gid)?;
    let limit = config.grpc.max_message_size;
    macro_rules! limited {
        ($server:ident, $service:expr) => {
            $server::new($service).max_decoding_message_size(limit).max_encoding_message_size(limit)
        };
    }
    let router = Server::builder()
        .layer(CallLayer)
        .add_service(Reflection::default())
        .add_service(ReflectionAlpha::default())
        .add_service(limited!(HealthServer, HealthService))
        .add_service(limited!(VersionServer, VersionService))
        .add_service(limited!(
            IntrospectionServer,
            IntrospectionService { snapshots: snapshots.clone(), supervisor: supervisor.clone(), uuid }
        ))
        .add_service(limited!(StoreServer, SandboxStoreService(sandboxes.clone())))
        .add_service(limited!(
            ControllerServer,
            SandboxControllerService { supervisor: supervisor.clone(), exchange: exchange.clone() }
        ))
        .add_service(limited!(NamespacesServer, NamespacesService(namespaces.clone())))
        .add_service(limited!(ContainersServer, ContainersService(containers.clone())))
        .add_service(limited!(
            TasksServer,
            TasksService { containers: containers.clone(), supervisor: supervisor.clone() }
        ))
        .add_service(limited!(
            EventsServer,
            EventsService { exchange: exchange.clone(), supervisor: supervisor.clone() }
        ))
        .add_service(limited!(
            ImagesServer,
            ImagesService { images: images.clone(), collector: collector.clone() }
        ))
        .add_service(limited!(
            LeasesServer,
            LeasesService { leases: leases.clone(), collector: collector.clone() }
        ))
        .add_service(limited!(ContentServer, ContentService(content.clone())))
        .add_service(limited!(SnapshotsServer, SnapshotsService(snapshots.clone())))
        .add_service(limited!(StreamingServer, StreamingService(streams.clone())))
        .add_service(limited!(DiffServer, DiffService(transfers.clone())))
        .add_service(limited!(TransferServer, TransferService { images: transfers.clone(), streams }))
        .add_service(limited!(AdminServer, admin));
    let until = |mut stopped: tokio::sync::watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which is a stop too.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let forwarding = tokio::spawn({
        let supervisor = supervisor.clone();
        ttrpc::serve(shims, move |request| from_shim(&supervisor, request), until(stopped.clone()))
    });
    supervisor.recover().await?;
    let mut serving = tokio::spawn(
        router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), until(stopped.clone())),
    );
    let collecting = tokio::spawn(collector.clone().run());
    let docker_address = match engine {
        None => None,
        Some((engine, address)) => {
            let listener = listen(&address, config.docker.uid, config.docker.gid)?;
            engine.recover().await?;
            tokio::spawn(docker::serve(listener, engine, until(stopped.clone())));
            Some(address)
        }
    };
    let restarting = tokio::spawn(restarts.run());
    tracing::info!(address = %config.address().display(), "serving");

    tokio::select! {
        signal = signals.next() => tracing::info!(signal, "stopping"),
        ended = &mut serving => return served(ended),
    }
    // Ignoring: with no receiver left nobody needs to be told.
    let _ = stop.send(true);
    // Long calls (event subscriptions, waits) do not end by themselves; clients retry.
    if let Ok(ended) = tokio::time::timeout(GRACE, &mut serving).await {
        served(ended)?;
    }
    restarting.abort();
    collecting.abort();
    forwarding.abort();
    supervisor.close();
    if let Some(address) = docker_address {
        remove_socket(&address)?;
    }
    remove_socket(&config.ttrpc_address())?;
    remove_socket(&config.address())
}

/// The error of a server that ended.
fn served(
    ended: std::result::Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>,
) -> Result<()> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::because(Kind::Internal, "serve", "", error)),
        Err(error) => Err(Error::because(Kind::Internal, "serve", "", error)),
    }
}

/// The signals that ask for a stop.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on they end nothing by themselves.
    fn watch() -> Result<StopSignals> {
        Ok(StopSignals {
            terminate: signal(SignalKind::terminate()).context("watch", "SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("watch", "SIGINT")?,
        })
    }

    /// Waits for one; returns its name.
    async fn next(mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Binds the socket with mode 0660; a socket that nobody answers on any more is replaced.
fn listen(path: &Path, uid: u32, gid: u32) -> Result<UnixListener> {
    let name = || path.display().to_string();
    if let Some(parent) = path.parent() {
        directory(parent)?;
    }
    if path.symlink_metadata().is_ok() {
        if StdStream::connect(path).is_ok() {
            return Err(Error::because(
                Kind::AlreadyExists,
                "listen on",
                name(),
                "another daemon answers there",
            ));
        }
        remove_socket(path)?;
    }
    // Nobody may connect before the mode is set; no other thread makes files yet.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = StdListener::bind(path);
    umask(before);
    let listener = bound.context("listen on", name())?;
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).context("change owner of", name())?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660)).context("change mode of", name())?;
    listener.set_nonblocking(true).context("listen on", name())?;
    UnixListener::from_std(listener).context("listen on", name())
}

/// Removes a socket, and only a socket.
fn remove_socket(path: &Path) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let name = || path.display().to_string();
    match path.symlink_metadata() {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).context("remove", name()),
        Ok(_) => Err(Error::because(Kind::AlreadyExists, "listen on", name(), "exists and is no socket")),
        Err(_) => Ok(()),
    }
}
