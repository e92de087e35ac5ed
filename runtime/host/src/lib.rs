//! The Linux host: system calls, mounts, cgroups, pidfds and container state.

pub mod cgroup;
pub mod file;
pub mod live;
pub mod mapped;
pub mod mounting;
pub mod mounts;
pub mod netlink;
pub mod probe;
pub mod process;
pub mod state;
pub mod sys;
pub mod userns;
