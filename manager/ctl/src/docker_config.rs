//! Credentials as docker keeps them: `config.json` in `$DOCKER_CONFIG` or `~/.docker`, and the programs that it names
//! (docker-credential-helpers' protocol).

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde::Deserialize;

/// The name under which docker keeps what is for Docker Hub.
const HUB: &str = "https://index.docker.io/v1/";
/// The user name of what is a token.
const TOKEN: &str = "<token>";
/// What a program says when it has nothing for a registry, and exits with a failure.
const NOT_FOUND: &str = "credentials not found";

/// What is kept for a registry.
#[derive(Debug, PartialEq)]
pub enum Stored {
    /// Nothing.
    Nothing,
    /// A name and a password.
    Password(String, String),
    /// A token that gives tokens.
    Refresh(String),
    /// A token for the registry itself.
    Bearer(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// What a program answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// What docker's configuration has for a registry's host. Blocks.
///
/// # Errors
///
/// A configuration that cannot be read, and a program that fails.
pub fn credentials(host: &str) -> Result<Stored> {
    let directory = std::env::var_os("DOCKER_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    let directory = directory.or_else(|| std::env::home_dir().map(|home| home.join(".docker")));
    let Some(path) = directory.map(|directory| directory.join("config.json")) else {
        return Ok(Stored::Nothing);
    };
    let shown = path.display().to_string();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Stored::Nothing),
        Err(error) => return Err(error).context("read", shown),
    };
    let config: Config = serde_json::from_slice(&text)
        .map_err(|error| Error::because(Kind::InvalidArgument, "read", shown.clone(), error))?;
    config.find(host, &shown, run)
}

impl Config {
    /// Looks for a host: a program for it alone, the program for all, the file.
    fn find(&self, host: &str, path: &str, run: impl Fn(&str, &str) -> Result<Stored>) -> Result<Stored> {
        let is_hub = matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        let server = if is_hub { HUB } else { host };
        let own = [server, host].into_iter().chain(is_hub.then_some("docker.io"));
        let helper = own.clone().find_map(|name| self.cred_helpers.get(name));
        if let Some(program) = helper.or(Some(&self.creds_store)).filter(|program| !program.is_empty()) {
            match run(program, server)? {
                Stored::Nothing => {}
                found => return Ok(found),
            }
        }
        let entry = own.clone().find_map(|name| self.auths.get(name)).or_else(|| {
            // Older files have URLs.
            self.auths
                .iter()
                .find(|(key, _)| own.clone().any(|name| bare(key) == bare(name)))
                .map(|(_, entry)| entry)
        });
        entry.map_or(Ok(Stored::Nothing), |entry| {
            entry.stored().ok_or_else(|| {
                let why = format!("the credentials for {server} are not valid");
                Error::because(Kind::InvalidArgument, "read", path, why)
            })
        })
    }
}

impl Entry {
    /// What an entry means; `None` where it is damaged.
    fn stored(&self) -> Option<Stored> {
        if !self.registrytoken.is_empty() {
            return Some(Stored::Bearer(self.registrytoken.clone()));
        }
        if !self.identitytoken.is_empty() {
            return Some(Stored::Refresh(self.identitytoken.clone()));
        }
        if self.auth.is_empty() {
            // What a program keeps is listed without its content.
            return Some(match self.username.as_str() {
                "" => Stored::Nothing,
                name => Stored::Password(name.to_owned(), self.password.clone()),
            });
        }
        let text = String::from_utf8(BASE64_STANDARD.decode(&self.auth).ok()?).ok()?;
        let (name, password) = text.split_once(':')?;
        Some(Stored::Password(name.to_owned(), password.trim_end_matches('\0').to_owned()))
    }
}

/// A host without what may stand around it in a URL.
fn bare(name: &str) -> &str {
    let rest = name.split_once("://").map_or(name, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// Asks a program.
fn run(name: &str, server: &str) -> Result<Stored> {
    let program = format!("docker-credential-{name}");
    if name.contains('/') {
        return Err(Error::because(Kind::InvalidArgument, "run", program, "it is not the name of a program"));
    }
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("run", program.clone())?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read says by its exit what is wrong.
        let _ = input.write_all(server.as_bytes());
    }
    let output = child.wait_with_output().context("run", program.clone())?;
    let text = String::from_utf8_lossy(&output.stdout);
    match output.status.success() {
        true => answer(&text).map_err(|error| Error::because(Kind::Unknown, "run", program, error)),
        false if text.contains(NOT_FOUND) => Ok(Stored::Nothing),
        false => {
            let why = text.lines().next().map_or_else(|| output.status.to_string(), str::to_owned);
            Err(Error::because(Kind::Unknown, "run", program, why))
        }
    }
}

fn answer(text: &str) -> serde_json::Result<Stored> {
    let Answer { username, secret } = serde_json::from_str(text)?;
    Ok(match username.as_str() {
        TOKEN => Stored::Refresh(secret),
        _ => Stored::Password(username, secret),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(name: &str, secret: &str) -> Stored {
        Stored::Password(name.to_owned(), secret.to_owned())
    }

    #[test]
    fn hosts_are_found_as_docker_writes_them() {
        let config: Config = serde_json::from_str(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOmh1YjI="},
                "registry.example:5000": {"auth": "YTpiOmM="},
                "https://old.example/v1/": {"username": "o", "password": "p"},
                "token.example": {"auth": "", "identitytoken": "t"},
                "bearer.example": {"registrytoken": "r"},
                "listed.example": {},
                "broken.example": {"auth": "!"}
            }, "HttpHeaders": {"X": "y"}}"#,
        )
        .unwrap();
        let none = |_: &str, _: &str| panic!("no program is named");
        let find = |host: &str| config.find(host, "config.json", none);
        for host in ["docker.io", "registry-1.docker.io", "index.docker.io"] {
            assert_eq!(find(host).unwrap(), password("hub", "hub2"), "{host}");
        }
        assert_eq!(find("registry.example:5000").unwrap(), password("a", "b:c"));
        assert_eq!(find("old.example").unwrap(), password("o", "p"));
        assert_eq!(find("token.example").unwrap(), Stored::Refresh("t".to_owned()));
        assert_eq!(find("bearer.example").unwrap(), Stored::Bearer("r".to_owned()));
        assert_eq!(find("listed.example").unwrap(), Stored::Nothing);
        assert_eq!(find("registry.example").unwrap(), Stored::Nothing);
        assert!(find("broken.example").unwrap_err().to_string().contains("broken.example"));
    }

    #[test]
    fn programs_go_before_the_file() {
        let config: Config = serde_json::from_str(
            r#"{"auths": {"a.example": {"auth": "YTpi"}, "b.example": {"auth": "YTpi"}},
                "credHelpers": {"a.example": "one", "docker.io": "hub"}, "credsStore": "all"}"#,
        )
        .unwrap();
        let run = |program: &str, server: &str| match (program, server) {
            ("one", "a.example") => Ok(password("from", "one")),
            ("hub", HUB) => Ok(Stored::Refresh("hub".to_owned())),
            ("all", "b.example") => Ok(Stored::Nothing),
            other => panic!("{other:?}"),
        };
        let find = |host: &str| config.find(host, "config.json", run).unwrap();
        assert_eq!(find("a.example"), password("from", "one"));
        assert_eq!(find("registry-1.docker.io"), Stored::Refresh("hub".to_owned()));
        assert_eq!(find("b.example"), password("a", "b"));
    }

    #[test]
    fn answers_of_programs() {
        let text = r#"{"ServerURL":"x","Username":"u","Secret":"s"}"#;
        assert_eq!(answer(text).unwrap(), password("u", "s"));
        assert_eq!(
            answer(r#"{"Username":"<token>","Secret":"s"}"#).unwrap(),
            Stored::Refresh("s".to_owned())
        );
        assert!(answer("no").is_err());
        assert!(run("../x", "y").is_err());
    }
}
