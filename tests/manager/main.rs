//! Black-box suite: orlopd and orlopctl, driven over gRPC and by stock clients.

mod client;
mod content;
mod ctl;
mod ctl_beside_ctr;
mod ctl_devices;
mod ctl_images;
mod daemon;
mod diffs;
mod erofs;
mod evidence;
mod image;
mod kill;
mod mirrors;
mod proxies;
mod reflection;
mod registry;
mod registry_faults;
mod semantics;
mod side_by_side;
mod snapshots;
mod space;
mod task;
mod terminal;
mod throng;
mod upkeep;
mod verifiers;
