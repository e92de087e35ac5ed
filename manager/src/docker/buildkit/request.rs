//! What a `POST /build` for BuildKit asks of buildkitd, as dockerd has it.

use std::collections::BTreeMap;

use prost::Message;
use serde::Deserialize;

use super::solve::{Output, image};
use super::uploads;
use crate::docker::build::Wishes;
use crate::docker::failure::{Failure, Result};
use crate::docker::image::wanted_platform;
use crate::docker::message::Query;

/// A context that the client of the session has.
const OF_SESSION: &str = "client-session";
/// A context that is uploaded by another request.
const UPLOADED: &str = "upload-request";
/// What the ID of a build begins with in the request that uploads its context.
pub const UPLOADS: &str = "upload-request:";
/// The frontend that reads Dockerfiles.
const FRONTEND: &str = "dockerfile.v0";
/// The argument by which clients ask for a cache within the image.
const INLINE_CACHE: &str = "BUILDKIT_INLINE_CACHE";
/// dockerd's exporter.
const OURS: &str = "moby";
/// An output that is none.
const CACHE_ONLY: &str = "cacheonly";

/// A build (`SolveRequest` of BuildKit's control.proto).
#[derive(Clone, PartialEq, Message)]
pub struct Solve {
    /// What the build is known by.
    #[prost(string, tag = "1")]
    pub reference: String,
    /// The session of the client.
    #[prost(string, tag = "5")]
    pub session: String,
    #[prost(string, tag = "6")]
    frontend: String,
    #[prost(btree_map = "string, string", tag = "7")]
    attributes: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    cache: Option<Cache>,
    #[prost(string, repeated, tag = "9")]
    entitlements: Vec<String>,
    #[prost(message, repeated, tag = "13")]
    outputs: Vec<Output>,
}

/// Where a cache goes (`CacheOptions`); what comes from one is the frontend's.
#[derive(Clone, PartialEq, Message)]
struct Cache {
    #[prost(message, repeated, tag = "4")]
    exports: Vec<Output>,
}

/// An output as the API has it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Wanted {
    r#type: String,
    attrs: Option<BTreeMap<String, String>>,
}

/// Where a context comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Context {
    /// The client's session, or a place that BuildKit knows.
    Elsewhere,
    /// Another request, under this ID.
    Uploaded(String),
    /// The request itself.
    Body,
}

/// A build, where its context comes from, and whether its image is the engine's.
pub struct Plan {
    /// What is asked of buildkitd.
    pub solve: Solve,
    /// Where the context comes from.
    pub context: Context,
    /// Whether there will be an image in the engine's store.
    pub makes_image: bool,
}

/// Makes a plan.
///
/// # Errors
///
/// 400 in dockerd's words.
pub fn plan(query: &Query, wishes: &Wishes, reference: String) -> Result<Plan> {
    let mut attributes: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |key: &str, value: String| drop(attributes.insert(key.to_owned(), value));
    if !wishes.target.is_empty() {
        set("target", wishes.target.clone());
    }
    if let Some(name) = query.filled("dockerfile").filter(|name| *name != ".") {
        set("filename", name.to_owned());
    }
    let context = match wishes.remote.as_str() {
        "" => Context::Body,
        OF_SESSION => Context::Elsewhere,
        UPLOADED => Context::Uploaded(query.filled("buildid").unwrap_or_default().to_owned()),
        other => {
            set("context", other.to_owned());
            Context::Elsewhere
        }
    };
    match &context {
        Context::Elsewhere => {}
        Context::Uploaded(id) => set("context", uploads::url(id)),
        Context::Body => set("context", uploads::url(&reference)),
    }
    set("cache-from", wishes.cache_from.join(","));
    for (name, value) in &wishes.arguments {
        if let Some(value) = value {
            set(&format!("build-arg:{name}"), value.clone());
        }
    }
    for (name, value) in &wishes.labels {
        set(&format!("label:{name}"), value.clone());
    }
    if wishes.no_cache {
        set("no-cache", String::new());
    }
    // As in dockerd, an image that is here counts before the registry's.
    set("image-resolve-mode", if wishes.pulls { "pull" } else { "local" }.to_owned());
    if !wishes.platform.is_empty() {
        wanted_platform(Some(&wishes.platform))?;
        if wishes.platform.contains(',') {
            return Err(Failure::invalid(format!("{:?} is more than one platform", wishes.platform)));
        }
        set("platform", wishes.platform.clone());
    }
    let mut entitlements = Vec::new();
    match wishes.host.network_mode.as_str() {
        "" | "default" => {}
        mode @ ("host" | "none") => {
            set("force-network-mode", mode.to_owned());
            if mode == "host" {
                entitlements.push("network.host".to_owned());
            }
        }
        other => return Err(Failure::invalid(format!("network mode {other:?} not supported by buildkit"))),
    }
    let hosts = wishes.host.extra_hosts.iter();
    let hosts: Vec<String> = hosts
        .map(|host| match host.split_once(':').or_else(|| host.split_once('=')) {
            Some((name, address)) => Ok(format!("{name}={address}")),
            None => Err(Failure::invalid(format!("invalid host {host}"))),
        })
        .collect::<Result<_>>()?;
    set("add-hosts", hosts.join(","));
    if wishes.host.shm_size > 0 {
        set("shm-size", wishes.host.shm_size.to_string());
    }
    let ulimits = wishes.host.resources.ulimits.iter();
    let ulimits: Vec<String> =
        ulimits.map(|limit| format!("{}={}:{}", limit.name, limit.soft, limit.hard)).collect();
    if !ulimits.is_empty() {
        set("ulimit", ulimits.join(","));
    }
    if !wishes.host.resources.cgroup_parent.is_empty() {
        set("cgroup-parent", wishes.host.resources.cgroup_parent.clone());
    }
    let (outputs, makes_image) = outputs(query, &wishes.tags)?;
    let is_true = |text: &str| ["1", "t", "T", "true", "TRUE", "True"].contains(&text);
    let inline = wishes.arguments.get(INLINE_CACHE).and_then(Option::as_deref).is_some_and(is_true);
    let exports =
        if inline { vec![Output { kind: "inline".to_owned(), ..Output::default() }] } else { Vec::new() };
    let solve = Solve {
        reference,
        session: query.filled("session").unwrap_or_default().to_owned(),
        frontend: FRONTEND.to_owned(),
        attributes,
        cache: Some(Cache { exports }),
        entitlements,
        outputs,
    };
    Ok(Plan { solve, context, makes_image })
}

/// Where the result goes: to the engine, unless it is said otherwise.
fn outputs(query: &Query, names: &[String]) -> Result<(Vec<Output>, bool)> {
    let wanted: Vec<Wanted> = match query.filled("outputs") {
        None => Vec::new(),
        Some(text) => serde_json::from_str::<Option<_>>(text)
            .map_err(|error| Failure::invalid(format!("error reading outputs: {error}")))?
            .unwrap_or_default(),
    };
    if wanted.len() > 1 {
        return Err(Failure::invalid("multiple outputs not supported"));
    }
    Ok(match wanted.into_iter().next() {
        Some(output) if output.r#type == CACHE_ONLY => (Vec::new(), false),
        Some(output) if output.r#type != OURS => {
            (vec![Output { kind: output.r#type, attributes: output.attrs.unwrap_or_default() }], false)
        }
        output => {
            let mut attributes = output.and_then(|output| output.attrs).unwrap_or_default();
            if !names.is_empty() {
                attributes.insert("name".to_owned(), names.join(","));
            }
            (vec![image(Output { kind: OURS.to_owned(), attributes })], true)
        }
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn planned(text: &str) -> Result<Plan> {
        let query = Query::parse(text);
        plan(&query, &Wishes::read(&query, &HeaderMap::new())?, "r".to_owned())
    }

    #[test]
    fn what_dockerd_asks_for_is_asked_for() {
        let plan = planned(
            "session=s&remote=client-session&t=a&target=x&dockerfile=D&nocache=1&platform=linux%2Famd64&networkmode=none&\
             extrahosts=h:1.2.3.4&shmsize=5&buildargs=%7B%22A%22%3A%221%22%2C%22B%22%3Anull%7D&labels=%7B%22l%22%3A%22v%22%7D",
        )
        .unwrap();
        assert_eq!((plan.context, plan.makes_image), (Context::Elsewhere, true));
        let attributes = [
            ("add-hosts", "h=1.2.3.4"),
            ("build-arg:A", "1"),
            ("cache-from", ""),
            ("filename", "D"),
            ("force-network-mode", "none"),
            ("image-resolve-mode", "local"),
            ("label:l", "v"),
            ("no-cache", ""),
            ("platform", "linux/amd64"),
            ("shm-size", "5"),
            ("target", "x"),
        ];
        assert_eq!(
            plan.solve.attributes,
            attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
        );
        assert_eq!((plan.solve.session.as_str(), plan.solve.frontend.as_str()), ("s", "dockerfile.v0"));
        let output = &plan.solve.outputs[0];
        assert_eq!(
            (output.kind.as_str(), output.attributes["name"].as_str()),
            ("image", "docker.io/library/a:latest")
        );
    }

    #[test]
    fn a_context_is_where_the_client_says() {
        for (text, context, url) in [
            (
                "remote=upload-request&buildid=b",
                Context::Uploaded("b".to_owned()),
                Some("http://buildkit-session/b"),
            ),
            ("remote=https://a.b/c.git", Context::Elsewhere, Some("https://a.b/c.git")),
            ("", Context::Body, Some("http://buildkit-session/r")),
            ("remote=client-session", Context::Elsewhere, None),
        ] {
            let plan = planned(text).unwrap();
            let said = plan.solve.attributes.get("context").map(String::as_str);
            assert_eq!((plan.context, said), (context, url));
        }
    }

    #[test]
    fn results_go_where_the_client_says() {
        let all = |text: &str| {
            let plan = planned(&format!("outputs={text}")).unwrap();
            let kinds: Vec<String> = plan.solve.outputs.iter().map(|output| output.kind.clone()).collect();
            (kinds.join(" "), plan.makes_image)
        };
        assert_eq!(all("[{\"Type\":\"local\",\"Attrs\":{}}]"), ("local".to_owned(), false));
        assert_eq!(all("[{\"Type\":\"cacheonly\"}]"), (String::new(), false));
        assert_eq!(all("[{\"Type\":\"moby\",\"Attrs\":null}]"), ("image".to_owned(), true));
        assert_eq!(all("null"), ("image".to_owned(), true));
        for (text, words) in [
            ("outputs=[{},{}]", "multiple outputs not supported"),
            ("networkmode=other", "network mode \"other\" not supported by buildkit"),
            ("platform=linux/amd64,linux/arm64", "more than one platform"),
            ("outputs=x", "error reading outputs"),
        ] {
            let failure = planned(text).err().unwrap();
            assert!(failure.status == 400 && failure.message.contains(words), "{text}: {}", failure.message);
        }
        let inline = planned("buildargs=%7B%22BUILDKIT_INLINE_CACHE%22%3A%221%22%7D").unwrap();
        assert_eq!(inline.solve.cache.unwrap().exports[0].kind, "inline");
    }
}
