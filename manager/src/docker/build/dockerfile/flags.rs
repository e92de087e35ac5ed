//! Flags of instructions: `--chown=1:1` before the arguments.

/// Flags of one instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags(Vec<(String, Option<String>)>);

impl Flags {
    /// Takes the flags that a text begins with; returns them and the rest.
    pub fn take(text: &str, escape: char) -> (Flags, &str) {
        let (mut flags, mut rest) = (Vec::new(), text.trim_start());
        while rest.starts_with("--") {
            let end = word_end(rest, escape);
            let (word, after) = rest.split_at(end);
            rest = after.trim_start();
            if word == "--" {
                break;
            }
            let bare = &word[2..];
            flags.push(match bare.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(unquoted(value, escape))),
                None => (bare.to_owned(), None),
            });
        }
        (Flags(flags), rest)
    }

    /// Checks that there are none but these; each but those in `many` once.
    ///
    /// # Errors
    ///
    /// The first that is unknown or there twice.
    pub fn check(&self, known: &[&str], many: &[&str]) -> Result<(), String> {
        for (index, (name, _)) in self.0.iter().enumerate() {
            if !known.contains(&name.as_str()) && !many.contains(&name.as_str()) {
                return Err(format!("unknown flag: --{name}"));
            }
            let is_again = self.0[..index].iter().any(|(other, _)| other == name);
            if is_again && !many.contains(&name.as_str()) {
                return Err(format!("duplicate flag specified: --{name}"));
            }
        }
        Ok(())
    }

    /// The value of a flag; empty where it is not there.
    ///
    /// # Errors
    ///
    /// When it has no value.
    pub fn value(&self, name: &str) -> Result<String, String> {
        match self.0.iter().find(|(own, _)| own == name) {
            None => Ok(String::new()),
            Some((_, Some(value))) => Ok(value.clone()),
            Some((_, None)) => Err(format!("missing a value on flag: --{name}")),
        }
    }

    /// All values of a flag.
    pub fn values(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(own, _)| own == name).filter_map(|(_, value)| value.clone()).collect()
    }

    /// Whether a flag without a value, or with a truth value, is on.
    ///
    /// # Errors
    ///
    /// When its value is no truth value.
    pub fn switch(&self, name: &str) -> Result<bool, String> {
        match self.0.iter().find(|(own, _)| own == name) {
            None => Ok(false),
            Some((_, value)) => match value.as_deref().map(str::to_lowercase).as_deref() {
                None | Some("true" | "") => Ok(true),
                Some("false") => Ok(false),
                Some(other) => Err(format!("expecting boolean value for flag --{name}, not: {other}")),
            },
        }
    }
}

/// Where a word ends: at the first blank that is neither quoted nor escaped.
fn word_end(text: &str, escape: char) -> usize {
    let (mut quote, mut is_escaped) = (None, false);
    for (at, letter) in text.char_indices() {
        if is_escaped {
            is_escaped = false;
        } else if letter == escape && quote != Some('\'') {
            is_escaped = true;
        } else if quote == Some(letter) {
            quote = None;
        } else if quote.is_none() && (letter == '"' || letter == '\'') {
            quote = Some(letter);
        } else if quote.is_none() && letter.is_whitespace() {
            return at;
        }
    }
    text.len()
}

/// A value without its quotes; variables stay.
fn unquoted(value: &str, escape: char) -> String {
    let (mut bare, mut quote, mut letters) = (String::new(), None, value.chars());
    while let Some(letter) = letters.next() {
        if letter == escape && quote != Some('\'') {
            bare.extend(letters.next());
        } else if quote == Some(letter) {
            quote = None;
        } else if quote.is_none() && (letter == '"' || letter == '\'') {
            quote = Some(letter);
        } else {
            bare.push(letter);
        }
    }
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_first() {
        let (flags, rest) = Flags::take("--chown=\"a b:c\" --link --from=x a --b", '\\');
        assert_eq!(rest, "a --b");
        assert_eq!(flags.value("chown").unwrap(), "a b:c");
        assert!(flags.switch("link").unwrap() && !flags.switch("parents").unwrap());
        assert_eq!(flags.value("link").unwrap_err(), "missing a value on flag: --link");
        assert_eq!(flags.check(&["chown", "from"], &[]).unwrap_err(), "unknown flag: --link");
        let (twice, _) = Flags::take("--a=1 --a=2 x", '\\');
        assert_eq!(twice.check(&["a"], &[]).unwrap_err(), "duplicate flag specified: --a");
        assert!(twice.check(&[], &["a"]).is_ok());
        assert_eq!(Flags::take("-- --x", '\\').1, "--x");
    }
}
