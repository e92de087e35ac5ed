//! What the runtime and the process it made tell each other: fixed binary messages with descriptors.
//!
//! A SEQPACKET socket pair keeps messages whole. One byte says what it is, four bytes carry a number, the rest is text.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use orlop_host::sys;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

/// The longest text of a message in bytes; longer ones are cut.
const MAX_TEXT: usize = 3000;

/// The most descriptors that come with one message: more than there are hierarchies of cgroups.
const MAX_DESCRIPTORS: usize = 32;

/// A message.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// Parent: what the child waits for is done.
    Go,
    /// Intermediate process: the pid of the init process that it made.
    Child(i32),
    /// Child: the mounts are there; run the hooks of the runtime's namespace.
    Hooks,
    /// Child, with one descriptor: the master end of the terminal.
    Console,
    /// Child: everything is ready for the user's program.
    Ready,
    /// Child: its namespaces are its own.
    Apart,
    /// Child: number of an id-mapped mount that it cannot make itself. Parent, with a descriptor: that mount.
    Tree(i32),
    /// Parent, with a descriptor for each: the `tasks` files of the cgroup, to write oneself into.
    Cgroup,
    /// Child: number, in its own table, of the descriptor that gets seccomp notifications.
    Listener(i32),
    /// Child: something to warn of.
    Warning(String),
    /// Child: something to say to those who debug.
    Note(String),
    /// Child: the stage that failed, the error's kind, and the error in words.
    Failed {
        /// Name of the stage.
        stage: u8,
        /// What kind of error.
        kind: Kind,
        /// The error in words.
        what: String,
    },
}

impl Message {
    /// The bytes of a message; a long text is cut.
    pub fn encode(&self) -> Vec<u8> {
        let (tag, number, text) = match self {
            Message::Go => (0, 0, ""),
            Message::Child(pid) => (1, *pid, ""),
            Message::Hooks => (2, 0, ""),
            Message::Console => (3, 0, ""),
            Message::Ready => (4, 0, ""),
            Message::Listener(number) => (5, *number, ""),
            Message::Warning(text) => (6, 0, text.as_str()),
            Message::Note(text) => (8, 0, text.as_str()),
            Message::Apart => (9, 0, ""),
            Message::Cgroup => (10, 0, ""),
            Message::Tree(number) => (11, *number, ""),
            Message::Failed { stage, kind, what } => (7, i32::from(*stage) << 8 | kind.code(), what.as_str()),
        };
        let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
        let mut bytes = Vec::with_capacity(5 + text.len());
        bytes.push(tag);
        bytes.extend_from_slice(&i32::to_ne_bytes(number));
        bytes.extend_from_slice(text);
        bytes
    }

    /// The message that bytes mean, if any.
    pub fn decode(bytes: &[u8]) -> Option<Message> {
        let (&tag, rest) = bytes.split_first()?;
        let (number, text) = rest.split_first_chunk::<4>()?;
        let number = i32::from_ne_bytes(*number);
        let text = || String::from_utf8_lossy(text).into_owned();
        Some(match tag {
            0 => Message::Go,
            1 => Message::Child(number),
            2 => Message::Hooks,
            3 => Message::Console,
            4 => Message::Ready,
            5 => Message::Listener(number),
            6 => Message::Warning(text()),
            7 => Message::Failed {
                stage: (number >> 8) as u8,
                kind: Kind::from_code(number & 0xff),
                what: text(),
            },
            8 => Message::Note(text()),
            9 => Message::Apart,
            10 => Message::Cgroup,
            11 => Message::Tree(number),
            _ => return None,
        })
    }
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends: the parent's and the child's.
    pub fn pair() -> Result<(Channel, Channel)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (parent, child) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .context("create", "the channel to the new process")?;
        Ok((Channel(parent), Channel(child)))
    }

    /// Sends a message.
    pub fn send(&self, message: &Message) -> Result<()> {
        // write, not sendmsg: a seccomp filter that asks a supervisor must still let the listener's number pass.
        nix::unistd::write(&self.0, &message.encode()).context("tell", "the other process")?;
        Ok(())
    }

    /// Sends a message with a descriptor.
    pub fn send_with(&self, message: &Message, descriptor: BorrowedFd) -> Result<()> {
        send_descriptor(self.0.as_fd(), &message.encode(), descriptor)
    }

    /// Sends a message with descriptors, at most [`MAX_DESCRIPTORS`]. Another side that has ended hears nothing, which is no error
    /// here: what it said before is read next.
    pub fn send_with_all(&self, message: &Message, descriptors: &[OwnedFd]) -> Result<()> {
        let numbers: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        match send_descriptors(self.0.as_fd(), &message.encode(), &numbers) {
            Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => Ok(()),
            sent => sent.context("send", "descriptors"),
        }
    }

    /// Waits for a message; `None` when the other side has ended or executed its program.
    pub fn receive(&self) -> Result<Option<(Message, Option<OwnedFd>)>> {
        Ok(self.receive_all()?.map(|(message, mut descriptors)| (message, descriptors.pop())))
    }

    /// As [`Channel::receive`], with all descriptors that came along.
    pub fn receive_all(&self) -> Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut buffer = [0u8; MAX_TEXT + 5];
        let (length, descriptors) = receive_descriptors(self.0.as_fd(), &mut buffer)?;
        if length == 0 {
            return Ok(None);
        }
        let message = Message::decode(&buffer[..length])
            .ok_or_else(|| Error::new(Kind::Internal, "hear", "the other process"))?;
        Ok(Some((message, descriptors)))
    }
}

/// Waits for bytes and a descriptor over a unix socket; no bytes when the other side has ended.
pub fn receive_descriptor(socket: BorrowedFd, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    let (length, mut descriptors) = receive_descriptors(socket, buffer)?;
    Ok((length, descriptors.pop()))
}

fn receive_descriptors(socket: BorrowedFd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(buffer)];
    loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(nix::Error::EINTR) => continue,
            // The other side ended without reading all that we sent; told once, before what it had to say.
            Err(nix::Error::ECONNRESET) => continue,
            Err(error) => return Err(error).context("hear", "the other process"),
            Ok(received) => {
                let mut descriptors = Vec::new();
                for message in received.cmsgs().context("hear", "the other process")? {
                    if let ControlMessageOwned::ScmRights(numbers) = message {
                        for number in numbers {
                            descriptors.push(sys::fd::received(number));
                        }
                    }
                }
                return Ok((received.bytes, descriptors));
            }
        }
    }
}

/// Sends bytes with one descriptor over a unix socket (`SCM_RIGHTS`).
pub fn send_descriptor(socket: BorrowedFd, bytes: &[u8], descriptor: BorrowedFd) -> Result<()> {
    send_descriptors(socket, bytes, &[descriptor.as_raw_fd()]).context("send", "a descriptor")
}

fn send_descriptors(socket: BorrowedFd, bytes: &[u8], numbers: &[RawFd]) -> nix::Result<()> {
    let rights = [ControlMessage::ScmRights(numbers)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        let (parent, child) = Channel::pair().unwrap();
        let messages = [
            Message::Go,
            Message::Child(-7),
            Message::Hooks,
            Message::Ready,
            Message::Apart,
            Message::Cgroup,
            Message::Listener(9),
            Message::Tree(3),
            Message::Warning("w".into()),
            Message::Note("n".into()),
            Message::Failed { stage: 200, kind: Kind::PermissionDenied, what: "mount /proc".into() },
        ];
        for message in messages {
            child.send(&message).unwrap();
            let (received, descriptor) = parent.receive().unwrap().unwrap();
            assert_eq!(received, message);
            assert!(descriptor.is_none());
        }
        drop(child);
        assert!(parent.receive().unwrap().is_none());
    }

    #[test]
    fn last_words_are_heard_of_one_who_did_not_listen() {
        let (parent, child) = Channel::pair().unwrap();
        parent.send(&Message::Go).unwrap();
        child.send(&Message::Note("n".into())).unwrap();
        drop(child);
        assert_eq!(parent.receive().unwrap().unwrap().0, Message::Note("n".into()));
        assert!(parent.receive().unwrap().is_none());
    }

    #[test]
    fn carries_a_descriptor() {
        let (parent, child) = Channel::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        child.send_with(&Message::Console, file.as_fd()).unwrap();
        let (message, descriptor) = parent.receive().unwrap().unwrap();
        assert_eq!((message, descriptor.is_some()), (Message::Console, true));
    }

    #[test]
    fn carries_several_descriptors() {
        let (parent, child) = Channel::pair().unwrap();
        let files: Vec<_> =
            (0..MAX_DESCRIPTORS).map(|_| OwnedFd::from(std::fs::File::open("/dev/null").unwrap())).collect();
        parent.send_with_all(&Message::Cgroup, &files).unwrap();
        let (message, descriptors) = child.receive_all().unwrap().unwrap();
        assert_eq!((message, descriptors.len()), (Message::Cgroup, MAX_DESCRIPTORS));
    }

    #[test]
    fn long_text_is_cut_and_rubbish_is_refused() {
        let (parent, child) = Channel::pair().unwrap();
        child.send(&Message::Warning("x".repeat(MAX_TEXT * 2))).unwrap();
        let (message, _) = parent.receive().unwrap().unwrap();
        assert_eq!(message, Message::Warning("x".repeat(MAX_TEXT)));
        assert_eq!(Message::decode(&[12, 0, 0, 0, 0]), None);
        assert_eq!(Message::decode(&[0, 0]), None);
    }
}
