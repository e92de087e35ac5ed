//! Mutated layers: whatever the bytes are, nothing outside the root changes, nothing panics, and every failure is an
//! error of ours that says what was wrong.
//!
//! The seed is fixed, so that a failure repeats. `ORLOP_FUZZ_ROUNDS` and `ORLOP_FUZZ_SEED` run more and others;
//! `ORLOP_FUZZ_SECONDS` goes on until the time is over, as `make fuzz` does.

use std::io::Write;
use std::time::{Duration, Instant};

use orlop_proto::kind::Kind;
use tar::EntryType;

use super::Whiteouts;
use super::tests::{Layer, Place, is_root};
use crate::chance::Chance;

/// Rounds of an ordinary test run.
const ROUNDS: u64 = 300;

/// Names that lead astray.
const NAMES: [&str; 16] = [
    "a",
    "a/b",
    "a/b/c",
    "../outside/secret",
    "/outside/secret",
    "a/../../outside/x",
    "way",
    "way/secret",
    ".",
    "..",
    "a/.wh.b",
    ".wh.a",
    "a/.wh..wh..opq",
    ".wh...",
    ".wh..wh.x",
    "way/.wh.secret",
];

/// A layer of entries by chance, sealed with right checksums.
fn layer(chance: &mut Chance) -> Vec<u8> {
    let kinds = [
        EntryType::Regular,
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Fifo,
        EntryType::GNUSparse,
        EntryType::XHeader,
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XGlobalHeader,
    ];
    let targets = [
        "../outside",
        "/",
        "..",
        "a",
        "a/b",
        "way",
        "/proc/self/root",
        "../../../../outside/secret",
        "way/secret",
    ];
    let mut layer = Layer::new();
    for _ in 0..1 + chance.below(12) {
        let kind = *chance.pick(&kinds);
        let name = *chance.pick(&NAMES);
        let target = *chance.pick(&targets);
        let data: Vec<u8> = match kind {
            EntryType::XHeader => {
                let record = *chance.pick(&[
                    "path",
                    "linkpath",
                    "size",
                    "mtime",
                    "uid",
                    "SCHILY.xattr.user.x",
                    "GNU.sparse.map",
                ]);
                let value =
                    *chance.pick(&["../outside/secret", "0,4,8,4", "-1.5", "99999999999999999999", "7", ""]);
                format!("{} {record}={value}\n", record.len() + value.len() + 5).into_bytes()
            }
            EntryType::GNULongName | EntryType::GNULongLink => {
                format!("{name}/{}\0", "l".repeat(chance.below(300))).into_bytes()
            }
            EntryType::Regular | EntryType::GNUSparse => vec![b'x'; chance.below(2000)],
            _ => Vec::new(),
        };
        layer = layer.add(kind, name, &data, |header| {
            let link = &mut header.as_old_mut().linkname;
            link[..target.len()].copy_from_slice(target.as_bytes());
        });
    }
    layer.end()
}

/// Breaks some bytes, cuts, or doubles a part.
fn mutate(bytes: &mut Vec<u8>, chance: &mut Chance) {
    for _ in 0..chance.below(4) {
        let at = chance.below(bytes.len());
        match chance.below(4) {
            0 => bytes[at] ^= 1 << chance.below(8),
            1 => bytes.truncate(at.max(1)),
            2 => {
                let end = (at + chance.below(1024)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => bytes[at] = chance.number() as u8,
        }
    }
}

fn compressed(bytes: &[u8], chance: &mut Chance) -> Vec<u8> {
    match chance.below(3) {
        0 => bytes.to_vec(),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        _ => zstd::encode_all(bytes, 1).unwrap(),
    }
}

#[test]
fn mutated_layers_stay_in_their_root() {
    if !is_root() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("ORLOP_FUZZ_SEED").unwrap_or(1);
    let end = number("ORLOP_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let rounds = number("ORLOP_FUZZ_ROUNDS").unwrap_or(if end.is_some() { u64::MAX } else { ROUNDS });
    for round in 0..rounds {
        if end.is_some_and(|end| Instant::now() >= end) {
            println!("unpack: {round} rounds of seed {seed}");
            break;
        }
        let mut chance = Chance::of(seed, round);
        let whiteouts = *chance.pick(&[Whiteouts::Delete, Whiteouts::Overlay { userxattr: false }]);
        // The place itself checks, after every layer, that nothing around the root has changed.
        let place = Place::new();
        for _ in 0..2 {
            let mut bytes = layer(&mut chance);
            if chance.below(2) == 0 {
                mutate(&mut bytes, &mut chance);
            }
            let mut bytes = compressed(&bytes, &mut chance);
            if chance.below(4) == 0 {
                mutate(&mut bytes, &mut chance);
            }
            if let Err(error) = place.apply_with(&bytes, whiteouts, &[]) {
                assert_ne!(error.kind(), Kind::Internal, "seed {seed}, round {round}: {error}");
                assert!(error.to_string().len() < 2000, "seed {seed}, round {round}");
            }
        }
    }
}
