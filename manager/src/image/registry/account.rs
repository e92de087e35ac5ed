//! What is asked of a registry as a whole: whether it takes a user's name and password, and what it has by a word.

use std::sync::Arc;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::auth::{Authorization, Scope};
use super::hosts::{self, Endpoint};
use super::place::{Ask, Place};
use super::{Access, Registries};
use crate::image::progress::Progress;
use crate::image::reference::Reference;

/// The longest answer to a search, in bytes.
const MAX_RESULTS: u64 = 4 << 20;
/// Where Docker's own registry is searched: its other host knows pulls and pushes only.
const HUB: &str = "index.docker.io";

impl Registries {
    /// Asks a registry (`HOST[:PORT]`) whether it knows who is asking.
    ///
    /// # Errors
    ///
    /// `Unauthenticated` for one that it does not know.
    pub async fn log_in(&self, host: &str, access: Access) -> Result<()> {
        let reference = Reference::parse(&format!("{host}/any"))?;
        let directory = access.hosts.as_deref().unwrap_or(&self.hosts);
        let endpoints = hosts::endpoints(Some(directory), &reference, access.scheme.as_deref())?;
        let own = access
            .trust
            .applied(&reference, endpoints)?
            .into_iter()
            .filter(|endpoint| endpoint.host == reference.host());
        self.ask_all(own.collect(), &reference, &access, "log in to", "", 1 << 20).await.map(drop)
    }

    /// What a registry has to say about a word (`/v1/search`), as it says it.
    ///
    /// # Errors
    ///
    /// Those of the registry; most have no search.
    pub async fn search(&self, host: &str, word: &str, limit: u32, access: Access) -> Result<Vec<u8>> {
        let reference = Reference::parse(&format!("{host}/any"))?;
        let directory = access.hosts.as_deref().unwrap_or(&self.hosts);
        let endpoints = hosts::endpoints(Some(directory), &reference, access.scheme.as_deref())?;
        let mut endpoints = access.trust.applied(&reference, endpoints)?;
        endpoints.retain(|endpoint| endpoint.host == reference.host());
        for endpoint in &mut endpoints {
            "/v1".clone_into(&mut endpoint.path);
            if host == "docker.io" {
                HUB.clone_into(&mut endpoint.host);
            }
        }
        let word: String = form_urlencoded::byte_serialize(word.as_bytes()).collect();
        let target = format!("search?q={word}&n={limit}");
        self.ask_all(endpoints, &reference, &access, "search", &target, MAX_RESULTS).await
    }

    /// Asks each place in turn; the first that has an answer has it for all.
    async fn ask_all(
        &self,
        endpoints: Vec<Endpoint>,
        reference: &Reference,
        access: &Access,
        operation: &'static str,
        target: &str,
        limit: u64,
    ) -> Result<Vec<u8>> {
        let mut failed =
            Error::because(Kind::Unavailable, operation, reference.domain(), "no host is configured for it");
        for endpoint in endpoints {
            let host = format!("{}://{}{}/{target}", endpoint.scheme, endpoint.host, endpoint.path);
            let authorization = Authorization::new(reference, access.credentials.clone());
            let place = Place::new(
                endpoint,
                "",
                None,
                Default::default(),
                authorization,
                self.clients.clone(),
                Arc::new(Progress::default()),
            )?;
            let ask = Ask { scope: Scope::nothing(), ..Ask::get(operation, &host, target.to_owned()) };
            match place.read(&ask, 1, limit).await {
                Ok((_, body)) => return Ok(body.to_vec()),
                // Who is not known there is not looked for elsewhere.
                Err(error) if error.kind() == Kind::Unauthenticated => return Err(error),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}
