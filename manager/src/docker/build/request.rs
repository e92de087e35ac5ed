//! The parameters of `POST /build`.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use http::HeaderMap;
use serde::de::DeserializeOwned;

use crate::docker::container::config::{HostConfig, LogConfig, Resources, Ulimit};
use crate::docker::failure::{Failure, Result};
use crate::docker::image::{AuthConfig, normal};
use crate::docker::message::Query;

/// Index that credentials for Docker's own registry are filed under.
const DOCKER_INDEX: &str = "https://index.docker.io/v1/";

/// What a client asks for.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Whether BuildKit is to build.
    pub is_for_buildkit: bool,
    /// Path of the Dockerfile in the context.
    pub dockerfile: String,
    /// Names of the image, complete.
    pub tags: Vec<String>,
    /// Arguments.
    pub arguments: BTreeMap<String, Option<String>>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// The stage that is built; empty for the last.
    pub target: String,
    /// The platform of base images; empty for this machine's.
    pub platform: String,
    /// Where the context is, if not in the body.
    pub remote: String,
    /// Images whose layers may be taken in place of new ones.
    pub cache_from: Vec<String>,
    /// Whether every step is made anew.
    pub no_cache: bool,
    /// Whether base images are fetched though they are here.
    pub pulls: bool,
    /// Whether nothing but the image's ID is said.
    pub is_quiet: bool,
    /// Whether containers of steps that worked are removed.
    pub removes: bool,
    /// Whether those of the step that failed are removed too.
    pub always_removes: bool,
    /// Limits, network and hosts of the containers of `RUN`.
    pub host: HostConfig,
    /// Credentials by registry.
    pub credentials: HashMap<String, AuthConfig>,
}

/// A parameter in JSON.
fn json<T: DeserializeOwned + Default>(query: &Query, name: &str, what: &str) -> Result<T> {
    match query.filled(name) {
        None => Ok(T::default()),
        Some(text) => {
            let parsed: Result<Option<T>, _> = serde_json::from_str(text);
            let parsed =
                parsed.map_err(|error| Failure::invalid(format!("error reading {what}: {error}")))?;
            Ok(parsed.unwrap_or_default())
        }
    }
}

impl Wishes {
    /// Reads the parameters and the credentials.
    ///
    /// # Errors
    ///
    /// 400 for values that are none, and for what this engine does not do.
    pub fn read(query: &Query, headers: &HeaderMap) -> Result<Wishes> {
        if query.flag("squash") {
            return Err(Failure::invalid("squash is only supported with experimental mode"));
        }
        if query.filled("securityopt").is_some() {
            return Err(Failure::invalid("security options are not supported on linux"));
        }
        let is_for_buildkit = match query.filled("version") {
            None | Some("1") => false,
            Some("2") => true,
            Some(other) => return Err(Failure::invalid(format!("invalid version {other:?}"))),
        };
        if let Some(isolation) = query.filled("isolation").filter(|text| *text != "default") {
            return Err(Failure::invalid(format!("unsupported isolation: {isolation:?}")));
        }
        let text = |name: &str| query.filled(name).unwrap_or_default().to_owned();
        let number = |name: &str| query.number::<i64>(name).map(Option::unwrap_or_default);
        let mut tags = Vec::new();
        for tag in query.all("t").filter(|tag| !tag.is_empty()) {
            let name = normal(tag).map_err(|failure| failure.within("invalid tag"))?;
            if name.contains('@') {
                return Err(Failure::invalid("build tag cannot contain a digest"));
            }
            if !tags.contains(&name) {
                tags.push(name);
            }
        }
        let host = HostConfig {
            network_mode: text("networkmode"),
            extra_hosts: query.all("extrahosts").filter(|host| !host.is_empty()).map(str::to_owned).collect(),
            shm_size: number("shmsize")?,
            // What the containers write goes to the client alone.
            log_config: LogConfig { kind: "none".to_owned(), ..LogConfig::default() },
            resources: Resources {
                memory: number("memory")?,
                memory_swap: number("memswap")?,
                cpu_shares: number("cpushares")?,
                cpu_period: number("cpuperiod")?,
                cpu_quota: number("cpuquota")?,
                cpuset_cpus: text("cpusetcpus"),
                cpuset_mems: text("cpusetmems"),
                cgroup_parent: text("cgroupparent"),
                ulimits: json::<Vec<Ulimit>>(query, "ulimits", "ulimit settings")?,
                ..Resources::default()
            },
            ..HostConfig::default()
        };
        Ok(Wishes {
            is_for_buildkit,
            dockerfile: query.filled("dockerfile").unwrap_or("Dockerfile").to_owned(),
            tags,
            arguments: json(query, "buildargs", "build args")?,
            labels: json(query, "labels", "labels")?,
            target: text("target"),
            platform: text("platform"),
            remote: text("remote"),
            cache_from: json(query, "cachefrom", "cache-from")?,
            no_cache: query.flag("nocache"),
            pulls: query.flag("pull"),
            is_quiet: query.flag("q"),
            removes: query.flag("forcerm") || query.filled("rm").is_none() || query.flag("rm"),
            always_removes: query.flag("forcerm"),
            host,
            credentials: credentials(headers),
        })
    }

    /// The credentials for a registry.
    pub fn credentials_for(&self, domain: &str) -> AuthConfig {
        let keys: &[&str] = if domain == "docker.io" { &[DOCKER_INDEX, "docker.io"] } else { &[domain] };
        keys.iter().find_map(|key| self.credentials.get(*key)).cloned().unwrap_or_default()
    }
}

/// Reads the header `X-Registry-Config`. As dockerd: what cannot be read is nobody.
fn credentials(headers: &HeaderMap) -> HashMap<String, AuthConfig> {
    let header = headers.get("X-Registry-Config").and_then(|value| value.to_str().ok());
    let decoded = header.and_then(|text| {
        [URL_SAFE, STANDARD, URL_SAFE_NO_PAD, STANDARD_NO_PAD]
            .iter()
            .find_map(|engine| engine.decode(text).ok())
    });
    decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Wishes> {
        Wishes::read(&Query::parse(query), &HeaderMap::new())
    }

    #[test]
    fn parameters_are_read_as_dockerd_does() {
        let wishes = read(
            "t=a&t=b:1&t=a&buildargs=%7B%22A%22%3A%221%22%2C%22B%22%3Anull%7D&memory=5&rm=1&networkmode=none&labels=null",
        )
        .unwrap();
        assert_eq!(wishes.tags, ["docker.io/library/a:latest", "docker.io/library/b:1"]);
        assert_eq!(wishes.arguments["A"].as_deref(), Some("1"));
        assert_eq!(wishes.arguments["B"], None);
        assert_eq!((wishes.host.resources.memory, wishes.host.network_mode.as_str()), (5, "none"));
        assert_eq!(wishes.dockerfile, "Dockerfile");
        assert!(wishes.removes && !wishes.always_removes && !wishes.no_cache);
        assert!(!read("rm=0").unwrap().removes);
    }

    #[test]
    fn what_is_not_done_is_refused() {
        for (query, message) in [
            ("squash=1", "squash is only supported with experimental mode"),
            ("t=UPPER", "invalid tag: invalid reference format"),
            ("buildargs=x", "error reading build args"),
            ("version=3", "invalid version \"3\""),
            ("isolation=hyperv", "unsupported isolation"),
            ("memory=x", "invalid value"),
        ] {
            let failure = read(query).unwrap_err();
            assert_eq!(failure.status, 400);
            assert!(failure.message.contains(message), "{query}: {}", failure.message);
        }
    }
}
