//! `POST /containers/create`: everything is checked, then a name, a file system and a record are made.

use std::time::SystemTime;

use orlop_proto::contract::size;
use orlop_proto::contract::time::rfc3339_nano;
use orlop_proto::kind::Kind;
use orlop_proto::spec::Accounts;
use serde::Serialize;

use super::config::{Config, CreateBody, Healthcheck, HostConfig};
use super::record::{MountPoint, Record};
use super::{Container, check, fresh_id, place};
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::image::{Found, platform};
use crate::docker::settings::Settings;
use crate::docker::spec::{self, Facts};
use crate::image::DEFAULT_SNAPSHOTTER;
use crate::image::platform::Platform;
use crate::snapshot::quota::MAX_SIZE;

/// What the client is told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Created {
    /// ID of the container.
    pub id: String,
    /// What was not done as asked.
    pub warnings: Vec<String>,
}

/// Completes a container's configuration with its image's.
pub(super) fn merge(config: &mut Config, image: &Config) {
    if config.user.is_empty() {
        config.user.clone_from(&image.user);
    }
    for (port, value) in &image.exposed_ports {
        config.exposed_ports.entry(port.clone()).or_insert_with(|| value.clone());
    }
    for entry in &image.env {
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        let is_set =
            config.env.iter().any(|own| own.split_once('=').map_or(own.as_str(), |(own, _)| own) == name);
        if !is_set {
            config.env.push(entry.clone());
        }
    }
    for (key, value) in &image.labels {
        config.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    if config.entrypoint.is_none() {
        // A command of the image's belongs to its entry point.
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            config.cmd.clone_from(&image.cmd);
        }
        config.entrypoint.clone_from(&image.entrypoint);
    }
    if config.entrypoint.as_ref().is_some_and(|words| matches!(words.as_slice(), [word] if word.is_empty())) {
        config.entrypoint = None;
    }
    if config.working_dir.is_empty() {
        config.working_dir.clone_from(&image.working_dir);
    }
    for (path, value) in &image.volumes {
        config.volumes.entry(path.clone()).or_insert_with(|| value.clone());
    }
    if config.stop_signal.is_empty() {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    match (&mut config.healthcheck, &image.healthcheck) {
        (None, other) => config.healthcheck.clone_from(other),
        (Some(own), Some(other)) => merge_health(own, other),
        (Some(_), None) => {}
    }
    if config.shell.is_none() {
        config.shell.clone_from(&image.shell);
    }
}

fn merge_health(own: &mut Healthcheck, image: &Healthcheck) {
    if own.test.is_empty() {
        own.test.clone_from(&image.test);
    }
    for (number, other) in [
        (&mut own.interval, image.interval),
        (&mut own.timeout, image.timeout),
        (&mut own.start_period, image.start_period),
        (&mut own.start_interval, image.start_interval),
        (&mut own.retries, image.retries),
    ] {
        if *number == 0 {
            *number = other;
        }
    }
}

/// Fills in what a client leaves open with what holds for the whole engine.
fn defaults(host: &mut HostConfig, settings: &Settings) {
    if host.shm_size == 0 {
        host.shm_size = settings.shm_size;
    }
    let log = &mut host.log_config;
    if log.kind.is_empty() {
        log.kind.clone_from(&settings.log_driver);
    }
    if log.kind == settings.log_driver {
        for (name, value) in &settings.log_options {
            log.options.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    if host.runtime.is_empty() {
        host.runtime.clone_from(&settings.default_runtime);
    }
    // Memory and swap together, as dockerd shows them.
    if host.resources.memory > 0 && host.resources.memory_swap == 0 {
        host.resources.memory_swap = host.resources.memory.saturating_mul(2);
    }
    if host.ipc_mode.is_empty() {
        host.ipc_mode.clone_from(&settings.ipc_mode);
    }
    if host.init.is_none() && settings.init {
        host.init = Some(true);
    }
    if host.cgroupns_mode.is_empty() {
        let own = if crate::docker::host::is_unified() { "private" } else { "host" };
        let mode = if settings.cgroup_mode.is_empty() { own } else { &settings.cgroup_mode };
        // A privileged container sees all of the host's.
        let mode = if host.privileged && settings.cgroup_mode.is_empty() { "host" } else { mode };
        mode.clone_into(&mut host.cgroupns_mode);
    }
}

/// The most bytes that a container's file system may take, where `--storage-opt size` says so.
fn size_limit(host: &HostConfig) -> Result<Option<u64>> {
    let mut limit = None;
    for (option, value) in &host.storage_opt {
        if !is_size(option) {
            return Err(Failure::invalid(format!("Unknown option {option}")));
        }
        let bytes = size::bytes(value).ok_or_else(|| Failure::invalid(format!("invalid size: '{value}'")))?;
        limit = Some(bytes);
    }
    Ok(limit)
}

/// Whether an option of storage is the size, whose case does not matter to dockerd.
fn is_size(option: &str) -> bool {
    option.eq_ignore_ascii_case("size")
}

/// Checks a name.
///
/// # Errors
///
/// 400 in dockerd's words.
pub fn check_name(name: &str) -> Result<&str> {
    let plain = name.strip_prefix('/').unwrap_or(name);
    let is_letter = |at: usize, letter: char| {
        letter.is_ascii_alphanumeric() || (at > 0 && (letter == '_' || letter == '.' || letter == '-'))
    };
    if plain.len() < 2 || !plain.chars().enumerate().all(|(at, letter)| is_letter(at, letter)) {
        return Err(Failure::invalid(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )));
    }
    Ok(plain)
}

impl Engine {
    /// Makes a container, of the image's part for a platform where one is wanted.
    ///
    /// # Errors
    ///
    /// 400 for what cannot be, 404 for an image that is not here, 409 for a name in use. Nothing is left.
    pub async fn create_container(
        &self,
        name: Option<&str>,
        wanted: Option<Platform>,
        body: CreateBody,
    ) -> Result<Created> {
        if body.config.image.is_empty() {
            return Err(Failure::invalid("no image specified: container must have an image"));
        }
        if let Some(wanted) = wanted {
            let image = self.image_for(&body.config.image, &wanted).await?;
            return self.create_container_of(&image, name, body).await;
        }
        let image = self.image(&body.config.image).await?;
        let mut created = self.create_container_of(&image, name, body).await?;
        let (own, offered) = (platform(), image.platform());
        if own.rank(&offered).is_none() {
            created.warnings.push(format!(
                "The requested image's platform ({offered}) does not match the detected host platform ({own}) and no specific platform \
                 was requested"
            ));
        }
        Ok(created)
    }

    /// Makes a container of an image that was found.
    ///
    /// # Errors
    ///
    /// As [`Engine::create_container`].
    pub async fn create_container_of(
        &self,
        image: &Found,
        name: Option<&str>,
        body: CreateBody,
    ) -> Result<Created> {
        let CreateBody { mut config, host_config: mut host, networking_config, is_step } = body;
        check::networks(&config, &host, &networking_config)?;
        merge(&mut config, &image.config());
        let settings = self.settings();
        defaults(&mut host, &settings);
        check::whole(&config, &host, &settings)?;
        let keeps_limits = self.parts.snapshots.snapshotter(DEFAULT_SNAPSHOTTER)?.keeps_limits();
        if host.storage_opt.keys().any(|option| is_size(option)) && !keeps_limits {
            let why = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option";
            return Err(Failure::invalid(why));
        }
        size_limit(&host)?;
        let warnings = check::warnings(&host);
        let owners = self.parts.owners.clone().filter(|_| host.userns_mode != "host");
        if owners.is_some() {
            check::remapped(&host)?;
        }
        let id = fresh_id()?;
        if config.hostname.is_empty() {
            config.hostname = match host.network_mode.as_str() {
                "host" => crate::docker::host::name(),
                _ => id[..12].to_owned(),
            };
        }
        if host.network_mode.is_empty() || host.network_mode == "default" {
            "bridge".clone_into(&mut host.network_mode);
        }
        self.share_with(&mut host)?;
        let places = place::plan(&config, &host, &self.places_of(&host.volumes_from)?)?;
        check_sources(&places)?;
        // What cannot be carried out is refused now rather than at the start; accounts are known only then.
        let facts = Facts {
            id: id.clone(),
            systemd_cgroup: settings.systemd_cgroup,
            capabilities: super::devices::capabilities(),
            init: super::devices::init_program(&settings.init_path),
            ..Facts::default()
        };
        let anybody = Config { user: String::new(), ..config.clone() };
        let mut plain = HostConfig { group_add: Vec::new(), ..host.clone() };
        plain.resources.forget_devices();
        spec::make(&anybody, &plain, &Facts { accounts: Accounts::default(), ..facts })?;

        let name = match name.filter(|name| !name.is_empty()) {
            Some(name) => {
                let name = check_name(name)?;
                self.containers.reserve(name, &id)?;
                name.to_owned()
            }
            None => self.reserve_any(&id)?,
        };
        let record = Record {
            id: id.clone(),
            name: name.clone(),
            created: rfc3339_nano(SystemTime::now()),
            image: image.id.clone(),
            chain: image.chain_id(),
            apparmor: spec::named_profile(&host.security_opt),
            config,
            host,
            networks: networking_config.endpoints_config,
            mounts: places,
            is_step,
            owners,
            ..Record::default()
        };
        match self.make(record).await {
            Ok(container) => {
                self.containers.add(container.clone());
                self.container_event(&container, "create", &[]);
                Ok(Created { id, warnings })
            }
            Err(failure) => {
                self.containers.release(&name);
                Err(failure)
            }
        }
    }

    async fn make(&self, mut record: Record) -> Result<std::sync::Arc<Container>> {
        let mut labels = super::sweep::labels(&record);
        labels.extend(size_limit(&record.host)?.map(|bytes| (MAX_SIZE.to_owned(), bytes.to_string())));
        let (snapshots, id) = (&self.parts.snapshots, record.id.clone());
        snapshots.prepare(&self.context, DEFAULT_SNAPSHOTTER, &id, &record.chain, labels).await?;
        let made = async {
            self.attach_networks(&record).await?;
            self.make_volumes(&mut record).await?;
            self.store(&record).await?;
            Ok(Container::new(self, record))
        }
        .await;
        if made.is_err() {
            // Ignoring: what went wrong before is what is reported.
            let _ = self.networks.detach(&id).await;
            let _ = snapshots.remove(&self.context, DEFAULT_SNAPSHOTTER, &id).await;
        }
        made
    }

    /// A name that nobody has, of an adjective and a ship's part.
    fn reserve_any(&self, id: &str) -> Result<String> {
        for attempt in 0..10 {
            let name = crate::docker::names::from(&fresh_id()?, attempt > 5);
            if self.containers.reserve(&name, id).is_ok() {
                return Ok(name);
            }
        }
        self.containers.reserve(&id[..12], id)?;
        Ok(id[..12].to_owned())
    }

    /// Another container that one refers to. Its absence is the request's fault and no 404: clients would take that for the
    /// image's, and pull.
    fn other(&self, name: &str) -> Result<std::sync::Arc<Container>> {
        self.containers.get(name).map_err(|failure| Failure::invalid(failure.message))
    }

    /// Replaces names of other containers by their IDs, which stay.
    fn share_with(&self, host: &mut HostConfig) -> Result<()> {
        for mode in [&mut host.network_mode, &mut host.ipc_mode, &mut host.pid_mode] {
            if let Some(name) = mode.strip_prefix("container:") {
                let other = self.other(name)?;
                *mode = format!("container:{}", other.id);
            }
        }
        Ok(())
    }

    /// What other containers have mounted.
    fn places_of(&self, names: &[String]) -> Result<Vec<(Vec<MountPoint>, Option<bool>)>> {
        names
            .iter()
            .map(|text| {
                let (name, mode) = text.split_once(':').unwrap_or((text, ""));
                let writable = match mode {
                    "" | "z" | "Z" => None,
                    "ro" => Some(false),
                    "rw" => Some(true),
                    _ => return Err(Failure::invalid(format!("invalid mode: {mode}"))),
                };
                Ok((self.other(name)?.record().mounts, writable))
            })
            .collect()
    }
}

/// Refuses bind mounts whose source must be there and is not.
fn check_sources(places: &[MountPoint]) -> Result<()> {
    let missing = places.iter().find(|place| {
        place.kind == "bind"
            && !place.makes_source
            && std::fs::symlink_metadata(&place.source)
                .is_err_and(|error| Kind::from_io(&error) == Kind::NotFound)
    });
    match missing {
        None => Ok(()),
        Some(place) => Err(Failure::invalid(format!(
            "invalid mount config for type \"bind\": bind source path does not exist: {}",
            place.source
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn an_image_fills_what_is_open() {
        let image = Config {
            env: words(&["A=1", "B=2"]),
            cmd: Some(words(&["c"])),
            entrypoint: Some(words(&["e"])),
            user: "web".to_owned(),
            ..Config::default()
        };
        let mut config = Config { env: words(&["B=3"]), ..Config::default() };
        merge(&mut config, &image);
        assert_eq!(config.env, words(&["B=3", "A=1"]));
        assert_eq!(
            (config.entrypoint.clone(), config.cmd.clone()),
            (Some(words(&["e"])), Some(words(&["c"])))
        );
        let mut own = Config { entrypoint: Some(words(&["x"])), ..Config::default() };
        merge(&mut own, &image);
        assert_eq!((own.entrypoint, own.cmd), (Some(words(&["x"])), None));
        let mut none =
            Config { entrypoint: Some(words(&[""])), cmd: Some(words(&["y"])), ..Config::default() };
        merge(&mut none, &image);
        assert_eq!((none.entrypoint, none.cmd), (None, Some(words(&["y"]))));
    }

    #[test]
    fn names_have_letters() {
        assert_eq!(check_name("/web-1").unwrap(), "web-1");
        for wrong in ["", "a", "-a", "a b", "a/b"] {
            assert_eq!(check_name(wrong).unwrap_err().status, 400, "{wrong}");
        }
    }

    #[test]
    fn a_file_systems_size_is_read_as_docker_does() {
        let limit = |option: &str, value: &str| {
            let storage_opt = [(option.to_owned(), value.to_owned())].into();
            size_limit(&HostConfig { storage_opt, ..HostConfig::default() })
        };
        assert_eq!(size_limit(&HostConfig::default()).unwrap(), None);
        assert_eq!(limit("size", "10M").unwrap(), Some(10 << 20));
        assert_eq!(limit("size", "x").unwrap_err().message, "invalid size: 'x'");
        assert_eq!(limit("inodes", "1").unwrap_err().message, "Unknown option inodes");
    }
}
