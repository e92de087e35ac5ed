//! Files of the Container Device Interface on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec::cdi::{Edits, Registry, resolve};

/// What the named devices (`VENDOR/CLASS=NAME`) bring into a container; without names no file is read.
///
/// # Errors
///
/// `NotFound` for names that nothing defines; a file that cannot be read is left out with a warning, as its devices may
/// not be those that are asked for.
pub fn edits(directories: &[PathBuf], names: &[String]) -> Result<Vec<Edits>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut registries = Vec::new();
    for directory in directories {
        for path in files(directory)? {
            match read(&path) {
                Ok(registry) => registries.push(registry),
                Err(error) => eprintln!("orlopctl: {error}"),
            }
        }
    }
    Ok(resolve(&registries, names)?.into_iter().cloned().collect())
}

/// The files of a directory, by name; none where it is missing.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let shown = || directory.display().to_string();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("read", shown())?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.context("read", shown())?.path();
        if path.extension().is_some_and(|kind| kind == "json" || kind == "yaml" || kind == "yml") {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn read(path: &Path) -> Result<Registry> {
    let shown = || path.display().to_string();
    let text = fs::read_to_string(path).context("read", shown())?;
    // JSON is YAML.
    let registry: Registry = serde_yaml_ng::from_str(&text)
        .map_err(|error| Error::because(Kind::InvalidArgument, "read", shown(), error))?;
    let is_known =
        ["0.", "1."].iter().any(|major| registry.cdi_version.trim_start_matches('v').starts_with(major));
    if !is_known {
        let why = format!("version {:?} of CDI is not known", registry.cdi_version);
        return Err(Error::because(Kind::InvalidArgument, "read", shown(), why));
    }
    Ok(registry)
}
