//! CRIU's service: one request and the answers to it, as protocol buffers over a packet socket.
//!
//! Follows CRIU's `rpc.proto` (the field numbers here are its own) and `criu swrk`, criu(8). The few messages are written by
//! hand, as a protocol buffer library would be most of what it takes.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use orlop_host::sys;
use orlop_host::sys::spawn::{Spawn, spawn};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::sync::receive_descriptor;

/// The program.
const CRIU: &str = "criu";
/// Longer than any answer.
const LONGEST: usize = 40960;

/// What CRIU is asked to do (`criu_req_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Call {
    /// Save the processes.
    Dump = 1,
    /// Bring them back.
    Restore = 2,
    /// Save what has changed of their memory, and let them run.
    PreDump = 4,
}

impl std::fmt::Display for Call {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Call::Dump => "DUMP",
            Call::Restore => "RESTORE",
            Call::PreDump => "PRE_DUMP",
        })
    }
}

/// Sent by CRIU in the middle of a call.
const NOTIFY: u64 = 6;

/// A message in the making.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// A number, an enumeration's value or a descriptor.
    pub fn number(&mut self, field: u32, value: u64) -> &mut Message {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    /// A truth value; what is false is left out, as that is every field's default.
    pub fn flag(&mut self, field: u32, value: bool) -> &mut Message {
        if value { self.number(field, 1) } else { self }
    }

    /// A text.
    pub fn text(&mut self, field: u32, value: &str) -> &mut Message {
        self.bytes(field, value.as_bytes())
    }

    /// A message in the message.
    pub fn part(&mut self, field: u32, part: &Message) -> &mut Message {
        self.bytes(field, &part.0)
    }

    fn bytes(&mut self, field: u32, value: &[u8]) -> &mut Message {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A field that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, by number; `None` for what is no message.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(take_varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Value::Bytes(value)
            }
            _ => return None,
        };
        found.push((key >> 3, value));
    }
    Some(found)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What CRIU says in the middle of a call.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// What has come about, such as `post-restore`.
    pub event: String,
    /// The container's init, in our pid namespace, where the event has one.
    pub pid: i32,
}

/// An answer.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    call: u64,
    success: bool,
    restored: Option<i32>,
    notice: Option<Notice>,
    errno: i32,
    why: String,
}

fn decode(bytes: &[u8]) -> Option<Answer> {
    let mut answer = Answer::default();
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    for field in fields(bytes)? {
        match field {
            (1, Value::Number(call)) => answer.call = call,
            (2, Value::Number(success)) => answer.success = success != 0,
            (4, Value::Bytes(part)) => {
                for field in fields(part)? {
                    if let (1, Value::Number(pid)) = field {
                        answer.restored = Some(pid as i32);
                    }
                }
            }
            (5, Value::Bytes(part)) => {
                let mut notice = Notice::default();
                for field in fields(part)? {
                    match field {
                        (1, Value::Bytes(event)) => notice.event = text(event),
                        (2, Value::Number(pid)) => notice.pid = pid as i32,
                        _ => {}
                    }
                }
                answer.notice = Some(notice);
            }
            (7, Value::Number(errno)) => answer.errno = errno as i32,
            (9, Value::Bytes(why)) => answer.why = text(why),
            _ => {}
        }
    }
    Some(answer)
}

/// A running CRIU that waits for its one request.
pub struct Criu {
    /// Its process.
    pub pid: i32,
    pidfd: OwnedFd,
    socket: OwnedFd,
}

impl Criu {
    /// Starts CRIU with our standard streams and, from descriptor 4 on, those of `inherited`, of which there may be four.
    pub fn start(inherited: &[BorrowedFd]) -> Result<Criu> {
        let program = find()?;
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("create", "the channel to criu")?;
        let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let mut descriptors = vec![input.as_fd(), output.as_fd(), errors.as_fd(), theirs.as_fd()];
        descriptors.extend(inherited);
        let string = |text: &str| CString::new(text).expect("words of ours hold no NUL");
        let environment: Vec<CString> = std::env::vars_os()
            .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
            .collect();
        let pid = spawn(&Spawn {
            program: &CString::new(program.as_os_str().as_bytes()).expect("a file's name holds no NUL"),
            executable: None,
            arguments: &[CRIU, "swrk", "3"].map(string),
            environment: &environment,
            descriptors: &descriptors,
            report: errors.as_fd(),
            first: None,
            after: None,
            process_group: false,
            dies_with_us: false,
        })
        .context("execute", CRIU)?;
        let pidfd = sys::pid::pidfd_open(pid).context("open", "the process of criu")?;
        Ok(Criu { pid, pidfd, socket })
    }

    /// Makes the request and answers what CRIU asks meanwhile; returns the restored process.
    ///
    /// # Errors
    /// CRIU's own; `notified`'s, after which CRIU undoes what it did.
    pub fn call(
        self,
        call: Call,
        options: &Message,
        notified: &mut dyn FnMut(&Notice, Option<OwnedFd>) -> Result<()>,
    ) -> Result<Option<i32>> {
        let mut request = Message::default();
        request.number(1, call as u64).part(2, options);
        self.send(&request)?;
        let answered = self.converse(call, notified);
        // Closed first: after an error CRIU ends because of it, and after a pre-dump it would wait for more.
        drop(self.socket);
        let ended = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED);
        let answer = answered?;
        match ended {
            Ok(WaitStatus::Exited(_, 0)) => Ok(answer.restored),
            Ok(_) if call == Call::PreDump => Ok(None),
            Ok(status) => {
                Err(Error::because(Kind::Unknown, "execute", CRIU, format!("it ended with {status:?}")))
            }
            Err(error) => Err(Error::io("wait for", CRIU, error.into())),
        }
    }

    fn converse(
        &self,
        call: Call,
        notified: &mut dyn FnMut(&Notice, Option<OwnedFd>) -> Result<()>,
    ) -> Result<Answer> {
        let mut buffer = vec![0; LONGEST];
        loop {
            let (length, descriptor) = receive_descriptor(self.socket.as_fd(), &mut buffer)?;
            if length == 0 {
                return Err(Error::because(Kind::Aborted, "hear", CRIU, "it has ended without an answer"));
            }
            let answer = decode(&buffer[..length]).ok_or_else(|| {
                Error::because(Kind::Internal, "hear", CRIU, "it sent no answer of its protocol")
            })?;
            if !answer.success {
                let why = format!("criu failed: type {call} errno {} {}", answer.errno, answer.why);
                return Err(Error::exactly(Kind::Unknown, why.trim_end().to_owned()));
            }
            match &answer.notice {
                Some(notice) if answer.call == NOTIFY => {
                    notified(notice, descriptor)?;
                    let mut reply = Message::default();
                    reply.number(1, NOTIFY).flag(3, true);
                    self.send(&reply)?;
                }
                _ if answer.call == call as u64 => return Ok(answer),
                _ => {
                    let why = format!("unexpected answer {}", answer.call);
                    return Err(Error::because(Kind::Internal, "hear", CRIU, why));
                }
            }
        }
    }

    fn send(&self, message: &Message) -> Result<()> {
        nix::unistd::write(&self.socket, &message.0).context("tell", CRIU)?;
        Ok(())
    }
}

/// The program's path.
fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path)
        .map(|directory| directory.join(CRIU))
        .find(|file| nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok())
        .ok_or_else(|| Error::because(Kind::NotFound, "execute", CRIU, "it is not installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_schema() {
        let mut part = Message::default();
        part.text(1, "/x").text(2, "/dev/null");
        let mut message = Message::default();
        message.number(1, 5).flag(3, true).flag(4, false).number(38, 0x4000_0000).part(23, &part);
        let expected = [
            &[0x08, 5, 0x18, 1][..],
            &[0xb0, 0x02, 0x80, 0x80, 0x80, 0x80, 0x04],
            &[0xba, 0x01, 15, 0x0a, 2],
            b"/x",
            &[0x12, 9],
            b"/dev/null",
        ];
        assert_eq!(message.0, expected.concat());
    }

    #[test]
    fn answers_are_read() {
        let mut notice = Message::default();
        notice.text(1, "post-restore").number(2, 77);
        let mut bytes = Message::default();
        bytes.number(1, NOTIFY).flag(2, true).part(5, &notice);
        let answer = decode(&bytes.0).unwrap();
        assert_eq!(answer.notice, Some(Notice { event: "post-restore".into(), pid: 77 }));
        let mut restored = Message::default();
        restored.number(1, 78);
        let mut bytes = Message::default();
        bytes.number(1, 2).flag(2, true).part(4, &restored).number(7, 3).text(9, "why");
        let answer = decode(&bytes.0).unwrap();
        assert_eq!((answer.restored, answer.errno, &*answer.why), (Some(78), 3, "why"));
    }

    #[test]
    fn rubbish_is_no_answer() {
        for rubbish in [&[0x08][..], &[0x0a, 200, 1], &[0x0d, 0, 0, 0, 0], &[0xff; 12], &[0x08, 0x80]] {
            assert_eq!(decode(rubbish), None, "{rubbish:?}");
        }
    }
}
