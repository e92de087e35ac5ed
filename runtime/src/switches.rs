//! Guards that a test can switch off one by one, to show that the attack works without them.
//!
//! Only in a build with the feature `test-switches`, which no product build has; there `ORLOP_TEST_OFF` names the
//! guards, separated by commas. In the product every answer is a constant.

/// Whether a guard is switched off.
#[cfg(feature = "test-switches")]
pub fn is_off(guard: &str) -> bool {
    std::env::var("ORLOP_TEST_OFF").is_ok_and(|off| off.split(',').any(|name| name == guard))
}

/// Whether a guard is switched off: never.
#[cfg(not(feature = "test-switches"))]
pub const fn is_off(_guard: &str) -> bool {
    false
}

/// A directory in the place of the resctrl file system, which needs hardware: `ORLOP_TEST_RESCTRL`.
#[cfg(feature = "test-switches")]
pub fn resctrl() -> Option<std::path::PathBuf> {
    std::env::var_os("ORLOP_TEST_RESCTRL").map(Into::into)
}

/// A directory in the place of the resctrl file system: none.
#[cfg(not(feature = "test-switches"))]
pub const fn resctrl() -> Option<std::path::PathBuf> {
    None
}
