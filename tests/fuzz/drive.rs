//! How a fuzz target in a crate is driven: inputs made from numbers and the kept corpus, which a unit test run tries a fixed
//! number of times and `make soak` a million times (`ORLOP_FUZZ_RUNS`).

use std::path::{Path, PathBuf};

use super::random::Random;

/// How often a unit test run tries each target.
const SAMPLE: u64 = 2000;

/// The kept inputs of a target, sorted by name so that a number always means the same input.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&directory).expect("a corpus for each target");
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.expect("an entry of the corpus").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files.iter().map(|file| std::fs::read(file).expect("an input of the corpus")).collect()
}

/// Gives `attempt` each input of the corpus, and then as many as asked for that `make` makes of it.
pub fn drive<T>(
    target: &str,
    make: impl Fn(&mut Random, &[Vec<u8>]) -> T,
    mut attempt: impl FnMut(&T),
    kept: impl Fn(&[u8]) -> Vec<T>,
) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let corpus = corpus(target);
    corpus.iter().flat_map(|entry| kept(entry)).for_each(|entry| attempt(&entry));
    let (first, runs) = match number("ORLOP_FUZZ_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("ORLOP_FUZZ_RUNS").unwrap_or(SAMPLE)),
    };
    for seed in first..first + runs {
        let shown = Shown { target, seed };
        attempt(&make(&mut Random::new(seed), &corpus));
        drop(shown);
    }
    println!("{target}: {runs} inputs");
}

/// Prints the seed when it is dropped by a panic.
struct Shown<'a> {
    target: &'a str,
    seed: u64,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: ORLOP_FUZZ_SEED={} makes this input again", self.target, self.seed);
        }
    }
}
