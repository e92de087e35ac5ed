//! `docker ps`.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::inspect::shown;
use super::record::Record;
use super::state::{Status, parse};
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::filters::Filters;
use crate::docker::message::Query;

/// The fields by which containers can be filtered.
pub const FILTERS: [&str; 17] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
    "until",
];

/// Whether a filter `name` chooses a container: a pattern, as dockerd has it.
fn is_named(pattern: &str, name: &str) -> bool {
    let with_slash = format!("/{name}");
    match regex::Regex::new(pattern) {
        Ok(pattern) => pattern.is_match(name) || pattern.is_match(&with_slash),
        Err(_) => name.contains(pattern),
    }
}

/// Refuses values that no container can have.
fn check(filters: &Filters) -> Result<()> {
    let wrong = |field: &str, value: &str| Failure::invalid(format!("invalid filter '{field}={value}'"));
    let all = |field: &str, is_good: &dyn Fn(&str) -> bool| match filters
        .values(field)
        .iter()
        .find(|value| !is_good(value))
    {
        Some(value) => Err(wrong(field, value)),
        None => Ok(()),
    };
    all("status", &|value| Status::ALL.iter().any(|status| status.word() == value))?;
    all("health", &|value| ["none", "starting", "healthy", "unhealthy"].contains(&value))?;
    all("exited", &|value| value.parse::<i64>().is_ok())?;
    all("is-task", &|value| ["true", "false", "1", "0"].contains(&value))?;
    for field in ["expose", "publish"] {
        all(field, &|value| Ports::parse(value).is_some())?;
    }
    Ok(())
}

/// Ports of a protocol, as filters name them: `80`, `80/udp`, `8000-8080/tcp`.
struct Ports<'a> {
    first: u16,
    last: u16,
    protocol: &'a str,
}

impl Ports<'_> {
    fn parse(text: &str) -> Option<Ports<'_>> {
        let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let ports = Ports { first: first.parse().ok()?, last: last.parse().ok()?, protocol };
        (ports.first <= ports.last).then_some(ports)
    }

    /// Whether a port such as `80/tcp` is among them.
    fn has(&self, port: &str) -> bool {
        Ports::parse(port).is_some_and(|port| {
            port.protocol == self.protocol && self.first <= port.first && port.last <= self.last
        })
    }
}

fn is_chosen(record: &Record, filters: &Filters, ancestors: &[String], published: &[String]) -> bool {
    let health = record.state.health.as_ref().and_then(|health| health["Status"].as_str()).unwrap_or("none");
    let networks = || {
        let mode = record.host.network_mode.clone();
        record.networks.keys().cloned().chain([mode])
    };
    filters.accepts("id", |wanted| record.id.starts_with(wanted))
        && filters.accepts("name", |wanted| is_named(wanted, &record.name))
        && filters.accepts("status", |wanted| record.state.status.word() == wanted)
        && filters.accepts("exited", |wanted| {
            record.state.status == Status::Exited && wanted.parse() == Ok(record.state.exit_code)
        })
        && filters.accepts("health", |wanted| health == wanted)
        && filters.accepts("network", |wanted| networks().any(|name| name == wanted))
        && filters.accepts("volume", |wanted| {
            record
                .mounts
                .iter()
                .any(|place| place.name == wanted || place.source == wanted || place.destination == wanted)
        })
        && filters.accepts("expose", |wanted| {
            Ports::parse(wanted)
                .is_some_and(|wanted| record.config.exposed_ports.keys().any(|port| wanted.has(port)))
        })
        && filters.accepts("publish", |wanted| {
            Ports::parse(wanted).is_some_and(|wanted| published.iter().any(|port| wanted.has(port)))
        })
        && filters.accepts("ancestor", |_| ancestors.contains(&record.image))
        && filters.accepts_labels("label", &record.config.labels)
        && filters.refuses_no_label("label!", &record.config.labels)
}

/// The command in one line.
fn command(record: &Record) -> String {
    let quoted = |word: &String| match word.contains(' ') {
        true => format!("'{word}'"),
        false => word.clone(),
    };
    record.words().iter().map(quoted).collect::<Vec<_>>().join(" ")
}

impl Engine {
    /// The containers that a query chooses, the newest first.
    ///
    /// # Errors
    ///
    /// 400 for filters that cannot be, 404 for a container that one names and that is not.
    pub async fn list_containers(&self, query: &Query) -> Result<Vec<Value>> {
        let filters = Filters::parse(query.get("filters"), &FILTERS)?;
        check(&filters)?;
        let mut ancestors = Vec::new();
        for name in filters.values("ancestor") {
            if let Ok(found) = self.image(name).await {
                ancestors.push(found.id);
            }
        }
        let limit = query.number::<i64>("limit")?.filter(|&limit| limit > 0);
        let is_all = query.flag("all")
            || limit.is_some()
            || ["status", "exited", "before", "since"].iter().any(|field| !filters.values(field).is_empty());
        let edge = |field: &str| -> Result<Option<SystemTime>> {
            match filters.values(field).first() {
                None => Ok(None),
                Some(name) => Ok(parse(&self.containers.get(name)?.with(|record| record.created.clone()))),
            }
        };
        let (before, since) = (edge("before")?, edge("since")?);
        let published = |record: &Record| match filters.values("publish") {
            [] => Vec::new(),
            _ => host_ports(&self.network_settings(record)),
        };
        let mut records: Vec<Record> =
            self.containers.all().iter().map(|container| container.record()).collect();
        records.retain(|record| {
            let created = parse(&record.created);
            (is_all || record.state.is_active())
                && is_chosen(record, &filters, &ancestors, &published(record))
                && before.is_none_or(|edge| created.is_some_and(|created| created < edge))
                && since.is_none_or(|edge| created.is_some_and(|created| created > edge))
        });
        records.sort_by_key(|record| std::cmp::Reverse(parse(&record.created)));
        records.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
        let now = SystemTime::now();
        let mut listed = Vec::new();
        for record in records {
            let created =
                parse(&record.created).and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            let settings = self.network_settings(&record);
            let mut document = json!({
                "Id": record.id,
                "Names": [format!("/{}", record.name)],
                "Image": record.config.image,
                "ImageID": record.image,
                "Command": command(&record),
                "Created": created.map_or(0, |created| created.as_secs()),
                "Ports": ports(&settings, &record),
                "Labels": record.config.labels,
                "State": record.state.status.word(),
                "Status": record.state.summary(now),
                "HostConfig": { "NetworkMode": record.host.network_mode },
                "NetworkSettings": { "Networks": settings["Networks"] },
                "Mounts": record.mounts.iter().filter(|place| place.kind != "tmpfs").map(shown).collect::<Vec<_>>(),
            });
            if query.flag("size") {
                let (own, all) = self.sizes(&record).await;
                document["SizeRw"] = json!(own);
                document["SizeRootFs"] = json!(all);
            }
            listed.push(document);
        }
        Ok(listed)
    }
}

/// The host's ports that a container's settings have, each with its protocol.
fn host_ports(settings: &Value) -> Vec<String> {
    let ports = settings["Ports"].as_object().into_iter().flatten();
    let published = ports.flat_map(|(port, bindings)| {
        let protocol = port.split_once('/').map_or("tcp", |(_, protocol)| protocol);
        let bindings = bindings.as_array().into_iter().flatten();
        bindings.filter_map(move |binding| Some(format!("{}/{protocol}", binding["HostPort"].as_str()?)))
    });
    published.collect()
}

/// Ports as `docker ps` shows them.
fn ports(settings: &Value, record: &Record) -> Vec<Value> {
    let mut listed = Vec::new();
    let published = settings["Ports"].as_object();
    let split = |port: &str| {
        let (number, kind) = port.split_once('/').unwrap_or((port, "tcp"));
        (number.parse::<u16>().unwrap_or(0), kind.to_owned())
    };
    for (port, bindings) in published.into_iter().flatten() {
        let (number, kind) = split(port);
        match bindings.as_array() {
            Some(bindings) if !bindings.is_empty() => listed.extend(bindings.iter().map(|binding| {
                let host = binding["HostPort"].as_str().and_then(|port| port.parse::<u16>().ok());
                json!({ "IP": binding["HostIp"], "PrivatePort": number, "PublicPort": host, "Type": kind })
            })),
            _ => listed.push(json!({ "PrivatePort": number, "Type": kind })),
        }
    }
    if published.is_none_or(serde_json::Map::is_empty)
        && record.state.is_running()
        && record.host.network_mode != "host"
    {
        for port in record.config.exposed_ports.keys() {
            let (number, kind) = split(port);
            listed.push(json!({ "PrivatePort": number, "Type": kind }));
        }
    }
    listed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_patterns() {
        assert!(is_named("we", "web") && is_named("^/web$", "web") && is_named("^web$", "web"));
        assert!(!is_named("^eb", "web") && is_named("(", "a(b"));
    }

    #[test]
    fn ports_are_numbers_or_ranges_of_a_protocol() {
        let has = |wanted: &str, port: &str| Ports::parse(wanted).unwrap().has(port);
        assert!(has("80", "80/tcp") && has("8000-8080/udp", "8001/udp") && has("80", "80"));
        assert!(!has("80", "80/udp") && !has("80-81", "82/tcp"));
        assert!(["x", "", "81-80", "80-"].iter().all(|text| Ports::parse(text).is_none()));
    }

    #[test]
    fn published_ports_are_the_hosts() {
        let settings =
            json!({ "Ports": { "80/tcp": [{ "HostIp": "::", "HostPort": "8080" }], "53/udp": null } });
        assert_eq!(host_ports(&settings), ["8080/tcp"]);
        assert!(host_ports(&json!({ "Ports": {} })).is_empty());
    }

    #[test]
    fn values_that_no_container_has_are_refused() {
        let check = |text: &str| check(&Filters::parse(Some(text), &FILTERS).unwrap());
        assert!(
            check(r#"{"status":["running"],"health":["none"],"exited":["-1"],"publish":["1-2/udp"]}"#)
                .is_ok()
        );
        assert_eq!(check(r#"{"status":["bogus"]}"#).unwrap_err().message, "invalid filter 'status=bogus'");
        assert!(check(r#"{"exited":["x"]}"#).is_err());
    }

    #[test]
    fn a_command_is_one_line() {
        let mut record = Record::default();
        record.config.cmd = Some(vec!["sh".to_owned(), "-c".to_owned(), "echo a".to_owned()]);
        assert_eq!(command(&record), "sh -c 'echo a'");
    }
}
