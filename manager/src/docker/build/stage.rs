//! One stage of a build: its steps one after the other, each on the image of the one before.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use orlop_proto::contract::time::rfc3339_nano;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::arguments::Arguments;
use super::base::{SCRATCH, scratch};
use super::cache::{Key, Step as Made};
use super::change::{Draft, apply, expanded, set_variable, shell};
use super::context::Workplace;
use super::dockerfile::{Command, Lexer, Stage, instructions};
use super::output::{Broken, Console, short};
use super::request::Wishes;
use super::run::history_step;
use crate::db::blocking;
use crate::docker::Engine;
use crate::docker::container::config::Config;
use crate::docker::container::places;
use crate::docker::failure::{Failure, Result};
use crate::docker::image::{Found, dangling, platform, wanted_platform};
use crate::image::diff::DiffRequest;
use crate::image::{DEFAULT_SNAPSHOTTER, Job, mounts};
use crate::labels::Labels;
use crate::request::RequestContext;

/// The search path of images that have none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the keys of file systems that a build writes begin with.
pub const KEYS: &str = "build-";

/// What became of a stage, for those that need it: nothing yet, its image, or nothing at all.
type Outcome = Option<std::result::Result<Found, ()>>;

/// A build at work.
pub struct Build {
    /// The engine.
    pub engine: Engine,
    /// On whose behalf, with the lease that holds what is made until the end.
    pub leased: RequestContext,
    /// What the client asked for.
    pub wishes: Wishes,
    /// A directory of its own.
    pub work: Workplace,
    /// The files that the client sent.
    pub context: Arc<OwnedFd>,
    /// The escape character of the Dockerfile.
    pub escape: char,
    /// Images whose layers may be taken.
    pub sources: Vec<Found>,
    /// Given up, by the client or because a stage failed.
    pub stop: CancellationToken,
    /// Names of the stages, and what became of each.
    pub outcomes: Vec<(String, watch::Sender<Outcome>)>,
}

/// A stage on its way.
pub struct State {
    /// Its number.
    pub index: usize,
    /// The image of the last step.
    pub found: Found,
    /// The configuration after the last step.
    pub draft: Draft,
    /// The arguments.
    pub arguments: Arguments,
}

impl State {
    /// What the history says of an instruction that runs nothing.
    pub fn nop(&self, said: &str, blank: &str) -> String {
        format!("{} #(nop){blank}{said}", shell(&self.draft.config).join(" "))
    }
}

/// A configuration as images have it.
fn config_document(config: &Config) -> serde_json::Value {
    let mut document = json!(config);
    if config.labels.is_empty() {
        document["Labels"] = serde_json::Value::Null;
    }
    document
}

/// Where a stage is in the whole.
pub struct Position {
    /// The number of its first step, from 1.
    pub first: usize,
    /// How many steps there are.
    pub total: usize,
}

impl Build {
    /// Builds a stage; returns its image and the names of the arguments that it declares.
    ///
    /// # Errors
    ///
    /// The first step that fails.
    pub async fn stage(
        &self,
        index: usize,
        stage: &Stage,
        position: Position,
        arguments: Arguments,
        console: &Console,
    ) -> Result<(Found, BTreeSet<String>), Broken> {
        let mut number = position.first;
        let mut announce = async |text: &str| {
            console.say(format!("Step {number}/{} : {text}", position.total)).await;
            console.say("\n").await;
            number += 1;
        };
        announce(&stage.text).await;
        let found = self.begin(index, stage, &arguments, console).await?;
        let mut config = found.config();
        config.open_stdin = false;
        config.stdin_once = false;
        if !config.env.iter().any(|entry| entry.starts_with("PATH=")) {
            set_variable(&mut config.env, "PATH", PATH);
        }
        let triggers = config.on_build.take().unwrap_or_default();
        let draft = Draft { config, ..Draft::default() };
        let mut state = State { index, found, draft, arguments };
        if !triggers.is_empty() {
            let plural = if triggers.len() == 1 { "" } else { "s" };
            console.say(format!("# Executing {} build trigger{plural}\n", triggers.len())).await;
            for trigger in &triggers {
                let steps = instructions(trigger).map_err(|error| Failure::invalid(error.to_string()))?;
                for step in &steps {
                    self.step(&mut state, &step.command, console).await?;
                }
            }
        }
        let told = |id: &str| format!(" ---> {}\n", short(id));
        console.say(told(&state.found.id)).await;
        for step in &stage.steps {
            announce(&step.text).await;
            if self.stop.is_cancelled() {
                return Err(Failure::internal("Build cancelled").into());
            }
            self.step(&mut state, &step.command, console).await?;
            console.say(told(&state.found.id)).await;
        }
        if !state.found.id.is_empty() {
            console.send(json!({ "aux": { "ID": state.found.id } })).await;
        }
        Ok((state.found, state.arguments.names()))
    }

    /// The image that a stage begins with.
    async fn begin(
        &self,
        index: usize,
        stage: &Stage,
        arguments: &Arguments,
        console: &Console,
    ) -> Result<Found, Broken> {
        let variables = arguments.globals();
        let lexer = Lexer { escape: self.escape, variables: &variables };
        let expand = |text: &str| lexer.word(text).map_err(Failure::invalid);
        let wanted = match expand(&stage.platform)? {
            text if stage.platform.is_empty() => {
                Some(self.wishes.platform.clone()).filter(|_| text.is_empty())
            }
            text if text.is_empty() => {
                return Err(Failure::invalid(
                    "failed to parse platform : \"\" is an invalid component of \"\": platform specifier component must match \"^[A-Za-z0-9_-]+$\"",
                )
                .into());
            }
            text => Some(text),
        };
        let wanted = wanted.filter(|text| !text.is_empty());
        let wanted = wanted.map(|text| wanted_platform(Some(&text))).transpose()?;
        let name = expand(&stage.base)?;
        if name.is_empty() {
            return Err(Failure::invalid(format!("base name ({}) should not be blank", stage.base)).into());
        }
        if let Some(earlier) = self.stage_of(&name, index, false) {
            return self.outcome(earlier).await;
        }
        if name == SCRATCH {
            return Ok(scratch(&wanted.unwrap_or_else(platform)));
        }
        self.image(&name, wanted, console).await
    }

    /// The number of an earlier stage that a name, or where allowed a number, means.
    pub(super) fn stage_of(&self, name: &str, before: usize, by_number: bool) -> Option<usize> {
        let lower = name.to_lowercase();
        let named = self.outcomes[..before].iter().position(|(own, _)| !own.is_empty() && *own == lower);
        named.or_else(|| name.parse().ok().filter(|number| by_number && *number < before))
    }

    /// Waits for the image of an earlier stage.
    pub(super) async fn outcome(&self, stage: usize) -> Result<Found, Broken> {
        let mut outcome = self.outcomes[stage].1.subscribe();
        let given_up = || Failure::internal("Build cancelled");
        let found = outcome.wait_for(Option::is_some).await.map_err(|_| given_up())?.clone();
        Ok(found.and_then(std::result::Result::ok).ok_or_else(given_up)?)
    }

    /// Carries out one instruction.
    async fn step(&self, state: &mut State, command: &Command, console: &Console) -> Result<(), Broken> {
        let config = &state.draft.config;
        let mut variables = config.env.clone();
        variables.extend(state.arguments.visible(&config.env));
        let lexer = Lexer { escape: self.escape, variables: &variables };
        let command = expanded(command, &lexer)?;
        match &command {
            Command::Run(run) => return self.run(state, run, console).await,
            Command::Copy(copy) => return self.copy(state, copy, "COPY", console).await,
            Command::Add(copy) => return self.copy(state, copy, "ADD", console).await,
            Command::Arg(all) => {
                for (name, default) in all {
                    state.arguments.declare(name, default.clone());
                }
            }
            Command::Healthcheck(_) => {
                let before = config.healthcheck.as_ref().map(|check| check.test.clone()).unwrap_or_default();
                if before.first().is_some_and(|word| word != "NONE") {
                    let text = format!("Note: overriding previous HEALTHCHECK: [{}]\n", before.join(" "));
                    console.say(text).await;
                }
            }
            _ => {}
        }
        let said = apply(&mut state.draft, &command)?;
        let said = said.ok_or_else(|| Failure::internal("an instruction was not carried out"))?;
        if let Command::Workdir(_) = command {
            return self.work_directory(state, said, console).await;
        }
        let said = state.nop(&said, "  ");
        if self.take_cached(state, &said, &said, console).await? {
            return Ok(());
        }
        let mut document = self.document(state);
        let now = rfc3339_nano(SystemTime::now());
        let step = history_step(&said, &state.draft.author, &now);
        let job = self.job();
        let layers = state.found.manifest.layers.clone();
        let images = &self.engine.parts.images;
        let made = images.add_step(&job, layers, DEFAULT_SNAPSHOTTER, &mut document, step).await?;
        self.keep(state, made, document, &said).await
    }

    /// Work on the store, given up with the build.
    fn job(&self) -> Job {
        Job { context: self.leased.clone(), progress: Arc::default(), cancel: self.stop.clone() }
    }

    /// The document of the image to be, without its last step.
    fn document(&self, state: &State) -> serde_json::Value {
        let mut document = state.found.document.clone();
        if let Some(members) = document.as_object_mut() {
            // They say how the base was made.
            for old in ["container", "container_config", "docker_version", "id", "parent", "throwaway"] {
                members.remove(old);
            }
        }
        document["created"] = json!(rfc3339_nano(SystemTime::now()));
        document["config"] = config_document(&state.draft.config);
        if !state.draft.author.is_empty() {
            document["author"] = json!(state.draft.author);
        }
        document
    }

    /// Goes on with an image that was made, and remembers how it was.
    async fn keep(
        &self,
        state: &mut State,
        made: crate::image::Made,
        document: serde_json::Value,
        counted: &str,
    ) -> Result<(), Broken> {
        self.engine.name_image(&dangling(&made.target.digest), &made.target).await?;
        let id = made.config.to_string();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let step = Made {
            parent: state.found.id.clone(),
            key: self.key(state, counted)?,
            manifest: made.target.digest.clone(),
            media_type: made.target.media_type.clone(),
            size: made.target.size,
            made: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        };
        self.engine.remember_step(&id, step).await?;
        state.found = Found { id, names: Vec::new(), manifest: made.manifest, document };
        Ok(())
    }

    fn key(&self, state: &State, counted: &str) -> Result<String> {
        Ok(Key { config: &state.draft.config, said: counted, author: &state.draft.author }.digest()?)
    }

    /// Takes the image that the same step made before; whether there was one.
    pub(super) async fn take_cached(
        &self,
        state: &mut State,
        said: &str,
        counted: &str,
        console: &Console,
    ) -> Result<bool, Broken> {
        if self.wishes.no_cache {
            return Ok(false);
        }
        let key = self.key(state, counted)?;
        let cached = self.engine.built(&state.found.id, &key).await?;
        if let Some(found) = cached {
            state.found = found;
        } else if !self.take_from_sources(state, said, counted).await? {
            return Ok(false);
        }
        console.say(" ---> Using cache\n").await;
        Ok(true)
    }

    /// Takes a step of an image that `--cache-from` names, whose history says the same up to there.
    async fn take_from_sources(&self, state: &mut State, said: &str, counted: &str) -> Result<bool, Broken> {
        for source in &self.sources {
            let Some((document, layers)) = super::source::taken(source, &state.found, said) else { continue };
            let mut document = document;
            document["config"] = config_document(&state.draft.config);
            let layers = source.manifest.layers[..layers].to_vec();
            let job = self.job();
            let images = &self.engine.parts.images;
            let made = images.make(&job, layers, DEFAULT_SNAPSHOTTER, &document).await?;
            self.keep(state, made, document, counted).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Changes files on top of the last image, and makes a layer of that.
    pub(super) async fn change_files(
        &self,
        state: &mut State,
        said: &str,
        counted: &str,
        change: impl FnOnce(OwnedFd) -> Result<()> + Send + 'static,
    ) -> Result<(), Broken> {
        let (snapshots, context) = (&self.engine.parts.snapshots, &self.leased);
        let key = format!("{KEYS}{}", crate::docker::container::fresh_id()?);
        let chain = state.found.chain_id();
        let place = snapshots.prepare(context, DEFAULT_SNAPSHOTTER, &key, &chain, Labels::new()).await?;
        let changed = tokio::task::spawn_blocking(move || change(mounts::root(&place)?)).await;
        let changed =
            changed.map_err(|error| Failure::internal(error.to_string())).and_then(|changed| changed);
        let done = match changed {
            Ok(()) => self.commit(state, &key, said, counted).await,
            Err(failure) => Err(failure.into()),
        };
        let removed = snapshots.remove(context, DEFAULT_SNAPSHOTTER, &key).await;
        done?;
        Ok(removed?)
    }

    /// Makes a layer of what is in a file system, and an image of it.
    pub(super) async fn commit(
        &self,
        state: &mut State,
        key: &str,
        said: &str,
        counted: &str,
    ) -> Result<(), Broken> {
        let (snapshots, context) = (&self.engine.parts.snapshots, &self.leased);
        let before = format!("{key}-before");
        let right = snapshots.mounts(context, DEFAULT_SNAPSHOTTER, key).await?;
        let chain = state.found.chain_id();
        let left = match chain.is_empty() {
            true => Vec::new(),
            false => snapshots.view(context, DEFAULT_SNAPSHOTTER, &before, &chain, Labels::new()).await?,
        };
        let places = places();
        let request = DiffRequest { left, right, places, ..DiffRequest::default() };
        let mut document = self.document(state);
        let step = history_step(said, &state.draft.author, &rfc3339_nano(SystemTime::now()));
        let job = self.job();
        let layers = state.found.manifest.layers.clone();
        let images = &self.engine.parts.images;
        let made = images.add_layer(&job, request, layers, DEFAULT_SNAPSHOTTER, &mut document, step).await;
        if !chain.is_empty() {
            snapshots.remove(context, DEFAULT_SNAPSHOTTER, &before).await?;
        }
        self.keep(state, made?, document, counted).await
    }

    /// The root of an image's files, for reading; and the key of what must be removed afterwards.
    pub(super) async fn view(&self, found: &Found) -> Result<(OwnedFd, Option<String>), Broken> {
        let chain = found.chain_id();
        if chain.is_empty() {
            let path = self.work.join("nothing");
            std::fs::create_dir_all(&path).map_err(|error| Failure::internal(error.to_string()))?;
            let opened = std::fs::File::open(&path).map_err(|error| Failure::internal(error.to_string()))?;
            return Ok((opened.into(), None));
        }
        let key = format!("{KEYS}{}", crate::docker::container::fresh_id()?);
        let (snapshots, context) = (&self.engine.parts.snapshots, &self.leased);
        let place = snapshots.view(context, DEFAULT_SNAPSHOTTER, &key, &chain, Labels::new()).await?;
        let root = blocking(move || mounts::readable(&place)).await;
        match root {
            Ok(root) => Ok((root, Some(key))),
            Err(error) => {
                self.forget_view(Some(key)).await?;
                Err(error.into())
            }
        }
    }

    /// Removes what [`Build::view`] made.
    pub(super) async fn forget_view(&self, key: Option<String>) -> Result<(), Broken> {
        let Some(key) = key else { return Ok(()) };
        let (snapshots, context) = (&self.engine.parts.snapshots, &self.leased);
        Ok(snapshots.remove(context, DEFAULT_SNAPSHOTTER, &key).await?)
    }
}
