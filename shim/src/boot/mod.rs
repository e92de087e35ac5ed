//! The actions that end at once: `start` makes a serving shim and tells where it listens, `delete` clears away what a
//! dead one left, `-info` tells what this shim is.

mod address;
mod delete;
mod info;
mod params;
pub mod record;
mod start;

use std::os::unix::net::UnixListener;

pub use delete::delete;
pub use info::info;
pub use start::start;

use crate::cli::Arguments;

/// Where events go: the manager's ttrpc socket, which lies beside its gRPC socket.
pub fn address_of_manager(arguments: &Arguments) -> String {
    match std::env::var("TTRPC_ADDRESS") {
        Ok(address) if !address.is_empty() => address,
        _ if arguments.address.is_empty() => String::new(),
        _ => format!("{}.ttrpc", arguments.address),
    }
}

/// Removes the socket that a shim listened on.
pub fn remove_own_socket(listener: &UnixListener) {
    if let Ok(address) = listener.local_addr()
        && let Some(path) = address.as_pathname()
    {
        // A successor may have removed it already.
        let _ = std::fs::remove_file(path);
    }
}
