//! The shim's log: the bundle's `log` FIFO, which the manager reads. A reader that is away or slow costs the line, not
//! the container.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::SystemTime;

use nix::libc;

thread_local! {
    static LOG: RefCell<Option<Log>> = const { RefCell::new(None) };
}

struct Log {
    path: String,
    fifo: Option<File>,
    debug: bool,
    context: String,
}

/// Begins to log to a FIFO; `context` follows each message.
pub fn open(path: String, debug: bool, context: String) {
    LOG.with_borrow_mut(|log| *log = Some(Log { path, fifo: None, debug, context }));
}

/// Something is wrong that no caller learns otherwise.
pub fn warn(message: impl fmt::Display) {
    write("warning", &message);
}

/// What the shim does, when `-debug` is given.
pub fn debug(message: impl fmt::Display) {
    if LOG.with_borrow(|log| log.as_ref().is_some_and(|log| log.debug)) {
        write("debug", &message);
    }
}

fn write(level: &str, message: &dyn fmt::Display) {
    LOG.with_borrow_mut(|log| {
        let Some(log) = log else { return };
        let line = format!(
            "time=\"{}\" level={level} msg={:?} {}\n",
            timestamp(SystemTime::now()),
            message.to_string(),
            log.context
        );
        if log.fifo.is_none() {
            let mut options = File::options();
            log.fifo = options.write(true).custom_flags(libc::O_NONBLOCK).open(&log.path).ok();
        }
        if let Some(fifo) = &mut log.fifo
            && let Err(error) = fifo.write_all(line.as_bytes())
            && error.kind() != std::io::ErrorKind::WouldBlock
        {
            log.fifo = None;
        }
    });
}

/// RFC 3339 in UTC with nanoseconds, as Go's logs have it.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = ((since.as_secs() / 86_400) as i64, since.as_secs() % 86_400);
    // Days since 1970 to a date of the Gregorian calendar, counting years from March so that leap days come last.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_nanos()
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_right() {
        let at = |seconds| timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59.000000000Z");
        assert_eq!(at(4_102_444_800), "2100-01-01T00:00:00.000000000Z");
    }
}
