//! The end of a container: its exit is recorded, told, and answered by its restart policy.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;

use super::Container;
use super::memory::{Told, heard};
use super::record::Record;
use super::state::{self, Status, parse, restart_after, starts_with_daemon};
use super::stream;
use crate::docker::Engine;
use crate::task::Exit;

/// How long output may still come after the process has ended: something may hold its pipes open.
const LAST_OUTPUT: Duration = Duration::from_secs(3);
/// Exit code of a container whose own nobody knows any more.
const UNKNOWN: i64 = 255;

type Waiting = JoinHandle<orlop_proto::error::Result<Exit>>;

impl Engine {
    /// Waits for the end of a container's process, and does what follows.
    pub(super) async fn until_end(
        self,
        container: Arc<Container>,
        exit: Waiting,
        copying: JoinHandle<()>,
        told: Told,
    ) {
        let (code, at) = match exit.await {
            Ok(Ok(exit)) => {
                let at = exit.at.and_then(|at| SystemTime::try_from(at).ok());
                (i64::from(exit.status), at.unwrap_or_else(SystemTime::now))
            }
            Ok(Err(error)) => {
                tracing::warn!(id = container.id, "{error}");
                (UNKNOWN, SystemTime::now())
            }
            // The daemon stops.
            Err(_) => return,
        };
        if !container.with(|record| record.state.stopped_by_user) {
            heard(told, code).await;
        }
        if let Err(error) = self.parts.supervisor.delete(&self.context.namespace, &container.id).await
            && error.kind() != orlop_proto::kind::Kind::NotFound
        {
            tracing::warn!(id = container.id, "{error}");
        }
        if tokio::time::timeout(LAST_OUTPUT, copying).await.is_err() {
            tracing::debug!(id = container.id, "output is held open by something else");
        }
        self.unregister(&container.id).await;
        self.leave_networks(&container.record()).await;
        self.note_end(&container, code, at).await;
    }

    /// Records an end and tells of it; starts the container again where its policy says so.
    async fn note_end(&self, container: &Arc<Container>, code: i64, at: SystemTime) {
        let waits = *container.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        let record = container.record();
        let ran = parse(&record.state.started_at).and_then(|started| at.duration_since(started).ok());
        let ran = ran.unwrap_or_default();
        let wait = restart_after(&record.host.restart_policy, &record.state, code, waits, ran);
        let changed = self
            .change(container, |record| {
                if record.state.status != Status::Removing {
                    record.state.ended(code, at, wait.is_some());
                }
                record.state.health = record.state.health.take().map(super::health::last);
            })
            .await;
        if let Err(failure) = changed {
            tracing::error!(id = container.id, "{}", failure.message);
        }
        self.pipes(&record).remove();
        let seconds = ran.as_secs().to_string();
        self.container_event(container, "die", &[("exitCode", code.to_string()), ("execDuration", seconds)]);
        container.output.end();
        container.milestones.send_modify(|milestones| {
            milestones.exits += 1;
            milestones.code = code;
        });
        match wait {
            Some(wait) => {
                let waits = if ran >= Duration::from_secs(10) { 1 } else { waits + 1 };
                *container.restarts.lock().unwrap_or_else(PoisonError::into_inner) = waits;
                tokio::spawn(self.clone().restart_later(container.clone(), wait));
            }
            None if record.removes_itself() => {
                tokio::spawn({
                    let (engine, container) = (self.clone(), container.clone());
                    async move { engine.remove_ended(&container).await }
                });
            }
            None => {}
        }
    }

    /// Starts a container again after a wait, unless that is called off. Boxed: what starts it leads back to here.
    fn restart_later(self, container: Arc<Container>, wait: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = container.called_off.notified() => return,
            }
            let _turn = container.turn.lock().await;
            if container.with(|record| record.state.status) != Status::Restarting {
                return;
            }
            let started = async {
                self.change(&container, |record| record.state.restart_count += 1).await?;
                self.bring_up(&container).await
            };
            if let Err(failure) = started.await {
                tracing::warn!(id = container.id, "restart: {}", failure.message);
            }
        })
    }

    /// Takes up a container as it was when the daemon last ran.
    pub(super) async fn take_up(self, container: Arc<Container>) {
        {
            let _turn = container.turn.lock().await;
            // As it is now: a client may have started it since.
            if !container.with(|record| matches!(record.state.status, Status::Running | Status::Paused)) {
                self.end_stray_task(&container).await;
            }
        }
        let record = container.record();
        match record.state.status {
            Status::Running | Status::Paused => {
                let turn = container.turn.lock().await;
                self.take_up_running(&container, &record).await;
                drop(turn);
            }
            Status::Removing => self.remove_ended(&container).await,
            Status::Exited | Status::Created
                if record.removes_itself() && record.state.started_at != state::NEVER =>
            {
                self.remove_ended(&container).await;
            }
            _ if starts_with_daemon(&record.host.restart_policy, &record.state) => {
                let _turn = container.turn.lock().await;
                if let Err(failure) = self.bring_up(&container).await {
                    tracing::warn!(id = container.id, "start with the daemon: {}", failure.message);
                }
            }
            Status::Restarting => {
                // Its policy gave up while nobody was there to say so.
                let ended = self.change(&container, |record| record.state.status = Status::Exited).await;
                if let Err(failure) = ended {
                    tracing::warn!(id = container.id, "{}", failure.message);
                }
            }
            _ => {}
        }
        if record.is_step {
            // The build that made it ended with the daemon that it was at work in.
            if let Err(failure) = self.remove_container(&container, true, true).await {
                tracing::warn!(id = container.id, "remove a step of a build: {}", failure.message);
            }
        }
    }

    async fn take_up_running(&self, container: &Arc<Container>, record: &Record) {
        let pipes = self.pipes(record);
        let task = self.parts.supervisor.get(&self.context.namespace, &container.id).await;
        let (Ok(task), Ok(ends)) = (task, pipes.open()) else {
            // It ended with the machine, or its shim did.
            tracing::info!(id = container.id, "ended while the daemon did not run");
            if let Ok(task) = self.parts.supervisor.get(&self.context.namespace, &container.id).await {
                // Ignoring: it may have ended.
                let _ = task.kill("", 9, true).await;
                let _ = self.parts.supervisor.delete(&self.context.namespace, &container.id).await;
            }
            self.unregister(&container.id).await;
            self.leave_networks(record).await;
            self.note_end(container, UNKNOWN, SystemTime::now()).await;
            return;
        };
        let copying = tokio::spawn(stream::copy(ends, container.output.clone(), Some(container.log.clone())));
        if let Some(stdin) = pipes.stdin {
            container.output.open_stdin(stdin);
        }
        let told = container.told.subscribe();
        let exit = tokio::spawn(async move { task.wait("").await });
        tokio::spawn(self.clone().until_end(container.clone(), exit, copying, told));
        self.watch_health(container);
    }
}
