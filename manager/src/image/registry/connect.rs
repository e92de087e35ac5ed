//! The connections that are kept to registries: one pool for each way of being trusted and known.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use orlop_proto::error::{Context, Result};
use reqwest::Client;

use super::hosts::Endpoint;
use super::{failure, tls};
use crate::image::reference::is_loopback;

/// Pools of connections.
pub(super) struct Clients {
    connect_timeout: Duration,
    stall_timeout: Duration,
    pools: Mutex<HashMap<Terms, Client>>,
}

/// What a connection may not be shared across. Certificates are compared by content: a file may be replaced.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Terms {
    is_loopback: bool,
    skip_verify: bool,
    connect_timeout: Duration,
    authorities: Vec<(PathBuf, Vec<u8>)>,
    /// Our certificates, each with its key.
    identities: Vec<(PathBuf, Vec<u8>)>,
}

impl Clients {
    pub(super) fn new(connect_timeout: Duration, stall_timeout: Duration) -> Self {
        // reqwest is built without a provider of its own. An error means that one is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Clients { connect_timeout, stall_timeout, pools: Mutex::new(HashMap::new()) }
    }

    /// Connections to an endpoint itself.
    pub(super) fn to(&self, endpoint: &Endpoint) -> Result<Client> {
        let mut identities = Vec::new();
        for (certificate, key) in &endpoint.clients {
            let mut pem = read(certificate)?;
            if let Some(key) = key {
                pem.push(b'\n');
                pem.extend(read(key)?);
            }
            identities.push((certificate.clone(), pem));
        }
        self.pool(endpoint, &endpoint.host, identities)
    }

    /// Connections to another host that an endpoint sends us to: it does not learn who we are.
    pub(super) fn beyond(&self, endpoint: &Endpoint, host: &str) -> Result<Client> {
        self.pool(endpoint, host, Vec::new())
    }

    fn pool(&self, endpoint: &Endpoint, host: &str, identities: Vec<(PathBuf, Vec<u8>)>) -> Result<Client> {
        let mut authorities = Vec::new();
        for path in &endpoint.authorities {
            authorities.push((path.clone(), read(path)?));
        }
        let terms = Terms {
            is_loopback: is_loopback(host),
            skip_verify: endpoint.skip_verify,
            connect_timeout: endpoint.connect_timeout.unwrap_or(self.connect_timeout),
            authorities,
            identities,
        };
        if let Some(client) = self.pools.lock().unwrap_or_else(PoisonError::into_inner).get(&terms) {
            return Ok(client.clone());
        }
        let client = self.build(&terms)?;
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).insert(terms, client.clone());
        Ok(client)
    }

    fn build(&self, terms: &Terms) -> Result<Client> {
        let builder = Client::builder()
            .user_agent(concat!("orlop/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(terms.connect_timeout)
            .read_timeout(self.stall_timeout)
            // Followed by hand: what says who we are must not go along.
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(tls::configuration(
                &terms.identities,
                &terms.authorities,
                terms.skip_verify,
            )?);
        // This machine is not reached through a proxy.
        let builder = if terms.is_loopback { builder.no_proxy() } else { builder };
        builder.build().map_err(|error| failure::connection("set up", "TLS", error))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).context("read", path.display().to_string())
}
