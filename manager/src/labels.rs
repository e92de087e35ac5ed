//! Labels: what clients attach to objects, and their limits.

use std::collections::BTreeMap;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Longest label, key and value together, in bytes.
pub const MAX_LABEL: usize = 4096;

/// An error of kind `InvalidArgument` whose text ends as containerd's do.
pub fn invalid(text: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, text.into(), "")
}

/// Checks one label.
pub fn validate_one(key: &str, value: &str) -> Result<()> {
    let length = key.len() + value.len();
    if length > MAX_LABEL {
        let mut end = key.len().min(10);
        while !key.is_char_boundary(end) {
            end -= 1;
        }
        return Err(invalid(format!(
            "label key and value length ({length} bytes) greater than maximum size ({MAX_LABEL} bytes), key: {}",
            &key[..end]
        )));
    }
    Ok(())
}

/// Checks all labels of an object, which the error names: `containers.Labels: …`.
pub fn validate(labels: &Labels, what: &str) -> Result<()> {
    for (key, value) in labels {
        validate_one(key, value).map_err(|error| invalid(format!("{what}: {}", error.operation())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_sizes() {
        validate_one("key", &"v".repeat(4093)).unwrap();
        assert_eq!(
            validate_one("averylongkey", &"v".repeat(4096)).unwrap_err().to_string(),
            "label key and value length (4108 bytes) greater than maximum size (4096 bytes), key: averylongk: \
             invalid argument"
        );
    }
}
