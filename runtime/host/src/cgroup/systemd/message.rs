//! D-Bus messages: method calls to systemd's manager, its answers and its signals.
//!
//! Follows the D-Bus specification, "Message Protocol".

use orlop_proto::error::Result;

use super::value::{Reader, Value, Writer, malformed, signature_of};

/// What every message starts with: order of bytes, type, flags, version, length of the body, serial and length of the fields.
pub(super) const FIXED: usize = 16;
/// Longer messages are refused; those that matter have a few hundred bytes.
const LONGEST: usize = 1 << 20;

const LITTLE_ENDIAN: u8 = b'l';
const VERSION: u8 = 1;
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR: u8 = 4;
const FIELD_REPLY: u8 = 5;
const FIELD_SIGNATURE: u8 = 8;

/// A method call to an object on the other end of the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) method: &'a str,
    pub(super) arguments: &'a [Value],
}

impl Call<'_> {
    /// The bytes to send.
    pub(super) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut body = Writer::default();
        self.arguments.iter().for_each(|value| body.value(value));
        let signature = signature_of(self.arguments);
        let mut message = Writer { bytes: vec![LITTLE_ENDIAN, CALL, 0, VERSION] };
        message.u32(body.bytes.len() as u32);
        message.u32(serial);
        message.u32(0);
        let field = |message: &mut Writer, code: u8, kind: &str, text: &str| {
            message.align(8);
            message.bytes.push(code);
            message.signature(kind);
            if kind == "g" { message.signature(text) } else { message.text(text) }
        };
        field(&mut message, FIELD_PATH, "o", self.path);
        field(&mut message, FIELD_INTERFACE, "s", self.interface);
        field(&mut message, FIELD_MEMBER, "s", self.method);
        if !signature.is_empty() {
            field(&mut message, FIELD_SIGNATURE, "g", &signature);
        }
        let length = (message.bytes.len() - FIXED) as u32;
        message.bytes[FIXED - 4..FIXED].copy_from_slice(&length.to_le_bytes());
        message.align(8);
        message.bytes.extend(body.bytes);
        message.bytes
    }
}

/// What came from the other end.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Incoming {
    /// The answer to the call with this serial.
    Answer(u32, Vec<Value>),
    /// The refusal of the call with this serial: name and text.
    Refusal(u32, String, String),
    /// A signal.
    Signal { member: String, arguments: Vec<Value> },
    /// What nobody asked for.
    Other,
}

/// How many bytes the message has that starts with these.
pub(super) fn length(fixed: &[u8; FIXED]) -> Result<usize> {
    if fixed[0] != LITTLE_ENDIAN || fixed[3] != VERSION {
        return Err(malformed("of another version or order of bytes"));
    }
    let number =
        |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
    let (body, fields) = (number(4), number(12));
    if body > LONGEST || fields > LONGEST {
        return Err(malformed("too long"));
    }
    Ok((FIXED + fields).next_multiple_of(8) + body)
}

/// Understands a whole message.
pub(super) fn decode(bytes: &[u8]) -> Result<Incoming> {
    let mut start = Reader::new(bytes);
    let kind = start.take(4)?[1];
    start.take(8)?;
    let end = FIXED + start.u32()? as usize;
    let mut fields = Reader::new(&bytes[..end.min(bytes.len())]);
    fields.take(FIXED)?;
    let (mut member, mut name, mut reply, mut signature) = (String::new(), String::new(), 0, String::new());
    loop {
        fields.align(8);
        if fields.is_at_end() {
            break;
        }
        let code = fields.take(1)?[0];
        let Value::Variant(value) = fields.value(b'v')? else { continue };
        match (code, *value) {
            (FIELD_MEMBER, Value::Text(text)) => member = text,
            (FIELD_ERROR, Value::Text(text)) => name = text,
            (FIELD_SIGNATURE, Value::Text(text)) => signature = text,
            (FIELD_REPLY, Value::U32(serial)) => reply = serial,
            _ => {}
        }
    }
    let mut body = Reader::new(&bytes[end.next_multiple_of(8).min(bytes.len())..]);
    let mut arguments = || signature.bytes().map(|kind| body.value(kind)).collect::<Result<Vec<Value>>>();
    Ok(match kind {
        RETURN => Incoming::Answer(reply, arguments()?),
        ERROR => match arguments()?.into_iter().next() {
            Some(Value::Text(text)) => Incoming::Refusal(reply, name, text),
            _ => Incoming::Refusal(reply, name, String::new()),
        },
        // The only signal that matters has plain arguments; others may have any.
        SIGNAL => match arguments() {
            Ok(arguments) => Incoming::Signal { member, arguments },
            Err(_) => Incoming::Other,
        },
        _ => Incoming::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: u8 = 0;

    /// An answer as systemd writes it, with the fields of a message from a peer.
    fn incoming(kind: u8, fields: &[(u8, Value)], body: &[Value]) -> Vec<u8> {
        let mut arguments = Writer::default();
        body.iter().for_each(|value| arguments.value(value));
        let mut message = Writer { bytes: vec![LITTLE_ENDIAN, kind, RESULT, VERSION] };
        message.u32(arguments.bytes.len() as u32);
        message.u32(99);
        message.u32(0);
        for (code, value) in fields {
            message.align(8);
            message.bytes.push(*code);
            message.value(&Value::Variant(Box::new(value.clone())));
        }
        if !body.is_empty() {
            message.align(8);
            message.bytes.push(FIELD_SIGNATURE);
            message.signature("g");
            message.signature(&signature_of(body));
        }
        let length = (message.bytes.len() - FIXED) as u32;
        message.bytes[12..16].copy_from_slice(&length.to_le_bytes());
        message.align(8);
        message.bytes.extend(arguments.bytes);
        message.bytes
    }

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let arguments = [Value::text("a.scope")];
        let call = Call { path: "/o", interface: "i.f", method: "Do", arguments: &arguments };
        let bytes = call.encode(3);
        assert_eq!(bytes[..4], [b'l', 1, 0, 1]);
        assert_eq!(bytes[4..12], [12, 0, 0, 0, 3, 0, 0, 0]);
        let fixed: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        assert_eq!(length(&fixed).unwrap(), bytes.len());
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[16..27], [1, 1, b'o', 0, 2, 0, 0, 0, b'/', b'o', 0]);
        assert!(bytes.ends_with(b"\x07\0\0\0a.scope\0"));
    }

    #[test]
    fn answers_refusals_and_signals() {
        let bytes = incoming(RETURN, &[(FIELD_REPLY, Value::U32(4))], &[Value::Path("/job/1".into())]);
        assert_eq!(decode(&bytes).unwrap(), Incoming::Answer(4, vec![Value::Path("/job/1".into())]));
        let fields = [(FIELD_ERROR, Value::text("org.x.UnitExists")), (FIELD_REPLY, Value::U32(5))];
        let bytes = incoming(ERROR, &fields, &[Value::text("it is there")]);
        assert_eq!(
            decode(&bytes).unwrap(),
            Incoming::Refusal(5, "org.x.UnitExists".into(), "it is there".into())
        );
        let body = [Value::U32(1), Value::Path("/job/1".into()), Value::text("a.scope"), Value::text("done")];
        let bytes = incoming(SIGNAL, &[(FIELD_MEMBER, Value::text("JobRemoved"))], &body);
        assert_eq!(
            decode(&bytes).unwrap(),
            Incoming::Signal { member: "JobRemoved".into(), arguments: body.to_vec() }
        );
        let bytes = incoming(RETURN, &[(FIELD_REPLY, Value::U32(6))], &[]);
        assert_eq!(decode(&bytes).unwrap(), Incoming::Answer(6, Vec::new()));
    }

    #[test]
    fn a_signal_with_other_arguments_is_no_failure() {
        let body = [Value::Array("s".into(), vec![Value::text("x")])];
        let bytes = incoming(SIGNAL, &[(FIELD_MEMBER, Value::text("PropertiesChanged"))], &body);
        assert_eq!(decode(&bytes).unwrap(), Incoming::Other);
    }

    #[test]
    fn whatever_comes_nothing_panics() {
        let good = incoming(RETURN, &[(FIELD_REPLY, Value::U32(4))], &[Value::text("some text")]);
        for at in 0..good.len() {
            for byte in [0, 1, 7, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = decode(&bad);
                let _ = decode(&bad[..at]);
            }
        }
        let mut fixed: [u8; FIXED] = good[..FIXED].try_into().unwrap();
        fixed[7] = 0x7f;
        length(&fixed).unwrap_err();
        fixed[0] = b'B';
        length(&fixed).unwrap_err();
    }
}
