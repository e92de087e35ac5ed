//! Where the API is served besides its own socket: further unix sockets, and TCP for clients with a certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::settings::File;
use crate::config;

/// Where the API is served besides its own socket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sockets {
    /// Paths of unix sockets.
    pub unix: Vec<PathBuf>,
    /// Addresses (`HOST:PORT`) on TCP.
    pub tcp: Vec<String>,
    /// What TCP needs.
    identity: Option<Identity>,
}

/// Certificates of a server that knows its clients.
#[derive(Clone, Debug, PartialEq)]
struct Identity {
    /// Authorities of clients.
    authorities: PathBuf,
    /// Our certificate.
    certificate: PathBuf,
    /// Its key.
    key: PathBuf,
}

fn wrong(text: impl Into<String>) -> Error {
    Error::exactly(Kind::InvalidArgument, text)
}

impl Sockets {
    /// What the configuration and a daemon.json say, each for itself.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` where both name hosts, for an address that is none, and for TCP without client certificates.
    pub fn of(config: &config::Docker, file: Option<&File>) -> Result<Sockets> {
        let empty = File::default();
        let file = file.unwrap_or(&empty);
        let hosts = match (config.hosts.is_empty(), file.hosts.is_empty()) {
            (false, false) => {
                return Err(wrong(format!(
                    "the following directives are specified both in the configuration and in daemon.json: hosts: (from \
                     the configuration: {:?}, from daemon.json: {:?})",
                    config.hosts, file.hosts
                )));
            }
            (false, true) => &config.hosts,
            _ => &file.hosts,
        };
        let path = |own: &Option<PathBuf>, other: &Option<PathBuf>| own.clone().or_else(|| other.clone());
        let identity = match (
            path(&config.tls_ca_cert, &file.tlscacert),
            path(&config.tls_cert, &file.tlscert),
            path(&config.tls_key, &file.tlskey),
        ) {
            (Some(authorities), Some(certificate), Some(key)) => {
                Some(Identity { authorities, certificate, key })
            }
            _ => None,
        };
        // A file that has certificates and not this asks for TLS without clients that are known.
        let asks_for_clients = file.tlsverify || !config.hosts.is_empty() || config.tls_ca_cert.is_some();
        let mut sockets = Sockets { identity: identity.filter(|_| asks_for_clients), ..Sockets::default() };
        for host in hosts {
            match host.split_once("://") {
                Some(("unix", path)) if path.starts_with('/') => sockets.unix.push(path.into()),
                // What the service manager hands over is found by its path.
                Some(("fd", _)) => {}
                Some(("tcp", _)) if sockets.identity.is_none() => {
                    return Err(wrong(format!(
                        "{host}: this engine serves TCP only to clients that have a certificate: tlsverify, tlscacert, \
                         tlscert and tlskey are needed"
                    )));
                }
                Some(("tcp", address)) => sockets.tcp.push(with_port(address)),
                _ => return Err(wrong(format!("Invalid bind address format: {host}"))),
            }
        }
        Ok(sockets)
    }

    /// What makes connections on TCP safe; nothing where there is no TCP.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for certificates that cannot be used.
    pub fn acceptor(&self) -> Result<Option<TlsAcceptor>> {
        let Some(Identity { authorities, certificate, key }) = self.identity.as_ref() else {
            return Ok(None);
        };
        if self.tcp.is_empty() {
            return Ok(None);
        }
        let unusable = |path: &Path, why: String| {
            Error::because(Kind::InvalidArgument, "use certificate", path.display().to_string(), why)
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities)? {
            roots.add(authority).map_err(|error| unusable(authorities, error.to_string()))?;
        }
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| unusable(authorities, error.to_string()))?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error.to_string()))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(certificate, error.to_string()))?
            .with_client_cert_verifier(clients)
            .with_single_cert(certificates(certificate)?, secret)
            .map_err(|error| unusable(certificate, error.to_string()))?;
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

/// An address with the port that Docker has for TLS, where it has none.
fn with_port(address: &str) -> String {
    let plain = address.trim_end_matches('/');
    match plain.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && !host.is_empty() => plain.to_owned(),
        Some(("", port)) => format!("0.0.0.0:{port}"),
        _ if plain.is_empty() => "127.0.0.1:2376".to_owned(),
        _ => format!("{plain}:2376"),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let shown = || path.display().to_string();
    let pem = std::fs::read(path).context("read", shown())?;
    let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match read {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(Error::because(Kind::InvalidArgument, "read", shown(), "there is no certificate in it")),
        Err(error) => Err(Error::because(Kind::InvalidArgument, "read", shown(), error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn docker(hosts: &[&str], with_tls: bool) -> config::Docker {
        let path = || with_tls.then(|| PathBuf::from("/x.pem"));
        config::Docker {
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            tls_ca_cert: path(),
            tls_cert: path(),
            tls_key: path(),
            ..config::Docker::default()
        }
    }

    #[test]
    fn tcp_needs_certificates() {
        let error = Sockets::of(&docker(&["tcp://0.0.0.0:2375"], false), None).unwrap_err();
        assert!(error.to_string().contains("only to clients that have a certificate"), "{error}");
        let sockets = Sockets::of(&docker(&["unix:///run/x", "fd://", "tcp://:2376"], true), None).unwrap();
        assert_eq!(sockets.unix, [PathBuf::from("/run/x")]);
        assert_eq!(sockets.tcp, ["0.0.0.0:2376"]);
        assert!(Sockets::of(&docker(&["http://x"], true), None).is_err());
    }

    #[test]
    fn a_file_that_asks_for_tls_without_clients_certificates_is_refused() {
        let path = || Some(PathBuf::from("/x.pem"));
        let hosts = vec!["tcp://127.0.0.1".to_owned()];
        let file =
            File { hosts, tls: true, tlscacert: path(), tlscert: path(), tlskey: path(), ..File::default() };
        assert!(Sockets::of(&docker(&[], false), Some(&file)).is_err());
        let file = File { tlsverify: true, ..file };
        let sockets = Sockets::of(&docker(&[], false), Some(&file)).unwrap();
        assert_eq!(sockets.tcp, ["127.0.0.1:2376"]);
        assert!(Sockets::of(&docker(&["unix:///x"], false), Some(&file)).is_err(), "both name hosts");
    }
}
