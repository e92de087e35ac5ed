//! `/auth`: whether a registry takes a user's name and password.

use super::Engine;
use super::failure::Result;
use super::message::{Reply, Request};
use super::route::page_not_found;

/// Answers a request.
pub async fn answer(_engine: Engine, _request: Request) -> Result<Reply> {
    Err(page_not_found())
}
