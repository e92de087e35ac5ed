//! End points of parts that this engine does not have: swarm mode, plugins. They answer as dockerd without them.

use http::{Method, StatusCode};

use super::failure::{Failure, Result};
use super::message::{self, Reply, Request};
use super::route::page_not_found;

const NOT_A_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to \
                             connect this node to swarm and try again.";

/// Answers a request.
pub fn answer(request: Request) -> Result<Reply> {
    let segments = request.segments();
    match (&request.method, segments.as_slice()) {
        (&Method::POST, ["swarm", "leave"]) => {
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "This node is not part of a swarm"))
        }
        (&Method::POST, ["swarm", "init" | "join"]) => {
            Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "swarm mode is not supported by this engine"))
        }
        (_, ["swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs", ..]) => {
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, NOT_A_MANAGER))
        }
        (&Method::GET, ["plugins"]) => Ok(message::ok(&serde_json::json!([]))),
        (&Method::GET, ["plugins", name @ .., "json"]) => {
            Err(Failure::not_found(format!("plugin \"{}\" not found", name.join("/"))))
        }
        (_, ["plugins", ..]) => {
            Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "plugins are not supported by this engine"))
        }
        _ => Err(page_not_found()),
    }
}
