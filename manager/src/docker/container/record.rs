//! What is stored of a container, and the table that it is stored in.

use std::collections::BTreeMap;

use orlop_proto::error::Error;
use orlop_proto::kind::Kind;
use prost::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{Config, HostConfig};
use super::state::State;
use crate::db::Table;
use crate::owners::Owners;

/// Containers by ID.
pub static CONTAINERS: Table<Stored> = Table::new("docker.containers");

/// A record as the database has it.
#[derive(Clone, PartialEq, Message)]
pub struct Stored {
    /// The record as JSON: its documents are the API's.
    #[prost(bytes = "vec", tag = "1")]
    pub json: Vec<u8>,
}

/// A place in a container where something else is mounted, as `inspect` shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountPoint {
    /// `bind`, `volume`, `tmpfs`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Name of the volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Path on the host.
    pub source: String,
    /// Path in the container.
    pub destination: String,
    /// Driver of the volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Options as they were given.
    pub mode: String,
    /// Whether it can be written.
    #[serde(rename = "RW")]
    pub writable: bool,
    /// Propagation of mounts.
    pub propagation: String,
    /// Whether the volume is removed with the container.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub anonymous: bool,
    /// Whether files of the image are copied into an empty volume.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub copies: bool,
    /// Directory within the volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subpath: String,
    /// Options of a tmpfs, and whether a missing source of a bind mount is made.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub options: String,
    /// Whether a missing source of a bind mount is made.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub makes_source: bool,
    /// Whether mounts below the source are left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub non_recursive: bool,
}

/// What is stored of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Its ID: 64 hexadecimal digits.
    pub id: String,
    /// Its name, without a slash.
    pub name: String,
    /// When it was made.
    pub created: String,
    /// ID of its image; empty when it has none.
    pub image: String,
    /// Snapshot that its file system began as.
    pub chain: String,
    /// What it is to be, with the image's part.
    pub config: Config,
    /// The same for the host.
    pub host: HostConfig,
    /// Networks and their settings, by name.
    pub networks: BTreeMap<String, Value>,
    /// What is mounted in it.
    pub mounts: Vec<MountPoint>,
    /// What it is doing.
    pub state: State,
    /// Its profile of AppArmor: as it was last started, and before that the one that it names.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub apparmor: String,
    /// Whether a build that is at work made it for one of its steps: it goes with a daemon that does not end the build.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_step: bool,
    /// Its users and groups on the host, where it lives in a user namespace: those of when it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owners: Option<Owners>,
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    ///
    /// `DataLoss` for what is none.
    pub fn decode(stored: &Stored) -> Result<Record, Error> {
        serde_json::from_slice(&stored.json)
            .map_err(|error| Error::because(Kind::DataLoss, "read container", "", error))
    }

    /// The record as it is stored.
    ///
    /// # Errors
    ///
    /// `Internal` for what cannot be JSON.
    pub fn encode(&self) -> Result<Stored, Error> {
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::because(Kind::Internal, "encode container", &*self.id, error))?;
        Ok(Stored { json })
    }

    /// Whether an ended container goes at once.
    pub fn removes_itself(&self) -> bool {
        self.host.auto_remove
    }

    /// The program and its arguments.
    pub fn words(&self) -> Vec<String> {
        [&self.config.entrypoint, &self.config.cmd].into_iter().flatten().flatten().cloned().collect()
    }

    /// The driver of its logs.
    pub fn log_driver(&self) -> &str {
        match self.host.log_config.kind.as_str() {
            "" => "json-file",
            other => other,
        }
    }
}
