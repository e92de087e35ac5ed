//! The whole procedure of the daemon, top to bottom: stores, recovery, domain, sockets, serving, stop.

use std::time::Duration;

use orlop_proto::containerd::services::containers::v1::containers_server::ContainersServer;
use orlop_proto::containerd::services::content::v1::content_server::ContentServer;
use orlop_proto::containerd::services::diff::v1::diff_server::DiffServer;
use orlop_proto::containerd::services::events::v1::events_server::EventsServer;
use orlop_proto::containerd::services::images::v1::images_server::ImagesServer;
use orlop_proto::containerd::services::introspection::v1::introspection_server::IntrospectionServer;
use orlop_proto::containerd::services::leases::v1::leases_server::LeasesServer;
use orlop_proto::containerd::services::mounts::v1::mounts_server::MountsServer;
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
use tokio::net::TcpListener;
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
use crate::api::mounts::MountsService;
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
use crate::docker::settings::{File, Settings, owners};
use crate::docker::sockets::Sockets;
use crate::external::sandboxer::Sandboxers;
use crate::listeners::Listeners;
use crate::reload::Reload;
use crate::restart::Monitor;
use crate::store::namespaces::installation;
use crate::stores::{Stores, directory};
use crate::task::Supervisor;
use crate::{memory, metrics, profile, service_manager, ttrpc};

/// How long calls may go on after the stop signal.
const GRACE: Duration = Duration::from_secs(2);
/// How many calls one connection may have open at once.
const STREAMS: u32 = 2048;

/// Serves until a stop signal; returns when everything is closed.
pub async fn serve(config: Config, mut reload: Reload) -> Result<()> {
    let config = config.absolute()?;
    // First of all: a stop signal that comes as soon as there is a socket must find somebody who waits for it.
    let mut signals = Signals::watch()?;
    let mut listeners = Listeners::inherit()?;
    directory(&config.state)?;
    let stores = Stores::open(&config)?;
    stores.recover().await?;
    let uuid = installation(&stores.database)?;
    let supervisor = Supervisor::new(&config, stores.exchange.clone(), stores.mounts.clone())?;
    let sandboxers = Sandboxers::new(&config.proxy_plugins)?;
    let streams = Streams::default();
    let admin = AdminService {
        root: config.root.clone(),
        checker: stores.checker(),
        collector: stores.collector.clone(),
        images: stores.images.clone(),
        containers: stores.containers.clone(),
        leases: stores.leases.clone(),
        supervisor: supervisor.clone(),
        config: config.clone(),
        uuid: uuid.clone(),
        started: std::time::SystemTime::now(),
        streams: streams.clone(),
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
        mounts,
        transfers,
        collector,
        ..
    } = &stores;
    let restarts = Monitor {
        namespaces: namespaces.clone(),
        containers: containers.clone(),
        snapshots: snapshots.clone(),
        supervisor: supervisor.clone(),
        exchange: exchange.clone(),
        interval: Duration::from_secs(config.restart.interval),
    };
    let engine = match config.docker_address() {
        None => None,
        Some(address) => {
            let file = match config.daemon_json() {
                Some((path, must_be_there)) => File::read(&path, must_be_there)?,
                None => None,
            };
            let sockets = Sockets::of(&config.docker, file.as_ref())?;
            let settings = file.as_ref().map(Settings::of).transpose()?.unwrap_or_default();
            let owners = match &file {
                Some(file) => owners(&settings.userns_remap).map_err(|why| file.wrong(&why))?,
                None => None,
            };
            let parts = docker::Parts {
                database: stores.database.clone(),
                content: content.clone(),
                snapshots: snapshots.clone(),
                names: images.clone(),
                records: containers.clone(),
                images: transfers.clone(),
                supervisor: supervisor.clone(),
                exchange: exchange.clone(),
                root: config.root.join("docker"),
                state: config.state.join("docker"),
                id: uuid.clone(),
                cgroup_parent: config.docker.cgroup_parent.clone(),
                buildkit: config.docker.buildkit.as_deref().map(docker::buildkit::address).transpose()?,
                settings,
                owners,
            };
            Some((docker::Engine::new(parts)?, address, sockets))
        }
    };

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let shims = listeners.listen(&config.ttrpc_address(), config.grpc.uid, config.grpc.gid)?;
    let engine = match engine {
        Some((engine, address, sockets)) => {
            let mut all = vec![listeners.listen(&address, config.docker.uid, config.docker.gid)?];
            for path in sockets.unix.iter().filter(|path| **path != address) {
                all.push(listeners.listen(path, config.docker.uid, config.docker.gid)?);
            }
            let mut secured = Vec::new();
            if let Some(acceptor) = sockets.acceptor()? {
                for address in &sockets.tcp {
                    let listener = TcpListener::bind(address).await.context("listen on", &**address)?;
                    secured.push((listener, acceptor.clone()));
                }
            }
            Some((engine, all, secured))
        }
        None => None,
    };
    let watched = match &config.metrics.address {
        Some(address) => Some(metrics::listen(address).await?),
        None => None,
    };
    let profiled = match &config.debug.address {
        Some(address) => Some(listeners.listen(address, 0, 0)?),
        None => None,
    };
    // Last of all: whoever waits for this socket finds the others.
    let listener = listeners.listen(&config.address(), config.grpc.uid, config.grpc.gid)?;
    let limit = config.grpc.max_message_size;
    macro_rules! limited {
        ($server:ident, $service:expr) => {
            $server::new($service).max_decoding_message_size(limit).max_encoding_message_size(limit)
        };
    }
    let router = Server::builder()
        // More of one connection wait in the client.
        .max_concurrent_streams(Some(STREAMS))
        .layer(CallLayer::new(config.grpc.max_calls))
        .add_service(Reflection::default())
        .add_service(ReflectionAlpha::default())
        .add_service(limited!(HealthServer, HealthService))
        .add_service(limited!(VersionServer, VersionService))
        .add_service(limited!(
            IntrospectionServer,
            IntrospectionService {
                snapshots: snapshots.clone(),
                supervisor: supervisor.clone(),
                installed: config.opt.path.clone(),
                uuid
            }
        ))
        .add_service(limited!(StoreServer, SandboxStoreService(sandboxes.clone())))
        .add_service(limited!(
            ControllerServer,
            SandboxControllerService {
                supervisor: supervisor.clone(),
                exchange: exchange.clone(),
                external: sandboxers.clone(),
            }
        ))
        .add_service(limited!(NamespacesServer, NamespacesService(namespaces.clone())))
        .add_service(limited!(ContainersServer, ContainersService(containers.clone())))
        .add_service(limited!(
            TasksServer,
            TasksService {
                containers: containers.clone(),
                sandboxes: sandboxes.clone(),
                sandboxers,
                supervisor: supervisor.clone(),
                images: transfers.clone(),
            }
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
        .add_service(limited!(MountsServer, MountsService(mounts.clone())))
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
    let engine = match engine {
        None => None,
        Some((engine, all, secured)) => {
            engine.prepare_confinement();
            engine.recover().await?;
            for listener in all {
                tokio::spawn(docker::serve(listener, engine.clone(), until(stopped.clone())));
            }
            for (listener, acceptor) in secured {
                let until = until(stopped.clone());
                tokio::spawn(docker::serve_tls(listener, acceptor, engine.clone(), until));
            }
            Some(engine)
        }
    };
    let restarting = tokio::spawn(restarts.run());
    if let Some(listener) = watched {
        let supervisor = supervisor.clone();
        tokio::spawn(metrics::serve(listener, move || supervisor.count()));
    }
    if let Some(listener) = profiled {
        tokio::spawn(profile::serve(listener));
    }
    tokio::spawn(service_manager::watch(stores.database.clone()));
    tokio::spawn(memory::give_back());
    listeners.warn_of_unused();
    tracing::info!(address = %config.address().display(), "serving");
    service_manager::ready();

    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signalled::Reload => {
                    service_manager::reloading();
                    reload.apply(&stores, &supervisor, engine.as_ref());
                    service_manager::ready();
                }
                Signalled::Stop(signal) => {
                    tracing::info!(signal, "stopping");
                    break;
                }
            },
            ended = &mut serving => return served(ended),
        }
    }
    service_manager::stopping();
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
    listeners.close()
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

/// What a signal asks for.
enum Signalled {
    Reload,
    /// With the signal's name.
    Stop(&'static str),
}

/// The signals that ask for something.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on they end nothing by themselves.
    fn watch() -> Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("watch", "SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("watch", "SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("watch", "SIGHUP")?,
        })
    }

    /// Waits for one.
    async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.terminate.recv() => Signalled::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Signalled::Stop("SIGINT"),
            _ = self.hangup.recv() => Signalled::Reload,
        }
    }
}
