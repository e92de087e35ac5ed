//! Times as Go's `time.RFC3339Nano` writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Year, month, day of a count of days since 1970 (proleptic Gregorian calendar).
fn date(days: i64) -> (i64, u32, u32) {
    // Count from 1 March of year 0, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn seconds_text(since: Duration) -> String {
    let seconds = since.as_secs();
    let (year, month, day) = date((seconds / 86_400) as i64);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// A time in UTC with whole seconds, `2026-11-21T01:17:11Z`; times before 1970 are shown as 1970.
pub fn rfc3339(time: SystemTime) -> String {
    format!("{}Z", seconds_text(time.duration_since(UNIX_EPOCH).unwrap_or_default()))
}

/// A time in UTC with nanoseconds, trailing zeroes left off.
pub fn rfc3339_nano(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = seconds_text(since);
    if since.subsec_nanos() != 0 {
        text.push_str(format!(".{:09}", since.subsec_nanos()).trim_end_matches('0'));
    }
    text.push('Z');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_known_times() {
        let at = |seconds, nanos| UNIX_EPOCH + Duration::new(seconds, nanos);
        assert_eq!(rfc3339(at(0, 0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(at(951_782_399, 0)), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(at(951_782_400, 0)), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(at(1_795_223_831, 0)), "2026-11-21T01:17:11Z");
        assert_eq!(rfc3339_nano(at(1_795_223_831, 120_000_000)), "2026-11-21T01:17:11.12Z");
        assert_eq!(rfc3339_nano(at(1_795_223_831, 0)), "2026-11-21T01:17:11Z");
    }
}
