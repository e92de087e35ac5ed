//! Memory that was used goes back to the kernel when there is nothing to do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use orlop_host::sys::allocator;
use orlop_proto::error::Context;

use crate::db::blocking;

/// How long nothing must have begun.
const QUIET: Duration = Duration::from_secs(5);
/// How many bytes of the program's file may stay mapped then: what waiting itself touches is less.
const MAPPED: u64 = 6 << 20;

/// How many calls have begun.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Notes that a call begins.
pub fn note_call() {
    CALLS.fetch_add(1, Ordering::Relaxed);
}

/// Gives back, each time the calls have paused, what is free of the heap and what was mapped of the program.
pub async fn give_back() {
    let (mut seen, mut given) = (0, None);
    loop {
        tokio::time::sleep(QUIET).await;
        let calls = CALLS.load(Ordering::Relaxed);
        // Work in the background, such as a collection, maps what it touches too.
        if calls == seen && (given != Some(calls) || mapped() > MAPPED) {
            let released = blocking(|| {
                allocator::trim();
                allocator::release_program().context("read", "/proc/self/smaps")
            });
            if let Err(error) = released.await {
                tracing::debug!(%error, "the program's pages stay");
            }
            given = Some(calls);
        }
        seen = calls;
    }
}

/// Resident bytes that belong to files (proc_pid_statm(5), "shared"); 0 where nobody knows.
fn mapped() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_ascii_whitespace().nth(2).and_then(|word| word.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
