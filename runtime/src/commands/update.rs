//! `update`: other limits for a live container.

use std::path::Path;

use oci_spec::runtime::LinuxResources;
use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::state::Status;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::{Map, Value, json};

use crate::cli::{Global, UpdateArgs};
use crate::container::Container;
use crate::log::Log;

/// Sets the limits that are given and leaves the others.
pub fn run(global: &Global, arguments: &UpdateArgs, log: &Log) -> Result<()> {
    let container = Container::open(&global.root, &arguments.id)?;
    let json = match &arguments.resources {
        Some(path) => read(path)?,
        None => from_flags(arguments)?,
    };
    let resources: LinuxResources = serde_json::from_value(json)
        .map_err(|error| Error::because(Kind::InvalidArgument, "parse", "resources", error))?;
    if container.life() == Status::Stopped {
        return Err(RuncError::NotRunning.into());
    }
    for warning in container.cgroup()?.apply(&resources, None)? {
        log.warning(warning);
    }
    Ok(())
}

fn read(path: &Path) -> Result<Value> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("read", "standard input")?
    } else {
        std::fs::read_to_string(path).context("read", path.to_string_lossy())?
    };
    serde_json::from_str(&text)
        .map_err(|error| Error::because(Kind::InvalidArgument, "parse", "resources", error))
}

fn from_flags(arguments: &UpdateArgs) -> Result<Value> {
    let bytes = |text: &Option<String>| text.as_deref().map(bytes).transpose();
    let section = |pairs: &[(&str, Option<Value>)]| {
        let set = pairs.iter().filter_map(|(name, value)| Some(((*name).to_owned(), value.clone()?)));
        Value::Object(set.collect::<Map<_, _>>())
    };
    let value = |number: Option<i64>| number.map(Value::from);
    Ok(json!({
        "memory": section(&[
            ("limit", value(bytes(&arguments.memory)?)),
            ("reservation", value(bytes(&arguments.memory_reservation)?)),
            ("swap", value(bytes(&arguments.memory_swap)?)),
        ]),
        "cpu": section(&[
            ("shares", arguments.cpu_shares.map(Value::from)),
            ("quota", value(arguments.cpu_quota)),
            ("burst", arguments.cpu_burst.map(Value::from)),
            ("period", arguments.cpu_period.map(Value::from)),
            ("realtimeRuntime", value(arguments.cpu_rt_runtime)),
            ("realtimePeriod", arguments.cpu_rt_period.map(Value::from)),
            ("cpus", arguments.cpuset_cpus.clone().map(Value::from)),
            ("mems", arguments.cpuset_mems.clone().map(Value::from)),
            ("idle", value(arguments.cpu_idle)),
        ]),
        "pids": arguments.pids_limit.map(|limit| json!({"limit": limit})),
        "blockIO": arguments.blkio_weight.map(|weight| json!({"weight": weight})),
    }))
}

/// A number of bytes, with an optional unit: `512m`, `1GiB`, `-1`.
fn bytes(text: &str) -> Result<i64> {
    let bad = || Error::exactly(Kind::InvalidArgument, format!("invalid size: {text:?}"));
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let number: i64 = number.trim().parse().map_err(|_| bad())?;
    let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_units() {
        for (text, expected) in [("512", 512), ("1k", 1024), ("2MiB", 2 << 20), ("-1", -1), ("1gb", 1 << 30)]
        {
            assert_eq!(bytes(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "m", "1x", "99999999999t"] {
            bytes(bad).unwrap_err();
        }
    }
}
