//! Black-box suite: foreign suites, which must pass on the reference first.
