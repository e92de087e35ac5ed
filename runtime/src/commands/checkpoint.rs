//! `checkpoint` and `restore`: the command lines and their checks are runc's; what they ask for is refused.

use std::path::Path;

use orlop_proto::contract::state::Status;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::cli::parse::Given;
use crate::cli::{CheckpointArgs, Global, RestoreArgs};
use crate::container::Container;

/// Checks what is asked for, and refuses it.
pub fn checkpoint(global: &Global, arguments: &CheckpointArgs) -> Result<()> {
    let status = Container::open(&global.root, &arguments.id)?.status()?;
    if matches!(status, Status::Created | Status::Stopped) {
        let why = format!("Container cannot be checkpointed in {status} state");
        return Err(Error::exactly(Kind::FailedPrecondition, why));
    }
    check(&arguments.given)?;
    Err(unsupported("checkpoint"))
}

/// Checks what is asked for, and refuses it.
pub fn restore(arguments: &RestoreArgs) -> Result<()> {
    check(&arguments.given)?;
    orlop_host::state::check_id(&arguments.run.create.id)?;
    Err(unsupported("restore"))
}

/// The checks that runc makes before it calls CRIU.
fn check(given: &Given) -> Result<()> {
    let refuse = |why: String| Err(Error::exactly(Kind::InvalidArgument, why));
    if let Some(parent) = given.path("parent-path") {
        if parent.is_absolute() {
            return refuse("--parent-path must be relative".to_owned());
        }
        let images = given.path("image-path").unwrap_or_else(|| Path::new("checkpoint").to_owned());
        let parent = images.join(parent);
        std::fs::metadata(&parent).context("invalid --parent-path: stat", parent.to_string_lossy())?;
    }
    if let Some(server) = given.text("page-server") {
        match server.rsplit_once(':') {
            Some((address, port)) if !address.is_empty() && !port.is_empty() => {
                if port.parse::<u16>().is_err() {
                    return refuse("Invalid port number".to_owned());
                }
            }
            _ => return refuse("Use --page-server ADDRESS:PORT to specify page server".to_owned()),
        }
    }
    match given.texts("empty-ns").into_iter().find(|name| name != "network") {
        Some(name) => refuse(format!("namespace {name:?} is not supported")),
        None => Ok(()),
    }
}

fn unsupported(verb: &str) -> Error {
    Error::exactly(Kind::Unimplemented, format!("orlop {verb} is not supported"))
}
