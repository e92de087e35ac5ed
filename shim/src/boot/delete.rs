//! `delete`: clears away what a shim that died left behind, and tells how its container ended.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::signal::Signal;
use orlop_host::mounting;
use orlop_proto::containerd::task::v2::DeleteResponse;
use orlop_proto::error::{Context, Result};
use prost::Message;

use super::record;
use crate::cli::Arguments;
use crate::remains;
use crate::runtime::{self, Runtime};
use crate::service::check_name;
use crate::task::Exit;

/// Cleans up and prints a DeleteResponse. What cannot be cleaned is told on stderr and keeps nothing else back.
pub fn delete(arguments: &Arguments) -> Result<()> {
    check_name("id", &arguments.id)?;
    let bundle = match arguments.bundle.as_str() {
        "" => std::env::current_dir().context("find", "the bundle")?,
        path => PathBuf::from(path),
    };
    let options = record::read_options(&bundle)?;
    let mut complaints = Vec::new();
    let deleted = Runtime::new(&options, &arguments.namespace, &bundle)
        .and_then(|runtime| remains::clear(&runtime, &arguments.id, &bundle));
    if let Err(error) = deleted {
        complaints.push(error);
    }
    let exit = Exit { status: 128 + Signal::SIGKILL as u32, at: SystemTime::now() };
    if let Err(error) = mounting::unmount_all(&bundle.join("rootfs")) {
        complaints.push(error);
    }
    remove_socket(&bundle);
    for error in complaints {
        eprintln!("warning: {error}");
    }
    let (pid, exit) = record::read_exit(&bundle)
        .unwrap_or_else(|| (runtime::read_pid(&bundle.join("init.pid")).unwrap_or(0), exit));
    let response =
        DeleteResponse { pid: pid as u32, exit_status: exit.status, exited_at: Some(exit.at.into()) };
    std::io::stdout().write_all(&response.encode_to_vec()).context("write", "the response")
}

/// Removes the dead shim's socket, unless a shim of the same group still listens there.
fn remove_socket(bundle: &Path) {
    if let Some(path) = record::read_socket(bundle)
        && UnixStream::connect(&path).is_err()
    {
        // Gone is what it should be.
        let _ = fs::remove_file(path);
    }
}
