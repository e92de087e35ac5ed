//! Contracts of the low-level runtime with its callers: names in a bundle, JSON of states, exact error texts, and forms of
//! text that Go programs have.

pub mod quote;
pub mod runc_text;
pub mod size;
pub mod state;
pub mod sysctl;
pub mod time;

/// The configuration in a bundle.
pub const CONFIG_FILE: &str = "config.json";
/// The file in a container's state directory that says everything about it.
pub const STATE_FILE: &str = "state.json";
/// The FIFO in a container's state directory that init waits on; its presence means "created".
pub const EXEC_FIFO: &str = "exec.fifo";
/// The version of the runtime specification that is followed.
pub const OCI_VERSION: &str = "1.3.0";
/// Where the runtime keeps its containers unless told otherwise.
pub const RUNTIME_ROOT: &str = "/run/orlop";
