//! Black-box suite: what happens when something fails underneath.

mod runtime_calls;
