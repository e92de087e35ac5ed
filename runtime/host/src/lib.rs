//! The Linux host: system calls, mounts, cgroups, pidfds and container state.
