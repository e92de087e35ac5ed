//! What a shim leaves in the bundle for the delete action, in the files that containerd's own shim writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde::{Deserialize, Serialize};

use crate::log::timestamp;
use crate::task::Exit;

/// The file that tells where the shim listens.
pub const ADDRESS: &str = "address";
/// The same while the shim is being started.
pub const ADDRESS_DRAFT: &str = ".address";
const OPTIONS: &str = "options.json";
const RUNTIME: &str = "runtime";
const EXIT: &str = "exit.json";

/// The options that decide which runtime has the container and where it keeps its state.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Stored {
    binary_name: String,
    root: String,
    systemd_cgroup: bool,
}

/// Notes a container's options.
pub fn write_options(bundle: &Path, options: &Options) -> Result<()> {
    let stored = Stored {
        binary_name: options.binary_name.clone(),
        root: options.root.clone(),
        systemd_cgroup: options.systemd_cgroup,
    };
    write(bundle, OPTIONS, &serde_json::to_vec(&stored).unwrap_or_default())?;
    write(bundle, RUNTIME, options.binary_name.as_bytes())
}

/// The noted options; the defaults if the shim died before it noted any.
pub fn read_options(bundle: &Path) -> Result<Options> {
    let path = bundle.join(OPTIONS);
    let shown = || path.display().to_string();
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Options::default()),
        other => other.context("read", shown())?,
    };
    let Stored { binary_name, root, systemd_cgroup } = serde_json::from_slice(&bytes)
        .map_err(|e| Error::because(Kind::InvalidArgument, "read", shown(), e))?;
    Ok(Options { binary_name, root, systemd_cgroup, ..Options::default() })
}

/// An exit with its time in nanoseconds too, which our own delete action reads back exactly.
#[derive(Deserialize, Serialize)]
struct StoredExit {
    #[serde(rename = "Timestamp")]
    timestamp: String,
    #[serde(rename = "Pid")]
    pid: i32,
    #[serde(rename = "Status")]
    status: u32,
    #[serde(rename = "Nanoseconds")]
    nanoseconds: u64,
}

/// Notes how init ended.
pub fn write_exit(bundle: &Path, pid: i32, exit: Exit) -> Result<()> {
    let since = exit.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let stored = StoredExit {
        timestamp: timestamp(exit.at),
        pid,
        status: exit.status,
        nanoseconds: since.as_nanos() as u64,
    };
    write(bundle, EXIT, &serde_json::to_vec(&stored).unwrap_or_default())
}

/// How init ended, if that was noted.
pub fn read_exit(bundle: &Path) -> Option<(i32, Exit)> {
    let stored: StoredExit = serde_json::from_slice(&fs::read(bundle.join(EXIT)).ok()?).ok()?;
    let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(stored.nanoseconds);
    Some((stored.pid, Exit { status: stored.status, at }))
}

/// Path of the shim's socket, whether or not its start came to an end.
pub fn read_socket(bundle: &Path) -> Option<PathBuf> {
    let text =
        fs::read_to_string(bundle.join(ADDRESS)).or_else(|_| fs::read_to_string(bundle.join(ADDRESS_DRAFT)));
    text.ok()?.trim().strip_prefix("unix://").map(PathBuf::from)
}

/// Writes a file whole or not at all.
fn write(bundle: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, draft) = (bundle.join(name), bundle.join(format!(".{name}")));
    fs::write(&draft, bytes)
        .and_then(|()| fs::rename(&draft, &path))
        .context("write", path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_from_its_first_moment() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_socket(directory.path()), None);
        fs::write(directory.path().join(ADDRESS_DRAFT), "unix:///s/draft").unwrap();
        assert_eq!(read_socket(directory.path()), Some("/s/draft".into()));
        fs::write(directory.path().join(ADDRESS), "unix:///s/1\n").unwrap();
        assert_eq!(read_socket(directory.path()), Some("/s/1".into()));
    }

    #[test]
    fn what_is_noted_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_options(directory.path()).unwrap(), Options::default());
        assert_eq!(read_exit(directory.path()), None);
        let options = Options { binary_name: "crun".into(), root: "/r".into(), ..Options::default() };
        write_options(directory.path(), &options).unwrap();
        assert_eq!(read_options(directory.path()).unwrap(), options);
        let exit = Exit { status: 42, at: SystemTime::UNIX_EPOCH + std::time::Duration::new(5, 7) };
        write_exit(directory.path(), 9, exit).unwrap();
        assert_eq!(read_exit(directory.path()), Some((9, exit)));
    }
}
