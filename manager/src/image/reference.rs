//! Image references, as people type them and as registries know them.
//!
//! The grammar is that of the distribution project's `reference` package, which docker and containerd share:
//! `[domain/]path[:tag][@digest]`, where a name without a domain belongs to `docker.io`, a single path component
//! there to `library/`, and a name with neither tag nor digest means `latest`.

use std::fmt;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

/// The domain of names that have none.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The domain that docker.io was once called by.
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
/// Where the repositories of single-component names lie at docker.io.
const OFFICIAL_PREFIX: &str = "library/";
/// The longest repository name, in bytes, domain included.
const MAX_NAME_LENGTH: usize = 255;
/// The longest tag, in bytes.
const MAX_TAG_LENGTH: usize = 128;
/// The tag of names that have neither a tag nor a digest.
const DEFAULT_TAG: &str = "latest";

/// A complete reference: a domain, a repository path, and a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Reads a reference and completes it as docker does.
    ///
    /// Errors are of kind `InvalidArgument` and name what was given.
    pub fn parse(text: &str) -> Result<Reference> {
        parse(text)
            .map_err(|why| Error::because(Kind::InvalidArgument, "parse image reference", quoted(text), why))
    }

    /// The registry's domain and port as named, `docker.io` for names without one.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's path within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// What the registry is asked for: the digest, which pins the content, else the tag.
    pub fn object(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or(DEFAULT_TAG)
    }

    /// The host and port that serve the registry's API.
    pub fn host(&self) -> &str {
        match self.domain.as_str() {
            DEFAULT_DOMAIN => "registry-1.docker.io",
            domain => domain,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether the host is this machine, for which plain HTTP is the default.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("the reference is empty");
    }
    if text.len() == 64 && text.bytes().all(is_lower_hex) {
        return Err("64 hexadecimal characters are an identifier, not a repository name");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon after the last slash starts a tag; one before it belongs to a port.
    let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[name_end..].split_once(':') {
        Some((last, tag)) => (&rest[..name_end + last.len()], Some(tag)),
        None => (rest, None),
    };
    let (domain, path) = split_domain(name);
    let path = match domain {
        DEFAULT_DOMAIN if !path.contains('/') => format!("{OFFICIAL_PREFIX}{path}"),
        _ => path.to_owned(),
    };
    if !is_domain(domain) {
        return Err("the registry's name is not valid");
    }
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the repository name must be lowercase");
    }
    if !path.split('/').all(is_path_component) {
        return Err("the repository name is not valid");
    }
    if domain.len() + 1 + path.len() > MAX_NAME_LENGTH {
        return Err("the repository name is longer than 255 bytes");
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag is not valid");
    }
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("the digest is not valid");
    }
    let tag = match (tag, digest) {
        (None, None) => Some(DEFAULT_TAG),
        (tag, _) => tag,
    };
    Ok(Reference {
        domain: domain.to_owned(),
        path,
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

/// The first component is a domain when it could not be a path component of a docker.io name.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (if first == LEGACY_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { first }, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

/// A host name or an IPv6 address in brackets, with an optional port.
fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => match port.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host_is_valid = if text.starts_with('[') {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':')
    } else {
        host.split('.').all(is_domain_component)
    };
    host_is_valid
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_domain_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last))
        if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

/// Runs of lower-case letters and digits, separated by one dot, one or two underscores, or any number of dashes.
fn is_path_component(text: &str) -> bool {
    let mut rest = text.as_bytes();
    loop {
        let run = rest.iter().take_while(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()).count();
        if run == 0 {
            return false;
        }
        rest = &rest[run..];
        let separator = match rest {
            [] => return true,
            [b'.', ..] => 1,
            [b'_', b'_', ..] => 2,
            [b'_', ..] => 1,
            [b'-', ..] => rest.iter().take_while(|byte| **byte == b'-').count(),
            _ => return false,
        };
        rest = &rest[separator..];
    }
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG_LENGTH
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

/// `algorithm:hex`; the length is checked for the algorithms that registries use.
fn is_digest(text: &str) -> bool {
    match text.split_once(':') {
        Some(("sha256", hex)) => hex.len() == 64 && hex.bytes().all(is_lower_hex),
        Some(("sha512", hex)) => hex.len() == 128 && hex.bytes().all(is_lower_hex),
        _ => false,
    }
}

fn is_lower_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn completes_names_as_docker_does() {
        let digest = format!("sha256:{HEX}");
        let table = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[2001:db8::1]/app", "[2001:db8::1]/app:latest"),
            ("Upper/app", "Upper/app:latest"),
            ("registry.example/a-b/c__d/e.f---g:T_1.x-y", "registry.example/a-b/c__d/e.f---g:T_1.x-y"),
            ("localhost", "docker.io/library/localhost:latest"),
            ("a:5000", "docker.io/library/a:5000"),
        ];
        for (given, complete) in table {
            assert_eq!(Reference::parse(given).unwrap().to_string(), complete, "{given}");
        }
        let pinned = Reference::parse(&format!("busybox@{digest}")).unwrap();
        assert_eq!(pinned.to_string(), format!("docker.io/library/busybox@{digest}"));
        assert_eq!((pinned.tag(), pinned.object()), (None, digest.as_str()));
        let both = Reference::parse(&format!("busybox:1@{digest}")).unwrap();
        assert_eq!((both.tag(), both.object()), (Some("1"), digest.as_str()));
    }

    #[test]
    fn refuses_what_docker_refuses() {
        let long_name = "a/".repeat(125) + "aaaaaa";
        let long_tag = format!("a:{}", "t".repeat(129));
        let table = [
            "",
            "UPPER",
            "app:",
            "app@",
            "app@sha256:abc",
            "app@md5:d41d8cd98f00b204e9800998ecf8427e",
            ":tag",
            "/app",
            "app/",
            "a//b",
            "a___b",
            "a..b",
            "-a",
            "a-",
            "a/../b",
            "..",
            "host:port/app",
            "host:/app",
            "-host.example/app",
            "[::1/app",
            "[::1]x/app",
            "app:-tag",
            "app:a b",
            "app\n",
            "é",
            HEX,
            &long_name,
            &long_tag,
        ];
        for given in table {
            let error = Reference::parse(given).expect_err(given);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().starts_with("parse image reference "), "{error}");
        }
    }

    #[test]
    fn knows_its_parts_and_host() {
        let reference = Reference::parse("busybox").unwrap();
        assert_eq!((reference.domain(), reference.path()), ("docker.io", "library/busybox"));
        assert_eq!(reference.host(), "registry-1.docker.io");
        assert_eq!(Reference::parse("localhost:5000/a").unwrap().host(), "localhost:5000");
    }

    #[test]
    fn knows_this_machine() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:80", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["docker.io", "localhost.example", "10.0.0.1:5000", "[2001:db8::1]:5000"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
