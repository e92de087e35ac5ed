//! `kill`: a signal for init, or for every process.

use std::os::fd::AsFd;

use nix::sys::signal::Signal;
use orlop_host::sys;
use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::state::Status;
use orlop_proto::error::{Context, Error, Result};

use crate::cli::{Global, KillArgs};
use crate::container::Container;

/// Sends the signal.
pub fn run(global: &Global, arguments: &KillArgs) -> Result<()> {
    let container = Container::open(&global.root, &arguments.id)?;
    let number = number(arguments.signal.as_deref().unwrap_or("SIGTERM"))?;
    if arguments.all {
        return container.cgroup()?.signal_number(number);
    }
    let Some(init) = container.init()? else { return Err(RuncError::NotRunning.into()) };
    match sys::pid::pidfd_send_signal(init.as_fd(), number) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(RuncError::ProcessFinished.into()),
        other => other.context("unable to signal", "init"),
    }?;
    // Nothing else would let a frozen process die.
    if number == libc::SIGKILL && container.status()? == Status::Paused {
        container.cgroup()?.thaw()?;
    }
    Ok(())
}

/// A signal's number from its number or its name, with or without `SIG`.
fn number(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let unknown = || Error::from(RuncError::UnknownSignal(text.to_owned()));
    if let Some(realtime) = name.strip_prefix("RT") {
        return realtime_number(realtime).ok_or_else(unknown);
    }
    match name {
        "IOT" => Ok(libc::SIGABRT),
        "CLD" => Ok(libc::SIGCHLD),
        "POLL" => Ok(libc::SIGIO),
        _ => format!("SIG{name}").parse::<Signal>().map(|signal| signal as i32).map_err(|_| unknown()),
    }
}

/// `MIN`, `MIN+3`, `MAX`, `MAX-2`: the kernel's 34 to 64, as glibc programs know them.
fn realtime_number(text: &str) -> Option<i32> {
    const MIN: i32 = 34;
    const MAX: i32 = 64;
    let offset = |rest: &str, sign: char| -> Option<i32> {
        if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse().ok() }
    };
    let number = match text.strip_prefix("MIN") {
        Some(rest) => MIN + offset(rest, '+')?,
        None => MAX - offset(text.strip_prefix("MAX")?, '-')?,
    };
    (MIN..=MAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_number_and_name() {
        for (text, expected) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("RTMIN+1", 35),
            ("SIGRTMAX-1", 63),
            ("99", 99),
        ] {
            assert_eq!(number(text).unwrap(), expected, "{text}");
        }
        assert_eq!(number("FOO").unwrap_err().to_string(), "unknown signal \"FOO\"");
        number("RTMIN+99").unwrap_err();
    }
}
