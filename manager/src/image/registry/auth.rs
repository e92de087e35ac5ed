//! Who we are to a registry: nothing, a password, or a token got for one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::place::{FIRST_PAUSE, Place};
use super::{failure, read_limited, read_some};
use crate::image::reference::Reference;

/// The longest answer of a token server, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// How often a token server that cannot be reached is asked.
const TOKEN_ATTEMPTS: u32 = 3;

/// What a client offers to say who it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing: anonymous.
    None,
    /// A user name and password.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        secret: String,
    },
    /// A token that gives tokens (OAuth 2).
    Refresh(String),
    /// The value of the `Authorization` header itself.
    Header(String),
}

/// Asks the client for credentials, when a registry first wants some.
pub trait Credentials: Send + Sync {
    /// Credentials for a host, which sent these `WWW-Authenticate` headers.
    fn get<'a>(
        &'a self,
        host: &'a str,
        reference: &'a str,
        challenges: &'a [String],
    ) -> BoxFuture<'a, Result<Credential>>;
}

/// What a token must allow: actions on the repository, and reading another that a blob is taken over from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    actions: &'static str,
    from: Option<String>,
}

impl Scope {
    pub(super) fn pull() -> Scope {
        Scope { actions: "pull", from: None }
    }

    /// What lets one in and no further.
    pub(super) fn nothing() -> Scope {
        Scope { actions: "", from: None }
    }

    pub(super) fn push() -> Scope {
        Scope { actions: "pull,push", from: None }
    }

    pub(super) fn push_from(repository: &str) -> Scope {
        Scope { from: Some(repository.to_owned()), ..Scope::push() }
    }

    /// In the words of the distribution project's token scope specification.
    fn words(&self, repository: &str) -> Vec<String> {
        let own = (!self.actions.is_empty()).then(|| format!("repository:{repository}:{}", self.actions));
        let from = self.from.iter().map(|from| format!("repository:{from}:pull"));
        own.into_iter().chain(from).collect()
    }
}

/// The authorization of requests to one repository at one place: no other place learns of it.
pub(super) struct Authorization {
    repository: String,
    reference: String,
    credentials: Option<Arc<dyn Credentials>>,
    /// The header for each scope.
    headers: Mutex<HashMap<Scope, HeaderValue>>,
}

impl Authorization {
    pub(super) fn new(reference: &Reference, credentials: Option<Arc<dyn Credentials>>) -> Self {
        Authorization {
            repository: reference.path().to_owned(),
            reference: reference.to_string(),
            credentials,
            headers: Mutex::new(HashMap::new()),
        }
    }

    /// The header to send, once there is one.
    pub(super) fn header(&self, scope: &Scope) -> Option<HeaderValue> {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner).get(scope).cloned()
    }

    /// Gets what the registry asks for; `false` when there is nothing to offer.
    pub(super) async fn answer(&self, place: &Place, challenges: &[String], wanted: &Scope) -> Result<bool> {
        let Some(challenge) = challenge::parse(challenges.iter().map(String::as_str)) else {
            return Ok(false);
        };
        let credential = match &self.credentials {
            Some(credentials) => credentials.get(&place.endpoint.host, &self.reference, challenges).await?,
            None => Credential::None,
        };
        let header = match (challenge, credential) {
            (_, Credential::Header(header)) => header,
            (Challenge::Basic, Credential::Password { user, secret }) => basic(&user, &secret),
            (Challenge::Basic, _) => return Ok(false),
            (Challenge::Bearer { realm, service, scope }, credential) => {
                let mut scopes: Vec<String> =
                    scope.split(' ').filter(|s| !s.is_empty()).map(str::to_owned).collect();
                for own in wanted.words(&self.repository) {
                    if !scopes.contains(&own) {
                        scopes.push(own);
                    }
                }
                let token = token(place, &realm, &service, &scopes, credential).await?;
                format!("Bearer {token}")
            }
        };
        let mut header = HeaderValue::from_str(&header).map_err(|_| {
            Error::because(
                Kind::InvalidArgument,
                "use credentials for",
                self.reference.clone(),
                "they are not valid in a header",
            )
        })?;
        header.set_sensitive(true);
        self.headers.lock().unwrap_or_else(PoisonError::into_inner).insert(wanted.clone(), header);
        Ok(true)
    }
}

/// Gets a token from a token server.
async fn token(
    place: &Place,
    realm: &str,
    service: &str,
    scopes: &[String],
    credential: Credential,
) -> Result<String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
    }
    const OPERATION: &str = "get token from";
    let failed = |error| failure::connection(OPERATION, realm, error);
    let url = reqwest::Url::parse(realm)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| Error::because(Kind::InvalidArgument, OPERATION, realm, "not an address"))?;
    let (client, _) = place.client_for(&url)?;
    let request = match &credential {
        Credential::Refresh(refresh) => {
            let mut form = url.clone();
            form.query_pairs_mut()
                .clear()
                .append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", refresh)
                .append_pair("service", service)
                .append_pair("client_id", "orlop")
                .append_pair("scope", &scopes.join(" "));
            let body = form.query().unwrap_or_default().to_owned();
            client
                .post(url)
                .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(body)
        }
        _ => {
            let mut url = url;
            {
                let mut query = url.query_pairs_mut();
                if !service.is_empty() {
                    query.append_pair("service", service);
                }
                for scope in scopes {
                    query.append_pair("scope", scope);
                }
            }
            let request = client.get(url);
            match &credential {
                Credential::Password { user, secret } => {
                    request.header(reqwest::header::AUTHORIZATION, basic(user, secret))
                }
                _ => request,
            }
        }
    };
    let mut response = None;
    for attempt in 1..=TOKEN_ATTEMPTS {
        let Some(again) = request.try_clone() else { break };
        match again.send().await.map_err(failed) {
            Ok(answer) => {
                response = Some(answer);
                break;
            }
            Err(error) if error.kind() != Kind::Unavailable || attempt == TOKEN_ATTEMPTS => {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(FIRST_PAUSE).await,
        }
    }
    let response = response.ok_or_else(|| Error::new(Kind::Internal, OPERATION, realm))?;
    let status = response.status();
    if !status.is_success() {
        let body = read_some(response).await;
        return Err(failure::answer(OPERATION, realm, status, &body));
    }
    let body = read_limited(response, OPERATION, realm, MAX_TOKEN).await?;
    let Answer { token, access_token } = serde_json::from_slice(&body)
        .map_err(|error| Error::because(Kind::Unknown, OPERATION, realm, error))?;
    match (token.is_empty(), access_token.is_empty()) {
        (false, _) => Ok(token),
        (true, false) => Ok(access_token),
        (true, true) => Err(Error::because(Kind::Unknown, OPERATION, realm, "the answer holds no token")),
    }
}

/// The header of basic authentication (RFC 7617).
fn basic(user: &str, secret: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{secret}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_basic_headers() {
        // The example of RFC 7617, section 2.
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
