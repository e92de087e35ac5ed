//! `orlopd`: the manager.

mod events;
mod filter;
mod identifier;

fn main() {}
