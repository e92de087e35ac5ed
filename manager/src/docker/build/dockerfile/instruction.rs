//! One instruction: its flags, its form, its arguments, checked as far as its text alone tells.

use super::Stage;
use super::flags::Flags;
use super::lines::{Heredoc, LogicalLine, heredoc_of};
use super::words::split;
use crate::docker::container::config::Healthcheck;
use crate::docker::moment::duration;

/// Where the classic builder sends who asks for what only BuildKit can.
const NEEDS_BUILDKIT: &str = "option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ to learn how to \
                              build images with BuildKit enabled";
/// The shortest time of a health check, in nanoseconds.
const SHORTEST: i64 = 1_000_000;

/// A name and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// The name, not expanded yet.
    pub key: String,
    /// The value, not expanded yet.
    pub value: String,
    /// Whether both are taken as they are: `--label` gives them.
    pub is_literal: bool,
}

/// A command line: words in JSON, or a line for a shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The words; one for a shell.
    pub words: Vec<String>,
    /// Whether a shell reads it.
    pub for_shell: bool,
}

/// `RUN`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// What is run.
    pub line: Line,
    /// Here-documents that belong to it.
    pub heredocs: Vec<Heredoc>,
}

/// `COPY` or `ADD`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Paths, patterns and URLs, not expanded yet.
    pub sources: Vec<String>,
    /// Files that are in the Dockerfile itself.
    pub documents: Vec<Heredoc>,
    /// Where to, not expanded yet.
    pub target: String,
    /// The stage or image that sources are in; empty for the context.
    pub from: String,
    /// The owner of what is copied, not expanded yet; empty for root.
    pub chown: String,
    /// The mode of what is copied, not expanded yet; empty for what it has.
    pub chmod: String,
    /// The digest that a URL's content must have.
    pub checksum: String,
    /// Patterns of what is left out.
    pub excludes: Vec<String>,
}

/// An instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `ADD`.
    Add(Copy),
    /// `ARG`: names, each with a value or without.
    Arg(Vec<(String, Option<String>)>),
    /// `CMD`.
    Cmd(Line),
    /// `COPY`.
    Copy(Copy),
    /// `ENTRYPOINT`.
    Entrypoint(Line),
    /// `ENV`.
    Env(Vec<Pair>),
    /// `EXPOSE`.
    Expose(Vec<String>),
    /// `HEALTHCHECK`.
    Healthcheck(Healthcheck),
    /// `LABEL`.
    Label(Vec<Pair>),
    /// `MAINTAINER`.
    Maintainer(String),
    /// `ONBUILD`: an instruction's text.
    OnBuild(String),
    /// `RUN`.
    Run(Run),
    /// `SHELL`.
    Shell(Vec<String>),
    /// `STOPSIGNAL`.
    StopSignal(String),
    /// `USER`.
    User(String),
    /// `VOLUME`.
    Volume(Vec<String>),
    /// `WORKDIR`.
    Workdir(String),
}

type Parsed<T> = Result<T, String>;

/// A line's instruction, its flags and its arguments.
fn parts(line: &LogicalLine, escape: char) -> (String, Flags, &str) {
    let text = line.text.trim();
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let (flags, rest) = Flags::take(rest, escape);
    (name.to_uppercase(), flags, rest.trim())
}

/// Reads a `FROM`.
///
/// # Errors
///
/// What is wrong with it.
pub fn from(line: &LogicalLine, escape: char) -> Parsed<Stage> {
    let (_, flags, rest) = parts(line, escape);
    let words: Vec<&str> = rest.split_whitespace().collect();
    let name = match words.as_slice() {
        [_] => String::new(),
        [_, word, name] if word.eq_ignore_ascii_case("as") => stage_name(name)?,
        _ => return Err("FROM requires either one or three arguments".to_owned()),
    };
    flags.check(&["platform"], &[])?;
    Ok(Stage {
        text: line.text.trim().to_owned(),
        base: words[0].to_owned(),
        name,
        platform: flags.value("platform")?,
        steps: Vec::new(),
    })
}

fn stage_name(text: &str) -> Parsed<String> {
    let name = text.to_lowercase();
    let is_name = name.starts_with(|letter: char| letter.is_ascii_lowercase())
        && name
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-_.".contains(letter));
    match is_name {
        true => Ok(name),
        false => Err(format!(
            "invalid name for build stage: {text:?}, name can't start with a number or contain symbols"
        )),
    }
}

/// Reads any other instruction.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse(line: &LogicalLine, escape: char) -> Parsed<Command> {
    let (name, flags, rest) = parts(line, escape);
    let at_least_one = || format!("{name} requires at least one argument");
    let one = || match rest {
        "" => Err(format!("{name} requires exactly one argument")),
        text => Ok(text.to_owned()),
    };
    let plain = |command: Command| flags.check(&[], &[]).map(|()| command);
    match name.as_str() {
        "ADD" | "COPY" => {
            let copy = copy(&name, &flags, rest, line)?;
            Ok(if name == "ADD" { Command::Add(copy) } else { Command::Copy(copy) })
        }
        "ARG" => plain(Command::Arg(arguments(rest, escape)?)),
        "CMD" => plain(Command::Cmd(command_line(rest)?)),
        "ENTRYPOINT" => plain(Command::Entrypoint(command_line(rest)?)),
        "ENV" => plain(Command::Env(pairs(&name, rest, escape)?)),
        "EXPOSE" => {
            let mut ports: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
            ports.sort();
            if ports.is_empty() { Err(at_least_one()) } else { plain(Command::Expose(ports)) }
        }
        "HEALTHCHECK" => Ok(Command::Healthcheck(health(&flags, rest)?)),
        "LABEL" => plain(Command::Label(pairs(&name, rest, escape)?)),
        "MAINTAINER" => plain(Command::Maintainer(one()?)),
        "ONBUILD" => plain(Command::OnBuild(trigger(rest, line, escape)?)),
        "RUN" => run(&flags, rest, line),
        "SHELL" => match json(rest)? {
            Some(words) if !words.is_empty() => plain(Command::Shell(words)),
            Some(_) => Err(at_least_one()),
            None if rest.is_empty() => Err(at_least_one()),
            None => Err(format!(
                "SHELL requires the arguments to be in JSON form (example: [\"executable\", \"parameter\"]): {rest}"
            )),
        },
        "STOPSIGNAL" => plain(Command::StopSignal(one()?)),
        "USER" => plain(Command::User(one()?)),
        "VOLUME" => {
            let volumes = words_or_json(rest)?;
            if volumes.is_empty() {
                return Err(at_least_one());
            }
            let volumes: Vec<String> = volumes.iter().map(|volume| volume.trim().to_owned()).collect();
            if volumes.iter().any(String::is_empty) {
                return Err("VOLUME specified can not be an empty string".to_owned());
            }
            plain(Command::Volume(volumes))
        }
        "WORKDIR" => plain(Command::Workdir(one()?)),
        _ => {
            let shown = line.text.split_whitespace().next().unwrap_or_default();
            Err(format!("unknown instruction: {shown}"))
        }
    }
}

/// A list of strings in JSON; nothing for what is no JSON list at all.
fn json(text: &str) -> Parsed<Option<Vec<String>>> {
    if !text.trim_start().starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Ok(None) };
    let words: Option<Vec<String>> = values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
    let not_strings = || "when using JSON array syntax, arrays must be comprised of strings only".to_owned();
    words.map(Some).ok_or_else(not_strings)
}

fn words_or_json(text: &str) -> Parsed<Vec<String>> {
    Ok(json(text)?.unwrap_or_else(|| text.split_whitespace().map(str::to_owned).collect()))
}

fn command_line(text: &str) -> Parsed<Line> {
    if let Some(words) = json(text)? {
        return Ok(Line { words, for_shell: false });
    }
    let words = if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
    Ok(Line { words, for_shell: true })
}

fn run(flags: &Flags, rest: &str, line: &LogicalLine) -> Parsed<Command> {
    const KNOWN: [&str; 4] = ["device", "mount", "network", "security"];
    flags.check(&[], &KNOWN)?;
    if let Some(flag) = KNOWN.iter().find(|name| !flags.values(name).is_empty()) {
        return Err(format!("the --{flag} {NEEDS_BUILDKIT}"));
    }
    let command = command_line(rest)?;
    if command.words.is_empty() {
        return Err("RUN requires at least one argument".to_owned());
    }
    Ok(Command::Run(Run { line: command, heredocs: line.heredocs.clone() }))
}

fn copy(name: &str, flags: &Flags, rest: &str, line: &LogicalLine) -> Parsed<Copy> {
    let mut words = words_or_json(rest)?;
    let target = match words.len() {
        0 | 1 => {
            return Err(format!(
                "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
            ));
        }
        _ => words.pop().unwrap_or_default(),
    };
    let own: &[&str] =
        if name == "ADD" { &["keep-git-dir", "checksum", "unpack"] } else { &["from", "parents"] };
    let known: Vec<&str> = ["chown", "chmod", "link"].iter().chain(own).copied().collect();
    flags.check(&known, &["exclude"])?;
    for flag in ["parents", "keep-git-dir", "unpack"] {
        if own.contains(&flag) && flags.switch(flag)? {
            return Err(format!("the --{flag} {NEEDS_BUILDKIT}"));
        }
    }
    // A layer of its own is what the classic builder makes of every copy.
    flags.switch("link")?;
    if heredoc_of(&target, &line.heredocs).is_some() {
        return Err(format!("{name} cannot accept a heredoc as a destination"));
    }
    let (mut sources, mut documents) = (Vec::new(), Vec::new());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        // The word of a here-document may stand apart from its operator.
        let whole = if ["<<", "<<-"].contains(&word.as_str()) {
            format!("{word}{}", words.next().unwrap_or_default())
        } else {
            word
        };
        match heredoc_of(&whole, &line.heredocs) {
            Some(document) => documents.push(document.clone()),
            None => sources.push(whole),
        }
    }
    Ok(Copy {
        sources,
        documents,
        target,
        from: flags.value("from")?,
        chown: flags.value("chown")?,
        chmod: flags.value("chmod")?,
        checksum: flags.value("checksum")?,
        excludes: flags.values("exclude"),
    })
}

/// `NAME`, `NAME=value`, several of them.
fn arguments(rest: &str, escape: char) -> Parsed<Vec<(String, Option<String>)>> {
    let words = split(rest, escape);
    if words.is_empty() {
        return Err("ARG requires at least one argument".to_owned());
    }
    words
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some(("", _)) => Err("ARG names can not be blank".to_owned()),
            Some((key, value)) => Ok((key.to_owned(), Some(value.to_owned()))),
            None => Ok((word, None)),
        })
        .collect()
}

/// `NAME=value …`, or the old form `NAME value`.
fn pairs(name: &str, rest: &str, escape: char) -> Parsed<Vec<Pair>> {
    let words = split(rest, escape);
    let Some(first) = words.first() else { return Err(format!("{name} requires at least one argument")) };
    let pair = |key: &str, value: &str| match key {
        "" => Err(format!("{name} names can not be blank")),
        key => Ok(Pair { key: key.to_owned(), value: value.to_owned(), is_literal: false }),
    };
    if !first.contains('=') {
        let (key, value) =
            rest.split_once(char::is_whitespace).ok_or_else(|| format!("{name} must have two arguments"))?;
        return Ok(vec![pair(key, value.trim_start())?]);
    }
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) => pair(key, value),
            None => Err(format!("Syntax error - can't find = in {word:?}. Must be of the form: name=value")),
        })
        .collect()
}

fn trigger(rest: &str, line: &LogicalLine, escape: char) -> Parsed<String> {
    let word = rest.split_whitespace().next().unwrap_or_default().to_uppercase();
    match word.as_str() {
        "" => return Err("ONBUILD requires at least one argument".to_owned()),
        "ONBUILD" => return Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned()),
        "MAINTAINER" | "FROM" => return Err(format!("{word} isn't allowed as an ONBUILD trigger")),
        _ => {}
    }
    let inner = LogicalLine { text: rest.to_owned(), ..line.clone() };
    parse(&inner, escape)?;
    let mut text = rest.to_owned();
    for heredoc in &line.heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name);
    }
    Ok(text)
}

fn health(flags: &Flags, rest: &str) -> Parsed<Healthcheck> {
    let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let rest = rest.trim_start();
    let line = match kind.to_uppercase().as_str() {
        "" => return Err("HEALTHCHECK requires at least one argument".to_owned()),
        "NONE" if rest.is_empty() => {
            return Ok(Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() });
        }
        "NONE" => return Err("HEALTHCHECK NONE takes no arguments".to_owned()),
        "CMD" => command_line(rest)?,
        _ => return Err(format!("Unknown type {:?} in HEALTHCHECK (try CMD)", kind.to_uppercase())),
    };
    flags.check(&["interval", "timeout", "start-period", "start-interval", "retries"], &[])?;
    if line.words.is_empty() {
        return Err("Missing command after HEALTHCHECK CMD".to_owned());
    }
    let how = if line.for_shell { "CMD-SHELL" } else { "CMD" };
    let time = |name: &str| -> Parsed<i64> {
        let text = flags.value(name)?;
        match text.as_str() {
            "" => Ok(0),
            text => match duration(text).ok_or_else(|| format!("time: invalid duration {text:?}"))? {
                time @ 1..SHORTEST => Err(format!("Interval {name:?} cannot be less than 1ms: {time}ns")),
                time if time < 0 => Err(format!("Interval {name:?} cannot be less than 1ms")),
                time => Ok(time),
            },
        }
    };
    let retries = match flags.value("retries")?.as_str() {
        "" => 0,
        text => {
            let number: i64 = text.parse().map_err(|_| format!("--retries is no number: {text:?}"))?;
            if number < 0 {
                return Err(format!("--retries cannot be negative ({number})"));
            }
            number
        }
    };
    Ok(Healthcheck {
        test: [how.to_owned()].into_iter().chain(line.words).collect(),
        interval: time("interval")?,
        timeout: time("timeout")?,
        start_period: time("start-period")?,
        start_interval: time("start-interval")?,
        retries,
    })
}
