//! Black-box suite: hostile input, mutated from valid seeds.
//!
//! Every input is made from a number, which a failure prints: the same number makes the same input again
//! (`ORLOP_FUZZ_SEED`). `make test` tries each target for two seconds, `make fuzz` for `ORLOP_FUZZ_SECONDS`.

mod api;
mod archive;
mod config;
mod random;

use std::time::{Duration, Instant};

use random::Random;

/// Calls `attempt` with ever new random sources until the time is over; the number of each is printed when it fails.
fn for_a_while(target: &str, mut attempt: impl FnMut(&mut Random)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let fixed = number("ORLOP_FUZZ_SEED");
    let end = Instant::now() + Duration::from_secs(number("ORLOP_FUZZ_SECONDS").unwrap_or(2));
    let first = fixed.unwrap_or(1);
    let mut seed = first;
    loop {
        let shown = Shown { target, seed };
        attempt(&mut Random::new(seed));
        drop(shown);
        seed += 1;
        if fixed.is_some() || Instant::now() >= end {
            println!("{target}: {} inputs", seed - first);
            return;
        }
    }
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
