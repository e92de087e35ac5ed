//! The D-Bus types that systemd's manager takes and gives, to and from bytes.
//!
//! Follows the D-Bus specification, "Type System" and "Marshaling (Wire Format)"; little-endian, since every machine that we
//! run on is, and the sender chooses.

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

/// A value of one of the types that are needed here.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cgroup) enum Value {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `d`
    Double(f64),
    /// `s`
    Text(String),
    /// `o`
    Path(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// An array whose elements have this signature, also where there are none.
    Array(String, Vec<Value>),
    /// A structure.
    Struct(Vec<Value>),
    /// A value with its type.
    Variant(Box<Value>),
}

impl Value {
    /// Text.
    pub(in crate::cgroup) fn text(text: impl Into<String>) -> Value {
        Value::Text(text.into())
    }

    /// Its type, as the specification writes types.
    pub(super) fn signature(&self) -> String {
        match self {
            Value::Bool(_) => "b".to_owned(),
            Value::I32(_) => "i".to_owned(),
            Value::U32(_) => "u".to_owned(),
            Value::I64(_) => "x".to_owned(),
            Value::U64(_) => "t".to_owned(),
            Value::Double(_) => "d".to_owned(),
            Value::Text(_) => "s".to_owned(),
            Value::Path(_) => "o".to_owned(),
            Value::Bytes(_) => "ay".to_owned(),
            Value::Array(element, _) => format!("a{element}"),
            Value::Struct(members) => format!("({})", signature_of(members)),
            Value::Variant(_) => "v".to_owned(),
        }
    }
}

/// The signature of several values in a row, as in a message's body.
pub(super) fn signature_of(values: &[Value]) -> String {
    values.iter().map(Value::signature).collect()
}

/// Where the bytes of a type have to start.
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'y' | b'g' | b'v') | None => 1,
        Some(b'n' | b'q') => 2,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        Some(_) => 4,
    }
}

/// Bytes in the making. Alignment counts from its start.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub(super) fn u32(&mut self, number: u32) {
        self.align(4);
        self.bytes.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.align(8);
        self.bytes.extend(number.to_le_bytes());
    }

    pub(super) fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    pub(super) fn signature(&mut self, signature: &str) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    pub(super) fn value(&mut self, value: &Value) {
        match value {
            Value::Bool(truth) => self.u32(u32::from(*truth)),
            Value::I32(number) => self.u32(*number as u32),
            Value::U32(number) => self.u32(*number),
            Value::I64(number) => self.u64(*number as u64),
            Value::U64(number) => self.u64(*number),
            Value::Double(number) => self.u64(number.to_bits()),
            Value::Text(text) | Value::Path(text) => self.text(text),
            Value::Bytes(bytes) => {
                self.u32(bytes.len() as u32);
                self.bytes.extend(bytes);
            }
            Value::Array(element, members) => {
                self.u32(0);
                let length = self.bytes.len() - 4;
                // The padding before the first element does not count, and is there even without one.
                self.align(alignment(element));
                let start = self.bytes.len();
                members.iter().for_each(|member| self.value(member));
                let used = (self.bytes.len() - start) as u32;
                self.bytes[length..length + 4].copy_from_slice(&used.to_le_bytes());
            }
            Value::Struct(members) => {
                self.align(8);
                members.iter().for_each(|member| self.value(member));
            }
            Value::Variant(inner) => {
                self.signature(&inner.signature());
                self.value(inner);
            }
        }
    }
}

/// Bytes that came from systemd. Never panics, whatever they are.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else { return Err(malformed("it ends too early")) };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.align(4);
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn u64(&mut self) -> Result<u64> {
        self.align(8);
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u32()? as usize;
        self.terminated(length)
    }

    pub(super) fn signature(&mut self) -> Result<String> {
        let length = self.take(1)?[0] as usize;
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Result<String> {
        let text = self.take(length)?;
        if self.take(1)? != [0] {
            return Err(malformed("text without an end"));
        }
        String::from_utf8(text.to_vec()).map_err(|_| malformed("text that is not UTF-8"))
    }

    /// One value of a type that has no array in it; the manager's answers and signals that matter have none.
    pub(super) fn value(&mut self, kind: u8) -> Result<Value> {
        Ok(match kind {
            b'b' => Value::Bool(self.u32()? != 0),
            b'i' => Value::I32(self.u32()? as i32),
            b'u' => Value::U32(self.u32()?),
            b'x' => Value::I64(self.u64()? as i64),
            b't' => Value::U64(self.u64()?),
            b'd' => Value::Double(f64::from_bits(self.u64()?)),
            b's' => Value::Text(self.text()?),
            b'o' => Value::Path(self.text()?),
            b'g' => Value::Text(self.signature()?),
            b'v' => {
                let signature = self.signature()?;
                match signature.as_bytes() {
                    [kind] if *kind != b'v' => Value::Variant(Box::new(self.value(*kind)?)),
                    _ => return Err(malformed("a variant of an unexpected type")),
                }
            }
            _ => return Err(malformed("a value of an unexpected type")),
        })
    }
}

pub(super) fn malformed(why: &'static str) -> Error {
    Error::because(Kind::DataLoss, "read", "a message from systemd", why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(value: &Value) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.value(value);
        writer.bytes
    }

    #[test]
    fn text_has_its_length_before_and_a_zero_behind() {
        assert_eq!(bytes(&Value::text("ab")), [2, 0, 0, 0, b'a', b'b', 0]);
    }

    #[test]
    fn a_structure_starts_at_a_multiple_of_eight_and_a_number_at_one_of_its_size() {
        let mut writer = Writer::default();
        writer.u32(1);
        writer.value(&Value::Struct(vec![Value::Bool(true), Value::U64(2)]));
        assert_eq!(writer.bytes, [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_array_is_as_long_as_its_elements_and_padded_even_when_empty() {
        assert_eq!(bytes(&Value::Array("u".into(), vec![Value::U32(7)])), [4, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes(&Value::Array("(ss)".into(), Vec::new())), [0; 8]);
    }

    #[test]
    fn a_variant_says_its_type() {
        let limits = Value::Array("(sv)".into(), Vec::new());
        assert_eq!(limits.signature(), "a(sv)");
        let value = Value::Variant(Box::new(Value::U64(5)));
        assert_eq!(bytes(&value), [1, b't', 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        let pair = Value::Struct(vec![Value::text("x"), value]);
        assert_eq!(pair.signature(), "(sv)");
    }

    #[test]
    fn what_was_written_is_read() {
        let values = [
            (b'b', Value::Bool(true)),
            (b'i', Value::I32(-3)),
            (b'x', Value::I64(-4)),
            (b't', Value::U64(1 << 40)),
            (b'd', Value::Double(0.5)),
            (b's', Value::text("unit")),
            (b'v', Value::Variant(Box::new(Value::text("/user.slice")))),
            (b'o', Value::Path("/org".into())),
        ];
        let mut writer = Writer::default();
        values.iter().for_each(|(_, value)| writer.value(value));
        let mut reader = Reader::new(&writer.bytes);
        for (kind, value) in &values {
            assert_eq!(&reader.value(*kind).unwrap(), value);
        }
        assert!(reader.is_at_end());
    }

    #[test]
    fn garbage_is_refused() {
        for (kind, garbage) in [
            (b's', &[255, 255, 255, 255, 1][..]),
            (b's', &[1, 0, 0, 0, b'a', 1]),
            (b's', &[1, 0, 0, 0, 0xff, 0]),
            (b'v', &[2, b'a', b'y', 0]),
            (b'v', &[1, b'v', 0, 1, b'v', 0]),
            (b'u', &[1, 2]),
            (b'a', &[0, 0, 0, 0]),
        ] {
            assert_eq!(Reader::new(garbage).value(kind).unwrap_err().kind(), Kind::DataLoss, "{garbage:?}");
        }
    }
}
