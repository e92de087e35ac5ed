//! Patterns of paths: those of sources (Go's `filepath.Match`) and those of `.dockerignore`.

use regex::Regex;

use crate::docker::failure::{Failure, Result};

/// Whether a source is a pattern.
pub fn is_pattern(text: &str) -> bool {
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => drop(letters.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// A pattern as a regular expression of whole paths; `**` crosses directories where that is asked for.
///
/// # Errors
///
/// 400 for brackets that are not closed, and what else is no pattern.
pub fn compile(pattern: &str, crosses: bool) -> Result<Regex> {
    let wrong = || Failure::invalid("syntax error in pattern");
    let mut text = String::from("^(?s:");
    let mut letters = pattern.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '*' if crosses && letters.next_if_eq(&'*').is_some() => {
                // `**/` is any number of directories, none too.
                match letters.next_if_eq(&'/') {
                    Some(_) => text.push_str("(?:.*/)?"),
                    None => text.push_str(".*"),
                }
            }
            '*' => text.push_str("[^/]*"),
            '?' => text.push_str("[^/]"),
            '\\' => {
                let next = letters.next().ok_or_else(wrong)?;
                text.push_str(&regex::escape(&next.to_string()));
            }
            '[' => {
                text.push('[');
                if letters.next_if_eq(&'^').is_some() {
                    text.push('^');
                }
                let mut is_empty = true;
                loop {
                    match letters.next().ok_or_else(wrong)? {
                        ']' if !is_empty => break,
                        ']' => return Err(wrong()),
                        '-' if !is_empty => text.push('-'),
                        '\\' => {
                            let next = letters.next().ok_or_else(wrong)?;
                            text.push_str(&regex::escape(&next.to_string()));
                        }
                        other => {
                            if matches!(other, '[' | '^' | '&' | '~' | '-') {
                                text.push('\\');
                            }
                            text.push(other);
                        }
                    }
                    is_empty = false;
                }
                text.push(']');
            }
            other => text.push_str(&regex::escape(&other.to_string())),
        }
    }
    text.push_str(")$");
    Regex::new(&text).map_err(|_| wrong())
}

/// Patterns of what is left out; the last that matches a path or a directory above it counts.
pub struct Excluded(Vec<(Regex, bool)>);

impl Excluded {
    /// Takes patterns.
    ///
    /// # Errors
    ///
    /// 400 for a line that is no pattern.
    pub fn of<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Excluded> {
        let all: Result<Vec<_>> = patterns.into_iter().filter_map(|line| one(line).transpose()).collect();
        Ok(Excluded(all?))
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a path, relative to the root, is left out.
    pub fn has(&self, path: &str) -> bool {
        let last = self.0.iter().rev().find(|(regex, _)| matches(regex, path));
        last.is_some_and(|(_, excludes)| *excludes)
    }
}

/// Whether a pattern means a path or a directory above it.
fn matches(regex: &Regex, path: &str) -> bool {
    let mut ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    ends.any(|end| regex.is_match(&path[..end]))
}

/// A line as a pattern, and whether it leaves out or takes back; nothing for one that says nothing.
fn one(line: &str) -> Result<Option<(Regex, bool)>> {
    let line = line.trim();
    let (line, excludes) = match line.strip_prefix('!') {
        Some(rest) => (rest.trim(), false),
        None => (line, true),
    };
    // As names below the root: `/a`, `./a` and `a/` are `a`.
    let parts: Vec<&str> = line.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() {
        return Ok(None);
    }
    Ok(Some((compile(&parts.join("/"), true)?, excludes)))
}

/// Which of some paths a `.dockerignore` leaves out. One pattern at a time: a hostile file has many.
///
/// # Errors
///
/// 400 for a line that is no pattern.
pub fn left_out<const N: usize>(ignored: &str, paths: [&str; N]) -> Result<[bool; N]> {
    let mut out = [false; N];
    for line in ignored.trim_start_matches('\u{feff}').lines().filter(|line| !line.starts_with('#')) {
        let Some((regex, excludes)) = one(line)? else { continue };
        for (is_out, _) in out.iter_mut().zip(paths).filter(|(_, path)| matches(&regex, path)) {
            *is_out = excludes;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_match_as_in_go() {
        for (pattern, path, is_match) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "d/a.txt", false),
            ("d/?.[a-t]xt", "d/a.txt", true),
            ("[^a].txt", "a.txt", false),
            ("\\*.txt", "*.txt", true),
            ("\\*.txt", "a.txt", false),
            ("a[[]b", "a[b", true),
        ] {
            assert_eq!(compile(pattern, false).unwrap().is_match(path), is_match, "{pattern} {path}");
        }
        assert!(compile("[a", false).is_err() && compile("a\\", false).is_err());
        assert!(is_pattern("a*") && !is_pattern("a\\*") && is_pattern("[a]"));
    }

    #[test]
    fn the_last_line_that_matches_counts() {
        let text = "# no\n*.md\n!README.md\n/build/\n**/*.tmp\nsub/**/x\n!build/keep\n\n";
        let excluded = Excluded::of(text.lines().skip(1)).unwrap();
        for (path, is_out) in [
            ("a.md", true),
            ("README.md", false),
            ("d/a.md", false),
            ("build", true),
            ("build/x/y", true),
            ("build/keep", false),
            ("a/b/c.tmp", true),
            ("c.tmp", true),
            ("sub/x", true),
            ("sub/a/b/x", true),
            ("# no", false),
        ] {
            assert_eq!(excluded.has(path), is_out, "{path}");
            assert_eq!(left_out(text, [path]).unwrap(), [is_out], "{path}");
        }
        assert!(left_out("[", ["a"]).is_err() && Excluded::of(["", "/"]).unwrap().is_empty());
    }
}
