//! Black-box suite: the runtime, called as its users call it.
//!
//! Everything here holds for the reference too: `ORLOP=/usr/sbin/runc cargo test -p orlop-tests --test runtime` must be green, so
//! that a red test means us. What we promise beyond runc stands in tests that say so.

mod apparmor;
mod checkpoint;
mod command_line;
mod descriptors;
mod devices;
mod exec;
mod features;
mod hooks;
mod lifecycle;
mod limits;
mod listing;
mod mount_options;
mod mounts;
mod namespaces;
mod netdevices;
mod notify;
mod process;
mod refusals;
mod resctrl;
mod resources;
mod rootless;
mod scheduling;
mod seccomp;
mod seccomp_profiles;
mod support;
mod terminal;
mod view;

mod attacks;
