//! What is done to containers: kill, stop, restart, pause, rename, update, remove.

use std::sync::Arc;
use std::time::Duration;

use orlop_proto::any;
use orlop_proto::containerd::task::v2::UpdateTaskRequest;
use orlop_proto::kind::Kind;
use orlop_proto::spec::Spec;
use serde_json::{Value, json};

use super::config::{Resources, RestartPolicy};
use super::create::check_name;
use super::record::Record;
use super::state::{Status, parse};
use super::{Container, check};
use crate::docker::Engine;
use crate::docker::errand::to_the_end;
use crate::docker::failure::{Failure, Result};
use crate::docker::filters::Filters;
use crate::docker::signal;
use crate::docker::spec::{self, Facts};
use crate::image::DEFAULT_SNAPSHOTTER;
use crate::task::Task;

/// How long a container may take to stop, unless it says otherwise.
const STOP: i64 = 10;
/// How long a killed container may take to end.
const KILLED: Duration = Duration::from_secs(10);
/// The fields by which containers to prune can be filtered.
pub const PRUNE_FILTERS: [&str; 3] = ["label", "label!", "until"];

impl Engine {
    async fn task(&self, container: &Container) -> Result<Arc<Task>> {
        let task = self.parts.supervisor.get(&self.context.namespace, &container.id).await;
        task.map_err(|_| not_running(container))
    }

    /// `docker kill`.
    ///
    /// # Errors
    ///
    /// 409 for a container that does not run.
    pub async fn kill_container(&self, container: &Arc<Container>, signal: Option<&str>) -> Result<()> {
        let number = signal::parse(signal.filter(|signal| !signal.is_empty()).unwrap_or("KILL"))?;
        if !container.with(|record| record.state.is_running()) {
            return Err(Failure::conflict(format!(
                "cannot kill container: {}: container {} is not running",
                container.with(|record| record.name.clone()),
                container.id
            )));
        }
        let task = self.task(container).await?;
        let stops = number == 9 || Some(number) == self.stop_signal(container).ok();
        let mut milestones = container.milestones.subscribe();
        if stops {
            self.change(container, |record| record.state.stopped_by_user = true).await?;
        }
        task.kill("", number, false).await?;
        if number == 9 && container.with(|record| record.state.status == Status::Paused) {
            // A frozen process dies when it is thawed.
            let _ = task.resume().await;
        }
        self.container_event(container, "kill", &[("signal", number.to_string())]);
        if number == 9 {
            // As under dockerd, who kills knows it dead.
            let _ = tokio::time::timeout(KILLED, milestones.changed()).await;
        }
        Ok(())
    }

    fn stop_signal(&self, container: &Container) -> Result<u32> {
        let name = container.with(|record| record.config.stop_signal.clone());
        signal::parse(if name.is_empty() { "TERM" } else { &name })
    }

    /// `docker stop`: asks, waits, kills.
    ///
    /// # Errors
    ///
    /// 304 for a container that does not run.
    pub async fn stop_container(
        &self,
        container: &Arc<Container>,
        seconds: Option<i64>,
        signal: Option<&str>,
    ) -> Result<()> {
        let number = match signal.filter(|signal| !signal.is_empty()) {
            Some(text) => signal::parse(text)?,
            None => self.stop_signal(container)?,
        };
        let (engine, container) = (self.clone(), container.clone());
        to_the_end(async move {
            let _turn = container.turn.lock().await;
            engine.stop(&container, seconds, number).await
        })
        .await
    }

    /// Stops a container; the caller has its turn.
    async fn stop(&self, container: &Arc<Container>, seconds: Option<i64>, number: u32) -> Result<()> {
        match container.with(|record| record.state.status) {
            Status::Running | Status::Paused => {}
            Status::Restarting => {
                container.called_off.notify_waiters();
                self.change(container, |record| {
                    record.state.stopped_by_user = true;
                    record.state.status = Status::Exited;
                })
                .await?;
                self.container_event(container, "stop", &[]);
                return Ok(());
            }
            _ => return Err(Failure::not_modified()),
        }
        let task = self.task(container).await?;
        let seconds = seconds.or(container.with(|record| record.config.stop_timeout)).unwrap_or(STOP);
        self.change(container, |record| record.state.stopped_by_user = true).await?;
        let mut milestones = container.milestones.subscribe();
        let send = async |number: u32| {
            let sent = task.kill("", number, false).await;
            if container.with(|record| record.state.status == Status::Paused) {
                // Ignoring: a frozen process gets its signal when it is thawed.
                let _ = task.resume().await;
            }
            self.container_event(container, "kill", &[("signal", number.to_string())]);
            match sent {
                // It ended meanwhile.
                Err(error) if error.kind() == Kind::NotFound => Ok(()),
                result => result,
            }
        };
        send(number).await?;
        let patience = match u64::try_from(seconds) {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => Duration::MAX,
        };
        if tokio::time::timeout(patience, milestones.changed()).await.is_err() {
            send(9).await?;
            if tokio::time::timeout(KILLED, milestones.changed()).await.is_err() {
                return Err(Failure::internal(format!(
                    "cannot stop container: {}: tried to kill container, but did not receive an exit event",
                    container.id
                )));
            }
        }
        self.container_event(container, "stop", &[]);
        Ok(())
    }

    /// `docker restart`.
    ///
    /// # Errors
    ///
    /// Those of stopping and starting.
    pub async fn restart_container(
        &self,
        container: &Arc<Container>,
        seconds: Option<i64>,
        signal: Option<&str>,
    ) -> Result<()> {
        let number = match signal.filter(|signal| !signal.is_empty()) {
            Some(text) => signal::parse(text)?,
            None => self.stop_signal(container)?,
        };
        let (engine, container) = (self.clone(), container.clone());
        to_the_end(async move {
            let _turn = container.turn.lock().await;
            match engine.stop(&container, seconds, number).await {
                Err(failure) if failure.status != http::StatusCode::NOT_MODIFIED => return Err(failure),
                _ => {}
            }
            engine.bring_up(&container).await?;
            engine.container_event(&container, "restart", &[]);
            Ok(())
        })
        .await
    }

    /// `docker pause` and `docker unpause`.
    ///
    /// # Errors
    ///
    /// 409 for a container that is not in the other state.
    pub async fn freeze_container(&self, container: &Arc<Container>, freeze: bool) -> Result<()> {
        let (engine, container) = (self.clone(), container.clone());
        to_the_end(async move {
            let _turn = container.turn.lock().await;
            let (status, id) = container.with(|record| (record.state.status, record.id.clone()));
            match (status, freeze) {
                (Status::Running, true) | (Status::Paused, false) => {}
                (Status::Paused, true) => {
                    return Err(Failure::conflict(format!("Container {id} is already paused")));
                }
                (_, false) if status != Status::Restarting => {
                    return Err(Failure::conflict(format!("Container {id} is not paused")));
                }
                (Status::Restarting, _) => {
                    return Err(Failure::conflict(format!(
                        "Container {id} is restarting, wait until the container is running"
                    )));
                }
                _ => return Err(not_running(&container)),
            }
            let task = engine.task(&container).await?;
            if freeze {
                task.pause().await?
            } else {
                task.resume().await?
            }
            let status = if freeze { Status::Paused } else { Status::Running };
            engine.change(&container, |record| record.state.status = status).await?;
            engine.container_event(&container, if freeze { "pause" } else { "unpause" }, &[]);
            Ok(())
        })
        .await
    }

    /// `docker rename`.
    ///
    /// # Errors
    ///
    /// 409 for a name in use.
    pub async fn rename_container(&self, container: &Arc<Container>, name: &str) -> Result<()> {
        if name.is_empty() {
            return Err(Failure::invalid("Neither old nor new names may be empty"));
        }
        let name = check_name(name)?.to_owned();
        let (engine, container) = (self.clone(), container.clone());
        to_the_end(async move {
            let _turn = container.turn.lock().await;
            let old = container.with(|record| record.name.clone());
            if old == name {
                return Err(Failure::invalid("Renaming a container with the same name as its current name"));
            }
            engine.containers.reserve(&name, &container.id)?;
            let new = name.clone();
            if let Err(failure) = engine.change(&container, |record| record.name = new).await {
                engine.containers.release(&name);
                return Err(failure);
            }
            engine.containers.release(&old);
            let named = container.with(|record| record.name.clone());
            if let Err(error) = engine.networks.rename(&container.id, &named).await
                && error.kind() != Kind::NotFound
            {
                tracing::warn!(id = container.id, "{error}");
            }
            engine.container_event(&container, "rename", &[("oldName", format!("/{old}"))]);
            Ok(())
        })
        .await
    }

    /// `docker update`: limits that are given replace those that are there, of a running container too.
    ///
    /// # Errors
    ///
    /// 400 for what cannot be.
    pub async fn update_container(&self, container: &Arc<Container>, wanted: Value) -> Result<()> {
        let parse = |error: serde_json::Error| Failure::invalid(format!("invalid JSON: {error}"));
        let update: Resources = serde_json::from_value(wanted.clone()).map_err(parse)?;
        let policy: Option<RestartPolicy> =
            wanted.get("RestartPolicy").cloned().map(serde_json::from_value).transpose().map_err(parse)?;
        let (engine, container) = (self.clone(), container.clone());
        to_the_end(async move {
            let _turn = container.turn.lock().await;
            let host = container.with(|record| record.host.clone());
            check::update(&update)?;
            if let Some(policy) = &policy {
                check::restart_policy(policy)?;
                if host.auto_remove && !["", "no"].contains(&policy.name.as_str()) {
                    return Err(Failure::invalid(
                        "Restart policy cannot be updated because AutoRemove is enabled for the container",
                    ));
                }
            }
            let resources = updated(&host.resources, &update)?;
            if container.with(|record| record.state.is_running()) && resources != host.resources {
                let mut spec = Spec::default();
                spec::resources(&mut spec, &resources, &Facts::default())?;
                let resources = spec.linux_mut().resources.clone().unwrap_or_default();
                let value =
                    serde_json::to_vec(&resources).map_err(|error| Failure::internal(error.to_string()))?;
                let request = UpdateTaskRequest {
                    resources: Some(prost_types::Any { type_url: any::RESOURCES_URL.to_owned(), value }),
                    ..UpdateTaskRequest::default()
                };
                engine.task(&container).await?.update(request).await?;
            }
            engine
                .change(&container, |record| {
                    record.host.resources = resources;
                    if let Some(policy) = policy.filter(|policy| !policy.name.is_empty()) {
                        record.host.restart_policy = policy;
                    }
                })
                .await?;
            engine.container_event(&container, "update", &[]);
            Ok(())
        })
        .await
    }

    /// `docker rm`.
    ///
    /// # Errors
    ///
    /// 409 for a container that runs, unless it is forced.
    pub async fn remove_container(
        &self,
        container: &Arc<Container>,
        force: bool,
        volumes: bool,
    ) -> Result<()> {
        let (engine, container) = (self.clone(), container.clone());
        to_the_end(async move {
            let _turn = container.turn.lock().await;
            let status = container.with(|record| record.state.status);
            if container.milestones.borrow().removed {
                return Err(Failure::not_found(format!("No such container: {}", container.id)));
            }
            let name = container.with(|record| record.name.clone());
            match status {
                Status::Running | Status::Paused | Status::Restarting if !force => {
                    let hint = match status {
                        Status::Paused => "container is paused and must be unpaused first",
                        _ => "container is running: stop the container before removing or force remove",
                    };
                    return Err(Failure::conflict(format!("cannot remove container \"{name}\": {hint}")));
                }
                Status::Running | Status::Paused | Status::Restarting => {
                    engine.change(&container, |record| record.state.status = Status::Removing).await?;
                    container.called_off.notify_waiters();
                    let mut milestones = container.milestones.subscribe();
                    if let Ok(task) = engine.task(&container).await {
                        // Ignoring: it may have ended.
                        let _ = task.kill("", 9, true).await;
                        let _ = task.resume().await;
                        engine.container_event(&container, "kill", &[("signal", "9".to_owned())]);
                        let _ = tokio::time::timeout(KILLED, milestones.changed()).await;
                    }
                }
                Status::Created | Status::Exited | Status::Removing | Status::Dead => {
                    engine.change(&container, |record| record.state.status = Status::Removing).await?;
                }
            }
            engine.remove_now(&container, volumes).await
        })
        .await
    }

    /// Removes a container that asked for it when it ended.
    pub(super) async fn remove_ended(&self, container: &Arc<Container>) {
        let _turn = container.turn.lock().await;
        if container.milestones.borrow().removed || container.with(|record| record.state.is_active()) {
            return;
        }
        if let Err(failure) = self.remove_now(container, true).await {
            tracing::warn!(id = container.id, "remove: {}", failure.message);
        }
    }

    /// Removes what there is of a container that does not run; the caller has its turn.
    async fn remove_now(&self, container: &Arc<Container>, volumes: bool) -> Result<()> {
        let record = container.record();
        self.end_stray_task(container).await;
        match self.parts.snapshots.remove(&self.context, DEFAULT_SNAPSHOTTER, &record.id).await {
            Err(error) if error.kind() != Kind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.forget(container).await?;
        self.forget_networks(&record).await;
        self.containers.remove(&record.id, &record.name);
        self.forget_execs(&record.id);
        let (directory, pipes) = (self.container_directory(&record.id), self.pipe_directory(&record.id));
        let removed = crate::db::blocking(move || {
            for path in [&directory, &pipes] {
                match std::fs::remove_dir_all(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(orlop_proto::error::Error::io(
                            "remove",
                            path.display().to_string(),
                            error,
                        ));
                    }
                    _ => {}
                }
            }
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::warn!(id = record.id, "{error}");
        }
        if volumes {
            self.remove_volumes(&record).await;
        }
        container.output.end();
        self.container_event(container, "destroy", &[]);
        container.milestones.send_modify(|milestones| milestones.removed = true);
        Ok(())
    }

    /// Ends a task of a container that is not known to run: a start that the daemon's own end cut off.
    pub(super) async fn end_stray_task(&self, container: &Arc<Container>) {
        let Ok(task) = self.task(container).await else { return };
        tracing::info!(id = container.id, "ending a start that was cut off");
        // Ignoring: its process may never have been made, or may have ended.
        let _ = task.kill("", 9, true).await;
        let _ = tokio::time::timeout(KILLED, task.wait("")).await;
        match self.parts.supervisor.delete(&self.context.namespace, &container.id).await {
            Err(error) if error.kind() != Kind::NotFound => tracing::warn!(id = container.id, "{error}"),
            _ => {}
        }
        self.leave_networks(&container.record()).await;
    }

    /// `docker container prune`.
    ///
    /// # Errors
    ///
    /// 400 for filters that cannot be.
    pub async fn prune_containers(&self, filters: &Filters) -> Result<Value> {
        let until = filters.until()?;
        let (mut removed, mut freed) = (Vec::new(), 0);
        for container in self.containers.all() {
            let record = container.record();
            let is_wanted = matches!(record.state.status, Status::Created | Status::Exited | Status::Dead)
                && filters.accepts_labels("label", &record.config.labels)
                && filters.refuses_no_label("label!", &record.config.labels)
                && until.is_none_or(|until| parse(&record.created).is_none_or(|created| created < until));
            if !is_wanted {
                continue;
            }
            let usage = self.parts.snapshots.usage(&self.context, DEFAULT_SNAPSHOTTER, &record.id).await;
            if self.remove_container(&container, false, false).await.is_ok() {
                freed += usage.map_or(0, |usage| usage.size);
                removed.push(record.id);
            }
        }
        self.events.tell("container", "prune", "", [("reclaimed".to_owned(), freed.to_string())].into());
        let removed = if removed.is_empty() { Value::Null } else { json!(removed) };
        Ok(json!({ "ContainersDeleted": removed, "SpaceReclaimed": freed }))
    }

    /// Sizes of a container's own files and of all that it sees.
    pub(super) async fn sizes(&self, record: &Record) -> (u64, u64) {
        let own = self.parts.snapshots.usage(&self.context, DEFAULT_SNAPSHOTTER, &record.id).await;
        let own = own.map_or(0, |usage| usage.size);
        let image = match self.image(&record.image).await {
            Ok(found) => self.image_size(&found).await,
            Err(_) => 0,
        };
        (own, own + image)
    }
}

/// Limits with those of an update in place of the ones that it gives.
fn updated(old: &Resources, update: &Resources) -> Result<Resources> {
    let (mut new, nothing) = (old.clone(), Resources::default());
    macro_rules! take {
        ($($field:ident),*) => {$(
            if update.$field != nothing.$field {
                new.$field = update.$field.clone();
            }
        )*};
    }
    take!(
        cpu_shares,
        memory,
        nano_cpus,
        blkio_weight,
        cpu_period,
        cpu_quota,
        cpu_realtime_period,
        cpu_realtime_runtime,
        cpuset_cpus,
        cpuset_mems,
        memory_reservation,
        memory_swap,
        pids_limit
    );
    if new.nano_cpus > 0 && (update.cpu_quota > 0 || update.cpu_period > 0) && update.nano_cpus == 0 {
        return Err(Failure::conflict(
            "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set",
        ));
    }
    if new.memory > 0 && new.memory_swap > 0 && new.memory > new.memory_swap {
        return Err(Failure::conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
        ));
    }
    Ok(new)
}

fn not_running(container: &Container) -> Failure {
    Failure::conflict(format!("Container {} is not running", container.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_replaces_what_it_gives() {
        let old = Resources { memory: 10, memory_swap: 20, cpu_shares: 3, ..Resources::default() };
        let new = updated(&old, &Resources { memory: 15, ..Resources::default() }).unwrap();
        assert_eq!((new.memory, new.memory_swap, new.cpu_shares), (15, 20, 3));
        assert!(updated(&old, &Resources { memory: 25, ..Resources::default() }).is_err());
    }
}
