//! Programs and clients that take minutes to fetch or to build: `make clients` runs them, with a network. `make test` leaves
//! them out and says so.

mod buildkit;
mod compose;
mod databases;
mod debian;
mod go_programs;
mod libraries;

/// Whether they are wanted; says what is left out.
fn wanted(what: &str) -> bool {
    let is_wanted = std::env::var_os("ORLOP_CLIENTS").is_some();
    if !is_wanted {
        println!("not run: {what}; `make clients` runs it");
    }
    is_wanted
}
