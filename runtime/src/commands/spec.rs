//! `spec`: a configuration to start from.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use orlop_proto::contract::CONFIG_FILE;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec;

use super::pretty;

/// Writes it, unless there is one.
pub fn run(bundle: Option<&Path>, rootless: bool) -> Result<()> {
    if let Some(path) = bundle {
        std::env::set_current_dir(path).context("chdir", path.to_string_lossy())?;
    }
    let unified = orlop_host::cgroup::Hierarchies::detect().is_ok_and(|found| found.legacy.is_empty());
    let mut example = spec::example(unified);
    if rootless {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        example = spec::rootless(example, uid.as_raw(), gid.as_raw());
    }
    let text = pretty(&example, b"\t")?;
    let opened = OpenOptions::new().write(true).create_new(true).open(CONFIG_FILE);
    match opened {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Error::exactly(Kind::AlreadyExists, format!("File {CONFIG_FILE} exists. Remove it first")))
        }
        other => other.and_then(|mut file| file.write_all(&text)).context("write", CONFIG_FILE),
    }
}
