//! Files of containers from outside: `docker cp`, `diff`, `export`.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;

use super::Container;
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::message::{Reply, Request};

impl Engine {
    pub(super) async fn archive(&self, _container: Arc<Container>, _request: Request) -> Result<Reply> {
        Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "archives are not supported yet"))
    }

    pub(super) async fn changes(&self, _container: &Container) -> Result<Value> {
        Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "changes are not supported yet"))
    }

    pub(super) async fn export_container(&self, _container: &Container) -> Result<Reply> {
        Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "exports are not supported yet"))
    }
}
