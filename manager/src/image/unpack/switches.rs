//! Guards that a test can switch off, to show which of them holds.

/// Whether a guard is switched off: `ORLOP_TEST_OFF` names them, separated by commas, in the test program alone.
#[cfg(test)]
pub fn is_off(guard: &str) -> bool {
    static OFF: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let off = OFF.get_or_init(|| std::env::var("ORLOP_TEST_OFF").unwrap_or_default());
    !off.is_empty() && off.split(',').any(|name| name == guard)
}

/// Whether a guard is switched off: never.
#[cfg(not(test))]
pub const fn is_off(_guard: &str) -> bool {
    false
}
