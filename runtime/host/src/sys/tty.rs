//! Terminals: opening a pair without trusting a path, size, modes, becoming the controlling terminal.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{check, check_fd};

/// Unlocks the other end of a pseudoterminal's master (`TIOCSPTLCK`).
pub fn unlock(master: BorrowedFd) -> io::Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which outlives the call.
    check(i64::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) }))?;
    Ok(())
}

/// Opens the other end of a pseudoterminal by its master, so that no path is involved (`TIOCGPTPEER`).
pub fn open_peer(master: BorrowedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes its flags as a number.
    check_fd(i64::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }))
}

/// The number of a pseudoterminal below `/dev/pts` (`TIOCGPTN`).
pub fn number(master: BorrowedFd) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int, which outlives the call.
    check(i64::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) }))?;
    Ok(number)
}

/// Makes a terminal the controlling one of our session.
pub fn set_controlling(terminal: BorrowedFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    check(i64::from(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }))?;
    Ok(())
}

/// Rows and columns of a terminal.
pub fn size(terminal: BorrowedFd) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which outlives the call.
    check(i64::from(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }))?;
    Ok((size.ws_row, size.ws_col))
}

/// Sets rows and columns of a terminal.
pub fn set_size(terminal: BorrowedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    check(i64::from(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }))?;
    Ok(())
}
