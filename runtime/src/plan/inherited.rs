//! What every process of a container gets from the container's configuration unless its own says otherwise.
//!
//! Kept in the container's state, since the process of an `exec` is described without the rest of the configuration.

use oci_spec::runtime::{LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality, Scheduler};
use orlop_proto::error::Result;
use serde::{Deserialize, Serialize};

use super::process::{self, Process};
use crate::spec::{self, ExecCPUAffinity, Spec};

/// The container's part, in the specification's words.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inherited {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scheduler: Option<Scheduler>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    io_priority: Option<LinuxIOPriority>,
    #[serde(default, rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
    exec_cpu_affinity: Option<ExecCPUAffinity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    umask: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_policy: Option<LinuxMemoryPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    personality: Option<LinuxPersonality>,
}

impl Inherited {
    /// The container's part of a configuration.
    pub fn of(spec: &Spec) -> Inherited {
        let mut inherited = Inherited::default();
        if let Some(process) = spec.process() {
            inherited.scheduler = process.scheduler().clone();
            inherited.io_priority = *process.io_priority();
            inherited.exec_cpu_affinity = process.exec_cpu_affinity().clone();
            inherited.umask = process.user().umask();
        }
        if let Some(linux) = spec.linux() {
            inherited.memory_policy = linux.memory_policy().clone();
            inherited.personality = linux.personality().clone();
        }
        inherited
    }

    /// Fills in what the process's own configuration leaves open.
    ///
    /// # Errors
    /// `InvalidArgument` for what no kernel takes.
    pub fn complete(&self, planned: &mut Process, own: &spec::Process) -> Result<()> {
        if planned.scheduling.is_none() {
            planned.scheduling = self.scheduler.as_ref().map(process::scheduling).transpose()?;
        }
        if planned.io_priority.is_none() {
            planned.io_priority = self.io_priority.as_ref().map(process::io_priority).transpose()?;
        }
        if own.exec_cpu_affinity().is_none() {
            let affinity = self.exec_cpu_affinity.as_ref().map(process::affinity).transpose()?;
            planned.affinity = affinity.unwrap_or_default();
        }
        if let (None, Some(umask)) = (own.user().umask(), self.umask) {
            planned.umask = umask;
        }
        planned.memory_policy = self.memory_policy.as_ref().map(process::memory_policy).transpose()?;
        planned.personality = self.personality.as_ref().map(process::personality).transpose()?;
        Ok(())
    }
}
