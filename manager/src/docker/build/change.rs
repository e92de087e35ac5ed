//! What instructions do to a configuration; `docker commit --change` has those that need nothing else.

use std::cell::Cell;

use orlop_proto::contract::quote::{quoted, quoted_list};

use super::context::MAX_DOCKERFILE;
use super::dockerfile::{self, Command, Lexer, Line, Pair};
use crate::docker::container::config::{Config, Healthcheck};
use crate::docker::failure::{Failure, Result};

/// The shell that reads lines, unless `SHELL` says otherwise.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A configuration on its way to an image.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// How containers are run.
    pub config: Config,
    /// Who made the image.
    pub author: String,
    /// Whether this stage has said a command: then `ENTRYPOINT` leaves it.
    pub has_command: bool,
}

/// The shell of a configuration.
pub fn shell(config: &Config) -> Vec<String> {
    let own = config.shell.clone().filter(|words| !words.is_empty());
    own.unwrap_or_else(|| SHELL.map(str::to_owned).to_vec())
}

/// The words of a command line.
pub fn words(line: &Line, config: &Config) -> Vec<String> {
    let shell = if line.for_shell && !line.words.is_empty() { shell(config) } else { Vec::new() };
    shell.into_iter().chain(line.words.iter().cloned()).collect()
}

/// An instruction with its variables expanded.
///
/// # Errors
///
/// 400 for what cannot be expanded, or is longer in all than a Dockerfile may be: each word of a line has variables of its own.
pub fn expanded(command: &Command, lexer: &Lexer<'_>) -> Result<Command> {
    let room = Cell::new(MAX_DOCKERFILE as usize);
    let fits = |length: usize| {
        let left = room.get().checked_sub(length);
        room.set(left.ok_or_else(|| Failure::invalid("the values of its variables are too long"))?);
        Ok::<_, Failure>(())
    };
    let word = |text: &str| {
        let word = lexer.word(text).map_err(Failure::invalid)?;
        fits(word.len())?;
        Ok(word)
    };
    let list = |texts: &[String]| texts.iter().map(|text| word(text)).collect::<Result<Vec<_>>>();
    let pairs = |pairs: &[Pair]| {
        let expand = |pair: &Pair| match pair.is_literal {
            true => Ok(pair.clone()),
            false => Ok(Pair { key: word(&pair.key)?, value: word(&pair.value)?, is_literal: false }),
        };
        pairs.iter().map(expand).collect::<Result<Vec<_>>>()
    };
    Ok(match command {
        Command::Add(copy) | Command::Copy(copy) => {
            let mut copy = copy.clone();
            copy.sources = list(&copy.sources)?;
            copy.target = word(&copy.target)?;
            copy.chown = word(&copy.chown)?;
            copy.chmod = word(&copy.chmod)?;
            for document in &mut copy.documents {
                if document.expand {
                    document.content = lexer.document(&document.content).map_err(Failure::invalid)?;
                    fits(document.content.len())?;
                }
            }
            if matches!(command, Command::Add(_)) { Command::Add(copy) } else { Command::Copy(copy) }
        }
        Command::Arg(all) => {
            let expand = |(name, value): &(String, Option<String>)| {
                Ok((word(name)?, value.as_deref().map(word).transpose()?))
            };
            Command::Arg(all.iter().map(expand).collect::<Result<Vec<_>>>()?)
        }
        Command::Env(all) => Command::Env(pairs(all)?),
        Command::Expose(ports) => {
            let mut all = Vec::new();
            for port in ports {
                let words = lexer.words(port).map_err(Failure::invalid)?;
                fits(words.iter().map(String::len).sum())?;
                all.extend(words);
            }
            Command::Expose(all)
        }
        Command::Label(all) => Command::Label(pairs(all)?),
        Command::StopSignal(signal) => Command::StopSignal(word(signal)?),
        Command::User(user) => Command::User(word(user)?),
        Command::Volume(volumes) => Command::Volume(list(volumes)?),
        Command::Workdir(path) => Command::Workdir(word(path)?),
        other => other.clone(),
    })
}

/// Applies an instruction to a draft; returns what the history says of it, and nothing for one that needs more than a
/// configuration.
///
/// # Errors
///
/// 400 for values that cannot be.
pub fn apply(draft: &mut Draft, command: &Command) -> Result<Option<String>> {
    let config = &mut draft.config;
    let said = match command {
        Command::Add(_) | Command::Copy(_) | Command::Run(_) => return Ok(None),
        Command::Arg(all) => {
            let text = all.iter().map(|(name, value)| match value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            });
            format!("ARG {}", text.collect::<Vec<_>>().join(" "))
        }
        Command::Cmd(line) => {
            let words = words(line, config);
            let said = format!("CMD {}", quoted_list(&words));
            draft.has_command |= !line.words.is_empty();
            config.cmd = (!words.is_empty()).then_some(words);
            said
        }
        Command::Entrypoint(line) => {
            let words = words(line, config);
            let said = format!("ENTRYPOINT {}", quoted_list(&words));
            config.entrypoint = (!words.is_empty()).then_some(words);
            if !draft.has_command {
                config.cmd = None;
            }
            said
        }
        Command::Env(pairs) => {
            for pair in pairs {
                set_variable(&mut config.env, &pair.key, &pair.value);
            }
            format!("ENV {}", joined(pairs))
        }
        Command::Expose(ports) => {
            for port in ports {
                for port in self::ports(port)? {
                    config.exposed_ports.insert(port, serde_json::json!({}));
                }
            }
            format!("EXPOSE {}", ports.join(" "))
        }
        Command::Healthcheck(check) => {
            config.healthcheck = Some(check.clone());
            format!("HEALTHCHECK {}", described(check))
        }
        Command::Label(pairs) => {
            for pair in pairs {
                config.labels.insert(pair.key.clone(), pair.value.clone());
            }
            format!("LABEL {}", joined(pairs))
        }
        Command::Maintainer(name) => {
            draft.author.clone_from(name);
            format!("MAINTAINER {name}")
        }
        Command::OnBuild(text) => {
            config.on_build.get_or_insert_default().push(text.clone());
            format!("ONBUILD {text}")
        }
        Command::Shell(words) => {
            config.shell = Some(words.clone());
            format!("SHELL [{}]", words.join(" "))
        }
        Command::StopSignal(signal) => {
            crate::docker::signal::parse(signal)?;
            config.stop_signal.clone_from(signal);
            format!("STOPSIGNAL {signal}")
        }
        Command::User(user) => {
            config.user.clone_from(user);
            format!("USER {user}")
        }
        Command::Volume(volumes) => {
            for volume in volumes {
                if volume.is_empty() {
                    return Err(Failure::invalid("VOLUME specified can not be an empty string"));
                }
                config.volumes.insert(volume.clone(), serde_json::json!({}));
            }
            format!("VOLUME [{}]", volumes.join(" "))
        }
        Command::Workdir(path) => {
            config.working_dir = directory(&config.working_dir, path);
            format!("WORKDIR {}", config.working_dir)
        }
    };
    Ok(Some(said))
}

/// Applies the changes of `docker commit --change` or of an import.
///
/// # Errors
///
/// 400 for what is no instruction, or needs more than a configuration.
pub fn apply_all(config: Config, changes: &[String]) -> Result<Config> {
    let mut draft = Draft { config, ..Draft::default() };
    if changes.iter().all(|change| change.trim().is_empty()) {
        return Ok(draft.config);
    }
    let steps =
        dockerfile::instructions(&changes.join("\n")).map_err(|error| Failure::invalid(error.to_string()))?;
    for step in &steps {
        let name = step.text.split_whitespace().next().unwrap_or_default();
        let is_change = !matches!(
            step.command,
            Command::Add(_)
                | Command::Arg(_)
                | Command::Copy(_)
                | Command::Maintainer(_)
                | Command::Run(_)
                | Command::Shell(_)
        );
        if !is_change {
            return Err(Failure::invalid(format!("{} is not a valid change command", name.to_lowercase())));
        }
        let environment = draft.config.env.clone();
        let lexer = Lexer { escape: '\\', variables: &environment };
        apply(&mut draft, &expanded(&step.command, &lexer)?)?;
    }
    Ok(draft.config)
}

/// Sets a variable in its place, or at the end.
pub fn set_variable(environment: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    let is_own = |entry: &&mut String| entry.split_once('=').map_or(entry.as_str(), |(own, _)| own) == name;
    match environment.iter_mut().find(is_own) {
        Some(place) => *place = entry,
        None => environment.push(entry),
    }
}

fn joined(pairs: &[Pair]) -> String {
    pairs.iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect::<Vec<_>>().join(" ")
}

/// A health check as Go prints the structure.
fn described(check: &Healthcheck) -> String {
    let times = [check.interval, check.timeout, check.start_period, check.start_interval];
    let times: Vec<String> = times.iter().map(|time| quoted(&format!("{}ns", time))).collect();
    format!("&{{{} {} {}}}", quoted_list(&check.test), times.join(" "), check.retries)
}

/// A path below another, cleaned.
pub fn directory(current: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{current}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The ports of one word of `EXPOSE`: `80`, `80/udp`, `8000-8010`, also behind addresses and ports of the host.
fn ports(text: &str) -> Result<Vec<String>> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(Failure::invalid(format!("invalid proto: {protocol}")));
    }
    let inner = ports.rsplit(':').next().unwrap_or_default();
    let wrong = || Failure::invalid(format!("invalid containerPort: {inner}"));
    if inner.is_empty() {
        return Err(Failure::invalid(format!("no port specified: {text}<empty>")));
    }
    let (first, last) = inner.split_once('-').unwrap_or((inner, inner));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if last < first {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: &[&str]) -> Config {
        let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
        apply_all(Config::default(), &changes).unwrap()
    }

    #[test]
    fn instructions_change_a_configuration() {
        let config = changed(&[
            "ENV A=1 B=2",
            "ENV A=$B",
            "EXPOSE 80 90-91/udp",
            "USER web",
            "WORKDIR /a",
            "WORKDIR b/../c",
            "CMD x y",
            "LABEL k=\"v w\"",
            "VOLUME /d",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN z",
        ]);
        assert_eq!(config.env, ["A=2", "B=2"]);
        assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["80/tcp", "90/udp", "91/udp"]);
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("web", "/a/c"));
        assert_eq!(config.cmd.unwrap(), ["/bin/sh", "-c", "x y"]);
        assert_eq!(config.labels["k"], "v w");
        assert_eq!(config.on_build.unwrap(), ["RUN z"]);
    }

    #[test]
    fn what_a_line_holds_has_an_end() {
        let variables = [format!("long={}", "x".repeat(100 << 10))];
        let lexer = Lexer { escape: '\\', variables: &variables };
        let expanded = |line: String| expanded(&dockerfile::instructions(&line).unwrap()[0].command, &lexer);
        let many = |word: &str, count: usize| vec![word; count].join(" ");
        assert!(expanded(format!("ENV {}", many("a=$long", 40))).is_ok());
        let document = many("$long", 39);
        assert!(expanded(format!("COPY <<a /\n{document}\na\n")).is_ok());
        assert!(expanded(format!("COPY <<a <<b /\n{document}\na\n{document}\nb\n")).is_err());
        for line in
            ["ENV a=$long", "LABEL a=$long", "ARG a=$long", "EXPOSE $long", "VOLUME $long", "COPY $long"]
        {
            let (name, word) = line.split_once(' ').unwrap();
            let failure = expanded(format!("{name} {}", many(word, 41))).unwrap_err();
            assert_eq!(failure.message, "the values of its variables are too long", "{line}");
        }
    }

    #[test]
    fn an_entry_point_takes_the_commands_of_those_before() {
        let base = Config { cmd: Some(vec!["old".to_owned()]), ..Config::default() };
        let config = apply_all(base.clone(), &["ENTRYPOINT [\"e\"]".to_owned()]).unwrap();
        assert_eq!((config.cmd, config.entrypoint.unwrap()), (None, vec!["e".to_owned()]));
        let config = apply_all(base, &["CMD [\"c\"]".to_owned(), "ENTRYPOINT [\"e\"]".to_owned()]).unwrap();
        assert_eq!(config.cmd.unwrap(), ["c"]);
    }

    #[test]
    fn what_needs_more_than_a_configuration_is_no_change() {
        let wrong = |change: &str| apply_all(Config::default(), &[change.to_owned()]).unwrap_err().message;
        assert_eq!(wrong("RUN a"), "run is not a valid change command");
        assert_eq!(wrong("COPY a b"), "copy is not a valid change command");
        assert!(wrong("NOPE").contains("unknown instruction: NOPE"));
        assert_eq!(wrong("EXPOSE x"), "invalid containerPort: x");
        assert_eq!(wrong("EXPOSE 1/x"), "invalid proto: x");
    }
}
