//! Messages of gRPC of which a part is changed: what is not known here stays as it is, byte by byte.

use prost::DecodeError;
use prost::encoding::{DecodeContext, decode_key, skip_field};

/// The length of what is before a message: whether it is compressed, and its length.
pub const PREFIX: usize = 5;

/// The one message of a call, unless it is compressed.
pub fn unframed(call: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = call.split_first_chunk::<PREFIX>()?;
    (prefix[0] == 0).then_some(message)
}

/// A message in parts, as a call.
pub fn framed(parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut framed = Vec::with_capacity(PREFIX + length);
    framed.push(0);
    // Messages of more than 4 GiB come from nowhere.
    framed.extend((length as u32).to_be_bytes());
    parts.iter().for_each(|part| framed.extend_from_slice(part));
    framed
}

/// A message without some fields.
///
/// # Errors
///
/// For what is no message.
pub fn without(message: &[u8], fields: &[u32]) -> Result<Vec<u8>, DecodeError> {
    let (mut left, mut rest) = (message, Vec::with_capacity(message.len()));
    while !left.is_empty() {
        let field = left;
        let (tag, kind) = decode_key(&mut left)?;
        skip_field(kind, tag, &mut left, DecodeContext::default())?;
        if !fields.contains(&tag) {
            rest.extend_from_slice(&field[..field.len() - left.len()]);
        }
    }
    Ok(rest)
}
