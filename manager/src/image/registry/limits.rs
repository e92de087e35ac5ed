//! What a registry says about how much it may be asked: `Retry-After` (RFC 9110) and the `RateLimit` headers that Docker
//! Hub sends.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// How long a registry asks to wait.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = httpdate::parse_http_date(text).ok()?;
    // What is past is now.
    Some(time.duration_since(now).unwrap_or_default())
}

/// How many pulls are left of how many: `0 of 100 pulls are left in 6 h`.
pub fn left(headers: &HeaderMap) -> Option<(u64, String)> {
    let read = |name: &str| {
        let mut parts = headers.get(name)?.to_str().ok()?.split(';');
        let count: u64 = parts.next()?.trim().parse().ok()?;
        let window = parts.find_map(|part| part.trim().strip_prefix("w=")?.parse().ok());
        Some((count, window.map(Duration::from_secs)))
    };
    let (left, window) = read("ratelimit-remaining")?;
    let of = read("ratelimit-limit").map_or_else(String::new, |(limit, _)| format!(" of {limit}"));
    let within = window.map_or_else(String::new, |window| format!(" in {}", words(window)));
    Some((left, format!("{left}{of} pulls are left{within}")))
}

/// A time in the largest unit that says it whole: `6 h`, `90 s`.
pub fn words(time: Duration) -> String {
    // Less than a second is a second to wait.
    match time.as_secs() + u64::from(time.subsec_nanos() > 0) {
        seconds if seconds > 0 && seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds if seconds > 0 && seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    reqwest::header::HeaderName::from_static(name),
                    reqwest::header::HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn times_to_wait_are_seconds_or_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |text| retry_after(&headers(&[("retry-after", text)]), now);
        assert_eq!(wait(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-1"), None);
    }

    #[test]
    fn limits_are_told() {
        let hub = headers(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "3;w=21600")]);
        assert_eq!(left(&hub), Some((3, "3 of 100 pulls are left in 6 h".to_owned())));
        assert_eq!(left(&headers(&[("ratelimit-remaining", "0")])), Some((0, "0 pulls are left".to_owned())));
        assert_eq!(left(&headers(&[])), None);
        assert_eq!(words(Duration::from_millis(1500)), "2 s");
        assert_eq!(words(Duration::from_secs(120)), "2 min");
    }
}
