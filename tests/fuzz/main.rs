//! Black-box suite: hostile input, mutated from valid seeds.
