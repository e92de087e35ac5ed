//! Recovery: finding again the containers that run while the daemon did not.
//!
//! Every bundle is looked after on its own, so that a dead or deaf shim delays nobody else. A shim that listens is
//! kept, whether or not it answers; one that is gone gets the same end as one that dies under our eyes.

use std::sync::Arc;

use orlop_proto::containerd::v1::types::Status;
use orlop_proto::error::Result;
use orlop_proto::kind::Kind;
use tokio::sync::{Semaphore, SetOnce};

use super::bundle::Bundle;
use super::launch::{Bootstrap, Launcher, kill_in};
use super::log::Log;
use super::registry::Reservation;
use super::shim::Shim;
use super::{Exit, Supervisor, Task};
use crate::db::blocking;

/// How many dead shims are cleaned up after at once.
const CLEANERS: usize = 8;

impl Supervisor {
    /// Takes up every bundle found below the state directory. Returns when all names are known; who asks for one
    /// that is not reached yet waits for it.
    ///
    /// # Errors
    ///
    /// When the directories cannot be read.
    pub async fn recover(&self) -> Result<()> {
        self.shared.daemon.sockets.sweep().await?;
        self.recover_sandboxes().await?;
        let bundles = self.shared.bundles.clone();
        let found = blocking(move || {
            let found = bundles.existing()?;
            bundles.sweep_work()?;
            Ok(found)
        })
        .await?;
        let cleaners = Arc::new(Semaphore::new(CLEANERS));
        for bundle in found {
            let name = self.registry.recover(&bundle.namespace, &bundle.id)?;
            tokio::spawn(self.clone().recover_one(bundle, name, cleaners.clone()));
        }
        Ok(())
    }

    async fn recover_one(self, bundle: Bundle, name: Reservation, cleaners: Arc<Semaphore>) {
        let id = bundle.id.clone();
        let Ok(shim) = bundle.shim() else {
            // Killed before anything was started in it.
            name.hide();
            tracing::info!(id, "removing a bundle without a shim");
            let removed = blocking(move || {
                kill_in(&bundle.path);
                bundle.remove()
            });
            if let Err(error) = removed.await {
                tracing::error!(id, "{error}");
            }
            return;
        };
        let bootstrap = bundle.bootstrap();
        let sandboxed = bundle.is_sandboxed();
        let launcher = Launcher { shim, bundle, daemon: self.shared.daemon.clone(), sandboxed };
        let Some(bootstrap) = bootstrap.and_then(|answer| Bootstrap::parse(&answer).ok()) else {
            // Killed before the shim said where it listens: nobody was told of this container.
            name.hide();
            tracing::info!(id, "removing a container whose shim had not started");
            let _turn = cleaners.acquire().await;
            self.abandon(&launcher).await;
            return;
        };
        let shim = match Shim::connect(&bootstrap, launcher.bundle.namespace.as_str()).await {
            Ok(shim) => shim,
            Err(error) => {
                name.hide();
                tracing::warn!(id, "{error}");
                let _turn = cleaners.acquire().await;
                self.clean_up(&launcher, &SetOnce::new(), name).await;
                return;
            }
        };
        match Log::open(&launcher.bundle.log()) {
            Ok(log) => drop(tokio::spawn(log.copy(id.clone(), shim.clone()))),
            Err(error) => tracing::warn!(id, "{error}"),
        }
        let task = Task::new(launcher, shim);
        name.fulfil(task.clone());
        self.watch(task.clone());
        match task.state_soon().await {
            Ok(state) if state.status() == Status::Stopped => {
                let exit = Exit { pid: state.pid, status: state.exit_status, at: state.exited_at };
                // Ignoring: an event may have told it by now.
                let _ = task.exit.set(exit);
            }
            Err(error) if error.kind() == Kind::NotFound => {
                // Killed between the shim's start and the container's creation.
                tracing::info!(id, "ending a shim without a container");
                // The error says again that there is no such container.
                let _ = self.bring_down(task).await;
            }
            Err(error) if !task.shim.has_ended() => {
                tracing::warn!(id, "the shim does not answer, it is kept: {error}");
            }
            Ok(_) | Err(_) => {}
        }
    }
}
