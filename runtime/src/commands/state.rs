//! `state`: what a container is, as JSON.

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::print;
use crate::cli::Global;
use crate::container::Container;

/// Prints the state, without a newline at the end, as runc does.
pub fn run(global: &Global, id: &str) -> Result<()> {
    let state = Container::open(&global.root, id)?.describe(String::new())?;
    let text = serde_json::to_vec_pretty(&state)
        .map_err(|error| Error::because(Kind::Internal, "encode", "the state", error))?;
    print(&text)
}
