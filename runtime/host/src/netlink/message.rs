//! Netlink messages as bytes: a header, then attributes that may hold attributes (netlink(7)).

/// Length of `struct nlmsghdr`.
pub const MESSAGE_HEADER: usize = 16;
/// Length of `struct nlattr`, which `struct rtattr` is too.
const ATTRIBUTE_HEADER: usize = 4;
/// Marks an attribute that holds attributes (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that are its number (`NLA_TYPE_MASK`).
const NUMBER: u16 = 0x3fff;

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
/// `NLM_F_ACK`.
pub const ACK: u16 = libc::NLM_F_ACK as u16;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = libc::NLM_F_DUMP as u16;
/// `NLM_F_CREATE | NLM_F_EXCL`.
pub const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// A message in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// A message of a type, with flags and the fixed part that its family begins with.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Message {
        let mut bytes = vec![0; MESSAGE_HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(header);
        Message(bytes)
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, number: u16, value: &[u8]) -> &mut Message {
        let length = (ATTRIBUTE_HEADER + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&number.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    /// Adds text, which ends with a NUL.
    pub fn text(&mut self, number: u16, value: &str) -> &mut Message {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(number, &bytes)
    }

    /// Adds a number in the host's byte order, as rtnetlink has them.
    pub fn number(&mut self, number: u16, value: u32) -> &mut Message {
        self.attribute(number, &value.to_ne_bytes())
    }

    /// Adds a number in network byte order, as nfnetlink has them.
    pub fn big_endian(&mut self, number: u16, value: u32) -> &mut Message {
        self.attribute(number, &value.to_be_bytes())
    }

    /// Adds an attribute that holds what `fill` adds.
    pub fn nested(&mut self, number: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; ATTRIBUTE_HEADER]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&(number | NESTED).to_ne_bytes());
        self
    }

    /// Adds bytes that are no attribute, such as the fixed part of a message within a message.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Message {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds flags to those that it has.
    pub fn add_flags(&mut self, flags: u16) {
        let now = u16::from_ne_bytes([self.0[6], self.0[7]]) | flags;
        self.0[6..8].copy_from_slice(&now.to_ne_bytes());
    }

    /// The message's bytes, its length written in.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Rounds up to where the next message or attribute may start.
pub fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The four bytes at a place as a number; 0 where there are none.
pub fn number_at(bytes: &[u8], at: usize) -> i32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map_or(0, i32::from_ne_bytes)
}

/// The two bytes at a place as a number; 0 where there are none.
pub fn short_at(bytes: &[u8], at: usize) -> u16 {
    let two = bytes.get(at..at + 2).and_then(|two| two.try_into().ok());
    two.map_or(0, u16::from_ne_bytes)
}

/// The first message with its type, and what follows it.
pub fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(number_at(bytes, 0)).ok()?;
    let message = bytes.get(..length).filter(|_| length >= MESSAGE_HEADER)?;
    Some((short_at(bytes, 4), message, bytes.get(aligned(length)..).unwrap_or_default()))
}

/// The attributes of a message's rest, by number.
pub fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(short_at(rest, 0));
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        let number = short_at(rest, 2) & NUMBER;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((number, value))
    })
}

/// The text of an attribute, without the NUL at its end.
pub fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nested_comes_out_again() {
        let mut message = Message::new(1, REQUEST, &[]);
        message.text(1, "ab").nested(2, |inner| {
            inner.number(3, 7).nested(4, |deep| {
                deep.attribute(5, &[1]);
            });
        });
        let bytes = message.finish();
        let all: Vec<_> = attributes(&bytes[MESSAGE_HEADER..]).collect();
        assert_eq!((all[0].0, text_of(all[0].1)), (1, "ab".to_owned()));
        let inner: Vec<_> = attributes(all[1].1).collect();
        assert_eq!(inner[0], (3, &7u32.to_ne_bytes()[..]));
        assert_eq!(attributes(inner[1].1).collect::<Vec<_>>(), [(5, &[1][..])]);
    }

    #[test]
    fn broken_messages_are_no_messages() {
        assert_eq!(next_message(&[1, 2, 3]), None);
        assert_eq!(next_message(&[0; 32]), None);
        let mut long = vec![0; MESSAGE_HEADER];
        long[0] = 200;
        assert_eq!(next_message(&long), None);
        assert_eq!(attributes(&[9, 0, 1, 0, 5]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0, 5]).count(), 0);
    }
}
