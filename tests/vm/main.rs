//! Black-box suite for what only the virtual machine has: systemd as process 1, and quotas of projects. `make test-vm` runs it
//! there; `cargo test` leaves it out.

mod hybrid;
mod quota;
#[path = "../runtime/support.rs"]
#[allow(dead_code, reason = "shared with the runtime's suite, which uses more of it")]
mod support;
mod systemd;
mod user;
