//! `POST /build` for BuildKit, by clients that have no part of it in themselves (docker 20.10): buildkitd builds, with the session
//! of the client, and what it says of its work goes to the client as dockerd passes it on.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use prost::Message;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::built::Solved;
use super::call::{Error, call};
use super::request::{Context, Plan, UPLOADS, plan};
use super::{Buildkit, SOLVE, STATUS, configured, connect, session, uploads};
use crate::docker::Engine;
use crate::docker::build::{Broken, Said, Wishes};
use crate::docker::container::fresh_id;
use crate::docker::errand::while_awaited;
use crate::docker::failure::{Failure, Result};
use crate::docker::message::{self, Reply, Request};

/// How many pieces of what buildkitd says may wait for a client.
const QUEUE: usize = 64;
/// The type of what is said.
const JSON: &str = "application/json";

/// The builds that clients can refer to.
#[derive(Default)]
pub struct Builds {
    running: Mutex<HashMap<String, CancellationToken>>,
    /// The contexts of builds.
    pub waiting: uploads::Waiting,
}

impl Builds {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a build, if there is one of that ID.
    pub fn cancel(&self, id: &str) {
        if let Some(stop) = self.lock().get(id) {
            stop.cancel();
        }
    }
}

/// A build that clients can refer to, until it is dropped.
struct Running(Engine, String);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.builds.lock().remove(&self.1);
    }
}

/// Which build is asked after.
#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(string, tag = "1")]
    reference: String,
}

/// Answers `POST /build` of version 2.
///
/// # Errors
///
/// 501 and 503 without a buildkitd, 400 for what dockerd refuses, and 500 for a build that failed before anything was said.
pub async fn answer(engine: Engine, request: Request, wishes: Wishes) -> Result<Reply> {
    configured(&engine)?;
    let id = request.query.filled("buildid").unwrap_or_default();
    if let Some(id) = id.strip_prefix(UPLOADS) {
        let offer = engine.builds.waiting.offer(id, request.body);
        offer.read().await?;
        return Ok(message::empty(StatusCode::OK));
    }
    while_awaited(|stop| build(engine, request, wishes, stop)).await
}

async fn build(
    engine: Engine,
    request: Request,
    mut wishes: Wishes,
    stop: CancellationToken,
) -> Result<Reply> {
    for host in &mut wishes.host.extra_hosts {
        if let Some(name) = host.strip_suffix("host-gateway") {
            *host = format!("{name}{}", engine.host_gateway().await?);
        }
    }
    let reference = fresh_id()?;
    let mut plan = plan(&request.query, &wishes, reference.clone())?;
    let (buildkit, _) = connect(configured(&engine)?).await?;
    let running = request.query.filled("buildid").map(|id| {
        engine.builds.lock().insert(id.to_owned(), stop.clone());
        Running(engine.clone(), id.to_owned())
    });
    let waiting = &engine.builds.waiting;
    let offer = (plan.context == Context::Body).then(|| waiting.offer(&reference, request.body));
    let own = plan.solve.session.is_empty().then(|| {
        plan.solve.session = reference.clone();
        own_session(buildkit.clone(), reference, waiting.clone())
    });
    let (said, mut heard) = mpsc::channel(QUEUE);
    let (quiet, tags, ends) = (wishes.is_quiet, wishes.tags, stop.clone());
    let work = async move {
        // Until the build is over.
        let _held = (running, offer, own);
        tokio::select! {
            done = solve(&engine, buildkit, &plan, &tags, said) => done,
            () = ends.cancelled() => Err("context canceled".into()),
        }
    };
    let work = AbortOnDropHandle::new(tokio::spawn(work));
    if quiet {
        let mut kept = Said::default();
        while let Some(line) = heard.recv().await {
            kept.add(line);
        }
        return match (ended(work).await, kept.is_empty()) {
            (Ok(id), _) => Ok(message::bytes(
                StatusCode::OK,
                JSON,
                message::line(&json!({ "stream": id.unwrap_or_default() + "\n" })),
            )),
            (Err(failure), true) => Err(failure),
            (Err(failure), false) => {
                kept.add(message::line(&Broken::from(failure).line()));
                Ok(message::bytes(StatusCode::OK, JSON, kept.whole()))
            }
        };
    }
    // As dockerd: what fails before anything is said fails the request.
    let Some(first) = heard.recv().await else {
        let id = ended(work).await?;
        return Ok(message::bytes(StatusCode::OK, JSON, last(Ok(id)).unwrap_or_default()));
    };
    let (reply, client) = message::channel(JSON);
    tokio::spawn(async move {
        // However this ends, the build does.
        let _stop = stop.drop_guard();
        let mut next = Some(first);
        while let Some(line) = next {
            if client.send(Ok(line)).await.is_err() {
                return;
            }
            next = tokio::select! {
                line = heard.recv() => line,
                () = client.closed() => return,
            };
        }
        if let Some(line) = last(ended(work).await) {
            // Ignoring: a client that is gone needs no result.
            let _ = client.send(Ok(line)).await;
        }
    });
    Ok(reply)
}

/// The result of a build's work.
async fn ended(work: AbortOnDropHandle<Result<Option<String>, Error>>) -> Result<Option<String>> {
    let done = work.await.map_err(|error| Failure::internal(error.to_string()))?;
    done.map_err(|error| match error.downcast::<Failure>() {
        Ok(failure) => *failure,
        Err(error) => Failure::internal(error.to_string()),
    })
}

/// What is said at the end.
fn last(done: Result<Option<String>>) -> Option<Bytes> {
    match done {
        Ok(id) => id.map(|id| message::line(&json!({ "id": "moby.image.id", "aux": { "ID": id } }))),
        Err(failure) => Some(message::line(&Broken::from(failure).line())),
    }
}

/// A session for a client that has none, from which buildkitd has nothing but the context.
fn own_session(buildkit: Buildkit, id: String, waiting: uploads::Waiting) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let served = async { uploads::serve(None, buildkit, &session::own(&id)?, waiting).await };
        if let Err(error) = served.await {
            tracing::debug!(id, "session of a build: {error}");
        }
    }))
}

/// Builds, and passes on what is said of it; the ID of the image, where the engine has one of it.
async fn solve(
    engine: &Engine,
    buildkit: Buildkit,
    plan: &Plan,
    names: &[String],
    said: mpsc::Sender<Bytes>,
) -> Result<Option<String>, Error> {
    let (mut builds, mut tells) = (buildkit.clone(), buildkit);
    let solved = async { call(&mut builds, SOLVE, &plan.solve).await?.only::<Solved>().await };
    let asked = Asked { reference: plan.solve.reference.clone() };
    let told = async {
        let mut answers = call(&mut tells, STATUS, &asked).await?;
        while let Some(status) = answers.next().await? {
            let line = json!({ "id": "moby.buildkit.trace", "aux": STANDARD.encode(&status) });
            // Ignoring: who is gone is noticed elsewhere.
            let _ = said.send(message::line(&line)).await;
        }
        Ok::<_, Error>(())
    };
    let (solved, told) = tokio::join!(solved, told);
    let solved = solved?;
    told?;
    Ok(match plan.makes_image {
        true => Some(engine.name_built(&solved, names).await?),
        false => None,
    })
}
