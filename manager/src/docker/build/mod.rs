//! `POST /build`: the classic builder.
//!
//! A Dockerfile is read whole before anything is done (`dockerfile`, pure); then its stages run side by side, each step on
//! the image of the one before (`stage`): commands in containers (`run`), files below two roots (`copy`, `files`),
//! everything else as a change of the configuration (`change`, pure). `cache` remembers which step made which image.
//! What the client sees comes stage by stage, whatever is done at the same time.

mod arguments;
mod base;
mod cache;
mod change;
mod context;
mod copy;
mod dockerfile;
mod files;
mod output;
mod pattern;
mod remote;
mod request;
mod run;
mod source;
mod stage;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use http::{Method, StatusCode};
use orlop_proto::kind::Kind;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use change::apply_all;
pub use output::{Broken, Said};
pub use request::Wishes;

use self::arguments::Arguments;
use self::context::Workplace;
use self::dockerfile::{Command, Dockerfile, Lexer, Pair, Step};
use self::output::{Console, short};
use self::stage::{Build, KEYS, Position};
use super::errand::while_awaited;
use super::failure::{Failure, Result};
use super::image::{Found, familiar};
use super::message::{self, Reply, Request};
use super::route::page_not_found;
use super::{Engine, buildkit};
use crate::content::blobs::names;
use crate::image::DEFAULT_SNAPSHOTTER;
use crate::request::RequestContext;

/// Answers a request below `/build`.
pub async fn answer(engine: Engine, request: Request) -> Result<Reply> {
    let segments = request.segments();
    match (&request.method, segments.as_slice()) {
        (&Method::POST, ["build"]) => {
            let wishes = Wishes::read(&request.query, &request.headers)?;
            match wishes.is_for_buildkit {
                true => buildkit::build(engine, request, wishes).await,
                false => while_awaited(|stop| build(engine, request, wishes, stop)).await,
            }
        }
        (&Method::POST, ["build", "prune"]) => Ok(message::ok(&engine.prune_builds(&request.query).await?)),
        (&Method::POST, ["build", "cancel"]) => match request.query.filled("id") {
            Some(id) => {
                engine.builds.cancel(id);
                Ok(message::empty(StatusCode::OK))
            }
            None => Err(Failure::invalid("build ID not provided")),
        },
        _ => Err(page_not_found()),
    }
}

async fn build(engine: Engine, request: Request, wishes: Wishes, stop: CancellationToken) -> Result<Reply> {
    let id = super::container::fresh_id()?;
    let work = Workplace::new(&engine.build_directory(), &id)?;
    let (root, text) = context(&wishes, request, &work, &stop).await?;
    let mut dockerfile = Dockerfile::parse(&text).map_err(|error| Failure::invalid(error.to_string()))?;
    prepare(&mut dockerfile, &wishes)?;
    let mut sources = Vec::new();
    for name in &wishes.cache_from {
        // As dockerd: what is not here gives no layers.
        if let Ok(found) = engine.image(name).await {
            sources.push(found);
        }
    }
    let names = dockerfile.stages.iter().map(|stage| stage.name.clone());
    let build = Arc::new(Build {
        outcomes: names.map(|name| (name, watch::Sender::default())).collect(),
        context: Arc::new(root),
        escape: dockerfile.escape,
        stop,
        leased: engine.parts.images.begin_lease_named(&engine.context, lease(&id)).await?,
        sources,
        work,
        wishes,
        engine,
    });
    if build.wishes.is_quiet {
        return quiet(&build, dockerfile).await;
    }
    let (reply, client) = message::channel("application/json");
    let (console, mut lines) = Console::new();
    let stop = build.stop.clone().drop_guard();
    let work = tokio::spawn(async move {
        let done = leased(&build, dockerfile, &console).await;
        if let Err(broken) = done {
            console.send(broken.line()).await;
        }
    });
    tokio::spawn(async move {
        // Dropped when the client is gone: what is at work ends then.
        let stop = stop;
        loop {
            tokio::select! {
                line = lines.recv() => match line {
                    Some(line) => {
                        if client.send(Ok(message::line(&line))).await.is_err() {
                            break;
                        }
                    }
                    None => break,
                },
                () = client.closed() => break,
            }
        }
        drop(stop);
        // What is still said on the way out is said to nobody.
        while lines.recv().await.is_some() {}
        // Ignoring: a panic is logged where it happens.
        let _ = work.await;
    });
    Ok(reply)
}

/// A build that says nothing but its image, or the last of what it said when it fails.
async fn quiet(build: &Arc<Build>, dockerfile: Dockerfile) -> Result<Reply> {
    let (console, mut lines) = Console::new();
    let mut said = Said::default();
    let work = async move { leased(build, dockerfile, &console).await };
    let listen = async {
        while let Some(line) = lines.recv().await {
            said.add(message::line(&line));
        }
    };
    let (done, ()) = tokio::join!(work, listen);
    match done {
        Ok(found) => {
            said = Said::default();
            said.add(message::line(&json!({ "stream": format!("{}\n", found.id) })));
        }
        Err(broken) => said.add(message::line(&broken.line())),
    }
    Ok(message::bytes(StatusCode::OK, "application/json", said.whole()))
}

/// The context, and the text of the Dockerfile.
async fn context(
    wishes: &Wishes,
    request: Request,
    work: &Workplace,
    stop: &CancellationToken,
) -> Result<(OwnedFd, String)> {
    let root = match wishes.remote.as_str() {
        "" => context::unpacked(request.into_reader(), work).await?,
        url => remote::fetch(url, work, stop).await?,
    };
    let path = wishes.dockerfile.clone();
    let read = tokio::task::spawn_blocking(move || {
        let text = context::dockerfile(&root, &path)?;
        Ok((root, text))
    });
    read.await.map_err(|error| Failure::internal(error.to_string()))?
}

/// Cuts a Dockerfile to what is wanted of it, and adds the labels that were given.
fn prepare(dockerfile: &mut Dockerfile, wishes: &Wishes) -> Result<()> {
    if !wishes.target.is_empty() {
        let last = dockerfile.find(&wishes.target).ok_or_else(|| {
            Failure::invalid(format!("target stage {:?} could not be found", wishes.target))
        })?;
        dockerfile.stages.truncate(last + 1);
    }
    let mut names = BTreeSet::new();
    for stage in &dockerfile.stages {
        if !stage.name.is_empty() && !names.insert(&stage.name) {
            return Err(Failure::invalid(format!("{:?} stage name already used", stage.name)));
        }
    }
    if let Some(stage) = dockerfile.stages.last_mut() {
        stage.steps.extend(wishes.labels.iter().map(|(key, value)| {
            let pair = Pair { key: key.clone(), value: value.clone(), is_literal: true };
            Step { text: format!("LABEL {key}={value}"), command: Command::Label(vec![pair]) }
        }));
    }
    Ok(())
}

/// Builds everything, and ends the lease that held it until it had names.
async fn leased(build: &Arc<Build>, dockerfile: Dockerfile, console: &Console) -> Result<Found, Broken> {
    let done = whole(build, dockerfile, console).await;
    build.engine.parts.images.end_lease(&build.leased).await?;
    done
}

/// Builds everything and names it.
async fn whole(build: &Arc<Build>, dockerfile: Dockerfile, console: &Console) -> Result<Found, Broken> {
    let Dockerfile { arguments: globals, stages, escape, warnings } = dockerfile;
    let total = globals.len() + stages.iter().map(|stage| 1 + stage.steps.len()).sum::<usize>();
    for warning in &warnings {
        console.say(format!("[WARNING]: {warning}\n")).await;
    }
    let arguments = global_arguments(build, &globals, (escape, total), console).await?;
    let mut first = globals.len() + 1;
    let mut working = Vec::new();
    for (index, stage) in stages.into_iter().enumerate() {
        let position = Position { first, total };
        first += 1 + stage.steps.len();
        let (build, arguments) = (build.clone(), arguments.clone());
        let (own, lines) = Console::new();
        let work = tokio::spawn(async move {
            let at_work = build.clone();
            let work = async move { at_work.stage(index, &stage, position, arguments, &own).await };
            // Told also of one that panics: others wait for it.
            let done = tokio::spawn(work).await;
            let done = done.unwrap_or_else(|error| Err(Failure::internal(error.to_string()).into()));
            let outcome = done.as_ref().map(|(found, _)| found.clone()).map_err(drop);
            build.outcomes[index].1.send_replace(Some(outcome));
            done
        });
        working.push((work, lines));
    }
    let mut declared = arguments.names();
    let mut last = Ok(None);
    for (work, lines) in working {
        match last {
            Ok(_) => forward(lines, console).await,
            // What comes after the first failure ends for that alone, and is not shown.
            Err(_) => drop(lines),
        }
        let done = work.await.unwrap_or_else(|error| Err(Failure::internal(error.to_string()).into()));
        last = match (last, done) {
            (Err(first), _) => Err(first),
            (Ok(_), Ok((found, names))) => {
                declared.extend(names);
                Ok(Some(found))
            }
            (Ok(_), Err(broken)) => {
                build.stop.cancel();
                Err(broken)
            }
        };
    }
    let nothing = || Failure::internal("No image was generated. Is your Dockerfile empty?");
    let found = last?.filter(|found| !found.id.is_empty()).ok_or_else(nothing)?;
    let unused = arguments.unused(&declared);
    if !unused.is_empty() {
        let text = format!("[Warning] One or more build-args [{}] were not consumed\n", unused.join(" "));
        console.say(text).await;
    }
    name(build, &found, console).await?;
    Ok(found)
}

/// Hands a stage's lines on.
async fn forward(mut lines: mpsc::Receiver<Value>, console: &Console) {
    while let Some(line) = lines.recv().await {
        console.send(line).await;
    }
}

/// The arguments before the first stage.
async fn global_arguments(
    build: &Build,
    globals: &[Step],
    (escape, total): (char, usize),
    console: &Console,
) -> Result<Arguments, Broken> {
    let mut arguments = Arguments::new(build.wishes.arguments.clone());
    for (index, step) in globals.iter().enumerate() {
        console.say(format!("Step {}/{total} : {}", index + 1, step.text)).await;
        console.say("\n").await;
        let variables = arguments.globals();
        let lexer = Lexer { escape, variables: &variables };
        if let Command::Arg(all) = change::expanded(&step.command, &lexer)? {
            for (name, default) in all {
                arguments.declare_global(&name, default);
            }
        }
    }
    Ok(arguments)
}

/// Tells of the image and gives it its names.
async fn name(build: &Build, found: &Found, console: &Console) -> Result<(), Broken> {
    let engine = &build.engine;
    console.say(format!("Successfully built {}\n", short(&found.id))).await;
    let target = engine.target_of(found).await?;
    for tag in &build.wishes.tags {
        engine.name_image(tag, &target).await?;
        engine.image_event("tag", &found.id, &familiar(tag));
        console.say(format!("Successfully tagged {}\n", familiar(tag))).await;
    }
    Ok(())
}

/// The name of a build's lease.
fn lease(build: &str) -> String {
    format!("{KEYS}{build}")
}

impl Engine {
    /// Where builds keep their files while they last.
    fn build_directory(&self) -> std::path::PathBuf {
        self.parts.root.join("build")
    }

    /// Removes what builds left that a daemon before this one did not end.
    pub async fn recover_builds(&self) {
        let directory = self.build_directory();
        for id in names(&directory).unwrap_or_default() {
            let leased = RequestContext { lease: Some(lease(&id)), ..self.context.clone() };
            match self.parts.images.end_lease(&leased).await {
                Err(error) if error.kind() != Kind::NotFound => tracing::warn!(id, "{error}"),
                _ => {}
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("remove {}: {error}", directory.display());
        }
        let (snapshots, context) = (&self.parts.snapshots, &self.context);
        let left = snapshots.list(context, DEFAULT_SNAPSHOTTER, &[]).await.unwrap_or_default();
        for snapshot in left.iter().filter(|snapshot| snapshot.name.starts_with(KEYS)) {
            if let Err(error) = snapshots.remove(context, DEFAULT_SNAPSHOTTER, &snapshot.name).await {
                tracing::warn!(name = snapshot.name, "{error}");
            }
        }
    }
}
