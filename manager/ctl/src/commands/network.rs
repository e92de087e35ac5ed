//! Networks of containers that `run --cni` made: joined before the process starts, left when the task goes.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use orlop_proto::containerd::services::containers::v1::{Container, UpdateContainerRequest};
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;
use prost_types::{Any, FieldMask};

use super::{Context, containers};
use crate::cni::{Joined, Network};

/// Under which name a container keeps what it has joined, as JSON.
const EXTENSION: &str = "orlopctl.cni";
/// This process's own network namespace.
const OWN: &str = "/proc/self/ns/net";

/// A network namespace that stays reachable after its last process.
pub struct Namespace(File);

impl Namespace {
    /// That of a process.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn of(pid: u32) -> Result<Namespace> {
        let path = format!("/proc/{pid}/ns/net");
        Ok(Namespace(File::open(&path).context("open", path)?))
    }

    /// Whether this process is in it: it is the host's, whose devices are no plugin's to make or to take away.
    fn is_ours(&self) -> Result<bool> {
        let (own, other) = (File::open(OWN).and_then(|own| own.metadata()), self.0.metadata());
        let (own, other) = (own.context("open", OWN)?, other.context("stat", "network namespace")?);
        Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
    }

    /// Where others find it.
    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// Takes a container into a network, and keeps with it what came of that.
///
/// # Errors
///
/// `InvalidArgument` for a container in the host's network; those of the plugins and of the server; nothing is left.
pub async fn join(context: &Context<'_>, id: &str, network: &Network, namespace: &Namespace) -> Result<()> {
    if namespace.is_ours()? {
        return Err(Error::because(
            Kind::InvalidArgument,
            "join network with",
            id,
            "it is in the host's network",
        ));
    }
    // As containerd's client names it to plugins.
    let name = format!("{}-{id}", context.global.namespace);
    let joined = network.join(&name, &namespace.path())?;
    let kept = keep(context, id, Some(&joined)).await;
    if kept.is_err() {
        // The first error is the one to tell.
        let _ = joined.leave(Some(&namespace.path()));
    }
    kept
}

/// Takes a container out of the network that it is in, if it is in one.
///
/// # Errors
///
/// Those of the plugins and of the server.
pub async fn leave(context: &Context<'_>, id: &str, namespace: Option<&Namespace>) -> Result<()> {
    let container = match containers::get(context, id).await {
        Ok(container) => container,
        // A task can be left over without its container.
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(kept) = container.extensions.get(EXTENSION) else { return Ok(()) };
    let joined: Joined = serde_json::from_slice(&kept.value)
        .map_err(|error| Error::because(Kind::DataLoss, "parse network of", id, error))?;
    let path = namespace.map(Namespace::path);
    joined.leave(path.as_deref().filter(|path| Path::exists(path)))?;
    keep(context, id, None).await
}

async fn keep(context: &Context<'_>, id: &str, joined: Option<&Joined>) -> Result<()> {
    let mut extensions = containers::get(context, id).await?.extensions;
    extensions.remove(EXTENSION);
    if let Some(joined) = joined {
        let value = serde_json::to_vec(joined)
            .map_err(|error| Error::because(Kind::Internal, "encode network of", id, error))?;
        extensions.insert(EXTENSION.to_owned(), Any { type_url: EXTENSION.to_owned(), value });
    }
    let container = Container { id: id.to_owned(), extensions, ..Container::default() };
    let update_mask = Some(FieldMask { paths: vec!["extensions".to_owned()] });
    let request = UpdateContainerRequest { container: Some(container), update_mask };
    context.client.containers().update(request).await?;
    Ok(())
}
