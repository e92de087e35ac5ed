//! Labels on the command line: `KEY=VALUE`.

use std::collections::{BTreeMap, HashMap};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost_types::FieldMask;

/// Labels for something new; one without a value is `true`, as in `ctr`.
pub fn new(words: &[String]) -> HashMap<String, String> {
    let pair = |word: &String| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (word.clone(), "true".to_owned()),
    };
    words.iter().map(pair).collect()
}

/// Changes to labels; one without a value is removed.
pub fn changes(words: &[String]) -> HashMap<String, String> {
    let pair = |word: &String| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (word.clone(), String::new()),
    };
    words.iter().map(pair).collect()
}

/// The fields that an update of these labels changes.
pub fn mask(changes: &HashMap<String, String>) -> FieldMask {
    FieldMask { paths: changes.keys().map(|key| format!("labels.{key}")).collect() }
}

/// Pairs that must have a value, such as annotations.
///
/// # Errors
///
/// `InvalidArgument` for a word without `=`.
pub fn pairs(what: &'static str, words: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |word: &String| match word.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => {
            let reason = format!("invalid key=value format {what}: {word}");
            Err(Error::because(Kind::InvalidArgument, what, format!("{word:?}"), reason))
        }
    };
    words.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_without_a_value() {
        let words = ["a=b=c".to_owned(), "d".to_owned()];
        assert_eq!(new(&words)["a"], "b=c");
        assert_eq!(new(&words)["d"], "true");
        assert_eq!(changes(&words)["d"], "");
        assert_eq!(mask(&changes(&words[1..])).paths, ["labels.d"]);
        assert!(pairs("annotation", &words).is_err());
    }
}
