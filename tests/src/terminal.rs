//! A terminal for a program that wants one, with a person at its other end.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::binaries;
use crate::command::{Cmd, Process};

/// A program that leads a session of its own on a new terminal; killed when dropped.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    shown: Arc<Mutex<Vec<u8>>>,
    process: Process,
}

impl Terminal {
    /// Starts a program with arguments on a terminal of so many rows and columns.
    ///
    /// # Panics
    /// When the terminal cannot be had, or the program not be started.
    pub fn start(cmd: &Cmd, rows: u16, columns: u16) -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a terminal of ours");
        tcsetwinsize(&master, size(rows, columns)).expect("setting the terminal's size");
        let slave = ioctl_tiocgptpeer(&master, flags).expect("the terminal's other side");
        let side = || slave.try_clone().expect("a descriptor");
        let streams = [side(), side(), side()];
        let process = Cmd::new(binaries::system("setsid"))
            .args(["--ctty", "--wait"])
            .args(cmd.words())
            .with(|command| {
                let [stdin, stdout, stderr] = streams;
                command.stdin(stdin).stdout(stdout).stderr(stderr);
            })
            .keep_stdio()
            .spawn();
        let master = File::from(master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, text) = (master.try_clone().expect("a descriptor"), Arc::clone(&shown));
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            // The last one to close the other side ends it with an error.
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                text.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..count]);
            }
        });
        Terminal { master, shown, process }
    }

    /// Types a text.
    ///
    /// # Panics
    /// When nobody has the terminal any more.
    pub fn enter(&self, text: &str) {
        (&self.master).write_all(text.as_bytes()).expect("typing");
    }

    /// Changes the size, which the foreground processes are told by SIGWINCH.
    ///
    /// # Panics
    /// When nobody has the terminal any more.
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(self.master.as_fd(), size(rows, columns)).expect("setting the terminal's size");
    }

    /// What has been shown so far, with plain line ends.
    pub fn shown(&self) -> String {
        let bytes = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits for the program's end and returns its exit code.
    ///
    /// # Panics
    /// When it does not end before the deadline.
    pub fn wait(self, deadline: Duration) -> i32 {
        self.process.wait(deadline).code()
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
