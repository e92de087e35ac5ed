//! Whom connections trust, and who we say that we are: of several certificates, by the one whose authority the server says it
//! trusts (RFC 8446, section 4.2.4), as Go's programs do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::Verifier;

/// What is being done, for messages.
const OPERATION: &str = "read certificates";

/// Settings of TLS: `identities` are files with a certificate of ours and its key, `authorities` those that are trusted
/// besides the system's.
///
/// # Errors
///
/// `InvalidArgument` for a file that does not hold what it should.
pub(super) fn configuration(
    identities: &[(PathBuf, Vec<u8>)],
    authorities: &[(PathBuf, Vec<u8>)],
    skip_verify: bool,
) -> Result<ClientConfig> {
    let provider =
        CryptoProvider::get_default().ok_or_else(|| Error::new(Kind::Internal, "set up", "TLS"))?.clone();
    let failed = |error: rustls::Error| Error::because(Kind::InvalidArgument, "set up", "TLS", error);
    let keys = identities.iter().map(|(path, pem)| key(path, pem, &provider).map(Arc::new));
    let identity = Arc::new(Identity { keys: keys.collect::<Result<_>>()? });
    let mut roots = Vec::new();
    for (path, pem) in authorities {
        roots.extend(certificates(path, pem)?);
    }
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let builder = match skip_verify {
        true => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unseen(provider))),
        false => match Verifier::new_with_extra_roots(roots.clone(), provider) {
            Ok(verifier) => builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)),
            // A machine without certificates of its own can still speak plain HTTP, and trust the given ones.
            Err(_) => {
                let mut store = RootCertStore::empty();
                for root in roots {
                    store.add(root).map_err(failed)?;
                }
                builder.with_root_certificates(store)
            }
        },
    };
    let mut configuration = builder.with_client_cert_resolver(identity);
    configuration.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(configuration)
}

fn invalid(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::because(Kind::InvalidArgument, OPERATION, path.display().to_string(), why.to_string())
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| invalid(path, error))
}

/// The certificate, with those that it was signed by, and its key.
fn key(path: &Path, pem: &[u8], provider: &CryptoProvider) -> Result<CertifiedKey> {
    let chain = certificates(path, pem)?;
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| invalid(path, error))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| invalid(path, error))
}

/// Who we may be.
#[derive(Debug)]
struct Identity {
    keys: Vec<Arc<CertifiedKey>>,
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let can_sign = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        let is_known = |key: &&Arc<CertifiedKey>| {
            key.cert
                .iter()
                .any(|certificate| issuer(certificate).is_some_and(|issuer| authorities.contains(&issuer)))
        };
        let mut able = self.keys.iter().filter(can_sign);
        // Not every server names all that it trusts.
        able.clone().find(is_known).or_else(|| able.next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.keys.is_empty()
    }
}

/// The name of a certificate's authority, in DER (RFC 5280, section 4.1). Certificates may be of any version here: webpki
/// reads the third alone.
fn issuer(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (_, signed, _) = element(certificate)?;
    let (_, mut fields, _) = element(signed)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    // Serial number and algorithm come first.
    let (_, _, after_number) = element(fields)?;
    let (_, _, at_issuer) = element(after_number)?;
    let (kind, _, rest) = element(at_issuer)?;
    (kind == SEQUENCE).then(|| &at_issuer[..at_issuer.len() - rest.len()])
}

/// The first element of DER: its tag, its content, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&short, rest) = rest.split_first()?;
    let (length, rest) = match short {
        0..0x80 => (usize::from(short), rest),
        _ => {
            let (digits, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
            let value = digits
                .iter()
                .try_fold(0usize, |value, digit| value.checked_mul(256)?.checked_add(usize::from(*digit)))?;
            (value, rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Takes any server for the right one (`skip_verify`).
#[derive(Debug)]
struct Unseen(Arc<CryptoProvider>);

impl ServerCertVerifier for Unseen {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    // Whose signature it is does not matter where anybody may sign.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        let length = if length < 0x80 { vec![length] } else { vec![0x81, length] };
        [&[tag], length.as_slice(), content].concat()
    }

    #[test]
    fn the_issuer_is_found_in_certificates_of_every_version() {
        let issuer_name = wrapped(0x30, &[7; 140]);
        let number = wrapped(2, &[1]);
        let algorithm = wrapped(0x30, &[6, 1, 42]);
        let version = wrapped(0xa0, &wrapped(2, &[2]));
        for fields in [
            [version.clone(), number.clone(), algorithm.clone(), issuer_name.clone()].concat(),
            [number.clone(), algorithm.clone(), issuer_name.clone()].concat(),
        ] {
            // What follows is of no matter.
            let certificate = wrapped(0x30, &wrapped(0x30, &[fields, vec![5, 0]].concat()));
            assert_eq!(issuer(&certificate), Some(issuer_name.as_slice()));
            for end in 0..certificate.len() {
                assert_eq!(issuer(&certificate[..end]), None);
            }
        }
        assert_eq!(issuer(&[0x30, 0xff]), None);
        assert_eq!(issuer(&[0x30, 0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
