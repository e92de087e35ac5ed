//! Words: splitting with quotes, and expansion of variables with the shell's `${…}` forms.

use std::iter::Peekable;
use std::vec::IntoIter;

use regex::Regex;

/// How deep `${a:-${b:-…}}` may be nested.
const MAX_DEPTH: usize = 64;
/// How much the variables of a word may bring, in bytes: no longer argument or variable can be given to a program
/// (`MAX_ARG_STRLEN` of execve(2)), and a few lines such as `ENV A=$A$A` would otherwise fill the memory.
const MAX_WORD: usize = 128 << 10;
/// The same for a here-document, which becomes a file.
const MAX_DOCUMENT: usize = 4 << 20;

/// Splits a text at blanks; quotes keep words together and stay, as do escapes.
pub fn split(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word, mut quote, mut has_word) = (Vec::new(), String::new(), None, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match quote {
            None if letter.is_whitespace() => {
                if has_word {
                    words.push(std::mem::take(&mut word));
                }
                has_word = false;
                continue;
            }
            None if letter == '"' || letter == '\'' => quote = Some(letter),
            Some(open) if open == letter => quote = None,
            _ if letter == escape && quote != Some('\'') => {
                // The last one of a text means nothing.
                if let Some(next) = letters.next() {
                    word.push(letter);
                    word.push(next);
                    has_word = true;
                }
                continue;
            }
            _ => {}
        }
        has_word = true;
        word.push(letter);
    }
    if has_word {
        words.push(word);
    }
    words
}

/// Expands variables in words.
#[derive(Clone, Copy)]
pub struct Lexer<'a> {
    /// The character that takes another's meaning away.
    pub escape: char,
    /// Values of variables, `NAME=value` each; the first of a name counts.
    pub variables: &'a [String],
}

impl Lexer<'_> {
    /// A word with its quotes taken away and its variables expanded.
    ///
    /// # Errors
    ///
    /// Quotes and braces that are not closed, substitutions that are none, variables that must be set and are not.
    pub fn word(&self, word: &str) -> Result<String, String> {
        let mut reader = Reader::new(self, word, MAX_WORD);
        let found = reader.until(None, Mode::Plain);
        found.map(|found| found.text).map_err(|error| format!("failed to process {word:?}: {error}"))
    }

    /// The same, where the values of variables are split at blanks.
    ///
    /// # Errors
    ///
    /// As [`Lexer::word`].
    pub fn words(&self, word: &str) -> Result<Vec<String>, String> {
        let mut reader = Reader::new(self, word, MAX_WORD);
        let found = reader.until(None, Mode::Plain);
        found.map(Found::into_words).map_err(|error| format!("failed to process {word:?}: {error}"))
    }

    /// A here-document with its variables expanded; quotes are text.
    ///
    /// # Errors
    ///
    /// As [`Lexer::word`].
    pub fn document(&self, text: &str) -> Result<String, String> {
        let mut reader = Reader::new(self, text, MAX_DOCUMENT);
        reader.until(None, Mode::Document).map(|found| found.text)
    }

    fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.variables.iter();
        values.find_map(|entry| entry.split_once('=').filter(|(own, _)| *own == name).map(|(_, value)| value))
    }
}

/// How a text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Quotes and escapes go.
    Plain,
    /// A pattern: escapes stay, for the pattern's own reader.
    Pattern,
    /// Quotes are text.
    Document,
}

/// What was read: as one text, and in words.
#[derive(Default)]
struct Found {
    text: String,
    words: Vec<String>,
    word: String,
}

impl Found {
    fn push(&mut self, letter: char) {
        self.text.push(letter);
        if letter.is_whitespace() {
            self.end_word();
        } else {
            self.word.push(letter);
        }
    }

    fn push_whole(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.push_str(text);
    }

    fn end_word(&mut self) {
        if !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
        }
    }

    fn into_words(mut self) -> Vec<String> {
        self.end_word();
        self.words
    }
}

struct Reader<'a, 'b> {
    lexer: &'a Lexer<'b>,
    letters: Peekable<IntoIter<char>>,
    depth: usize,
    /// How many bytes variables may still bring.
    room: usize,
}

impl<'a, 'b> Reader<'a, 'b> {
    fn new(lexer: &'a Lexer<'b>, text: &str, room: usize) -> Reader<'a, 'b> {
        Reader { lexer, letters: text.chars().collect::<Vec<_>>().into_iter().peekable(), depth: 0, room }
    }

    /// Takes room for what a variable brings.
    fn take(&mut self, length: usize) -> Result<(), String> {
        let left = self.room.checked_sub(length);
        self.room = left.ok_or_else(|| "the values of its variables are too long".to_owned())?;
        Ok(())
    }

    /// Reads up to a letter, which is taken too, or to the end.
    fn until(&mut self, stop: Option<char>, mode: Mode) -> Result<Found, String> {
        let mut found = Found::default();
        while let Some(letter) = self.letters.next() {
            match letter {
                letter if Some(letter) == stop => return Ok(found),
                '$' => {
                    let value = self.variable()?;
                    value.chars().for_each(|letter| found.push(letter));
                }
                '\'' if mode != Mode::Document => found.push_whole(&self.single_quoted(mode)?),
                '"' if mode != Mode::Document => found.push_whole(&self.double_quoted(mode)?),
                letter if letter == self.lexer.escape => {
                    let Some(next) = self.letters.next() else {
                        if mode != Mode::Plain {
                            found.push_whole(&letter.to_string());
                        }
                        break;
                    };
                    let stays = mode == Mode::Pattern
                        || (mode == Mode::Document && !['$', self.lexer.escape].contains(&next));
                    if stays {
                        found.push_whole(&letter.to_string());
                    }
                    found.push_whole(&next.to_string());
                }
                letter => found.push(letter),
            }
        }
        match stop {
            None => Ok(found),
            Some(stop) => Err(format!("syntax error: missing '{stop}'")),
        }
    }

    fn single_quoted(&mut self, mode: Mode) -> Result<String, String> {
        let mut text = String::new();
        for letter in self.letters.by_ref() {
            if letter == '\'' {
                return Ok(text);
            }
            if mode == Mode::Pattern && letter == self.lexer.escape {
                text.push(letter);
            }
            text.push(letter);
        }
        Err("unexpected end of statement while looking for matching single-quote".to_owned())
    }

    fn double_quoted(&mut self, mode: Mode) -> Result<String, String> {
        let mut text = String::new();
        while let Some(letter) = self.letters.next() {
            match letter {
                '"' => return Ok(text),
                '$' => text.push_str(&self.variable()?),
                letter if letter == self.lexer.escape => match self.letters.peek().copied() {
                    None => {}
                    Some(next) if ['"', '$', self.lexer.escape].contains(&next) => {
                        if mode == Mode::Pattern {
                            text.push(letter);
                        }
                        text.push(next);
                        self.letters.next();
                    }
                    Some(_) => text.push(letter),
                },
                letter => text.push(letter),
            }
        }
        Err("unexpected end of statement while looking for matching double-quote".to_owned())
    }

    /// What a dollar sign leads to.
    fn variable(&mut self) -> Result<String, String> {
        let value = self.value()?;
        self.take(value.len())?;
        Ok(value)
    }

    fn value(&mut self) -> Result<String, String> {
        if self.letters.peek() != Some(&'{') {
            let name = self.name();
            return Ok(match name.is_empty() {
                true => "$".to_owned(),
                false => self.lexer.get(&name).unwrap_or_default().to_owned(),
            });
        }
        self.letters.next();
        match self.letters.peek() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("syntax error: substitutions are nested too deep".to_owned());
        }
        let value = self.substitution(&name)?;
        self.depth -= 1;
        Ok(value)
    }

    /// What follows a name in braces.
    fn substitution(&mut self, name: &str) -> Result<String, String> {
        let value = self.lexer.get(name).map(str::to_owned);
        let unsupported = |modifier: &str| Err(format!("unsupported modifier ({modifier}) in substitution"));
        let (modifier, empty_is_unset) = match self.letters.next() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('}') => return Ok(value.unwrap_or_default()),
            Some(':') => match self.letters.next() {
                Some(modifier @ ('-' | '+' | '?')) => (modifier, true),
                Some(other) => return unsupported(&format!(":{other}")),
                None => return Err("syntax error: missing '}'".to_owned()),
            },
            Some(modifier) => (modifier, false),
        };
        let is_set = value.as_ref().is_some_and(|value| !(empty_is_unset && value.is_empty()));
        match modifier {
            '-' | '+' | '?' => {
                let word = self.until(Some('}'), Mode::Plain)?.text;
                match (modifier, is_set) {
                    ('-', false) | ('+', true) => Ok(word),
                    ('+', false) => Ok(String::new()),
                    ('?', false) => {
                        let how = if value.is_none() { "unset" } else { "empty" };
                        let message =
                            if word.is_empty() { format!("is not allowed to be {how}") } else { word };
                        Err(format!("{name}: {message}"))
                    }
                    _ => Ok(value.unwrap_or_default()),
                }
            }
            '#' | '%' => {
                let is_longest = self.letters.next_if_eq(&modifier).is_some();
                let pattern = self.until(Some('}'), Mode::Pattern)?.text;
                let value = value.unwrap_or_default();
                trimmed(&value, &pattern, self.lexer.escape, modifier == '#', is_longest)
            }
            '/' => {
                let all = self.letters.next_if_eq(&'/').is_some();
                let pattern = self.until(Some('/'), Mode::Pattern)?.text;
                let by = self.until(Some('}'), Mode::Plain)?.text;
                let value = value.unwrap_or_default();
                let regex = compiled(
                    &format!("(?s:{})", pieces(&pattern, self.lexer.escape, true).concat()),
                    &pattern,
                )?;
                let places = if all { regex.find_iter(&value).count() } else { 1 };
                self.take(places.saturating_mul(by.len()))?;
                let by = regex::NoExpand(&by);
                Ok(match all {
                    true => regex.replace_all(&value, by).into_owned(),
                    false => regex.replace(&value, by).into_owned(),
                })
            }
            other => unsupported(&other.to_string()),
        }
    }

    /// A variable's name: letters, digits, underscores; a number; or one of the shell's special ones.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.letters.peek() {
            Some(first) if first.is_numeric() => {
                while let Some(digit) = self.letters.next_if(|letter| letter.is_numeric()) {
                    name.push(digit);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.letters.next()),
            _ => {
                while let Some(letter) =
                    self.letters.next_if(|letter| letter.is_alphanumeric() || *letter == '_')
                {
                    name.push(letter);
                }
            }
        }
        name
    }
}

/// A value without what a pattern matches at its start or its end.
fn trimmed(
    value: &str,
    pattern: &str,
    escape: char,
    at_start: bool,
    is_longest: bool,
) -> Result<String, String> {
    let mut pieces = pieces(pattern, escape, is_longest);
    if !at_start {
        pieces.reverse();
    }
    let regex = compiled(&format!("^(?s:{})", pieces.concat()), pattern)?;
    // The end of a text is the start of the same read backwards. With stars alone the first match is the longest, or the
    // shortest.
    let backwards = |text: &str| text.chars().rev().collect::<String>();
    let text = if at_start { value.to_owned() } else { backwards(value) };
    let end = regex.find(&text).map_or(0, |found| found.end());
    let rest = &text[end..];
    Ok(if at_start { rest.to_owned() } else { backwards(rest) })
}

fn compiled(regex: &str, pattern: &str) -> Result<Regex, String> {
    Regex::new(regex).map_err(|_| format!("invalid pattern ({pattern}) in substitution"))
}

/// A pattern of the shell (`*`, `?`) as pieces of a regular expression.
fn pieces(pattern: &str, escape: char, is_longest: bool) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        pieces.push(match letter {
            '*' if is_longest => ".*".to_owned(),
            '*' => ".*?".to_owned(),
            '?' => ".".to_owned(),
            letter if letter == escape => regex::escape(&letters.next().unwrap_or(letter).to_string()),
            letter => regex::escape(&letter.to_string()),
        });
    }
    pieces
}
