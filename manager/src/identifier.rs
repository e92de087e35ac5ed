//! Identifiers: the names of namespaces, containers, execs and event topics, by containerd's rule.

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

/// The longest identifier, in bytes.
pub const MAX_LEN: usize = 76;

/// Checks an identifier: letters and digits, with single `.`, `_` or `-` between them, at most [`MAX_LEN`] long.
///
/// # Errors
///
/// `InvalidArgument` with the words of containerd's package `identifiers`.
pub fn validate(name: &str) -> Result<()> {
    let refused = |words: String| Err(Error::new(Kind::InvalidArgument, words, ""));
    if name.is_empty() {
        return refused("identifier must not be empty".to_owned());
    }
    if name.len() > MAX_LEN {
        return refused(format!("identifier {name:?} greater than maximum length ({MAX_LEN} characters)"));
    }
    let well_formed = name
        .split(['.', '_', '-'])
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if !well_formed {
        return refused(format!("identifier {name:?} must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_containerds_rule() {
        for good in ["a", "default", "k8s.io", "moby", "a-b_c.d", "0", &"x".repeat(76)] {
            assert!(validate(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a-", "a--b", "a/b", "a b", "ä", &"x".repeat(77)] {
            assert_eq!(validate(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
        assert_eq!(
            validate("a/b").unwrap_err().to_string(),
            r#"identifier "a/b" must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: invalid argument"#
        );
        assert_eq!(validate("").unwrap_err().to_string(), "identifier must not be empty: invalid argument");
    }
}
