//! Black-box suite: the shim, driven over ttrpc and by Debian's containerd.

mod actions;
mod budget;
mod checkpoint;
mod containerd;
mod direct;
mod faults;
mod kill;
mod lifecycle;
mod memory;
mod options;
mod pods;
mod rootfs;
mod sealed;
mod steps;
mod streams;
mod weight;
