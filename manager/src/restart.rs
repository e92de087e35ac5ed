//! Restarts: containers that are to run are started again when they end, as their labels say.
//!
//! The labels are those of containerd's restart monitor, and so is what they mean. Beyond its rounds, an end that is
//! published causes a look at once, at most one each second, so that a container which ends at once costs little.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::error::Result;
use orlop_proto::kind::Kind;
use serde::Deserialize;
use tokio_stream::StreamExt;

use crate::events::Exchange;
use crate::labels::Labels;
use crate::request::{Namespace, RequestContext};
use crate::snapshot::{Mount, Snapshots};
use crate::store::containers::{Container, Containers};
use crate::store::namespaces::Namespaces;
use crate::task::{Create, Images, Stdio, Supervisor, Task};

/// Label of what a container is to be: `running` or `stopped`.
const STATUS_LABEL: &str = "containerd.io/restart.status";
/// Label of the policy.
const POLICY_LABEL: &str = "containerd.io/restart.policy";
/// Label of how often it was started again.
const COUNT_LABEL: &str = "containerd.io/restart.count";
/// Label of a container that somebody stopped.
const STOPPED_LABEL: &str = "containerd.io/restart.explicitly-stopped";
/// Label of where its output goes.
const LOG_LABEL: &str = "containerd.io/restart.loguri";
/// The signal that ends a container for good.
const SIGKILL: u32 = 9;
/// The least time between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Watches the containers.
#[derive(Clone)]
pub struct Monitor {
    /// Where containers may be.
    pub namespaces: Namespaces,
    /// What they are to be.
    pub containers: Containers,
    /// Their root file systems.
    pub snapshots: Snapshots,
    /// What runs.
    pub supervisor: Supervisor,
    /// Where ends are told.
    pub exchange: Exchange,
    /// Time after which all are looked at again if nothing happened.
    pub interval: Duration,
}

/// When a container is started again.
#[derive(Debug, PartialEq)]
enum Policy {
    No,
    Always,
    UnlessStopped,
    /// After a failure, this often at most; 0 for always.
    OnFailure(i64),
}

impl Policy {
    fn parse(text: &str) -> Result<Policy, String> {
        let (name, times) = match text.split_once(':') {
            Some((name, times)) => (name, Some(times)),
            None => (text, None),
        };
        let policy = match (name, times) {
            ("on-failure", None) => Policy::OnFailure(0),
            ("on-failure", Some(times)) => {
                Policy::OnFailure(times.parse().map_err(|_| format!("invalid max retry count: {times}"))?)
            }
            ("" | "always", None) => Policy::Always,
            ("unless-stopped", None) => Policy::UnlessStopped,
            ("no", None) => Policy::No,
            ("" | "always" | "unless-stopped" | "no", Some(_)) => {
                return Err(format!("restart policy {name:?} not support max retry count"));
            }
            _ => return Err(format!("restart policy {text:?} not supported")),
        };
        Ok(policy)
    }
}

/// How a container is, as far as its task tells.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// It has no task, or one that does not answer.
    Absent,
    /// Created, running, paused.
    Live(Status),
    /// It has ended with this code.
    Ended(u32),
}

/// What is to be done about a container.
#[derive(Debug, PartialEq)]
enum Change {
    Start { count: i64 },
    Stop,
}

/// What the labels ask for, given how the container is.
fn change(labels: &Labels, state: State) -> Option<Change> {
    let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    match (label(STATUS_LABEL), state) {
        ("stopped", State::Live(_)) => Some(Change::Stop),
        // One that is created is about to be started by whoever created it.
        ("running", State::Live(_)) => None,
        ("running", state) => {
            if is_true(label(STOPPED_LABEL)) {
                return None;
            }
            let count: i64 = label(COUNT_LABEL).parse().unwrap_or(0);
            // Nobody knows how a container without a task ended.
            let failed = matches!(state, State::Ended(code) if code != 0);
            let again = match Policy::parse(label(POLICY_LABEL)) {
                Ok(Policy::Always | Policy::UnlessStopped) => true,
                Ok(Policy::OnFailure(limit)) => failed && (limit == 0 || count < limit),
                Ok(Policy::No) => false,
                Err(error) => {
                    tracing::warn!("policy reconcile: {error}");
                    false
                }
            };
            again.then_some(Change::Start { count: count + 1 })
        }
        _ => None,
    }
}

/// A truth value as Go reads it.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "TRUE" | "true" | "True")
}

impl Monitor {
    /// Watches until it is dropped.
    pub async fn run(self) {
        if let Err(error) = self.forget_stops().await {
            tracing::warn!("restart monitor: {error}");
        }
        let mut ends = None;
        // The count of changes at which nobody was to be watched: until the next one there is nothing to look at.
        let mut unwatched = None;
        loop {
            let mut heard = match ends.take() {
                Some(ends) => ends,
                None => match self.exchange.subscribe(&["topic==\"/tasks/exit\""]) {
                    Ok(ends) => ends,
                    Err(error) => return tracing::error!("restart monitor: {error}"),
                },
            };
            let changes = self.containers.changes();
            if unwatched != Some(changes) {
                unwatched = match self.look().await {
                    Ok(watched) => (watched == 0).then_some(changes),
                    Err(error) => {
                        tracing::warn!("restart monitor: {error}");
                        None
                    }
                };
            }
            tokio::time::sleep(PAUSE).await;
            let rest = self.interval.saturating_sub(PAUSE);
            let mut waited = tokio::time::timeout(rest, heard.next()).await.ok().flatten();
            while let Some(Ok(_)) = waited {
                waited = heard.next().now_or_never().flatten();
            }
            // A subscriber that was too slow is cut off, and subscribes again.
            ends = waited.is_none().then_some(heard);
        }
    }

    /// The containers of all namespaces that have a policy.
    async fn watched(&self) -> Result<Vec<(RequestContext, Container)>> {
        let filter = [format!("labels.{STATUS_LABEL:?}")];
        let mut watched = Vec::new();
        for (name, _) in self.namespaces.list().await? {
            let context = RequestContext { namespace: Namespace::new(name)?, lease: None };
            let containers = self.containers.list(&context, &filter).await?;
            watched.extend(containers.into_iter().map(|container| (context.clone(), container)));
        }
        Ok(watched)
    }

    /// At the daemon's start, what is to run always runs again, whoever stopped it.
    async fn forget_stops(&self) -> Result<()> {
        for (context, container) in self.watched().await? {
            let label = |name: &str| container.labels.get(name).map(String::as_str).unwrap_or_default();
            if Policy::parse(label(POLICY_LABEL)) == Ok(Policy::Always) && is_true(label(STOPPED_LABEL)) {
                self.set_label(&context, &container.id, STOPPED_LABEL, "false").await?;
            }
        }
        Ok(())
    }

    async fn set_label(&self, context: &RequestContext, id: &str, key: &str, value: &str) -> Result<()> {
        let labels = Labels::from([(key.to_owned(), value.to_owned())]);
        let container = Container { id: id.to_owned(), labels, ..Container::default() };
        self.containers.update(context, container, vec![format!("labels.{key}")]).await.map(drop)
    }

    /// Looks at all that are watched; returns how many there are.
    async fn look(&self) -> Result<usize> {
        let mut changes = tokio::task::JoinSet::new();
        let watched = self.watched().await?;
        let count = watched.len();
        for (context, container) in watched {
            let task = self.supervisor.get(&context.namespace, &container.id).await.ok();
            let state = state(task.as_deref()).await;
            // Whoever changes a container now is about to start it, or has just failed to.
            if state == State::Absent && age(&container) < self.interval {
                continue;
            }
            if let Some(change) = change(&container.labels, state) {
                let this = self.clone();
                changes.spawn(async move {
                    let id = container.id.clone();
                    tracing::info!(id, namespace = %context.namespace, ?change, "restart monitor");
                    if let Err(error) = this.apply(&context, container, task, change).await {
                        tracing::warn!(id, "restart monitor: {error}");
                    }
                });
            }
        }
        while changes.join_next().await.is_some() {}
        Ok(count)
    }

    async fn apply(
        &self,
        context: &RequestContext,
        container: Container,
        task: Option<Arc<Task>>,
        change: Change,
    ) -> Result<()> {
        match change {
            Change::Stop => self.end(context, task).await,
            Change::Start { count } => {
                let rootfs = self.rootfs(context, &container).await?;
                self.set_label(context, &container.id, COUNT_LABEL, &count.to_string()).await?;
                self.end(context, task).await?;
                let id = container.id.clone();
                self.supervisor.create(&context.namespace, create(container, rootfs)).await?;
                let task = self.supervisor.get(&context.namespace, &id).await?;
                match task.start("").await {
                    Ok(_) => Ok(()),
                    Err(error) => {
                        // A task that cannot start is in the way of the next attempt.
                        let _ = self.supervisor.delete(&context.namespace, &id).await;
                        Err(error)
                    }
                }
            }
        }
    }

    /// Ends a task by force, and removes it.
    async fn end(&self, context: &RequestContext, task: Option<Arc<Task>>) -> Result<()> {
        let Some(task) = task else { return Ok(()) };
        // One that has ended cannot be killed; deleting tells whether it has.
        if task.kill("", SIGKILL, true).await.is_ok() {
            task.wait("").await?;
        }
        match self.supervisor.delete(&context.namespace, task.id()).await {
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn rootfs(&self, context: &RequestContext, container: &Container) -> Result<Vec<Mount>> {
        let (snapshotter, key) = (&container.snapshotter, &container.snapshot_key);
        if key.is_empty() {
            return Ok(Vec::new());
        }
        self.snapshots.mounts(context, snapshotter, key).await
    }
}

/// Time since a container was last changed.
fn age(container: &Container) -> Duration {
    let changed = SystemTime::try_from(container.updated_at).unwrap_or(SystemTime::UNIX_EPOCH);
    // A time in the future counts as now.
    changed.elapsed().unwrap_or_default()
}

async fn state(task: Option<&Task>) -> State {
    let Some(task) = task else { return State::Absent };
    match task.state_soon().await {
        Ok(state) if state.status() == Status::Stopped => State::Ended(state.exit_status),
        Ok(state) => State::Live(state.status()),
        Err(_) => State::Absent,
    }
}

/// The new task of a container, whose output goes where its label says.
fn create(container: Container, rootfs: Vec<Mount>) -> Create {
    let spec = container.spec.unwrap_or_default().value;
    let terminal = has_terminal(&spec);
    let log = container.labels.get(LOG_LABEL).cloned().unwrap_or_default();
    let stdio = Stdio {
        stderr: if terminal { String::new() } else { log.clone() },
        stdout: log,
        terminal,
        ..Stdio::default()
    };
    Create {
        id: container.id,
        spec,
        runtime: container.runtime.name,
        options: container.runtime.options,
        rootfs: crate::api::convert::mounts(rootfs),
        stdio,
        images: Images::None,
        sandbox: container.sandbox,
        endpoint: None,
    }
}

fn has_terminal(spec: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Spec {
        process: Option<Process>,
    }
    #[derive(Deserialize)]
    struct Process {
        #[serde(default)]
        terminal: bool,
    }
    let spec: Result<Spec, _> = serde_json::from_slice(spec);
    spec.is_ok_and(|spec| spec.process.is_some_and(|process| process.terminal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(status: &str, policy: &str, more: &[(&str, &str)]) -> Labels {
        let own = [(STATUS_LABEL, status), (POLICY_LABEL, policy)];
        own.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn reads_policies() {
        for (text, policy) in [
            ("", Policy::Always),
            ("always", Policy::Always),
            ("unless-stopped", Policy::UnlessStopped),
            ("no", Policy::No),
            ("on-failure", Policy::OnFailure(0)),
            ("on-failure:3", Policy::OnFailure(3)),
        ] {
            assert_eq!(Policy::parse(text), Ok(policy));
        }
        for text in ["always:1", "on-failure:x", "sometimes"] {
            assert!(Policy::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn labels_decide() {
        let start = |count| Some(Change::Start { count });
        let live = State::Live(Status::Running);
        for (labels, state, expected) in [
            (labels("running", "", &[]), State::Absent, start(1)),
            (labels("running", "always", &[]), State::Ended(0), start(1)),
            (labels("running", "always", &[(COUNT_LABEL, "4")]), State::Ended(0), start(5)),
            (labels("running", "always", &[]), State::Live(Status::Created), None),
            (labels("running", "always", &[]), live, None),
            (labels("running", "always", &[]), State::Live(Status::Paused), None),
            (labels("running", "unless-stopped", &[(STOPPED_LABEL, "true")]), State::Ended(0), None),
            (labels("running", "no", &[]), State::Ended(1), None),
            (labels("running", "on-failure", &[]), State::Ended(0), None),
            (labels("running", "on-failure", &[]), State::Absent, None),
            (labels("running", "on-failure", &[(COUNT_LABEL, "9")]), State::Ended(1), start(10)),
            (labels("running", "on-failure:2", &[(COUNT_LABEL, "1")]), State::Ended(1), start(2)),
            (labels("running", "on-failure:2", &[(COUNT_LABEL, "2")]), State::Ended(1), None),
            (labels("running", "nonsense", &[]), State::Ended(1), None),
            (labels("stopped", "", &[]), live, Some(Change::Stop)),
            (labels("stopped", "", &[]), State::Absent, None),
            (labels("stopped", "", &[]), State::Ended(0), None),
            (Labels::new(), State::Absent, None),
        ] {
            assert_eq!(change(&labels, state), expected, "{labels:?} {state:?}");
        }
    }

    #[test]
    fn output_goes_where_the_label_says() {
        let spec = |terminal| prost_types::Any {
            type_url: String::new(),
            value: format!(r#"{{"process":{{"terminal":{terminal}}}}}"#).into_bytes(),
        };
        let container = |terminal| Container {
            labels: labels("running", "", &[(LOG_LABEL, "file:///l")]),
            spec: Some(spec(terminal)),
            ..Container::default()
        };
        let Stdio { stdout, stderr, terminal, .. } = create(container(false), Vec::new()).stdio;
        assert_eq!((stdout.as_str(), stderr.as_str(), terminal), ("file:///l", "file:///l", false));
        let Stdio { stdout, stderr, terminal, .. } = create(container(true), Vec::new()).stdio;
        assert_eq!((stdout.as_str(), stderr.as_str(), terminal), ("file:///l", "", true));
    }
}
