//! Networks and volumes of containers: where the engine meets the modules that make them.

use serde_json::Value;

use super::inspect::no_networks;
use super::record::{MountPoint, Record};
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};

impl Engine {
    /// Gives a container that is about to start its places on networks.
    ///
    /// # Errors
    ///
    /// Those of the networks.
    pub(super) async fn join_networks(&self, _record: &Record, _pid: u32) -> Result<()> {
        Ok(())
    }

    /// Takes them back.
    pub(super) async fn leave_networks(&self, _record: &Record) {}

    /// `NetworkSettings` of a container.
    pub(super) fn network_settings(&self, record: &Record) -> Value {
        no_networks(record)
    }

    /// Makes the volumes that a new container names and that do not exist.
    ///
    /// # Errors
    ///
    /// Those of the volumes.
    pub(super) async fn make_volumes(&self, record: &mut Record) -> Result<()> {
        match record.mounts.iter().find(|place| place.kind == "volume") {
            None => Ok(()),
            Some(_) => Err(Failure::internal("volumes are not supported yet")),
        }
    }

    /// Makes a volume ready for a container that is about to start.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub(super) async fn open_volume(
        &self,
        _id: &str,
        _place: &mut MountPoint,
        _root: &[crate::snapshot::Mount],
    ) -> Result<()> {
        Ok(())
    }

    /// Removes the anonymous volumes of a container that is gone.
    pub(super) async fn remove_volumes(&self, _record: &Record) {}
}
