//! What a kill leaves of a container that is being made or removed: its record says whether there is one, and whatever
//! carries an ID without a record goes at the next start.

use std::collections::HashSet;
use std::path::PathBuf;

use orlop_proto::error::{Context, Result};
use orlop_proto::kind::Kind;

use super::record::{CONTAINERS, Record};
use crate::content::blobs::names;
use crate::db::blocking;
use crate::docker::Engine;
use crate::image::DEFAULT_SNAPSHOTTER;
use crate::labels::Labels;
use crate::network::record::ATTACHMENTS;

/// Label of a snapshot that is a container's file system: the container's ID.
const LABEL: &str = "orlop.docker.container";

/// The labels of a container's file system, which nothing else keeps.
pub(super) fn labels(record: &Record) -> Labels {
    Labels::from([
        ("containerd.io/gc.root".to_owned(), record.created.clone()),
        (LABEL.to_owned(), record.id.clone()),
    ])
}

impl Engine {
    /// Removes what there is of containers without a record. A record that cannot be read counts as one.
    ///
    /// # Errors
    ///
    /// Those of the database; what cannot be removed is logged and stays until the next start.
    pub(super) async fn sweep(&self) -> Result<()> {
        let (known, attached) = self
            .parts
            .database
            .read(|tx| {
                let known = tx.keys(&CONTAINERS)?.into_iter().collect::<HashSet<String>>();
                Ok((known, tx.keys(&ATTACHMENTS)?))
            })
            .await?;
        let is_stray = |id: &String| !known.contains(id);
        for id in attached.into_iter().filter(is_stray) {
            self.networks.detach(&id).await?;
        }
        let snapshots = &self.parts.snapshots;
        for snapshot in snapshots.list(&self.context, DEFAULT_SNAPSHOTTER, &[]).await? {
            if !snapshot.labels.get(LABEL).is_some_and(is_stray) {
                continue;
            }
            match snapshots.remove(&self.context, DEFAULT_SNAPSHOTTER, &snapshot.name).await {
                Ok(()) => tracing::info!(id = snapshot.name, "removed what was left of a container"),
                Err(error) => tracing::warn!(id = snapshot.name, "remove what was left: {error}"),
            }
        }
        let directory = self.parts.root.join("containers");
        blocking(move || {
            let found = match names(&directory) {
                Err(error) if error.kind() == Kind::NotFound => Vec::new(),
                found => found?,
            };
            let stray: Vec<PathBuf> = found
                .into_iter()
                .filter(|name| !known.contains(name))
                .map(|name| directory.join(name))
                .collect();
            for path in stray {
                std::fs::remove_dir_all(&path).context("remove", path.display().to_string())?;
            }
            Ok(())
        })
        .await
    }
}
