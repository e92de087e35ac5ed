//! Moments and times as Docker's clients write them. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::container::state;
use super::failure::{Failure, Result};

/// A moment as clients give it: seconds since 1970, with a fraction.
///
/// # Errors
///
/// 400 for anything else.
pub fn exact(text: &str) -> Result<SystemTime> {
    let wrong = || Failure::invalid(format!("invalid value for time: {text:?}"));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = seconds.parse().map_err(|_| wrong())?;
    let nanoseconds: u32 = match fraction.len() {
        0 => 0,
        1..=9 => format!("{fraction:0<9}").parse().map_err(|_| wrong())?,
        _ => return Err(wrong()),
    };
    Ok(UNIX_EPOCH + Duration::new(seconds, nanoseconds))
}

/// A moment as filters name it: a time before now (`24h`), a date, with or without a time of the day and a time zone (UTC where
/// there is none), or seconds since 1970.
///
/// # Errors
///
/// 400 for anything else.
pub fn of_filter(text: &str, now: SystemTime) -> Result<SystemTime> {
    let wrong = || Failure::invalid(format!("failed to parse value as time or duration: {text:?}"));
    if let Some(before) = duration(text) {
        let span = Duration::from_nanos(before.unsigned_abs());
        let moment = if before < 0 { now.checked_add(span) } else { now.checked_sub(span) };
        return moment.ok_or_else(wrong);
    }
    if let Ok(moment) = exact(text) {
        return Ok(moment);
    }
    let (date, clock) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let (clock, zone) = match clock.find(['Z', '+', '-']) {
        Some(at) => clock.split_at(at),
        None => (clock, "Z"),
    };
    let missing = match clock.split(':').count() {
        1 => ":00:00",
        2 => ":00",
        _ => "",
    };
    state::parse(&format!("{date}T{clock}{missing}{zone}")).ok_or_else(wrong)
}

/// Nanoseconds of Go's text for times: `1m30s`, `1.5h`, `300ms`.
pub fn duration(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let after = &rest[end..];
        let unit_end =
            after.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(after.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &after[..unit_end])?;
        total += number * unit;
        rest = &after[unit_end..];
    }
    let total = sign * total;
    (total.abs() < i64::MAX as f64).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_fractions() {
        assert_eq!(exact("5").unwrap(), UNIX_EPOCH + Duration::from_secs(5));
        assert_eq!(exact("5.25").unwrap(), UNIX_EPOCH + Duration::from_millis(5250));
        assert_eq!(exact("5.000000001").unwrap(), UNIX_EPOCH + Duration::new(5, 1));
        for wrong in ["", "x", "-1", "5.x", "5.0000000001"] {
            assert_eq!(exact(wrong).unwrap_err().status, 400, "{wrong}");
        }
    }

    #[test]
    fn filters_name_times_before_now_and_dates() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |text: &str| of_filter(text, now).unwrap().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!((at("24h"), at("1m30s"), at("0")), (913_600, 999_910, 1_000_000));
        assert_eq!((at("5"), at("5.5")), (5, 5));
        assert_eq!((at("1970-01-02"), at("1970-01-02T01"), at("1970-01-01T00:01")), (86_400, 90_000, 60));
        assert_eq!((at("1970-01-01T00:00:07"), at("1970-01-01T01:00:00+01:00")), (7, 0));
        for wrong in ["", "x", "1d", "yesterday", "1970-01-01Tx"] {
            assert_eq!(of_filter(wrong, now).unwrap_err().status, 400, "{wrong}");
        }
    }
}
