//! The name server of containers, at 127.0.0.11 of their own network namespace.
//!
//! It answers for names on the networks that the asking container is on, and passes on the rest to the servers that the container or
//! the host has. It listens on ports that the kernel chooses, so that a container can have port 53 itself; rules in the
//! container's namespace lead there.

mod names;
mod server;

pub use server::{Registry, Server};
