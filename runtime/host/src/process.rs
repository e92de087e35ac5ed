//! What `/proc` says about a process.

use std::io;
use std::path::Path;

use orlop_proto::error::{Context, Result};

use crate::file;

/// `PF_FORKNOEXEC` of the kernel's `include/linux/sched.h`: forked and nothing executed since.
const FORKED: u32 = 0x40;

/// A line of `/proc/PID/stat` (proc_pid_stat(5)), as far as orlop needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The state letter: `R`, `S`, `D`, `Z`, `T`, `X`, …
    pub state: u8,
    /// The parent's process id.
    pub parent: i32,
    /// The kernel's `PF_…` flags.
    flags: u32,
    /// When it started, in clock ticks after boot: with the pid it names one process of this boot.
    pub start_time: u64,
}

impl Stat {
    /// Reads the entry of a process.
    pub fn of(pid: i32) -> Result<Stat> {
        let path = format!("/proc/{pid}/stat");
        let text = file::read(Path::new(&path)).context("read", &path)?;
        Stat::parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData)).context("parse", &path)
    }

    fn parse(text: &[u8]) -> Option<Stat> {
        // The command in parentheses may itself hold spaces and parentheses.
        let after = text.iter().rposition(|&byte| byte == b')')? + 1;
        let rest = std::str::from_utf8(text.get(after..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        // The flags are field 9 of the line and the start time field 22; the parent was the fourth.
        let flags = fields.nth(4)?.parse().ok()?;
        let start_time = fields.nth(12)?.parse().ok()?;
        Some(Stat { state, parent, flags, start_time })
    }

    /// Whether the process has ended, even if nobody has waited for it.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether the process has executed a program since it was forked.
    pub fn has_executed(&self) -> bool {
        self.flags & FORKED == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields_after_a_strange_command_name() {
        let line = b"7 (a) b) Z 1 7 7 0 -1 4228100 0 0 0 0 0 0 0 0 20 0 1 0 159592 0 0 184 \n";
        assert_eq!(
            Stat::parse(line),
            Some(Stat { state: b'Z', parent: 1, flags: 4_228_100, start_time: 159_592 })
        );
        assert_eq!(Stat::parse(b"7 (a"), None);
        assert_eq!(Stat::parse(b"7 (a) S 1"), None);
    }

    #[test]
    fn reads_our_own() {
        let stat = Stat::of(std::process::id() as i32).unwrap();
        assert!(!stat.has_ended() && stat.start_time > 0 && stat.has_executed());
    }
}
