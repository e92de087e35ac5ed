//! Black-box suite: the whole stack under real programs.

mod harness;
