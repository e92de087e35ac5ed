//! What the options of a log driver ask for.

use std::collections::BTreeMap;

use orlop_proto::contract::size;
use regex::Regex;

use crate::docker::container::record::Record;
use crate::docker::failure::{Failure, Result};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest file, in bytes; nothing for any size.
    pub size: Option<u64>,
    /// Number of files.
    pub files: usize,
    /// Whether files that are not written any more are compressed.
    pub compress: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { size: None, files: 1, compress: false }
    }
}

impl Limits {
    /// The limits that a driver's options set.
    ///
    /// # Errors
    ///
    /// 400 for options that the driver does not have, or values that it cannot have.
    pub fn parse(driver: &str, options: &BTreeMap<String, String>) -> Result<Limits> {
        let known: &[&str] = match driver {
            "json-file" => &[
                "max-size",
                "max-file",
                "compress",
                "labels",
                "labels-regex",
                "env",
                "env-regex",
                "tag",
                "mode",
                "max-buffer-size",
            ],
            "local" => &["max-size", "max-file", "compress", "mode", "max-buffer-size"],
            "none" => &["mode", "max-buffer-size"],
            other => {
                return Err(Failure::invalid(format!("logger: no log driver named '{other}' is registered")));
            }
        };
        if let Some(unknown) = options.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(Failure::invalid(format!("unknown log opt '{unknown}' for {driver} log driver")));
        }
        let mut limits = match driver {
            "local" => Limits { size: Some(20 << 20), files: 5, compress: true },
            _ => Limits::default(),
        };
        if let Some(text) = options.get("max-size") {
            limits.size = match text.as_str() {
                "-1" => None,
                text => Some(
                    size::bytes(text).ok_or_else(|| Failure::invalid(format!("invalid size: '{text}'")))?,
                ),
            };
        }
        if let Some(text) = options.get("max-file") {
            let wrong = || Failure::invalid(format!("invalid value for max-file: {text:?}"));
            limits.files = text.parse().ok().filter(|&number| number > 0).ok_or_else(wrong)?;
        }
        if let Some(text) = options.get("compress") {
            limits.compress = match text.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                _ => return Err(Failure::invalid(format!("invalid value for compress: {text:?}"))),
            };
        }
        if limits.compress && (limits.files < 2 || limits.size.is_none()) {
            return Err(Failure::invalid(match driver {
                "local" => "compression cannot be enabled when max file count is 1",
                _ => "compress cannot be true when max-file is less than 2 or max-size is not set",
            }));
        }
        for option in ["labels-regex", "env-regex"] {
            if let Some(text) = options.get(option) {
                Regex::new(text)
                    .map_err(|error| Failure::invalid(format!("invalid {option} {text:?}: {error}")))?;
            }
        }
        if let Some(text) = options.get("tag") {
            tag(text, &Record::default())?;
        }
        Ok(limits)
    }
}

/// What a driver's options add to every entry: labels and variables of the container by name or by pattern, and a tag.
pub fn attributes(record: &Record) -> BTreeMap<String, String> {
    let options = &record.host.log_config.options;
    let chooses = |names: &str, pattern: &str, name: &str| {
        let listed = options.get(names).is_some_and(|names| names.split(',').any(|known| known == name));
        let matches = || options.get(pattern).and_then(|text| Regex::new(text).ok());
        listed || matches().is_some_and(|pattern| pattern.is_match(name))
    };
    let labels = record.config.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let labels = labels.filter(|(name, _)| chooses("labels", "labels-regex", name));
    let variables = record.config.env.iter().filter_map(|entry| entry.split_once('='));
    let variables = variables.filter(|(name, _)| chooses("env", "env-regex", name));
    let mut all: BTreeMap<String, String> =
        labels.chain(variables).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    // Only a tag that was asked for; one that cannot be made was refused when the container was.
    if let Some(tag) = options.get("tag").and_then(|text| tag(text, record).ok())
        && !tag.is_empty()
    {
        all.insert("tag".to_owned(), tag);
    }
    all
}

/// Fills the template of a tag: `{{.Name}}` and the like.
fn tag(template: &str, record: &Record) -> Result<String> {
    let short = |id: &str| id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect::<String>();
    let (mut filled, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let wrong = || Failure::invalid(format!("template: log-tag: cannot fill {template:?}"));
        let (field, later) = after.split_once("}}").ok_or_else(wrong)?;
        filled.push_str(&match field.trim() {
            ".ID" => short(&record.id),
            ".FullID" => record.id.clone(),
            ".Name" => record.name.clone(),
            ".ImageID" => short(&record.image),
            ".ImageFullID" => record.image.clone(),
            ".ImageName" => record.config.image.clone(),
            ".DaemonName" => "docker".to_owned(),
            ".Command" => record.words().join(" "),
            _ => return Err(wrong()),
        });
        rest = later;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let options = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let limits =
            Limits::parse("json-file", &options(&[("max-size", "1.5k"), ("max-file", "2")])).unwrap();
        assert_eq!(limits, Limits { size: Some(1536), files: 2, compress: false });
        for (driver, pairs) in [
            ("json-file", &[("nope", "1")][..]),
            ("json-file", &[("max-size", "x")]),
            ("json-file", &[("max-file", "0")]),
            ("json-file", &[("compress", "true")]),
            ("local", &[("max-file", "1")]),
            ("json-file", &[("tag", "{{.Odd}}")]),
            ("nope", &[]),
        ] {
            assert!(Limits::parse(driver, &options(pairs)).is_err(), "{driver} {pairs:?}");
        }
    }

    #[test]
    fn entries_carry_what_options_choose() {
        let mut record = Record { id: "0123456789abcdef".into(), name: "web".into(), ..Record::default() };
        record.config.labels = [("tier", "front"), ("other", "x")].map(|(k, v)| (k.into(), v.into())).into();
        record.config.env = ["A=1".into(), "BEE=2".into(), "C=3".into()].into();
        let options =
            [("labels", "tier,nope"), ("env", "A"), ("env-regex", "^B"), ("tag", "{{.Name}}/{{.ID}}")];
        record.host.log_config.options = options.map(|(k, v)| (k.into(), v.into())).into();
        let found = attributes(&record);
        let found: Vec<(&str, &str)> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, [("A", "1"), ("BEE", "2"), ("tag", "web/0123456789ab"), ("tier", "front")]);
        assert!(tag("{{.Nope}}", &record).is_err() && tag("{{.Name", &record).is_err());
    }
}
