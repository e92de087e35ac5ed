//! How to reach a registry, in the terms of a transfer.

use std::path::PathBuf;

use orlop_proto::containerd::types::transfer::{HttpDebug, OciRegistry, RegistryResolver};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::cli::images::Registry;
use crate::client::random_id;
use crate::transfer::{Credentials, Stream};

/// A directory of registry configuration made for one transfer; removed with this.
pub struct Hosts {
    directory: PathBuf,
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // What is left is below the state directory and harms nobody.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The host part of a reference.
pub fn host(reference: &str) -> &str {
    reference.split_once('/').map_or(reference, |(host, _)| host)
}

/// TLS options as the hosts.toml that says them (containerd's docs/hosts.md); None without any.
fn hosts_text(options: &Registry, host: &str) -> Result<Option<String>> {
    if !options.skip_verify && options.tlscacert.is_none() && options.tlscert.is_none() {
        return Ok(None);
    }
    let path = |file: &PathBuf| -> Result<String> {
        let path = std::path::absolute(file).context("resolve", file.display().to_string())?;
        Ok(serde_json::Value::from(path.to_string_lossy().into_owned()).to_string())
    };
    let mut text = format!("server = \"https://{host}\"\n[host.\"https://{host}\"]\n");
    if options.skip_verify {
        text.push_str("skip_verify = true\n");
    }
    if let Some(file) = &options.tlscacert {
        text.push_str(&format!("ca = {}\n", path(file)?));
    }
    if let (Some(certificate), Some(key)) = (&options.tlscert, &options.tlskey) {
        text.push_str(&format!("client = [[{}, {}]]\n", path(certificate)?, path(key)?));
    }
    Ok(Some(text))
}

/// Writes TLS options where the server reads them, into a new directory below `root`.
///
/// # Errors
///
/// `InvalidArgument` together with `--hosts-dir`, and those of writing.
pub fn hosts(options: &Registry, reference: &str, root: &std::path::Path) -> Result<Option<Hosts>> {
    let Some(text) = hosts_text(options, host(reference))? else { return Ok(None) };
    if options.hosts_dir.is_some() {
        let reason = "TLS options belong into the hosts directory when there is one";
        return Err(Error::because(Kind::InvalidArgument, "--hosts-dir", "", reason));
    }
    let made = Hosts { directory: root.join(format!("hosts-{}", random_id())) };
    let directory = made.directory.join(host(reference));
    let shown = directory.display().to_string();
    std::fs::create_dir_all(&directory).context("create", &shown)?;
    std::fs::write(directory.join("hosts.toml"), text).context("write hosts.toml in", &shown)?;
    Ok(Some(made))
}

/// The credentials of the command line, or those that docker's configuration has for whoever asks; a missing password is
/// read from the terminal.
///
/// # Errors
///
/// Those of reading it.
pub fn credentials(options: &Registry) -> Result<Credentials> {
    if let Some(user) = &options.user {
        return Ok(match user.split_once(':') {
            Some((name, password)) => Credentials::Password(name.to_owned(), password.to_owned()),
            None => {
                let terminal = console::Term::stderr();
                terminal.write_str("Password: ").context("write", "terminal")?;
                let password = terminal.read_secure_line().context("read password from", "terminal")?;
                Credentials::Password(user.clone(), password)
            }
        });
    }
    Ok(options.refresh.clone().map_or(Credentials::Stored, Credentials::Token))
}

/// The registry side of a transfer.
pub fn endpoint(options: &Registry, reference: &str, hosts: Option<&Hosts>, auth: &Stream) -> OciRegistry {
    let made = hosts.map(|hosts| hosts.directory.to_string_lossy().into_owned());
    let debug = match (options.http_dump, options.http_trace) {
        (false, false) => HttpDebug::Disabled,
        (true, false) => HttpDebug::Debug,
        (false, true) => HttpDebug::Trace,
        (true, true) => HttpDebug::Both,
    };
    OciRegistry {
        reference: reference.to_owned(),
        resolver: Some(RegistryResolver {
            auth_stream: auth.id.clone(),
            host_dir: options.hosts_dir.clone().or(made).unwrap_or_default(),
            default_scheme: if options.plain_http { "http".to_owned() } else { String::new() },
            http_debug: debug as i32,
            ..RegistryResolver::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn options(flags: &[&str]) -> Registry {
        let words = ["orlopctl", "images", "pull"].iter().chain(flags).chain(&["h:5000/i"]);
        let cli = Cli::try_parse_from(words).unwrap();
        match cli.command {
            crate::cli::Command::Images(crate::cli::images::Images::Pull(pull)) => pull.registry,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tls_options_become_a_hosts_file() {
        assert_eq!(hosts_text(&options(&["--plain-http"]), "h").unwrap(), None);
        let text = hosts_text(&options(&["-k", "--tlscacert", "/c\"a"]), "h:5000").unwrap().unwrap();
        assert!(
            text.starts_with("server = \"https://h:5000\"\n[host.\"https://h:5000\"]\nskip_verify = true\n")
        );
        assert!(text.contains("ca = \"/c\\\"a\"\n"));
    }

    #[test]
    fn the_directory_goes_with_the_transfer() {
        let root = tempfile::tempdir().unwrap();
        let made = hosts(&options(&["-k"]), "h:5000/i", root.path()).unwrap().unwrap();
        assert!(made.directory.join("h:5000/hosts.toml").exists());
        drop(made);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(hosts(&options(&["-k", "--hosts-dir", "/x"]), "h/i", root.path()).is_err());
    }

    #[test]
    fn credentials_come_from_the_options() {
        let user = credentials(&options(&["-u", "a:b:c"])).unwrap();
        assert_eq!(user, Credentials::Password("a".into(), "b:c".into()));
        assert_eq!(credentials(&options(&[])).unwrap(), Credentials::Stored);
    }
}
