//! What went wrong between us and a registry, in one sentence and of the right kind.

use std::time::Duration;

use orlop_proto::error::Error;
use orlop_proto::kind::Kind;
use reqwest::StatusCode;
use serde::Deserialize;

use super::limits;

/// The most of an answer's text that goes into a message, in bytes.
const MAX_TEXT: usize = 200;

/// An error of the connection.
pub fn connection(operation: &'static str, object: impl Into<String>, error: reqwest::Error) -> Error {
    let certificate = certificate(&error);
    let kind = match () {
        // Trying again changes nothing.
        () if certificate.is_some() => Kind::Unknown,
        () if error.is_timeout() => Kind::DeadlineExceeded,
        () if error.is_builder() => Kind::InvalidArgument,
        () => Kind::Unavailable,
    };
    let host = error.url().and_then(|url| match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => Some(format!("{host}:{port}")),
        (host, _) => host.map(str::to_owned),
    });
    let why = match host {
        Some(host) if error.is_timeout() => format!("{host} does not answer"),
        Some(host) => format!("{host}: {}", certificate.unwrap_or_else(|| cause(&error))),
        None => certificate.unwrap_or_else(|| cause(&error)),
    };
    Error::because(kind, operation, object, why)
}

/// What is wrong with the other side's certificate, if that is the cause, in the words of Go's x509 package.
fn certificate(error: &reqwest::Error) -> Option<String> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(wrong)) = error.downcast_ref() {
            return Some(words(wrong));
        }
        // The source of an I/O error is that of the one that it is made of, which itself is passed over.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(made_of) => Some(made_of),
            None => error.source(),
        };
    }
    None
}

fn words(wrong: &rustls::CertificateError) -> String {
    use rustls::CertificateError as Wrong;
    let what = match wrong {
        Wrong::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
        Wrong::Expired | Wrong::ExpiredContext { .. } => "certificate has expired".to_owned(),
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => "certificate is not yet valid".to_owned(),
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
            "certificate is valid for other names".to_owned()
        }
        other => format!("invalid certificate: {other}"),
    };
    format!("tls: failed to verify certificate: x509: {what}")
}

/// Why a request failed: what is wrong with the certificate, or the innermost cause.
pub fn why(error: &reqwest::Error) -> String {
    certificate(error).unwrap_or_else(|| cause(error))
}

/// The innermost cause: the outer ones only say that a request failed.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    text.split(" (os error ").next().unwrap_or_default().to_lowercase()
}

/// An answer that is not what was asked for.
pub fn answer(operation: &'static str, object: impl Into<String>, status: StatusCode, body: &[u8]) -> Error {
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::UNAUTHORIZED => Kind::Unauthenticated,
        StatusCode::FORBIDDEN => Kind::PermissionDenied,
        StatusCode::TOO_MANY_REQUESTS => Kind::ResourceExhausted,
        StatusCode::RANGE_NOT_SATISFIABLE => Kind::OutOfRange,
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::UNSUPPORTED_MEDIA_TYPE => Kind::Unimplemented,
        status if status.is_server_error() => Kind::Unavailable,
        _ => Kind::Unknown,
    };
    if status == StatusCode::NOT_FOUND {
        return Error::new(kind, operation, object);
    }
    let why = match reason(body) {
        Some(reason) => format!("the registry answered {status}: {reason}"),
        None => format!("the registry answered {status}"),
    };
    Error::because(kind, operation, object, why)
}

/// An answer that we ask too often: with what is left, and when to come back.
pub fn limited(error: Error, left: Option<(u64, String)>, wait: Option<Duration>) -> Error {
    let left = left.map(|(_, text)| text);
    let wait = wait.map(|wait| format!("try again in {}", limits::words(wait)));
    let more: Vec<String> = left.into_iter().chain(wait).collect();
    if more.is_empty() {
        return error;
    }
    Error::exactly(error.kind(), format!("{error} ({})", more.join("; ")))
}

/// The reason in a registry's JSON answer, or the start of what it said.
fn reason(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    if let Ok(Answer { errors }) = serde_json::from_slice(body) {
        let item = errors.into_iter().next()?;
        return Some(if item.message.is_empty() { item.code.to_lowercase() } else { item.message });
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_TEXT)]);
    let text = text.lines().next().unwrap_or_default().trim();
    (!text.is_empty() && !text.starts_with('<')).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong_with_a_certificate() {
        let said = |wrong| words(&wrong).rsplit_once("x509: ").unwrap().1.to_owned();
        assert_eq!(said(rustls::CertificateError::UnknownIssuer), "certificate signed by unknown authority");
        assert_eq!(said(rustls::CertificateError::Expired), "certificate has expired");
        assert!(said(rustls::CertificateError::BadSignature).starts_with("invalid certificate: "));
    }

    #[test]
    fn tells_what_the_registry_said() {
        let body = br#"{"errors":[{"code":"DENIED","message":"requested access is denied"}]}"#;
        let error = answer("pull", "a/b", StatusCode::FORBIDDEN, body);
        assert_eq!(error.kind(), Kind::PermissionDenied);
        assert_eq!(
            error.to_string(),
            "pull a/b: the registry answered 403 Forbidden: requested access is denied"
        );
        let error = answer("pull", "a/b", StatusCode::BAD_GATEWAY, b"<html>long</html>");
        assert_eq!(error.to_string(), "pull a/b: the registry answered 502 Bad Gateway");
        assert_eq!(
            answer("resolve", "a/b:c", StatusCode::NOT_FOUND, body).to_string(),
            "resolve a/b:c: not found"
        );
    }
}
