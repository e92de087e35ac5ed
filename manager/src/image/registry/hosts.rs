//! Where a registry is reached: `certs.d/HOST/hosts.toml` (containerd's registry host configuration), or what its
//! name says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde::Deserialize;

use crate::image::reference::is_loopback;

/// One place that serves a registry's API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: String,
    /// Host and port.
    pub host: String,
    /// Path of the API, `/v2` unless configured otherwise.
    pub path: String,
    /// Whether the server's certificate is taken unseen.
    pub skip_verify: bool,
    /// Certificates of authorities to trust besides the system's.
    pub authorities: Vec<PathBuf>,
    /// What the place may be asked for.
    pub capabilities: Capabilities,
}

/// What an endpoint may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Blobs and manifests by digest.
    pub pull: bool,
    /// Digests of tags: the place is trusted to know what a tag means.
    pub resolve: bool,
    /// Uploads.
    pub push: bool,
}

impl Capabilities {
    const ALL: Capabilities = Capabilities { pull: true, resolve: true, push: true };
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HostsFile {
    server: Option<String>,
    #[serde(flatten)]
    default: HostEntry,
    // The order is the file's, which toml keeps only in its own table type.
    host: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HostEntry {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    skip_verify: bool,
    override_path: bool,
    #[serde(flatten)]
    rest: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(PathBuf),
    More(Vec<PathBuf>),
}

/// The places that serve a registry, in the order in which they are asked; the registry itself comes last.
///
/// `scheme` is what the client asked for; without it, this machine is reached by plain HTTP, then HTTPS, and every
/// other by HTTPS.
pub fn endpoints(directory: Option<&Path>, host: &str, scheme: Option<&str>) -> Result<Vec<Endpoint>> {
    let file = match directory.map(|directory| read(directory, host)).transpose()?.flatten() {
        Some(file) => file,
        None => return Ok(implied(host, scheme)),
    };
    let (text, path) = file;
    let fail = |why: String| Error::because(Kind::InvalidArgument, "read", path.display().to_string(), why);
    let parsed: HostsFile = toml::from_str(&text).map_err(|error| fail(error.message().to_owned()))?;
    let base = path.parent().unwrap_or(Path::new("/"));
    let mut endpoints = Vec::new();
    for (url, entry) in &parsed.host {
        let entry: HostEntry =
            entry.clone().try_into().map_err(|error: toml::de::Error| fail(error.to_string()))?;
        endpoints.push(endpoint(url, &entry, base).map_err(fail)?);
    }
    match &parsed.server {
        Some(server) => endpoints.push(endpoint(server, &parsed.default, base).map_err(fail)?),
        None => endpoints.extend(implied(host, scheme)),
    }
    Ok(endpoints)
}

fn read(directory: &Path, host: &str) -> Result<Option<(String, PathBuf)>> {
    // A colon may not be wanted in a directory's name; `_default` serves every host without its own.
    let names = [host.to_owned(), host.replacen(':', "_", 1) + "_", "_default".to_owned()];
    for name in names {
        let path = directory.join(name).join("hosts.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(Some((text, path))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("read", path.display().to_string()),
        }
    }
    Ok(None)
}

fn implied(host: &str, scheme: Option<&str>) -> Vec<Endpoint> {
    let schemes: &[&str] = match scheme {
        Some("http") => &["http"],
        Some(_) => &["https"],
        None if is_loopback(host) => &["http", "https"],
        None => &["https"],
    };
    let endpoint = |scheme: &&str| Endpoint {
        scheme: (*scheme).to_owned(),
        host: host.to_owned(),
        path: "/v2".to_owned(),
        skip_verify: false,
        authorities: Vec::new(),
        capabilities: Capabilities::ALL,
    };
    schemes.iter().map(endpoint).collect()
}

fn endpoint(url: &str, entry: &HostEntry, base: &Path) -> Result<Endpoint, String> {
    if let Some(unknown) = entry.rest.keys().find(|key| matches!(key.as_str(), "client" | "header")) {
        return Err(format!("{unknown} is not supported"));
    }
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some((scheme, _)) => return Err(format!("{url}: scheme {scheme} is not http or https")),
        None => ("https", url),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() {
        return Err(format!("{url} names no host"));
    }
    let path = path.trim_end_matches('/');
    let path = match (entry.override_path, path) {
        (true, "") => String::new(),
        (true, path) => format!("/{path}"),
        (false, "" | "v2") => "/v2".to_owned(),
        (false, path) if path.ends_with("/v2") => format!("/{path}"),
        (false, path) => format!("/{path}/v2"),
    };
    let capabilities = match &entry.capabilities {
        None => Capabilities::ALL,
        Some(names) => {
            let has = |name: &str| names.iter().any(|known| known == name);
            Capabilities { pull: has("pull"), resolve: has("resolve"), push: has("push") }
        }
    };
    let authorities = match &entry.ca {
        None => Vec::new(),
        Some(OneOrMore::One(path)) => vec![base.join(path)],
        Some(OneOrMore::More(paths)) => paths.iter().map(|path| base.join(path)).collect(),
    };
    Ok(Endpoint {
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        path,
        skip_verify: entry.skip_verify,
        authorities,
        capabilities,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(endpoints: &[Endpoint]) -> Vec<String> {
        endpoints
            .iter()
            .map(|endpoint| format!("{}://{}{}", endpoint.scheme, endpoint.host, endpoint.path))
            .collect()
    }

    #[test]
    fn names_say_where_registries_are() {
        let implied = |host, scheme| urls(&endpoints(None, host, scheme).unwrap());
        assert_eq!(
            implied("127.0.0.1:5000", None),
            ["http://127.0.0.1:5000/v2", "https://127.0.0.1:5000/v2"]
        );
        assert_eq!(implied("registry.example", None), ["https://registry.example/v2"]);
        assert_eq!(implied("registry.example", Some("http")), ["http://registry.example/v2"]);
        assert_eq!(implied("localhost", Some("https")), ["https://localhost/v2"]);
    }

    #[test]
    fn files_say_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("registry.example:5000");
        std::fs::create_dir(&place).unwrap();
        std::fs::write(
            place.join("hosts.toml"),
            r#"
            server = "https://registry.example:5000"
            [host."http://mirror-z.example"]
              capabilities = ["pull"]
            [host."https://mirror-a.example/prefix/v2"]
              ca = "ca.crt"
              skip_verify = true
              override_path = true
            "#,
        )
        .unwrap();
        let found = endpoints(Some(directory.path()), "registry.example:5000", None).unwrap();
        assert_eq!(
            urls(&found),
            [
                "http://mirror-z.example/v2",
                "https://mirror-a.example/prefix/v2",
                "https://registry.example:5000/v2"
            ]
        );
        assert_eq!(found[0].capabilities, Capabilities { pull: true, resolve: false, push: false });
        assert!(found[1].skip_verify);
        assert_eq!(found[1].authorities, [place.join("ca.crt")]);
        std::fs::write(place.join("hosts.toml"), "server = 3").unwrap();
        let error = endpoints(Some(directory.path()), "registry.example:5000", None).unwrap_err();
        assert!(error.to_string().contains("hosts.toml"), "{error}");
    }
}
