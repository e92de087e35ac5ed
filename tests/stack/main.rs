//! Black-box suite: the whole stack under real programs.

mod harness;
mod matrix;
mod podman;
mod workload;
