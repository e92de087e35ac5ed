//! Tokens of the filter grammar, and Go's rules for quoted strings.

use std::str::Chars;

/// A piece of a filter.
#[derive(Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// The end of the filter.
    End,
    /// With its quotes.
    Quoted(&'a str),
    Value(&'a str),
    Field(&'a str),
    /// `,` or `.`.
    Separator,
    /// Any run of `=`, `!` and `~`.
    Operator(&'a str),
    /// A character that starts no token.
    Other,
    Illegal(&'static str),
}

/// Splits a filter into tokens. What may come next depends on the last token: after an operator stands a value.
pub struct Scanner<'a> {
    input: &'a str,
    offset: usize,
    expects_value: bool,
}

impl<'a> Scanner<'a> {
    pub fn new(input: &'a str) -> Self {
        Scanner { input, offset: 0, expects_value: false }
    }

    /// Bytes consumed so far.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The next character, which stays.
    pub fn peek(&self) -> Option<char> {
        self.input[self.offset..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.offset += next.len_utf8();
        Some(next)
    }

    fn skip_while(&mut self, wanted: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&wanted) {
            self.next();
        }
    }

    /// The next token and where it starts.
    pub fn scan(&mut self) -> (usize, Token<'a>) {
        self.skip_while(char::is_whitespace);
        let start = self.offset;
        let Some(first) = self.next() else { return (start, Token::End) };
        let token = match first {
            '\0' => Token::Illegal("unexpected null"),
            '/' | '|' | '"' => match self.skip_quoted(first) {
                Ok(()) => Token::Quoted(&self.input[start..self.offset]),
                Err(reason) => Token::Illegal(reason),
            },
            ',' | '.' => {
                self.expects_value = false;
                Token::Separator
            }
            '=' | '!' | '~' => {
                self.skip_while(|c| matches!(c, '=' | '!' | '~'));
                self.expects_value = true;
                Token::Operator(&self.input[start..self.offset])
            }
            _ if self.expects_value => {
                self.skip_while(|c| c != ',' && !c.is_whitespace() && !c.is_control());
                self.expects_value = false;
                Token::Value(&self.input[start..self.offset])
            }
            c if is_field(c) => {
                self.skip_while(is_field);
                Token::Field(&self.input[start..self.offset])
            }
            _ => Token::Other,
        };
        (start, token)
    }

    fn skip_quoted(&mut self, quote: char) -> Result<(), &'static str> {
        let mut illegal = None;
        loop {
            match self.next() {
                None | Some('\n') => return Err("quoted literal not terminated"),
                Some('\\') => {
                    if let Err(reason) = self.skip_escape(quote) {
                        illegal = Some(reason);
                    }
                }
                Some(c) if c == quote => return illegal.map_or(Ok(()), Err),
                Some(_) => {}
            }
        }
    }

    fn skip_escape(&mut self, quote: char) -> Result<(), &'static str> {
        let (base, digits) = match self.peek() {
            Some(c) if c == quote || "abfnrtv\\".contains(c) => {
                self.next();
                return Ok(());
            }
            Some('0'..='7') => (8, 3),
            Some('x') => (16, 2),
            Some('u') => (16, 4),
            Some('U') => (16, 8),
            _ => return Err("illegal escape sequence"),
        };
        if base == 16 {
            self.next();
        }
        for _ in 0..digits {
            if !self.peek().is_some_and(|c| c.is_digit(base)) {
                return Err("illegal numeric escape sequence");
            }
            self.next();
        }
        Ok(())
    }
}

fn is_field(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

/// The text between quotes with Go's escapes resolved; nothing when an escape means no character.
pub fn unquote(quoted: &str) -> Option<String> {
    let quote = quoted.chars().next()?;
    let inner = quoted.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match rest.next()? {
            'a' => bytes.push(0x07),
            'b' => bytes.push(0x08),
            'f' => bytes.push(0x0c),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(0x0b),
            '\\' => bytes.push(b'\\'),
            // These two name bytes, which together must make UTF-8; \u and \U name characters.
            'x' => bytes.push(u8::try_from(number(&mut rest, 16, 2)?).ok()?),
            first @ '0'..='7' => {
                let high = first.to_digit(8)?;
                bytes.push(u8::try_from(high * 64 + number(&mut rest, 8, 2)?).ok()?);
            }
            letter @ ('u' | 'U') => {
                let digits = if letter == 'u' { 4 } else { 8 };
                let code = number(&mut rest, 16, digits).filter(|code| *code <= char::MAX.into())?;
                let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other if other == quote => bytes.push(u8::try_from(other).ok()?),
            _ => return None,
        }
    }
    String::from_utf8(bytes).ok()
}

fn number(rest: &mut Chars<'_>, base: u32, digits: u32) -> Option<u32> {
    (0..digits).try_fold(0u32, |sum, _| sum.checked_mul(base)?.checked_add(rest.next()?.to_digit(base)?))
}
