//! Filters: containerd's grammar for choosing events, images, containers, snapshots and content.
//!
//! ```text
//! filter    := selector ("," selector)*            all must hold
//! selector  := fieldpath [operator value]          without an operator: the field is present
//! fieldpath := field ("." field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="                  ~= takes a regular expression
//! value     := quoted | [^\s,]+
//! quoted    := "…" , and after ~= also |…| and /…/
//! ```
//!
//! Of several filters one must hold; no filter, and the empty one, match everything. Follows the package
//! `filters` of containerd, error texts included. Pure code.

mod scan;
#[cfg(test)]
mod tests;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use regex::Regex;

use scan::{Scanner, Token};

/// What filters choose from: an object whose fields have paths such as `labels.key` or `target.digest`.
pub trait Adaptor {
    /// The field's text, or nothing where the object has no such field.
    fn field(&self, path: &[&str]) -> Option<String>;
}

impl<F: Fn(&[&str]) -> Option<String>> Adaptor for F {
    fn field(&self, path: &[&str]) -> Option<String> {
        self(path)
    }
}

/// The value under the key that the rest of a path spells: `labels.a.b` is the key `a.b`, as in containerd.
pub fn label<'a>(
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
    path: &[&str],
) -> Option<String> {
    let key = path.join(".");
    labels.into_iter().find(|(name, _)| **name == key).map(|(_, value)| value.clone())
}

/// The text of a field that counts as absent while empty.
pub fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

/// A set of filters of which one must match.
#[derive(Debug, Default)]
pub struct Filter {
    /// Empty: everything matches. An empty alternative matches everything too.
    alternatives: Vec<Vec<Selector>>,
}

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// Nothing when the expression does not compile: it then matches no object, as in containerd.
    Matches(Option<Regex>),
}

impl Filter {
    /// Parses filters as a client sends them.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` with containerd's text: `filters: parse error: [a >|.|< .b]: expected field or quoted`.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Filter> {
        let alternatives = filters.iter().map(|filter| parse_one(filter.as_ref())).collect::<Result<_>>()?;
        Ok(Filter { alternatives })
    }

    /// Whether the object is chosen.
    pub fn matches(&self, object: &(impl Adaptor + ?Sized)) -> bool {
        self.alternatives.is_empty()
            || self.alternatives.iter().any(|all| all.iter().all(|selector| selector.matches(object)))
    }
}

impl Selector {
    fn matches(&self, object: &(impl Adaptor + ?Sized)) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let value = object.field(&path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == *wanted),
            Test::NotEqual(refused) => value.unwrap_or_default() != *refused,
            Test::Matches(expression) => {
                expression.as_ref().is_some_and(|e| e.is_match(&value.unwrap_or_default()))
            }
        }
    }
}

/// Where and why parsing stopped.
struct Fault {
    position: usize,
    reason: String,
}

type Parsed<T> = std::result::Result<T, Fault>;

fn fault<T>(position: usize, reason: impl Into<String>) -> Parsed<T> {
    Err(Fault { position, reason: reason.into() })
}

fn parse_one(input: &str) -> Result<Vec<Selector>> {
    if input.is_empty() {
        return Ok(Vec::new());
    }
    selectors(input).map_err(|Fault { position, reason }| {
        let shown = match input.get(position..).and_then(|rest| rest.chars().next()) {
            Some(at) => {
                let after = &input[position + at.len_utf8()..];
                format!("[{} >|{at}|< {after}]", &input[..position])
            }
            None => format!("[{input}]"),
        };
        Error::because(
            Kind::InvalidArgument,
            "filters: parse error",
            "",
            // containerd says it twice, and its client takes one off.
            format!("{shown}: {reason}: {kind}: {kind}", kind = Kind::InvalidArgument),
        )
    })
}

fn selectors(input: &str) -> Parsed<Vec<Selector>> {
    let mut scanner = Scanner::new(input);
    let mut all = vec![selector(&mut scanner)?];
    loop {
        match scanner.peek() {
            None => return Ok(all),
            Some(',') => {
                scanner.scan();
                all.push(selector(&mut scanner)?);
            }
            Some(other) => return fault(scanner.offset(), format!("unexpected input: {other}")),
        }
    }
}

fn selector(scanner: &mut Scanner<'_>) -> Parsed<Selector> {
    let mut path = vec![field(scanner)?];
    while scanner.peek() == Some('.') {
        scanner.scan();
        path.push(field(scanner)?);
    }
    if matches!(scanner.peek(), None | Some(',')) {
        return Ok(Selector { path, test: Test::Present });
    }
    let (position, token) = scanner.scan();
    let operator = match token {
        Token::Operator(operator) => operator,
        Token::Illegal(reason) => return fault(position, reason),
        _ => return fault(position, r#"expected an operator ("=="|"!="|"~=")"#),
    };
    let test = match operator {
        "==" => Test::Equal(value(scanner, false)?),
        "!=" => Test::NotEqual(value(scanner, false)?),
        "~=" => Test::Matches(Regex::new(&value(scanner, true)?).ok()),
        other => return fault(position, format!("unsupported operator {other:?}")),
    };
    Ok(Selector { path, test })
}

fn field(scanner: &mut Scanner<'_>) -> Parsed<String> {
    match scanner.scan() {
        (_, Token::Field(text)) => Ok(text.to_owned()),
        (position, Token::Quoted(text)) => unquoted(position, text, false),
        (position, Token::Illegal(reason)) => fault(position, reason),
        (position, _) => fault(position, "expected field or quoted"),
    }
}

fn value(scanner: &mut Scanner<'_>, any_quote: bool) -> Parsed<String> {
    match scanner.scan() {
        (_, Token::Value(text) | Token::Field(text)) => Ok(text.to_owned()),
        (position, Token::Quoted(text)) => unquoted(position, text, any_quote),
        (position, Token::Illegal(reason)) => fault(position, reason),
        (position, _) => fault(position, "expected value or quoted"),
    }
}

fn unquoted(position: usize, text: &str, any_quote: bool) -> Parsed<String> {
    if !any_quote && !text.starts_with('"') {
        return fault(position, "invalid quote encountered");
    }
    match scan::unquote(text) {
        Some(plain) => Ok(plain),
        None => fault(position, "unquoting failed: quote syntax error"),
    }
}
