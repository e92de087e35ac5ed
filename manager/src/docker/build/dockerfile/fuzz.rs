//! Mutated Dockerfiles: they are read or refused, never with a panic, and what is refused names a line that is there.
//!
//! The seed is fixed, so that a failure repeats; `ORLOP_FUZZ_ROUNDS` and `ORLOP_FUZZ_SECONDS` go on for longer.

use std::time::{Duration, Instant};

use super::*;
use crate::chance::Chance;

/// Rounds of an ordinary test run.
const ROUNDS: u64 = 3000;

const SEED: &str = "# syntax=docker/dockerfile:1\n# escape=`\nARG V=${X:-1}\nFROM --platform=$P a:${V%.*} AS b\nENV A=1 \
                    B=\"x y\" C='z'\nRUN [\"a\", \"b\"]\nRUN a `\n  b\nRUN <<-E cat <<\"F\"\n\tx\nE\ny\nF\nCOPY --from=b \
                    --chown=1:2 [\"a\", \"b\"]\nHEALTHCHECK --interval=5s CMD x\nONBUILD ADD a b\nEXPOSE 80/tcp $q\nLABEL \
                    a=${b//x/y}\nSHELL [\"x\"]\nVOLUME /a /b\n";
const PIECES: [&str; 18] = [
    "\n",
    "\\\n",
    "`\n",
    "\"",
    "'",
    "${",
    "}",
    "$",
    "<<E",
    "\nE\n",
    "--from=",
    "[\"",
    "\"]",
    "\r\n",
    "\u{feff}",
    "# escape=`\n",
    "FROM ",
    "é",
];

fn mutated(chance: &mut Chance) -> String {
    let mut letters: Vec<char> = SEED.chars().collect();
    for _ in 0..=chance.below(8) {
        let at = chance.below(letters.len());
        match chance.below(4) {
            0 => drop(letters.remove(at)),
            1 => letters.truncate(letters.len() - chance.below(letters.len() / 2)),
            2 => letters.swap(at, 0),
            _ => drop(letters.splice(at..at, PIECES[chance.below(PIECES.len())].chars())),
        }
        if letters.is_empty() {
            letters.push('F');
        }
    }
    letters.into_iter().collect()
}

#[test]
fn whatever_a_dockerfile_says_it_is_read_or_refused() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let until = number("ORLOP_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let rounds = number("ORLOP_FUZZ_ROUNDS").unwrap_or(ROUNDS);
    let mut chance = Chance::of(0x0d0c_cafe, 0);
    let variables = vec!["X=1.2".to_owned(), "q=80 443".to_owned()];
    let mut round = 0;
    while round < rounds || until.is_some_and(|until| Instant::now() < until) {
        round += 1;
        let text = mutated(&mut chance);
        match Dockerfile::parse(&text) {
            Ok(dockerfile) => {
                assert!(!dockerfile.stages.is_empty(), "{text:?}");
                let lexer = Lexer { escape: dockerfile.escape, variables: &variables };
                for stage in &dockerfile.stages {
                    for word in [&stage.base, &stage.platform, &stage.text] {
                        // Read or refused, whatever it is.
                        let _ = (lexer.word(word), lexer.words(word), lexer.document(word));
                    }
                    for step in &stage.steps {
                        let _ = (lexer.word(&step.text), lexer.words(&step.text));
                    }
                }
            }
            Err(error) => {
                assert!(error.line >= 1 && error.line <= text.lines().count().max(1), "{error}: {text:?}");
            }
        }
    }
}
