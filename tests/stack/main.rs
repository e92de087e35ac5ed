//! Black-box suite: the whole stack under real programs.

mod ctr;
mod harness;
mod matrix;
mod podman;
mod workload;
