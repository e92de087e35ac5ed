//! Fuzz targets: the parsers of the runtime, in process, with input made from the kept corpus in `tests/fuzz/corpus`.
//!
//! Every input is made from a number, which a failure prints: the same number makes the same input again (`ORLOP_FUZZ_SEED`).
//! A unit test run tries each target a fixed number of times, always with the same inputs; `make soak` a million times
//! (`ORLOP_FUZZ_RUNS`). An input that found a defect goes into the corpus, whose entries are all tried unchanged first.

#[path = "../../../tests/fuzz/drive.rs"]
mod drive;
#[path = "../../../tests/fuzz/input.rs"]
mod input;
#[path = "../../../tests/fuzz/random.rs"]
mod random;
mod targets;

use drive::drive;
