//! What buildkitd says of its workers. buildx takes a worker with a snapshotter for a dockerd whose images are manifests: it would
//! push by itself and call an image by the digest of its manifest, where this engine has that of its configuration.

use std::collections::BTreeMap;

use prost::{DecodeError, Message};

use super::wire::{framed, unframed, without};

/// The label by which it is recognised.
const SNAPSHOTTER: &str = "org.mobyproject.buildkit.worker.snapshotter";
/// The field of [`Labels`].
const LABELS: u32 = 2;

/// `ListWorkersResponse` of BuildKit's control.proto; its workers as they are.
#[derive(Clone, PartialEq, Message)]
struct Workers {
    #[prost(bytes = "vec", repeated, tag = "1")]
    all: Vec<Vec<u8>>,
}

/// The labels of a worker (`WorkerRecord`).
#[derive(Clone, PartialEq, Message)]
struct Labels {
    #[prost(btree_map = "string, string", tag = "2")]
    all: BTreeMap<String, String>,
}

/// The same answer without that label; nothing when it stays as it is.
///
/// # Errors
///
/// For what is no such answer.
pub fn unmarked(answer: &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
    let Some(message) = unframed(answer) else { return Ok(None) };
    let mut workers = Workers::decode(message)?;
    for worker in &mut workers.all {
        let mut labels = Labels::decode(worker.as_slice())?;
        labels.all.remove(SNAPSHOTTER);
        let mut unmarked = without(worker, &[LABELS])?;
        unmarked.extend(labels.encode_to_vec());
        *worker = unmarked;
    }
    Ok(Some(framed(&[&workers.encode_to_vec()])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_snapshotter_is_told() {
        let labels = |keys: &[&str]| Labels {
            all: keys.iter().map(|key| ((*key).to_owned(), "x".to_owned())).collect(),
        };
        // A name before the labels, and a platform behind.
        let worker = |keys: &[&str]| {
            [b"\x0a\x01w".as_slice(), b"\x1a\x02\x0a\x00", &labels(keys).encode_to_vec()].concat()
        };
        let answer = |all: Vec<Vec<u8>>| framed(&[&Workers { all }.encode_to_vec()]);
        let said = answer(vec![worker(&["a", SNAPSHOTTER, "z"]), worker(&["b"])]);
        assert_eq!(unmarked(&said).unwrap().unwrap(), answer(vec![worker(&["a", "z"]), worker(&["b"])]));
        assert_eq!(unmarked(b"\x01\0\0\0\x01x").unwrap(), None);
        assert!(unmarked(b"\0\0\0\0\x02\x0a\x09").is_err());
    }
}
