//! Properties that a configuration asks for by annotations: `org.systemd.property.TimeoutStopSec: "uint64 5"`. Pure.
//!
//! The value is in GVariant's text format, of which this understands what properties of scopes need: truth, numbers with or
//! without a type, text, and arrays of these. As in runc, a name that ends in `Sec` becomes its `USec` with the number in
//! microseconds.

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::value::Value;

const PREFIX: &str = "org.systemd.property.";

/// The properties among a configuration's annotations, in the order of their names.
///
/// # Errors
/// `InvalidArgument` for a name that no property has, and for a value that cannot be read.
pub(super) fn properties<'a>(
    annotations: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<(String, Value)>> {
    let mut all = Vec::new();
    for (annotation, text) in annotations {
        let Some(name) = annotation.strip_prefix(PREFIX) else { continue };
        let wrong = |why: &str| {
            let what = format!("annotation {annotation}={text}");
            Error::because(Kind::InvalidArgument, "read", what, why.to_owned())
        };
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(wrong("no property has this name"));
        }
        let mut rest = text.trim();
        let value = value(&mut rest).filter(|_| rest.trim().is_empty());
        let value = value.ok_or_else(|| wrong("value parse error"))?;
        let seconds =
            name.strip_suffix("Sec").filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase()));
        all.push(match seconds {
            Some(stem) => {
                let value = microseconds(&value).ok_or_else(|| wrong("not a number of seconds"))?;
                (format!("{stem}USec"), value)
            }
            None => (name.to_owned(), value),
        });
    }
    all.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(all)
}

fn microseconds(value: &Value) -> Option<Value> {
    let whole = |seconds: u64| seconds.checked_mul(1_000_000);
    let count = match value {
        Value::I32(seconds) => whole((*seconds).try_into().ok()?),
        Value::U32(seconds) => whole((*seconds).into()),
        Value::I64(seconds) => whole((*seconds).try_into().ok()?),
        Value::U64(seconds) => whole(*seconds),
        Value::Double(seconds) if *seconds >= 0.0 => Some((seconds * 1e6) as u64),
        _ => None,
    };
    count.map(Value::U64)
}

/// Takes one value from the front of a text.
fn value(rest: &mut &str) -> Option<Value> {
    *rest = rest.trim_start();
    match rest.chars().next()? {
        quote @ ('\'' | '"') => text(rest, quote).map(Value::Text),
        '[' => array(rest),
        _ => {
            let word = word(rest)?;
            let typed = |rest: &mut &str, kind: &str| number(word_after(rest)?, kind);
            match word {
                "true" => Some(Value::Bool(true)),
                "false" => Some(Value::Bool(false)),
                "int32" | "@i" => typed(rest, "i"),
                "uint32" | "@u" => typed(rest, "u"),
                "int64" | "@x" => typed(rest, "x"),
                "uint64" | "@t" => typed(rest, "t"),
                "double" | "@d" => typed(rest, "d"),
                "string" | "boolean" | "@s" | "@b" => value(rest),
                number_word if number_word.contains('.') => number(number_word, "d"),
                number_word => number(number_word, "i"),
            }
        }
    }
}

fn number(word: &str, kind: &str) -> Option<Value> {
    match kind {
        "u" => word.parse().ok().map(Value::U32),
        "x" => word.parse().ok().map(Value::I64),
        "t" => word.parse().ok().map(Value::U64),
        "d" => word.parse().ok().map(Value::Double),
        _ => word.parse().ok().map(Value::I32),
    }
}

fn word<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let end = rest.find(|c: char| c.is_whitespace() || matches!(c, ',' | ']')).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    (!word.is_empty()).then_some(word)
}

fn word_after<'a>(rest: &mut &'a str) -> Option<&'a str> {
    *rest = rest.trim_start();
    word(rest)
}

/// Text in quotes, with a backslash before what would end it.
fn text(rest: &mut &str, quote: char) -> Option<String> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => text.push(characters.next()?.1),
            _ if character == quote => {
                *rest = &rest[at + character.len_utf8()..];
                return Some(text);
            }
            _ => text.push(character),
        }
    }
    None
}

/// `[value, value]`, all of the first one's type; an empty one has none and is refused.
fn array(rest: &mut &str) -> Option<Value> {
    *rest = &rest[1..];
    let mut members = Vec::new();
    loop {
        // One level is all that properties have.
        members.push(value(rest).filter(|member| !matches!(member, Value::Array(..)))?);
        *rest = rest.trim_start();
        let (first, after) = rest.split_at_checked(1)?;
        *rest = after;
        match first {
            "," => {}
            "]" => break,
            _ => return None,
        }
    }
    let kind = members.first()?.signature();
    members.iter().all(|member| member.signature() == kind).then_some(Value::Array(kind, members))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, text: &str) -> Result<(String, Value)> {
        let annotation = format!("{PREFIX}{name}");
        properties([(annotation.as_str(), text)].into_iter()).map(|mut all| all.remove(0))
    }

    #[test]
    fn values_of_every_type() {
        for (text, value) in [
            ("true", Value::Bool(true)),
            ("5", Value::I32(5)),
            ("-5", Value::I32(-5)),
            ("uint64 5", Value::U64(5)),
            ("@t 5", Value::U64(5)),
            ("int64 -5", Value::I64(-5)),
            ("uint32 7", Value::U32(7)),
            ("1.5", Value::Double(1.5)),
            ("'inactive-or-failed'", Value::text("inactive-or-failed")),
            ("\"it's\"", Value::text("it's")),
            (r"'it\'s'", Value::text("it's")),
            (" ['a', 'b'] ", Value::Array("s".into(), vec![Value::text("a"), Value::text("b")])),
            ("[uint64 1]", Value::Array("t".into(), vec![Value::U64(1)])),
        ] {
            assert_eq!(one("Some", text).unwrap(), ("Some".into(), value), "{text}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        assert_eq!(
            one("TimeoutStopSec", "uint64 5").unwrap(),
            ("TimeoutStopUSec".into(), Value::U64(5_000_000))
        );
        assert_eq!(one("TimeoutStopSec", "1.5").unwrap(), ("TimeoutStopUSec".into(), Value::U64(1_500_000)));
        assert_eq!(one("TimeoutStopUSec", "uint64 5").unwrap(), ("TimeoutStopUSec".into(), Value::U64(5)));
        one("TimeoutStopSec", "'5'").unwrap_err();
        one("TimeoutStopSec", "-5").unwrap_err();
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_name() {
        for (name, text) in [
            ("X", "1"),
            ("Some-Thing", "1"),
            ("Some", ""),
            ("Some", "nonsense"),
            ("Some", "1 2"),
            ("Some", "'open"),
            ("Some", "[]"),
            ("Some", "['a', 1]"),
            ("Some", "[[1]]"),
            ("Some", "[1"),
            ("Some", "uint64"),
            ("Some", "uint64 -1"),
        ] {
            let error = one(name, text).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(&format!("{PREFIX}{name}={text}")), "{error}");
        }
    }

    #[test]
    fn other_annotations_are_none() {
        let all = [("org.example", "1"), ("org.systemd.property.CollectMode", "'x'")];
        assert_eq!(properties(all.into_iter()).unwrap().len(), 1);
    }
}
