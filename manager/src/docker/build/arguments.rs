//! Build arguments: what `ARG` declares, what `--build-arg` gives, and what of it an instruction sees.

use std::collections::{BTreeMap, BTreeSet};

/// Arguments that need no `ARG`, and that do not count for the cache.
const PROXIES: [&str; 10] = [
    "ALL_PROXY",
    "all_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// The arguments of a stage.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// What the client gave.
    given: BTreeMap<String, Option<String>>,
    /// What `ARG` before the first stage said.
    global: BTreeMap<String, Option<String>>,
    /// What `ARG` in this stage said.
    declared: BTreeMap<String, Option<String>>,
}

impl Arguments {
    /// Arguments that a client gave.
    pub fn new(given: BTreeMap<String, Option<String>>) -> Arguments {
        Arguments { given, ..Arguments::default() }
    }

    /// Declares an argument before the first stage.
    pub fn declare_global(&mut self, name: &str, default: Option<String>) {
        self.global.insert(name.to_owned(), default);
    }

    /// Declares an argument of this stage.
    pub fn declare(&mut self, name: &str, default: Option<String>) {
        let default = default.or_else(|| self.global.get(name).cloned().flatten());
        self.declared.insert(name.to_owned(), default);
    }

    fn value(&self, name: &str, default: Option<&String>) -> Option<String> {
        self.given.get(name).cloned().flatten().or_else(|| default.cloned())
    }

    /// The arguments before the first stage, `NAME=value` each.
    pub fn globals(&self) -> Vec<String> {
        let all = self.global.iter();
        all.filter_map(|(name, default)| Some(format!("{name}={}", self.value(name, default.as_ref())?)))
            .collect()
    }

    /// The arguments that an instruction sees and its environment does not have, `NAME=value` each.
    pub fn visible(&self, environment: &[String]) -> Vec<String> {
        let is_set = |name: &str| {
            environment
                .iter()
                .any(|entry| entry.split_once('=').map_or(entry.as_str(), |(own, _)| own) == name)
        };
        let proxies =
            PROXIES.iter().filter(|name| !self.declared.contains_key(**name)).map(|name| (*name, None));
        let declared = self.declared.iter().map(|(name, default)| (name.as_str(), default.as_ref()));
        let all = declared.chain(proxies).filter(|(name, _)| !is_set(name));
        all.filter_map(|(name, default)| Some(format!("{name}={}", self.value(name, default)?))).collect()
    }

    /// Those of the visible arguments that count for the cache, as the classic builder puts them before a command.
    pub fn counting(&self, visible: &[String]) -> Vec<String> {
        let is_counted = |entry: &&String| {
            let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
            !PROXIES.contains(&name) || self.declared.contains_key(name)
        };
        let mut counted: Vec<String> = visible.iter().filter(is_counted).cloned().collect();
        counted.sort();
        if counted.is_empty() {
            return counted;
        }
        counted.insert(0, format!("|{}", counted.len()));
        counted
    }

    /// The names that were declared in this stage or before the first.
    pub fn names(&self) -> BTreeSet<String> {
        self.declared.keys().chain(self.global.keys()).cloned().collect()
    }

    /// What was given and is in no list of declared names.
    pub fn unused(&self, declared: &BTreeSet<String>) -> Vec<String> {
        let names = self.given.keys().filter(|name| !declared.contains(*name));
        names.filter(|name| !PROXIES.contains(&name.as_str())).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Arguments {
        Arguments::new(
            pairs.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect(),
        )
    }

    #[test]
    fn what_is_declared_is_seen() {
        let mut arguments = given(&[("A", "given"), ("HTTP_PROXY", "p"), ("X", "x")]);
        arguments.declare_global("G", Some("global".to_owned()));
        assert_eq!(arguments.globals(), ["G=global"]);
        assert_eq!(arguments.visible(&[]), ["HTTP_PROXY=p"]);
        arguments.declare("A", Some("default".to_owned()));
        arguments.declare("G", None);
        arguments.declare("N", None);
        assert_eq!(arguments.visible(&[]), ["A=given", "G=global", "HTTP_PROXY=p"]);
        // The environment wins.
        assert_eq!(arguments.visible(&["A=env".to_owned()]), ["G=global", "HTTP_PROXY=p"]);
        let counting = arguments.counting(&arguments.visible(&[]));
        assert_eq!(counting, ["|2", "A=given", "G=global"]);
        assert_eq!(arguments.unused(&arguments.names()), ["X"]);
        assert!(given(&[]).counting(&[]).is_empty());
    }
}
