//! What the engine may take of the machine: a figure of the release build, which `make test` and `make soak` run.

use orlop_tests::{binaries, host, number};

use super::side::Side;

/// Resident memory right after the runs, in bytes.
const RESIDENT: u64 = 20 << 20;

/// `ORLOP_BUDGET_RUNS` says how many runs (`make soak`: 100).
#[test]
fn an_engine_is_small_right_after_many_runs() {
    let mut side = Side::orlopd();
    for _ in 0..number("ORLOP_BUDGET_RUNS", 20) {
        side.says("$docker run --rm bb true");
    }
    let pid = side.manager().pid().expect("it runs");
    let resident = host::resident(pid).expect("it runs");
    println!("{} KiB resident", resident >> 10);
    assert!(resident <= RESIDENT || !binaries::is_release(&binaries::orlopd()), "{resident} bytes resident");
    side.finish();
}
