//! Dockerfiles: from text to stages of instructions, without a look at anything outside.
//!
//! `lines` makes logical lines of physical ones, `instruction` reads each, `words` expands variables when an
//! instruction is carried out. Follows the Dockerfile reference and, where that is silent, the classic builder.

mod flags;
mod instruction;
mod lines;
mod words;

pub use instruction::{Command, Copy, Line, Pair, Run};
pub use words::Lexer;

/// What is wrong with a Dockerfile, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "dockerfile parse error on line {}: {}", self.line, self.message)
    }
}

/// An instruction with the text that it was written as.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its text, continuation lines joined.
    pub text: String,
    /// What it asks for.
    pub command: Command,
}

/// A stage: `FROM` and what follows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stage {
    /// The text of its `FROM`.
    pub text: String,
    /// The image that it begins with, not expanded yet.
    pub base: String,
    /// Its name, in lower case; empty where it has none.
    pub name: String,
    /// The platform that it asks for, not expanded yet.
    pub platform: String,
    /// What follows.
    pub steps: Vec<Step>,
}

/// A Dockerfile.
#[derive(Clone, Debug, PartialEq)]
pub struct Dockerfile {
    /// `ARG` instructions before the first stage.
    pub arguments: Vec<Step>,
    /// The stages; at least one.
    pub stages: Vec<Stage>,
    /// The character that takes another's meaning away.
    pub escape: char,
    /// What is odd but works.
    pub warnings: Vec<String>,
}

impl Dockerfile {
    /// Reads a Dockerfile.
    ///
    /// # Errors
    ///
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Dockerfile, ParseError> {
        let lines::Lines { lines, escape, warnings } = lines::split(text)?;
        let mut dockerfile = Dockerfile { arguments: Vec::new(), stages: Vec::new(), escape, warnings };
        for line in &lines {
            let wrong = |message: String| ParseError { line: line.number, message };
            if line.keyword() == "from" {
                dockerfile.stages.push(instruction::from(line, escape).map_err(wrong)?);
                continue;
            }
            let command = instruction::parse(line, escape).map_err(wrong)?;
            let step = Step { text: line.text.trim().to_owned(), command };
            match (dockerfile.stages.last_mut(), &step.command) {
                (Some(stage), _) => stage.steps.push(step),
                (None, Command::Arg(_)) => dockerfile.arguments.push(step),
                (None, _) => return Err(wrong("no build stage in current context".to_owned())),
            }
        }
        if dockerfile.stages.is_empty() {
            let message = "no build stage in current context".to_owned();
            return Err(ParseError { line: lines.last().map_or(1, |line| line.number), message });
        }
        Ok(dockerfile)
    }

    /// The stage that `--target` means: a name, or a number.
    pub fn find(&self, target: &str) -> Option<usize> {
        let name = target.to_lowercase();
        let named = self.stages.iter().position(|stage| stage.name == name);
        named.or_else(|| target.parse().ok().filter(|number| *number < self.stages.len()))
    }
}

/// Instructions alone, as `docker commit --change` and `ONBUILD` have them.
///
/// # Errors
///
/// The first line that is wrong.
pub fn instructions(text: &str) -> Result<Vec<Step>, ParseError> {
    let lines::Lines { lines, escape, .. } = lines::split(text)?;
    lines
        .iter()
        .map(|line| {
            let command = instruction::parse(line, escape)
                .map_err(|message| ParseError { line: line.number, message })?;
            Ok(Step { text: line.text.trim().to_owned(), command })
        })
        .collect()
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
