//! Containers of which the kernel killed a process for want of memory.
//!
//! A shim tells of that by an event before it tells of the exit that follows; the exit itself is learned on another way, so
//! whoever records it waits until the events have come as far ([`Told`]).

use std::time::Duration;

use futures_util::StreamExt;
use orlop_proto::any;
use orlop_proto::containerd::events::{TaskExit, TaskOom};
use orlop_proto::containerd::types::Envelope;
use tokio::sync::watch;

use crate::docker::{Engine, NAMESPACE};

/// Exit code of what SIGKILL ended, which is how the kernel makes room.
const KILLED: i64 = 137;
/// How long the events may take that come before an exit.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many exits the events of a container have told.
pub type Told = watch::Receiver<u64>;

/// Waits until the events before an exit were heard, where the exit may have been the kernel's doing.
pub async fn heard(mut told: Told, code: i64) {
    if code == KILLED {
        // Ignoring: a shim that went down tells nothing more.
        let _ = tokio::time::timeout(PATIENCE, told.changed()).await;
    }
}

impl Engine {
    /// Notes what shims tell of want of memory, as long as the daemon runs.
    ///
    /// # Errors
    ///
    /// Those of the exchange.
    pub(super) fn watch_memory(&self) -> orlop_proto::error::Result<()> {
        let topics = ["/tasks/oom", "/tasks/exit"];
        let filters = topics.map(|topic| format!("namespace=={NAMESPACE},topic=={topic:?}"));
        let mut events = self.parts.exchange.subscribe(&filters)?;
        let engine = self.clone();
        tokio::spawn(async move {
            loop {
                match events.next().await {
                    Some(Ok(envelope)) => engine.note(&envelope).await,
                    // Too many at once: what comes from here on is heard again.
                    Some(Err(error)) => {
                        tracing::warn!("{error}");
                        match engine.parts.exchange.subscribe(&filters) {
                            Ok(again) => events = again,
                            Err(error) => return tracing::error!("{error}"),
                        }
                    }
                    None => return,
                }
            }
        });
        Ok(())
    }

    async fn note(&self, envelope: &Envelope) {
        let Some(event) = &envelope.event else { return };
        if let Ok(exit) = any::unpack::<TaskExit>(event) {
            if exit.id == exit.container_id
                && let Ok(container) = self.containers.get(&exit.container_id)
            {
                container.told.send_modify(|told| *told += 1);
            }
            return;
        }
        let Ok(killed) = any::unpack::<TaskOom>(event) else { return };
        let Ok(container) = self.containers.get(&killed.container_id) else { return };
        self.container_event(&container, "oom", &[]);
        if let Err(failure) = self.change(&container, |record| record.state.oom_killed = true).await {
            tracing::warn!(id = container.id, "{}", failure.message);
        }
    }
}
