//! Debian's docker-registry on a free port of loopback.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::binaries;
use crate::command::{Cmd, Process};
use crate::guard::{self, Authority, Guard, TokenServer};
use crate::http::{self, Response};
use crate::image::digest;
use crate::poll::poll_for;
use crate::root::Root;

/// A registry with a directory of its own, ended when dropped; what is sent to it here goes by plain HTTP.
#[derive(Debug)]
pub struct Registry {
    address: String,
    dir: PathBuf,
    process: Process,
}

impl Registry {
    /// Starts one below `root`.
    pub fn start(root: &Root) -> Registry {
        let dir = free_name(root, "registry");
        fs::create_dir(&dir).expect("making the registry's directory");
        let up =
            |address: &str| http::request(address, "GET", "/v2/", &[], &[]).is_ok_and(|r| r.status == 200);
        Registry::launch(dir.clone(), up, |address| {
            configuration(&dir.join("data"), json!({"addr": address}), None)
        })
    }

    /// Starts a second one on the content of this one, by HTTPS alone and behind a guard. What is pushed here is there.
    pub fn guarded(
        &self,
        root: &Root,
        authority: &Authority,
        guard: &Guard,
        tokens: &TokenServer,
    ) -> Registry {
        let dir = free_name(root, "registry");
        fs::create_dir(&dir).expect("making the registry's directory");
        let auth = match guard {
            Guard::Open => None,
            Guard::Password => Some(guard::basic(&guard::password_file(&dir))),
            Guard::Token => Some(tokens.configuration(authority)),
        };
        let (certificate, key) = authority.registry();
        let up = |address: &str| TcpStream::connect(address).is_ok();
        Registry::launch(dir, up, |address| {
            let http = json!({"addr": address, "tls": {"certificate": certificate, "key": key}});
            configuration(&self.dir.join("data"), http, auth.clone())
        })
    }

    /// Starts one that fetches what it lacks from `remote` (host:port) by plain HTTP, and takes no uploads: a pull-through mirror.
    pub fn mirror(root: &Root, remote: &str) -> Registry {
        let dir = free_name(root, "registry");
        fs::create_dir(&dir).expect("making the registry's directory");
        let up =
            |address: &str| http::request(address, "GET", "/v2/", &[], &[]).is_ok_and(|r| r.status == 200);
        Registry::launch(dir.clone(), up, |address| {
            let mut configuration = configuration(&dir.join("data"), json!({"addr": address}), None);
            configuration["proxy"] = json!({"remoteurl": format!("http://{remote}")});
            configuration
        })
    }

    /// Starts a second one on the content of this one, by HTTPS alone, for clients with a certificate of the authority's.
    pub fn for_known_clients(&self, root: &Root, authority: &Authority) -> Registry {
        let dir = free_name(root, "registry");
        fs::create_dir(&dir).expect("making the registry's directory");
        let (certificate, key) = authority.registry();
        let up = |address: &str| TcpStream::connect(address).is_ok();
        Registry::launch(dir, up, |address| {
            let tls = json!({"certificate": certificate, "key": key, "clientcas": [authority.certificate()]});
            configuration(&self.dir.join("data"), json!({"addr": address, "tls": tls}), None)
        })
    }

    fn launch(dir: PathBuf, up: impl Fn(&str) -> bool, configuration: impl Fn(&str) -> Value) -> Registry {
        for _ in 0..5 {
            // The port is free now and may be taken before the registry binds it: then the next one is tried.
            let port =
                TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
            let address = format!("127.0.0.1:{port}");
            // JSON is YAML.
            let config = dir.join("config.yml");
            fs::write(&config, configuration(&address).to_string()).expect("writing config.yml");
            let mut process =
                Cmd::new(binaries::system("docker-registry")).arg("serve").arg(&config).cwd(&dir).spawn();
            let is_up =
                poll_for(Duration::from_secs(20), || (!process.running() || up(&address)).then_some(()));
            if is_up.is_some() && process.running() {
                return Registry { address, dir, process };
            }
        }
        panic!("docker-registry does not start");
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its directory: `data` holds the blobs as docker-registry lays them out.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// The access log so far, one line per request, in Apache's combined format.
    pub fn access_log(&self) -> Vec<String> {
        self.process.stdout().lines().map(str::to_owned).collect()
    }

    /// How many requests so far have this method and a path that contains `part`.
    pub fn requests(&self, method: &str, part: &str) -> usize {
        let method = format!("\"{method} ");
        self.access_log().iter().filter(|line| line.contains(&method) && line.contains(part)).count()
    }

    /// Sends it one request.
    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        http::request(&self.address, method, target, headers, body)
            .unwrap_or_else(|e| panic!("{method} {target}: {e}"))
    }

    /// Uploads a blob and returns its digest.
    pub fn put_blob(&self, name: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let start = self.request("POST", &format!("/v2/{name}/blobs/uploads/"), &[], &[]);
        assert_eq!(start.status, 202, "{start:?}");
        let location = start.header("location").expect("an upload has a location");
        let path = location.trim_start_matches(&format!("http://{}", self.address));
        let joint = if path.contains('?') { '&' } else { '?' };
        let end = self.request(
            "PUT",
            &format!("{path}{joint}digest={digest}"),
            &[("Content-Type", "application/octet-stream")],
            bytes,
        );
        assert_eq!(end.status, 201, "{end:?}");
        digest
    }

    /// Uploads a manifest under a tag or digest and returns its digest.
    pub fn put_manifest(&self, name: &str, reference: &str, media_type: &str, bytes: &[u8]) -> String {
        let end = self.request(
            "PUT",
            &format!("/v2/{name}/manifests/{reference}"),
            &[("Content-Type", media_type)],
            bytes,
        );
        assert_eq!(end.status, 201, "{end:?}");
        digest(bytes)
    }

    /// The file in which the registry keeps a blob: damage it to serve wrong bytes.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.dir.join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.process.end();
    }
}

fn configuration(data: &Path, http: Value, auth: Option<Value>) -> Value {
    let mut configuration = json!({
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": false}},
        "storage": {
            "filesystem": {"rootdirectory": data},
            "delete": {"enabled": true},
            "maintenance": {"uploadpurging": {"enabled": false}},
        },
        "http": http,
    });
    if let Some(auth) = auth {
        configuration["auth"] = auth;
    }
    configuration
}

/// `name`, or `name2`, `name3`, … where that exists below `root`.
pub(crate) fn free_name(root: &Root, name: &str) -> PathBuf {
    let numbered = (2..).map(|n| root.join(format!("{name}{n}")));
    std::iter::once(root.join(name))
        .chain(numbered)
        .find(|path| !path.exists())
        .expect("an endless row has a free name")
}
