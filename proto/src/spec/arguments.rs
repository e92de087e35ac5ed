//! Values of command-line options that describe a part of a configuration, in the forms `ctr` takes.

use super::isolation::NAMESPACE_KINDS;
use super::types::*;
use crate::error::{Error, Result};
use crate::kind::Kind;

fn invalid(option: &'static str, value: &str, reason: impl Into<String>) -> Error {
    Error::because(Kind::InvalidArgument, option, value, reason.into())
}

/// A mount of the form `type=bind,src=/tmp,dst=/host,options=rbind:ro`; a field with a comma is put in double quotes.
pub fn mount(text: &str) -> Result<Mount> {
    let mut mount = Mount::default();
    for field in fields(text)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| invalid("--mount", text, "invalid mount specification: expected key=val"))?;
        match key {
            "type" => mount.kind = value.to_owned(),
            "source" | "src" => mount.source = value.to_owned(),
            "destination" | "dst" => mount.destination = value.to_owned(),
            "options" => mount.options = value.split(':').map(str::to_owned).collect(),
            _ => return Err(invalid("--mount", text, format!("mount option {key:?} not supported"))),
        }
    }
    Ok(mount)
}

/// The comma-separated fields of one line, with the quoting of RFC 4180.
fn fields(text: &str) -> Result<Vec<String>> {
    let mut fields = Vec::new();
    let mut letters = text.chars().peekable();
    loop {
        let mut field = String::new();
        if letters.next_if_eq(&'"').is_some() {
            loop {
                match letters.next() {
                    Some('"') if letters.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') => break,
                    Some(letter) => field.push(letter),
                    None => return Err(invalid("--mount", text, "quote is not closed")),
                }
            }
        }
        while let Some(letter) = letters.next_if(|&letter| letter != ',') {
            field.push(letter);
        }
        fields.push(field);
        if letters.next().is_none() {
            return Ok(fields);
        }
    }
}

/// A namespace to join, of the form `kind:path`.
pub fn namespace(text: &str) -> Result<Namespace> {
    let Some((kind, path)) = text.split_once(':').filter(|(_, path)| !path.contains(':')) else {
        return Err(invalid(
            "--with-ns",
            text,
            "joining a Linux namespace using --with-ns requires the format 'nstype:path'",
        ));
    };
    if !NAMESPACE_KINDS.contains(&kind) {
        let reason = format!("the Linux namespace type specified in --with-ns is not valid: {kind}");
        return Err(invalid("--with-ns", text, reason));
    }
    Ok(Namespace { kind: kind.to_owned(), path: path.to_owned() })
}

/// A range of IDs, of the form `container:host:length`.
pub fn id_mapping(text: &str) -> Result<IdMapping> {
    let numbers: Option<Vec<u32>> = text.split(':').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[container_id, host_id, size]) => Ok(IdMapping { container_id, host_id, size }),
        _ => Err(invalid("ID mapping", text, "expected container-id:host-id:length")),
    }
}

/// A limit of setrlimit(2), of the form `nofile=1024` or `nofile=1024:2048` (soft, then hard).
pub fn rlimit(text: &str) -> Result<Rlimit> {
    let wrong = || invalid("--ulimit", text, "expected name=soft[:hard]");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |value: &str| match value {
        "unlimited" | "-1" => Ok(u64::MAX),
        _ => value.parse().map_err(|_| wrong()),
    };
    Ok(Rlimit { kind: format!("RLIMIT_{}", name.to_uppercase()), hard: number(hard)?, soft: number(soft)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_has_its_parts_in_any_order() {
        let full = mount("type=bind,src=/tmp,dst=/host,options=rbind:ro").unwrap();
        assert_eq!(full, Mount::new("/host", "bind", "/tmp", &["rbind", "ro"]));
        let quoted = mount("destination=/x,\"source=a,b\"").unwrap();
        assert_eq!(quoted, Mount::new("/x", "", "a,b", &[]));
    }

    #[test]
    fn a_wrong_mount_says_what_is_wrong() {
        for (text, message) in [
            ("", "expected key=val"),
            ("src", "expected key=val"),
            ("foo=bar", "\"foo\" not supported"),
            ("\"src=a", "quote is not closed"),
        ] {
            assert!(mount(text).unwrap_err().to_string().contains(message), "{text}");
        }
    }

    #[test]
    fn a_namespace_has_a_known_kind() {
        assert_eq!(namespace("pid:/p").unwrap(), Namespace { kind: "pid".into(), path: "/p".into() });
        for text in ["pid", "foo:/p", "pid:a:b"] {
            assert_eq!(namespace(text).unwrap_err().kind(), Kind::InvalidArgument);
        }
    }

    #[test]
    fn ranges_and_limits_are_numbers() {
        assert_eq!(id_mapping("0:1000:5").unwrap(), IdMapping { container_id: 0, host_id: 1000, size: 5 });
        assert!(id_mapping("0:1000").is_err() && id_mapping("a:b:c").is_err());
        let limit = rlimit("nofile=10:20").unwrap();
        assert_eq!((limit.kind.as_str(), limit.soft, limit.hard), ("RLIMIT_NOFILE", 10, 20));
        assert_eq!(rlimit("core=unlimited").unwrap().hard, u64::MAX);
        assert!(rlimit("nofile").is_err() && rlimit("nofile=x").is_err());
    }
}
