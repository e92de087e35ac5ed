//! From a request to the end point that answers it: version, then the first segment of the path.

use http::{HeaderValue, Method};
use hyper::body::Incoming;

use super::Engine;
use super::failure::{Failure, Result};
use super::message::{self, ApiVersion, Query, Reply, Request};
use super::{auth, build, buildkit, container, image, networks, swarm, system, volumes};

/// The newest version of the API.
pub const NEWEST: ApiVersion = ApiVersion(1, 51);
/// The oldest version of the API.
pub const OLDEST: ApiVersion = ApiVersion(1, 24);

/// Answers a request; whatever happens becomes a reply.
pub async fn answer(engine: Engine, request: http::Request<Incoming>) -> Reply {
    crate::memory::note_call();
    let mut reply = match decode(request) {
        Ok(request) => match dispatch(engine, request).await {
            Ok(reply) => reply,
            Err(failure) => {
                if failure.status.is_server_error() {
                    tracing::warn!(status = failure.status.as_u16(), "{}", failure.message);
                }
                message::failure(&failure)
            }
        },
        Err(failure) => message::failure(&failure),
    };
    let headers = reply.headers_mut();
    headers.insert("Api-Version", header(&NEWEST.to_string()));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert("Server", header(&format!("Docker/{} (linux)", system::VERSION)));
    reply
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Takes a request apart.
fn decode(mut request: http::Request<Incoming>) -> Result<Request> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let mut path = message::segments(parts.uri.path());
    let version = match path.front().and_then(|first| first.strip_prefix('v')).map(str::parse::<ApiVersion>) {
        Some(Ok(version)) => {
            path.pop_front();
            check_version(version)?
        }
        Some(Err(())) | None => NEWEST,
    };
    Ok(Request {
        method: parts.method,
        version,
        path: path.into(),
        query: Query::parse(parts.uri.query().unwrap_or_default()),
        headers: parts.headers,
        body,
        upgrade,
    })
}

/// Refuses versions that are not served, in dockerd's words.
fn check_version(version: ApiVersion) -> Result<ApiVersion> {
    if version < OLDEST {
        return Err(Failure::invalid(format!(
            "client version {version} is too old. Minimum supported API version is {OLDEST}, please upgrade your \
             client to a newer version"
        )));
    }
    if version > NEWEST {
        return Err(Failure::invalid(format!(
            "client version {version} is too new. Maximum supported API version is {NEWEST}"
        )));
    }
    Ok(version)
}

async fn dispatch(engine: Engine, request: Request) -> Result<Reply> {
    let first = request.path.first().cloned().unwrap_or_default();
    match first.as_str() {
        "_ping" | "version" | "info" | "events" | "system" => system::answer(engine, request).await,
        "build" => build::answer(engine, request).await,
        "auth" => auth::answer(engine, request).await,
        "containers" => container::answer(engine, request).await,
        "exec" => container::answer_exec(engine, request).await,
        "images" => image::answer(engine, request).await,
        "distribution" => image::distribution(engine, request).await,
        "commit" if request.method == Method::POST => engine.commit_container(request).await,
        "networks" => networks::answer(engine, request).await,
        "volumes" => volumes::answer(engine, request).await,
        "swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs" | "plugins" => {
            swarm::answer(request)
        }
        "session" | "grpc" => buildkit::answer(engine, request).await,
        _ => Err(page_not_found()),
    }
}

/// The failure of a path that is none.
pub fn page_not_found() -> Failure {
    Failure::not_found("page not found")
}

/// Whether a request asks to read.
pub fn reads(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_outside_are_refused() {
        let too_new = check_version(ApiVersion(1, 99)).unwrap_err();
        assert_eq!(too_new.status, 400);
        assert_eq!(too_new.message, "client version 1.99 is too new. Maximum supported API version is 1.51");
        assert!(check_version(ApiVersion(1, 23)).unwrap_err().message.contains("is too old. Minimum"));
        assert_eq!(check_version(OLDEST).unwrap(), OLDEST);
    }
}
