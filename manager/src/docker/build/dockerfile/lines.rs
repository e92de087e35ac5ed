//! Logical lines: parser directives, comments, continuation lines, here-documents.

use super::ParseError;

/// The first length that no line may have, in bytes with its end: that of Go's line reader.
const MAX_LINE: usize = 64 << 10;

/// A here-document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it, which is its name.
    pub name: String,
    /// Whether variables in it are expanded: its word has no quotes.
    pub expand: bool,
    /// Whether tabs before its lines are taken away (`<<-`).
    pub chomp: bool,
    /// Its text, with line ends.
    pub content: String,
}

impl Heredoc {
    /// Its text, without tabs before the lines where it asks for that.
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// A logical line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogicalLine {
    /// The number of its first physical line, from 1.
    pub number: usize,
    /// Its text, continuation lines joined.
    pub text: String,
    /// The here-documents that follow it.
    pub heredocs: Vec<Heredoc>,
}

impl LogicalLine {
    /// The instruction, in lower case.
    pub fn keyword(&self) -> String {
        self.text.split_ascii_whitespace().next().unwrap_or_default().to_lowercase()
    }
}

/// A Dockerfile's lines.
#[derive(Debug)]
pub struct Lines {
    /// The lines that have instructions.
    pub lines: Vec<LogicalLine>,
    /// The escape character.
    pub escape: char,
    /// What is odd but works.
    pub warnings: Vec<String>,
}

/// Parser directives: comments at the top that say how to read what follows.
struct Directives {
    escape: char,
    seen: Vec<String>,
    is_over: bool,
}

impl Directives {
    /// Looks at a line; true for a directive.
    fn take(&mut self, line: &str) -> Result<bool, String> {
        if self.is_over {
            return Ok(false);
        }
        self.is_over = true;
        let Some((key, value)) = line.strip_prefix('#').and_then(|rest| rest.split_once('=')) else {
            return Ok(false);
        };
        let key = key.trim().to_lowercase();
        if !["escape", "syntax", "check"].contains(&key.as_str()) || value.trim().is_empty() {
            return Ok(false);
        }
        if self.seen.contains(&key) {
            return Err(format!("only one {key} parser directive can be used"));
        }
        if key == "escape" {
            self.escape = match value.trim() {
                "\\" => '\\',
                "`" => '`',
                other => return Err(format!("invalid escape token '{other}' does not match ` or \\")),
            };
        }
        self.seen.push(key);
        self.is_over = false;
        Ok(true)
    }
}

/// Takes away the escape character with which a line goes on in the next.
fn continued(line: &str, escape: char) -> Option<&str> {
    let bare = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    // Two of them are one that means itself.
    (!bare.ends_with(escape)).then_some(bare)
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// Splits a text.
///
/// # Errors
///
/// Wrong directives, here-documents that do not end, lines that are too long, a file without instructions.
pub fn split(text: &str) -> Result<Lines, ParseError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(index) = text.split_inclusive('\n').position(|line| line.len() >= MAX_LINE) {
        let message = format!("dockerfile line greater than max allowed size of {}", MAX_LINE - 1);
        return Err(ParseError { line: index + 1, message });
    }
    let mut directives = Directives { escape: '\\', seen: Vec::new(), is_over: false };
    let mut physical = text.split_inclusive('\n').enumerate();
    let (mut lines, mut warnings, mut last) = (Vec::new(), Vec::new(), 0);
    while let Some((index, line)) = physical.next() {
        last = index + 1;
        let wrong = |line: usize, message: String| ParseError { line, message };
        let stripped = line.trim_start().trim_end_matches(['\n', '\r']);
        if directives.take(stripped).map_err(|message| wrong(last, message))? || stripped.starts_with('#') {
            continue;
        }
        if stripped.is_empty() {
            continue;
        }
        let escape = directives.escape;
        let (mut joined, mut has_empty) = (String::new(), false);
        let mut piece = stripped;
        loop {
            match continued(piece, escape) {
                None => {
                    joined.push_str(piece);
                    break;
                }
                Some(bare) => joined.push_str(bare),
            }
            // The next line that counts.
            let next = loop {
                match physical.next() {
                    None => break None,
                    Some((index, line)) => {
                        last = index + 1;
                        let line = line.trim_end_matches(['\n', '\r']);
                        if is_comment(line) {
                            continue;
                        }
                        if line.trim().is_empty() {
                            has_empty = true;
                            continue;
                        }
                        break Some(line);
                    }
                }
            };
            match next {
                Some(line) => piece = line,
                None => break,
            }
        }
        if joined.trim().is_empty() {
            continue;
        }
        if has_empty {
            warnings.push(format!("Empty continuation line found in: {joined}"));
        }
        let number = index + 1;
        let mut heredocs = heredocs(&joined, escape);
        for heredoc in &mut heredocs {
            let ended = physical.by_ref().any(|(index, line)| {
                last = index + 1;
                let bare = line.trim_end_matches(['\n', '\r']);
                let bare = if heredoc.chomp { bare.trim_start_matches('\t') } else { bare };
                if bare == heredoc.name {
                    return true;
                }
                heredoc.content.push_str(line);
                false
            });
            if !ended {
                return Err(wrong(number, "unterminated heredoc".to_owned()));
            }
        }
        lines.push(LogicalLine { number, text: joined, heredocs });
    }
    if lines.is_empty() {
        return Err(ParseError { line: last.max(1), message: "file with no instructions".to_owned() });
    }
    Ok(Lines { lines, escape: directives.escape, warnings })
}

/// A line's instruction in lower case, and what follows it.
fn keyword_and_rest(line: &str) -> (String, &str) {
    let line = line.trim();
    let (keyword, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (keyword.to_lowercase(), rest)
}

/// The here-documents that a line announces: of instructions that can have some, and not in JSON.
fn heredocs(line: &str, escape: char) -> Vec<Heredoc> {
    let (mut keyword, mut rest) = keyword_and_rest(line);
    if keyword == "onbuild" {
        // A trigger's own; one within another is refused, so that nobody has to look how deep they lie.
        (keyword, rest) = keyword_and_rest(rest);
    }
    if !["run", "copy", "add"].contains(&keyword.as_str()) || rest.trim_start().starts_with('[') {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut words = super::words::split(rest, escape).into_iter();
    while let Some(word) = words.next() {
        let bare = word.trim_start_matches(|letter: char| letter.is_ascii_digit());
        let Some(after) = bare.strip_prefix("<<") else { continue };
        let (chomp, after) = match after.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, after),
        };
        // The word may stand apart.
        let name = if after.is_empty() { words.next().unwrap_or_default() } else { after.to_owned() };
        if let Some((name, expand)) = heredoc_name(&name) {
            found.push(Heredoc { name, expand, chomp, content: String::new() });
        }
    }
    found
}

/// A here-document's word without its quotes, and whether it had none.
fn heredoc_name(word: &str) -> Option<(String, bool)> {
    let bare: String = word.chars().filter(|letter| !['\'', '"'].contains(letter)).collect();
    // `<<<` is a here-string, and what ends in an operator is the shell's business.
    let is_name = !bare.is_empty() && !bare.contains(['<', '$', '(', '>', '|', ';', '&']);
    is_name.then(|| (bare.clone(), bare.len() == word.len()))
}

/// The here-document that a word of `COPY` or `ADD` stands for, by its name.
pub fn heredoc_of<'a>(word: &str, heredocs: &'a [Heredoc]) -> Option<&'a Heredoc> {
    let bare = word.trim_start_matches(|letter: char| letter.is_ascii_digit()).strip_prefix("<<")?;
    let (name, _) = heredoc_name(bare.strip_prefix('-').unwrap_or(bare))?;
    heredocs.iter().find(|heredoc| heredoc.name == name)
}
