//! `update`: other limits for a live container.

use std::path::Path;

use orlop_host::live;
use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::size;
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
    let bytes = |name: &str| -> Result<Option<Value>> {
        let Some(text) = given.text(name) else { return Ok(None) };
        let value = match text.as_str() {
            // No limit.
            "-1" => Some(json!(-1)),
            text => size::bytes(text).map(Value::from),
        };
        value.map(Some).ok_or_else(|| wrong(name, format!("invalid size: '{text}'")))
    };
    let text = |name: &str| given.text(name).map(Value::from);
    let section = |pairs: Vec<(&str, Option<Value>)>| {
        let set = pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(set.collect::<Map<_, _>>())
    };
    Ok(json!({
        "memory": section(vec![
            ("limit", bytes("memory")?),
            ("reservation", bytes("memory-reservation")?),
            ("swap", bytes("memory-swap")?),
            ("kernel", bytes("kernel-memory")?),
            ("kernelTCP", bytes("kernel-memory-tcp")?),
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
