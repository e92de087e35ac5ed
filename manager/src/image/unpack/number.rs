//! Numbers in tar headers: octal text, or base-256 where the first bit is set (GNU tar).

/// A number that must not be negative.
pub fn unsigned(field: &[u8]) -> Option<u64> {
    signed(field).and_then(|value| u64::try_from(value).ok())
}

/// A number that may be negative, which only base-256 can say.
pub fn signed(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

/// Big-endian two's complement whose first bit is only a mark.
fn base_256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let is_negative = first & 0x40 != 0;
    let mark = if is_negative { first | 0x80 } else { first & 0x7f };
    let mut value: i128 = if is_negative { -1 } else { 0 };
    for byte in std::iter::once(mark).chain(rest.iter().copied()) {
        value = (value << 8) | i128::from(byte);
        if i64::try_from(value).is_err() {
            return None;
        }
    }
    i64::try_from(value).ok()
}

/// Octal digits between optional spaces and an optional NUL or space; an empty field is zero.
fn octal(field: &[u8]) -> Option<i64> {
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
    let mut value: i64 = 0;
    for byte in text {
        if !(b'0'..=b'7').contains(byte) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(byte - b'0'))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_octal() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"77777777777", Some(0o77777777777)),
            (b"\0\0\0\0", Some(0)),
            (b"", Some(0)),
            (b"8", None),
            (b"-1", None),
            (b"12x", None),
            (b"7777777777777777777777777", None),
        ] {
            assert_eq!(unsigned(field), value, "{field:?}");
        }
    }

    #[test]
    fn reads_base_256() {
        let field = |value: i64| {
            let mut bytes = [if value < 0 { 0xff } else { 0 }; 12];
            bytes[4..].copy_from_slice(&value.to_be_bytes());
            bytes[0] |= 0x80;
            bytes
        };
        for value in [0, 1, 1 << 40, i64::MAX, -1, -1_000_000_007, i64::MIN] {
            assert_eq!(signed(&field(value)), Some(value));
        }
        assert_eq!(unsigned(&field(-1)), None);
        assert_eq!(signed(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(signed(&[0xbf; 12]), None);
    }
}
