//! Black-box suite: the whole stack under real programs.

mod bad_input;
mod buildah;
mod callers;
mod counts;
mod crash;
mod cri;
mod ctr;
mod ctr_walk;
mod ctr_words;
mod dockerd;
mod harness;
mod matrix;
mod nerdctl;
mod newest;
mod newest_rust;
mod podman;
mod podman_lines;
mod shim_kill;
mod soak;
mod workload;
