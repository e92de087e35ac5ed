//! Where a registry is reached: `certs.d/HOST/hosts.toml` (containerd's docs/hosts.md), certificates laid out as docker
//! does, or what the registry's name says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::image::reference::{Reference, is_loopback};

/// A file with a certificate, and that with its key where it is another.
pub type Pair = (PathBuf, Option<PathBuf>);

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
    /// Our certificates and their keys, each of which may be in the same file.
    pub clients: Vec<Pair>,
    /// Headers to send with every request.
    pub headers: HeaderMap,
    /// Time for a connection to be made, where it differs from the usual one.
    pub connect_timeout: Option<Duration>,
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
    /// Lists of what refers to a manifest.
    pub referrers: bool,
}

impl Capabilities {
    pub(super) const ALL: Capabilities =
        Capabilities { pull: true, resolve: true, push: true, referrers: true };
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
    capabilities: Vec<String>,
    ca: Option<OneOrMore<PathBuf>>,
    client: Option<Certificates>,
    skip_verify: bool,
    header: BTreeMap<String, OneOrMore<String>>,
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

/// Our certificates: a file with its key, several of these, or pairs of files.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Certificates {
    File(PathBuf),
    Several(Vec<OneOrMore<PathBuf>>),
}

impl<T> OneOrMore<T> {
    fn all(&self) -> &[T] {
        match self {
            OneOrMore::One(one) => std::slice::from_ref(one),
            OneOrMore::More(more) => more,
        }
    }
}

/// The places that serve a registry, in the order in which they are asked; the registry itself comes last.
///
/// `scheme` is what the client asked for; without it, this machine is reached by plain HTTP, then HTTPS, and every
/// other by HTTPS.
pub fn endpoints(
    directory: Option<&Path>,
    reference: &Reference,
    scheme: Option<&str>,
) -> Result<Vec<Endpoint>> {
    let found = directory.and_then(|directory| directory_of(directory, reference.domain()));
    let Some(base) = found else { return Ok(implied(reference.host(), scheme)) };
    let path = base.join("hosts.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return certificates(&base, implied(reference.host(), scheme));
        }
        Err(error) => return Err(error).context("read", path.display().to_string()),
    };
    parse(&text, &base, reference.host(), scheme)
        .map_err(|why| Error::because(Kind::InvalidArgument, "read", path.display().to_string(), why))
}

/// The directory that speaks for a registry, by the name that people use (`docker.io`): a colon may not be wanted in a
/// name, and `_default` speaks for all that have none of their own.
fn directory_of(directory: &Path, domain: &str) -> Option<PathBuf> {
    let without_colon = domain.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = without_colon.into_iter().chain([domain.to_owned(), "_default".to_owned()]);
    names.map(|name| directory.join(name)).find(|path| path.is_dir())
}

/// What a file says.
pub fn parse(text: &str, base: &Path, host: &str, scheme: Option<&str>) -> Result<Vec<Endpoint>, String> {
    let parsed: HostsFile = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let mut endpoints = Vec::new();
    for (url, entry) in parsed.host {
        let entry: HostEntry =
            entry.try_into().map_err(|error: toml::de::Error| format!("host {url}: {}", error.message()))?;
        endpoints.push(named(&url, &entry, base)?);
    }
    match parsed.server.as_deref().filter(|server| !server.is_empty()) {
        Some(server) => endpoints.push(named(server, &parsed.default, base)?),
        None => {
            for endpoint in implied(host, scheme) {
                endpoints.push(parsed.default.applied_to(endpoint, base)?);
            }
        }
    }
    Ok(endpoints)
}

/// Docker's way: authorities are `*.crt`, our certificates `*.cert` with `*.key` beside them.
fn certificates(base: &Path, mut endpoints: Vec<Endpoint>) -> Result<Vec<Endpoint>> {
    let shown = || base.display().to_string();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(base).context("read", shown())? {
        files.push(entry.context("read", shown())?.path());
    }
    files.sort();
    let of_kind =
        |kind: &'static str| files.iter().filter(move |path| path.extension().is_some_and(|e| e == kind));
    let authorities: Vec<PathBuf> = of_kind("crt").cloned().collect();
    let pair = |certificate: &PathBuf| {
        let key = certificate.with_extension("key");
        (certificate.clone(), key.exists().then_some(key))
    };
    let clients: Vec<Pair> = of_kind("cert").map(pair).collect();
    for endpoint in &mut endpoints {
        endpoint.authorities.clone_from(&authorities);
        endpoint.clients.clone_from(&clients);
    }
    Ok(endpoints)
}

fn implied(host: &str, scheme: Option<&str>) -> Vec<Endpoint> {
    let schemes: &[&str] = match scheme {
        Some("http") => &["http"],
        Some(_) => &["https"],
        None if is_loopback(host) => &["http", "https"],
        None => &["https"],
    };
    schemes.iter().map(|scheme| Endpoint::new(scheme, host, "/v2".to_owned())).collect()
}

fn named(url: &str, entry: &HostEntry, base: &Path) -> Result<Endpoint, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some((scheme, _)) => return Err(format!("{url}: scheme {scheme} is not http or https")),
        None => ("https", url),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_plain) {
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
    entry.applied_to(Endpoint::new(scheme, host, path), base)
}

impl Endpoint {
    pub(super) fn new(scheme: &str, host: &str, path: String) -> Endpoint {
        Endpoint {
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            path,
            skip_verify: false,
            authorities: Vec::new(),
            clients: Vec::new(),
            headers: HeaderMap::new(),
            connect_timeout: None,
            capabilities: Capabilities::ALL,
        }
    }
}

impl HostEntry {
    fn applied_to(&self, endpoint: Endpoint, base: &Path) -> Result<Endpoint, String> {
        let capabilities = match self.capabilities.as_slice() {
            [] => Capabilities::ALL,
            names => {
                let names: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
                let known = ["pull", "resolve", "push", "referrers"];
                if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
                    return Err(format!("unknown capability {unknown}"));
                }
                let has = |name: &str| names.iter().any(|known| known == name);
                Capabilities {
                    pull: has("pull"),
                    resolve: has("resolve"),
                    push: has("push"),
                    referrers: has("referrers"),
                }
            }
        };
        let mut headers = HeaderMap::new();
        for (name, values) in &self.header {
            for value in values.all() {
                let invalid = || format!("header {name} is not valid");
                let mut value = HeaderValue::from_str(value).map_err(|_| invalid())?;
                // What is set here is often a secret.
                value.set_sensitive(true);
                headers.append(HeaderName::try_from(name.as_str()).map_err(|_| invalid())?, value);
            }
        }
        let authorities = self.ca.iter().flat_map(OneOrMore::all).map(|path| base.join(path)).collect();
        Ok(Endpoint {
            skip_verify: self.skip_verify,
            authorities,
            clients: self.certificates(base)?,
            headers,
            connect_timeout: self.dial_timeout.as_deref().map(duration).transpose()?,
            capabilities,
            ..endpoint
        })
    }

    fn certificates(&self, base: &Path) -> Result<Vec<Pair>, String> {
        let one = |entry: &OneOrMore<PathBuf>| match entry {
            OneOrMore::One(file) => Ok((base.join(file), None)),
            OneOrMore::More(pair) => match pair.as_slice() {
                [certificate, key] => Ok((base.join(certificate), Some(base.join(key)))),
                _ => Err("client: a pair is a certificate and its key".to_owned()),
            },
        };
        match &self.client {
            None => Ok(Vec::new()),
            Some(Certificates::File(file)) => Ok(vec![(base.join(file), None)]),
            Some(Certificates::Several(several)) => several.iter().map(one).collect(),
        }
    }
}

/// A duration as Go writes it: numbers with units, such as `1m30s` or `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("dial_timeout: invalid duration {text:?}");
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        let units =
            [("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let unit = units.iter().find(|(name, _)| rest[digits..].starts_with(name)).ok_or_else(invalid)?;
        seconds += number * unit.1;
        rest = &rest[digits + unit.0.len()..];
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(invalid()),
    }
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
        let implied = |host, scheme| {
            urls(&endpoints(None, &Reference::parse(&format!("{host}/x")).unwrap(), scheme).unwrap())
        };
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
        let reference = Reference::parse("registry.example:5000/x").unwrap();
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
        let found = endpoints(Some(directory.path()), &reference, None).unwrap();
        assert_eq!(
            urls(&found),
            [
                "http://mirror-z.example/v2",
                "https://mirror-a.example/prefix/v2",
                "https://registry.example:5000/v2"
            ]
        );
        let pull_alone = Capabilities { pull: true, resolve: false, push: false, referrers: false };
        assert_eq!(found[0].capabilities, pull_alone);
        assert!(found[1].skip_verify);
        assert_eq!(found[1].authorities, [place.join("ca.crt")]);
        std::fs::write(place.join("hosts.toml"), "server = 3").unwrap();
        let error = endpoints(Some(directory.path()), &reference, None).unwrap_err();
        assert!(error.to_string().contains("hosts.toml"), "{error}");
    }

    fn parsed(text: &str) -> Result<Vec<Endpoint>, String> {
        parse(text, Path::new("/d"), "registry.example", None)
    }

    #[test]
    fn certificates_and_headers_have_every_form_that_containerd_takes() {
        let client = |value: &str| {
            parsed(&format!("[host.\"https://m\"]\nclient = {value}\n")).map(|found| found[0].clients.clone())
        };
        let file = |name: &str| Path::new("/d").join(name);
        let pair = |name: &str| (file(&format!("{name}.cert")), Some(file(&format!("{name}.key"))));
        assert_eq!(client("'both.pem'").unwrap(), [(file("both.pem"), None)]);
        assert_eq!(client("['/both.pem', 'c']").unwrap(), [("/both.pem".into(), None), (file("c"), None)]);
        assert_eq!(client("[['a.cert', 'a.key']]").unwrap(), [pair("a")]);
        let several = client("[['a.cert', 'a.key'], 'c', ['b.cert', 'b.key']]").unwrap();
        assert_eq!(several, [pair("a"), (file("c"), None), pair("b")]);
        assert_eq!(client("[]").unwrap(), []);
        for wrong in ["[['a.cert']]", "[['a', 'b', 'c']]", "3", "[['a', 'b'], ['c']]"] {
            assert!(client(wrong).is_err(), "{wrong}");
        }
        let found = parsed(
            "[host.'m'.header]\nX-Key = 'secret'\nX-List = ['a', 'b']\n[host.'n']\ndial_timeout = '1m2.5s'\n",
        )
        .unwrap();
        assert_eq!(found[0].headers["x-key"], "secret");
        assert_eq!(found[0].headers.get_all("x-list").iter().count(), 2);
        assert_eq!(found[1].connect_timeout, Some(Duration::from_millis(62_500)));
        assert!(parsed("[host.m.header]\n'a b' = 'c'\n").is_err());
    }

    #[test]
    fn what_stands_at_the_top_is_about_the_registry_itself() {
        let found = parsed("skip_verify = true\nca = ['a', '/b']\ncapabilities = ['Pull']\n").unwrap();
        assert_eq!(urls(&found), ["https://registry.example/v2"]);
        assert!(found[0].skip_verify && !found[0].capabilities.push);
        assert_eq!(found[0].authorities, [PathBuf::from("/d/a"), PathBuf::from("/b")]);
        for wrong in
            ["capabilities = ['fly']", "dial_timeout = '3'", "[host.'ftp://x']", "[host.'https://a b']"]
        {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn directories_are_those_of_the_names_that_people_use() {
        let directory = tempfile::tempdir().unwrap();
        let find = |reference: &str| {
            let reference = Reference::parse(reference).unwrap();
            urls(&endpoints(Some(directory.path()), &reference, None).unwrap())
        };
        let write = |name: &str, server: &str| {
            std::fs::create_dir(directory.path().join(name)).unwrap();
            let text = format!("server = \"https://{server}\"");
            std::fs::write(directory.path().join(name).join("hosts.toml"), text).unwrap();
        };
        assert_eq!(find("busybox"), ["https://registry-1.docker.io/v2"]);
        write("_default", "all.example");
        write("docker.io", "hub.example");
        write("registry.example_5000_", "five.example");
        assert_eq!(find("busybox"), ["https://hub.example/v2"]);
        assert_eq!(find("registry.example:5000/x"), ["https://five.example/v2"]);
        assert_eq!(find("other.example/x"), ["https://all.example/v2"]);
    }

    #[test]
    fn certificates_may_be_laid_out_as_docker_does() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("registry.example");
        std::fs::create_dir(&place).unwrap();
        for name in ["b.crt", "a.crt", "me.cert", "me.key", "you.cert", "README"] {
            std::fs::write(place.join(name), "").unwrap();
        }
        let reference = Reference::parse("registry.example/x").unwrap();
        let found = endpoints(Some(directory.path()), &reference, None).unwrap();
        assert_eq!(found[0].authorities, [place.join("a.crt"), place.join("b.crt")]);
        let clients = [(place.join("me.cert"), Some(place.join("me.key"))), (place.join("you.cert"), None)];
        assert_eq!(found[0].clients, clients);
    }
}
