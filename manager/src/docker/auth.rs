//! `/auth`: whether a registry takes a user's name and password.

use http::{Method, StatusCode};
use orlop_proto::kind::Kind;
use serde_json::json;

use super::Engine;
use super::failure::{Failure, Result};
use super::image::AuthConfig;
use super::message::{self, Reply, Request};
use super::route::page_not_found;

/// Answers a request.
pub async fn answer(engine: Engine, request: Request) -> Result<Reply> {
    if request.method != Method::POST || request.path.len() != 1 {
        return Err(page_not_found());
    }
    let given: AuthConfig = request.json().await?;
    let host = registry(&given.serveraddress).to_owned();
    engine.parts.images.log_in(&host, given.access(&engine)).await.map_err(|error| {
        let status = match error.kind() {
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure::new(status, error.to_string())
    })?;
    Ok(message::ok(&json!({ "IdentityToken": "", "Status": "Login Succeeded" })))
}

/// The registry that an address means: clients send `https://index.docker.io/v1/` for Docker's own.
pub fn registry(address: &str) -> &str {
    let plain = address.split_once("://").map_or(address, |(_, rest)| rest);
    match plain.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_forms() {
        for (address, host) in [
            ("", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("https://registry.example/v2/", "registry.example"),
        ] {
            assert_eq!(registry(address), host);
        }
    }
}
