//! Black-box suite: the shim, driven over ttrpc and by Debian's containerd.

mod actions;
mod budget;
mod checkpoint;
mod client;
mod containerd;
mod events;
mod faults;
mod fixture;
mod lifecycle;
mod memory;
mod pods;
mod streams;
