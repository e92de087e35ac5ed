//! The grammar of Go's flag package, with runc's words for mistakes: one dash or two, `-flag=value` or `-flag value`, no
//! letters run together, the last of several wins, `--` ends the flags.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use super::table::{Flag, HELP, Takes};

/// A value that was given.
#[derive(Debug)]
enum Value {
    Switch(bool),
    Text(OsString),
    Number(i64),
    Duration(Duration),
}

/// What was given on a command line.
#[derive(Debug, Default)]
pub struct Given {
    values: Vec<(&'static str, Value)>,
    /// What follows the flags.
    pub operands: Vec<OsString>,
}

/// Where flags may stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Before the first operand only.
    First,
    /// Anywhere; what is no flag of ours is an operand once there has been one.
    Anywhere,
}

/// Parses arguments; a mistake is told in Go's words.
pub fn parse(
    flags: &'static [Flag],
    arguments: impl IntoIterator<Item = OsString>,
    order: Order,
) -> Result<Given, String> {
    let mut given = Given::default();
    // How flags with two names were called.
    let mut forms = Vec::new();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            given.operands.extend(rest);
            break;
        }
        let Some((name, value)) = split(&argument)? else {
            given.operands.push(argument);
            if order == Order::First {
                given.operands.extend(rest);
                break;
            }
            continue;
        };
        let known =
            flags.iter().find(|flag| name == flag.name || flag.short.is_some_and(|short| name == short));
        let Some(flag) = known.or_else(|| is_help(name).then_some(&HELP)) else {
            if given.operands.is_empty() {
                return Err(format!("flag provided but not defined: -{}", name.to_string_lossy()));
            }
            given.operands.push(argument);
            continue;
        };
        let name = name.to_string_lossy();
        let value = match (value, flag.takes) {
            (None, Takes::Nothing) => Value::Switch(true),
            (Some(value), Takes::Nothing) => Value::Switch(boolean(value).ok_or_else(|| {
                format!("invalid boolean value {:?} for -{name}: parse error", value.to_string_lossy())
            })?),
            (Some(value), _) => convert(flag, &name, value.to_owned())?,
            (None, _) => {
                let value = rest.next().ok_or_else(|| format!("flag needs an argument: -{name}"))?;
                convert(flag, &name, value)?
            }
        };
        given.values.push((flag.name, value));
        if let Some(short) = flag.short {
            let other = if name == short { flag.name } else { short };
            if forms.contains(&other) {
                return Err(format!("Cannot use two forms of the same flag: {short} {}", flag.name));
            }
            forms.push(if name == short { short } else { flag.name });
        }
    }
    Ok(given)
}

/// A flag's name and its value after `=`; none for an operand.
fn split(argument: &OsStr) -> Result<Option<(&OsStr, Option<&OsStr>)>, String> {
    let bytes = argument.as_bytes();
    let Some(name) = bytes.strip_prefix(b"-").filter(|name| !name.is_empty()) else { return Ok(None) };
    let name = name.strip_prefix(b"-").unwrap_or(name);
    if name.is_empty() || name[0] == b'-' || name[0] == b'=' {
        return Err(format!("bad flag syntax: {}", argument.to_string_lossy()));
    }
    let (name, value) = match name.iter().position(|&byte| byte == b'=') {
        Some(at) => (&name[..at], Some(OsStr::from_bytes(&name[at + 1..]))),
        None => (name, None),
    };
    Ok(Some((OsStr::from_bytes(name), value)))
}

fn is_help(name: &OsStr) -> bool {
    name == HELP.name || HELP.short.is_some_and(|short| name == short)
}

fn convert(flag: &Flag, name: &str, value: OsString) -> Result<Value, String> {
    let wrong = |value: &OsStr, why: &str| {
        format!("invalid value {:?} for flag -{name}: {why}", value.to_string_lossy())
    };
    if flag.takes == Takes::Path {
        return Ok(Value::Text(value));
    }
    let Some(text) = value.to_str() else { return Err(wrong(&value, "not UTF-8")) };
    match flag.takes {
        Takes::Number => number(text).map(Value::Number).ok_or_else(|| wrong(&value, "parse error")),
        Takes::Numbers => number(text)
            .map(Value::Number)
            .ok_or_else(|| wrong(&value, &format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        Takes::Duration => duration(text).map(Value::Duration).ok_or_else(|| wrong(&value, "parse error")),
        _ => Ok(Value::Text(value)),
    }
}

/// `strconv.ParseBool`.
pub fn boolean(text: &OsStr) -> Option<bool> {
    match text.to_str()? {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// A whole number in base 10, 16 (`0x`), 8 (`0` or `0o`) or 2 (`0b`).
fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    if !digits.starts_with(|first: char| first.is_ascii_hexdigit()) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), base).ok()
}

/// `time.ParseDuration`; a negative time counts as none at all, which no caller of ours accepts either.
fn duration(text: &str) -> Option<Duration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut some = false;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let amount: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        seconds += amount
            * match &rest[..end] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[end..];
        some = true;
    }
    let whole = Duration::try_from_secs_f64(seconds).ok()?;
    some.then_some(if negative { Duration::ZERO } else { whole })
}

impl Given {
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.values.iter().filter(move |(given, _)| *given == name).map(|(_, value)| value)
    }

    fn last(&self, name: &str) -> Option<&Value> {
        self.values.iter().rev().find(|(given, _)| *given == name).map(|(_, value)| value)
    }

    /// Whether a switch is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.switch(name) == Some(true)
    }

    /// How a switch was set, if it was.
    pub fn switch(&self, name: &str) -> Option<bool> {
        match self.last(name) {
            Some(Value::Switch(on)) => Some(*on),
            _ => None,
        }
    }

    /// Text; an empty one counts as not given, as in runc.
    pub fn text(&self, name: &str) -> Option<String> {
        match self.last(name) {
            Some(Value::Text(text)) if !text.is_empty() => text.to_str().map(str::to_owned),
            _ => None,
        }
    }

    /// Every text of a flag that may be repeated.
    pub fn texts(&self, name: &str) -> Vec<String> {
        let text = |value: &Value| match value {
            Value::Text(text) => text.to_str().map(str::to_owned),
            _ => None,
        };
        self.all(name).filter_map(text).collect()
    }

    /// A path; an empty one counts as not given, as in runc.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        match self.last(name) {
            Some(Value::Text(text)) if !text.is_empty() => Some(text.into()),
            _ => None,
        }
    }

    /// A path, also an empty one.
    pub fn raw_path(&self, name: &str) -> Option<PathBuf> {
        match self.last(name) {
            Some(Value::Text(text)) => Some(text.into()),
            _ => None,
        }
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<i64> {
        match self.last(name) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// Every number of a flag that may be repeated.
    pub fn numbers(&self, name: &str) -> Vec<i64> {
        let number = |value: &Value| if let Value::Number(number) = value { Some(*number) } else { None };
        self.all(name).filter_map(number).collect()
    }

    /// A time.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        match self.last(name) {
            Some(Value::Duration(duration)) => Some(*duration),
            _ => None,
        }
    }

    /// The next operand as text; an operand that is no UTF-8 becomes one that names nothing.
    pub fn operand(&mut self) -> Option<String> {
        let lossy = |text: OsString| {
            text.into_string().unwrap_or_else(|text| String::from_utf8_lossy(&text.into_vec()).into_owned())
        };
        (!self.operands.is_empty()).then(|| lossy(self.operands.remove(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::GLOBAL;
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn flags_have_gos_grammar() {
        let given =
            parse(GLOBAL, words("-root=/x --log /y -debug --debug=false state c --root z"), Order::First);
        let given = given.unwrap();
        assert_eq!((given.path("root"), given.path("log")), (Some("/x".into()), Some("/y".into())));
        assert!(!given.is_on("debug"));
        assert_eq!(given.operands, words("state c --root z"));
        assert_eq!(parse(GLOBAL, words("-- -v"), Order::First).unwrap().operands, words("-v"));
    }

    #[test]
    fn mistakes_are_told_in_gos_words() {
        for (line, expected) in [
            ("--bad", "flag provided but not defined: -bad"),
            ("-rootx=1", "flag provided but not defined: -rootx"),
            ("---x", "bad flag syntax: ---x"),
            ("--=x", "bad flag syntax: --=x"),
            ("--log", "flag needs an argument: -log"),
            ("--debug=maybe", "invalid boolean value \"maybe\" for -debug: parse error"),
        ] {
            assert_eq!(parse(GLOBAL, words(line), Order::First).unwrap_err(), expected);
        }
    }

    #[test]
    fn numbers_and_times_are_gos() {
        for (text, expected) in
            [("7", 7), ("-7", -7), ("+7", 7), ("0x1F", 31), ("010", 8), ("0b11", 3), ("0", 0)]
        {
            assert_eq!(number(text), Some(expected), "{text}");
        }
        for bad in ["", "-", "--7", "x", "0x", "9223372036854775808", "1 ", "+-7"] {
            assert_eq!(number(bad), None, "{bad}");
        }
        for (text, milliseconds) in [
            ("5s", 5000),
            ("1m30s", 90_000),
            ("250ms", 250),
            ("1.5s", 1500),
            ("0", 0),
            ("-5s", 0),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "5", "s", "5x", "5s5", "1..5s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
