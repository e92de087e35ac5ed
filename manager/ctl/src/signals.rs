//! Signals: their names, and passing on those that this program receives.

use std::str::FromStr;

use nix::sys::signal::Signal;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Real-time signals as the C library numbers them for programs (signal(7)).
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// Signals that are meant for the container rather than for this program.
const FORWARDED: [Signal; 13] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGIO,
    Signal::SIGPWR,
];

/// A signal's number from its number or name, with or without `SIG`, in either case; also `RTMIN+N` and `RTMAX-N`.
///
/// # Errors
///
/// `InvalidArgument` for what is no signal.
pub fn parse(text: &str) -> Result<u32> {
    let unknown =
        || Error::because(Kind::InvalidArgument, "signal", text, format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<u32>() {
        return if (1..=RTMAX).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(RTMIN),
        (_, Some("")) => Some(RTMAX),
        (Some(more), _) => {
            more.strip_prefix('+').and_then(|n| n.parse().ok()).and_then(|n| RTMIN.checked_add(n))
        }
        (_, Some(less)) => {
            less.strip_prefix('-').and_then(|n| n.parse().ok()).and_then(|n| RTMAX.checked_sub(n))
        }
        (None, None) => {
            return Signal::from_str(&format!("SIG{name}"))
                .map(|signal| signal as u32)
                .map_err(|_| unknown());
        }
    };
    real_time.filter(|number| (RTMIN..=RTMAX).contains(number)).ok_or_else(unknown)
}

/// Catches the signals that are to be passed on, from now on.
///
/// # Errors
///
/// Those of installing a handler.
pub fn forwarded() -> Result<mpsc::UnboundedReceiver<u32>> {
    let (send, receive) = mpsc::unbounded_channel();
    for caught in FORWARDED {
        let number = caught as i32;
        let mut stream = signal(SignalKind::from_raw(number))
            .map_err(|error| Error::io("catch signal", caught.as_str(), error))?;
        let send = send.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if send.send(number as u32).is_err() {
                    return;
                }
            }
        });
    }
    Ok(receive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("term", 15),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "SIGNOPE", "RTMIN+40", "RTMAX-40", "-9"] {
            assert_eq!(parse(text).unwrap_err().kind(), Kind::InvalidArgument, "{text}");
        }
    }
}
