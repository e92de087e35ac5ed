//! Black-box suite: the whole stack under real programs.

mod bad_input;
mod counts;
mod crash;
mod ctr;
mod harness;
mod matrix;
mod podman;
mod soak;
mod workload;
