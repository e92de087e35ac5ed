//! `update`: other limits for a live container.

use std::path::Path;

use orlop_host::live;
use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::state::Status;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::{Map, Value, json};

use crate::cli::parse::Given;
use crate::cli::{Global, UpdateArgs};
use crate::container::Container;
use crate::log::Log;

/// Sets the limits that are given, leaves the others, and keeps the whole in the container's state.
pub fn run(global: &Global, arguments: &UpdateArgs, log: &Log) -> Result<()> {
    let mut container = Container::open(&global.root, &arguments.id)?;
    let wanted = match &arguments.resources {
        Some(path) => read(path)?,
        None => from_flags(&arguments.given)?,
    };
    for (flag, what) in [
        ("l3-cache-schema", "Intel RDT/CAT: l3 cache schema is not enabled"),
        ("mem-bw-schema", "Intel RDT/MBA: memory bandwidth schema is not enabled"),
    ] {
        if arguments.given.text(flag).is_some() {
            return Err(Error::exactly(Kind::FailedPrecondition, what));
        }
    }
    if container.life() == Status::Stopped {
        return Err(RuncError::NotRunning.into());
    }
    let cgroup = container.cgroup()?;
    for warning in live::update(&container.directory, &mut container.state, &cgroup, wanted)? {
        log.warning(warning);
    }
    Ok(())
}

fn read(path: &Path) -> Result<Value> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("read", "standard input")?
    } else {
        std::fs::read_to_string(path).context("open", path.to_string_lossy())?
    };
    let value: Value = serde_json::from_slice(text.as_bytes())
        .map_err(|error| Error::because(Kind::InvalidArgument, "parse", "resources", error))?;
    if value.is_object() {
        return Ok(value);
    }
    Err(Error::because(Kind::InvalidArgument, "parse", "resources", "they are no object"))
}

fn from_flags(given: &Given) -> Result<Value> {
    let wrong = |name: &str, why: String| {
        Error::exactly(Kind::InvalidArgument, format!("invalid value for {name}: {why}"))
    };
    let number = |name: &str, lowest: i128, highest: i128| -> Result<Option<Value>> {
        let Some(text) = given.text(name) else { return Ok(None) };
        let function = if lowest < 0 { "ParseInt" } else { "ParseUint" };
        let parsed = text.parse::<i128>().ok().filter(|_| !(lowest == 0 && text.starts_with(['-', '+'])));
        let value = parsed
            .ok_or_else(|| wrong(name, format!("strconv.{function}: parsing {text:?}: invalid syntax")))?;
        if !(lowest..=highest).contains(&value) {
            return Err(wrong(name, format!("strconv.{function}: parsing {text:?}: value out of range")));
        }
        Ok(Some(if value < 0 { json!(value as i64) } else { json!(value as u64) }))
    };
    let signed = |name: &str| number(name, i128::from(i64::MIN), i128::from(i64::MAX));
    let unsigned = |name: &str| number(name, 0, i128::from(u64::MAX));
    let size = |name: &str| -> Result<Option<Value>> {
        let Some(text) = given.text(name) else { return Ok(None) };
        bytes(&text)
            .map(|size| Some(size.into()))
            .ok_or_else(|| wrong(name, format!("invalid size: '{text}'")))
    };
    let text = |name: &str| given.text(name).map(Value::from);
    let section = |pairs: Vec<(&str, Option<Value>)>| {
        let set = pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(set.collect::<Map<_, _>>())
    };
    Ok(json!({
        "memory": section(vec![
            ("limit", size("memory")?),
            ("reservation", size("memory-reservation")?),
            ("swap", size("memory-swap")?),
            ("kernel", size("kernel-memory")?),
            ("kernelTCP", size("kernel-memory-tcp")?),
        ]),
        "cpu": section(vec![
            ("shares", unsigned("cpu-share")?),
            ("quota", signed("cpu-quota")?),
            ("burst", unsigned("cpu-burst")?),
            ("period", unsigned("cpu-period")?),
            ("realtimeRuntime", signed("cpu-rt-runtime")?),
            ("realtimePeriod", unsigned("cpu-rt-period")?),
            ("cpus", text("cpuset-cpus")),
            ("mems", text("cpuset-mems")),
            ("idle", signed("cpu-idle")?),
        ]),
        "pids": given.number("pids-limit").map(|limit| json!({"limit": limit})),
        "blockIO": section(vec![
            ("weight", given.number("blkio-weight").filter(|weight| *weight != 0).map(Value::from)),
        ]),
    }))
}

/// A number of bytes, with an optional unit that counts in 1024s: `512m`, `1.5GiB`; `-1` for no limit.
fn bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.')? + 1;
    let (number, unit) = (&text[..end], text[end..].trim_start_matches(' ').to_ascii_lowercase());
    let number: f64 = number.parse().ok().filter(|number| *number >= 0.0)?;
    let (letter, rest) = unit.split_at(unit.len().min(1));
    let shift = match letter {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let is_known =
        if letter == "b" || letter.is_empty() { rest.is_empty() } else { matches!(rest, "" | "b" | "ib") };
    let value = number * (1i64 << shift) as f64;
    (is_known && value < i64::MAX as f64).then_some(value as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_units() {
        for (text, expected) in [
            ("512", 512),
            ("1k", 1024),
            ("2MiB", 2 << 20),
            ("-1", -1),
            ("1gb", 1 << 30),
            ("1.5k", 1536),
            ("7b", 7),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for bad in ["", "m", "1x", "99999999999t", "-2", "1kx", "1bb", "."] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
