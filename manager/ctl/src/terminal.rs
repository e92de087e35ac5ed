//! The terminal that the program runs on: raw mode and size.

use std::io::{self, IsTerminal};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use orlop_proto::error::{Context, Result};

/// The terminal in raw mode; its former mode comes back when this is dropped.
pub struct Raw {
    former: Termios,
}

impl Raw {
    /// Puts the terminal on standard input into raw mode; None where that is not a terminal.
    ///
    /// # Errors
    ///
    /// Those of tcsetattr(3).
    pub fn enter() -> Result<Option<Raw>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let former = tcgetattr(&stdin).context("read mode of", "terminal")?;
        let mut raw = former.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).context("set mode of", "terminal")?;
        // A panic ends the program where it stands: nothing is dropped, and what it says wants lines.
        let (before, cooked) = (std::panic::take_hook(), nix::libc::termios::from(former.clone()));
        std::panic::set_hook(Box::new(move |panic| {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &Termios::from(cooked));
            before(panic);
        }));
        Ok(Some(Raw { former }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone has no mode to restore.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.former);
    }
}

/// Rows and columns of the terminal; None where there is none.
pub fn size() -> Option<(u16, u16)> {
    console::Term::stdout().size_checked()
}
