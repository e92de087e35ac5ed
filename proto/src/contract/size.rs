//! Sizes as people write them to Docker, runc and containerd (`RAMInBytes` of go-units).

/// A number of bytes, with an optional unit that counts in 1024s: `512m`, `1.5GiB`.
pub fn bytes(text: &str) -> Option<u64> {
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.')? + 1;
    let (number, unit) = (&text[..end], text[end..].trim_start_matches(' ').to_ascii_lowercase());
    let number: f64 = number.parse().ok().filter(|number| *number >= 0.0)?;
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return None,
    };
    let value = number * (1i64 << shift) as f64;
    (value < i64::MAX as f64).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_units() {
        for (text, expected) in [
            ("512", 512),
            ("1k", 1024),
            ("3 G", 3 << 30),
            ("2MiB", 2 << 20),
            ("1gb", 1 << 30),
            ("1.5k", 1536),
            ("7b", 7),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for bad in ["", "m", "1x", "99999999999t", "-2", "1kx", "1bb", "1ib", "."] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
