//! Text as Go quotes it (`%q`): log lines and histories of images have it.

use std::fmt::Write;

/// A text in double quotes.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0b' => quoted.push_str("\\v"),
            '\x0c' => quoted.push_str("\\f"),
            letter if letter.is_ascii_control() => {
                // Ignoring: a string takes everything.
                let _ = write!(quoted, "\\x{:02x}", u32::from(letter));
            }
            letter if letter.is_control() => {
                // Ignoring: as before.
                let _ = write!(quoted, "\\u{:04x}", u32::from(letter));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// A list of texts in brackets.
pub fn quoted_list<T: AsRef<str>>(texts: &[T]) -> String {
    let all: Vec<String> = texts.iter().map(|text| quoted(text.as_ref())).collect();
    format!("[{}]", all.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_in_go() {
        assert_eq!(quoted("exec: \"a\\b\"\n\u{1}ä"), r#""exec: \"a\\b\"\n\x01ä""#);
        assert_eq!(quoted_list(&["a b", "c\"\n\\", "\x01é"]), r#"["a b" "c\"\n\\" "\x01é"]"#);
        assert_eq!(quoted("\x07\x7f\u{80}"), r#""\a\x7f\u0080""#);
        assert_eq!(quoted_list::<&str>(&[]), "[]");
    }
}
