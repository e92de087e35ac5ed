//! Signals by name and number.

use std::str::FromStr;

use nix::sys::signal::Signal;

use super::failure::{Failure, Result};

/// The highest number of a signal.
const LAST: i32 = 64;
/// The number of the first real-time signal that programs may use.
const FIRST_REAL_TIME: i32 = 34;

/// The number of `9`, `KILL`, `SIGKILL`, `RTMIN+3`.
///
/// # Errors
///
/// 400 in dockerd's words.
pub fn parse(text: &str) -> Result<u32> {
    let wrong = || Failure::invalid(format!("invalid signal: {text}"));
    let number = match text.parse::<i32>() {
        Ok(number) => number,
        Err(_) => {
            let name = text.to_uppercase();
            let name = name.strip_prefix("SIG").unwrap_or(&name);
            let offset = |rest: &str| rest.parse::<i32>().ok();
            match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
                (Some(""), _) => FIRST_REAL_TIME,
                (_, Some("")) => LAST,
                (Some(rest), _) => FIRST_REAL_TIME + offset(rest).ok_or_else(wrong)?,
                (_, Some(rest)) => LAST + offset(rest).ok_or_else(wrong)?,
                _ => Signal::from_str(&format!("SIG{name}")).map_err(|_| wrong())? as i32,
            }
        }
    };
    match number {
        1..=LAST => Ok(number.unsigned_abs()),
        0 => Err(wrong()),
        _ => Err(Failure::invalid(format!("the linux daemon does not support signal {text}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("RTMIN", 34)]
        {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for wrong in ["", "0", "65", "NOPE", "RTMIN+x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
