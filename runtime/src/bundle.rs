//! A bundle: a directory with a `config.json`.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use orlop_host::file;
use orlop_proto::contract::CONFIG_FILE;
use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::adapt::{self, Adapted};
use crate::spec::{Process, Spec};

/// A loaded bundle. Its directory is the working directory of the process from then on.
pub struct Bundle {
    /// The directory, absolute.
    pub path: PathBuf,
    /// Its configuration.
    pub spec: Spec,
}

impl Bundle {
    /// Enters the directory, if one is named, and reads the configuration.
    pub fn load(path: Option<&Path>) -> Result<(Bundle, Vec<String>)> {
        if let Some(path) = path {
            std::env::set_current_dir(path).context("chdir", path.to_string_lossy())?;
        }
        let path = std::env::current_dir().context("find", "the working directory")?;
        let text = match file::read(Path::new(CONFIG_FILE)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(RuncError::NoConfig.into());
            }
            other => other.context("read", CONFIG_FILE)?,
        };
        let (spec, warnings) = parse(&text)?;
        Ok((Bundle { path, spec }, warnings))
    }

    /// The root file system, absolute, with links resolved.
    pub fn rootfs(&self) -> Result<PathBuf> {
        let root = self.spec.root().as_ref().map(|root| self.path.join(root.path())).unwrap_or_default();
        let found = file::open(&root, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .and_then(|directory| std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())));
        found.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotADirectory => {
                let why = format!("invalid rootfs: {} is not a directory", root.display());
                Error::exactly(Kind::InvalidArgument, why)
            }
            _ => {
                let error = Error::io("stat", root.to_string_lossy(), error);
                Error::exactly(error.kind(), format!("invalid rootfs: {error}"))
            }
        })
    }
}

/// Parses a configuration; what the crate's types do not read is adapted to them, with warnings.
pub fn parse(text: &[u8]) -> Result<(Spec, Vec<String>)> {
    let wrong = |error| Error::because(Kind::InvalidArgument, "parse", CONFIG_FILE, error);
    parse_adapted(text, adapt::configuration).map_err(wrong)
}

/// The same for the process of an exec.
pub fn parse_process(text: &[u8], path: &Path) -> Result<(Process, Vec<String>)> {
    let wrong = |error| Error::because(Kind::InvalidArgument, "parse", path.to_string_lossy(), error);
    parse_adapted(text, adapt::process).map_err(wrong)
}

fn parse_adapted<T: DeserializeOwned>(
    text: &[u8],
    adapt: fn(&mut Value) -> Adapted,
) -> serde_json::Result<(T, Vec<String>)> {
    match serde_json::from_slice(text) {
        Ok(parsed) => Ok((parsed, Vec::new())),
        Err(error) => {
            let mut value = serde_json::from_slice(text)?;
            let adapted = adapt(&mut value);
            if !adapted.changed {
                return Err(error);
            }
            // Through text once more, so that errors still name a line.
            let text = serde_json::to_vec(&value)?;
            Ok((serde_json::from_slice(&text)?, adapted.warnings))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_capabilities_are_left_out_and_other_mistakes_are_not() {
        let text = |cap: &str, kind: &str| {
            serde_json::json!({
                "ociVersion": "1.0.2",
                "process": {"user": {}, "cwd": "/", "args": ["a"], "capabilities": {"bounding": ["CAP_KILL", cap]}},
                "linux": {"namespaces": [{"type": kind}]},
            })
            .to_string()
        };
        let (spec, warnings) = parse(text("CAP_FUTURE", "pid").as_bytes()).unwrap();
        assert_eq!(warnings, ["unknown capability \"CAP_FUTURE\" is left out"]);
        let process = spec.process().as_ref().unwrap();
        let bounding = process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap();
        assert_eq!(bounding.len(), 1);
        let refused = parse(text("CAP_CHOWN", "odd").as_bytes()).unwrap_err().to_string();
        assert!(refused.starts_with("parse config.json: unknown variant `odd`"), "{refused}");
        // Values of any shape may stand where the capabilities are looked for.
        for text in ["{", "5", r#"{"process": 5}"#, r#"{"process": {"capabilities": [1]}}"#] {
            parse(text.as_bytes()).unwrap_err();
        }
        for text in ["{", "5", r#"{"user": 5}"#, r#"{"capabilities": [1]}"#] {
            parse_process(text.as_bytes(), Path::new("process.json")).unwrap_err();
        }
    }
}
