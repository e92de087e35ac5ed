//! Debian's docker-registry on a free port of loopback.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use crate::binaries;
use crate::command::{Cmd, Process};
use crate::http::{self, Response};
use crate::image::digest;
use crate::poll::poll_for;
use crate::root::Root;

/// A registry with a directory of its own, over plain HTTP, ended when dropped.
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
        for _ in 0..5 {
            // The port is free now and may be taken before the registry binds it: then the next one is tried.
            let port =
                TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
            let address = format!("127.0.0.1:{port}");
            let config = dir.join("config.yml");
            fs::write(&config, configuration(&dir.join("data").display().to_string(), &address))
                .expect("writing config.yml");
            let mut process =
                Cmd::new(binaries::system("docker-registry")).arg("serve").arg(&config).cwd(&dir).spawn();
            let up = poll_for(Duration::from_secs(20), || {
                let answers =
                    || http::request(&address, "GET", "/v2/", &[], &[]).is_ok_and(|r| r.status == 200);
                (!process.running() || answers()).then_some(())
            });
            if up.is_some() && process.running() {
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

fn configuration(data: &str, address: &str) -> String {
    format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {data}\n  \
         delete:\n    enabled: true\n  maintenance:\n    uploadpurging:\n      enabled: false\nhttp:\n  addr: {address}\n"
    )
}

/// `name`, or `name2`, `name3`, … where that exists below `root`.
pub(crate) fn free_name(root: &Root, name: &str) -> PathBuf {
    let numbered = (2..).map(|n| root.join(format!("{name}{n}")));
    std::iter::once(root.join(name))
        .chain(numbered)
        .find(|path| !path.exists())
        .expect("an endless row has a free name")
}
