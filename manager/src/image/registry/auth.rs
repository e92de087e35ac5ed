//! Who we are to a registry: nothing, a password, or a token got for one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::{Place, failure, read_limited, read_some};
use crate::image::reference::Reference;

/// The longest answer of a token server, in bytes.
const MAX_TOKEN: u64 = 1 << 20;

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

/// The authorization of requests to one repository.
pub(super) struct Authorization {
    repository: String,
    reference: String,
    credentials: Option<Arc<dyn Credentials>>,
    /// The header for each set of actions.
    headers: Mutex<HashMap<&'static str, HeaderValue>>,
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
    pub(super) fn header(&self, actions: &'static str) -> Option<HeaderValue> {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner).get(actions).cloned()
    }

    /// Gets what the registry asks for; `false` when there is nothing to offer.
    pub(super) async fn answer(
        &self,
        place: &Place,
        challenges: &[String],
        actions: &'static str,
    ) -> Result<bool> {
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
                let own = format!("repository:{}:{actions}", self.repository);
                if !scopes.contains(&own) {
                    scopes.push(own);
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
        self.headers.lock().unwrap_or_else(PoisonError::into_inner).insert(actions, header);
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
            place
                .client
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
            let request = place.client.get(url);
            match &credential {
                Credential::Password { user, secret } => {
                    request.header(reqwest::header::AUTHORIZATION, basic(user, secret))
                }
                _ => request,
            }
        }
    };
    let response = request.send().await.map_err(failed)?;
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
    format!("Basic {}", base64(format!("{user}:{secret}").as_bytes()))
}

/// Base 64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            match place <= group.len() {
                true => text.push(char::from(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_basic_headers() {
        // The example of RFC 7617, section 2.
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        for (text, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }
}
