//! Memory that was used goes back to the kernel when there is nothing to do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use orlop_host::sys::allocator;
use orlop_proto::error::Context;

use crate::db::blocking;

/// How long nothing must have begun.
const QUIET: Duration = Duration::from_secs(5);

/// How many calls have begun.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Notes that a call begins.
pub fn note_call() {
    CALLS.fetch_add(1, Ordering::Relaxed);
}

/// Gives back, each time the calls have paused, what is free of the heap and what was mapped of the program.
pub async fn give_back() {
    let (mut seen, mut given) = (0, 0);
    loop {
        tokio::time::sleep(QUIET).await;
        let calls = CALLS.load(Ordering::Relaxed);
        if calls == seen && calls != given {
            let released = blocking(|| {
                allocator::trim();
                allocator::release_program().context("read", "/proc/self/smaps")
            });
            if let Err(error) = released.await {
                tracing::debug!(%error, "the program's pages stay");
            }
            given = calls;
        }
        seen = calls;
    }
}
