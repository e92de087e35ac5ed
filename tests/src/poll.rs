//! Waiting for a condition with a deadline, never for a fixed time.

use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A deadline as long as this machine needs it: `ORLOP_TEST_PATIENCE` times as long, where that is set. An emulated
/// processor starts processes ten to twenty times more slowly.
pub fn patient(deadline: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = || std::env::var("ORLOP_TEST_PATIENCE").ok()?.parse().ok();
    deadline * *FACTOR.get_or_init(|| factor().unwrap_or(1))
}

/// Calls `condition` until it holds.
///
/// # Panics
/// When `deadline` has passed and it still does not hold; `what` is named in the message.
pub fn poll_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    poll_value(deadline, what, || condition().then_some(()));
}

/// Calls `value` until it returns something, and returns that.
///
/// # Panics
/// When `deadline` has passed without a value; `what` is named in the message.
pub fn poll_value<T>(deadline: Duration, what: &str, value: impl FnMut() -> Option<T>) -> T {
    poll_for(deadline, value).unwrap_or_else(|| panic!("not within {deadline:?}: {what}"))
}

/// Calls `value` until it returns something or `deadline` has passed, which is [`patient`].
pub fn poll_for<T>(deadline: Duration, mut value: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patient(deadline);
    let mut pause = Duration::from_millis(1);
    loop {
        // The time is read first: a condition that holds at last is seen even where the machine stalled meanwhile.
        let late = Instant::now() >= end;
        let found = value();
        if found.is_some() || late {
            return found;
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
