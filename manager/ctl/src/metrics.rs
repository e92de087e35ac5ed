//! Resource usage as `ctr` shows it.

use orlop_proto::any;
use orlop_proto::containerd::types::Metric;
use orlop_proto::error::{Error, Result};
use orlop_proto::io::containerd::cgroups::{v1, v2};
use orlop_proto::kind::Kind;
use serde_json::Value;

/// Usage of one container, by the version of its cgroup.
pub enum Usage {
    /// cgroup v1.
    V1(Box<v1::Metrics>),
    /// cgroup v2.
    V2(Box<v2::Metrics>),
}

impl Usage {
    /// The usage in a metric.
    ///
    /// # Errors
    ///
    /// `Unimplemented` for one of another type.
    pub fn of(metric: &Metric) -> Result<Usage> {
        let data = metric.data.clone().unwrap_or_default();
        if any::is::<v1::Metrics>(&data) {
            return Ok(Usage::V1(Box::new(any::unpack(&data)?)));
        }
        if any::is::<v2::Metrics>(&data) {
            return Ok(Usage::V2(Box::new(any::unpack(&data)?)));
        }
        Err(Error::new(Kind::Unimplemented, "metrics of type", format!("{:?}", data.type_url)))
    }

    /// The whole usage, without what is zero.
    ///
    /// # Errors
    ///
    /// Those of encoding.
    pub fn json(&self) -> Result<Value> {
        let value = match self {
            Usage::V1(metrics) => serde_json::to_value(metrics),
            Usage::V2(metrics) => serde_json::to_value(metrics),
        };
        value.map(sparse).map_err(|error| Error::because(Kind::Internal, "encode", "metrics", error))
    }

    /// The rows that people look at.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        match self {
            Usage::V1(metrics) => v1_rows(metrics),
            Usage::V2(metrics) => v2_rows(metrics),
        }
    }
}

fn v1_rows(metrics: &v1::Metrics) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(memory) = &metrics.memory {
        let usage = memory.usage.unwrap_or_default();
        rows.push(("memory.usage_in_bytes", usage.usage.to_string()));
        rows.push(("memory.limit_in_bytes", usage.limit.to_string()));
        rows.push(("memory.stat.cache", memory.total_cache.to_string()));
    }
    if let Some(usage) = metrics.cpu.as_ref().and_then(|cpu| cpu.usage.as_ref()) {
        let each: Vec<String> = usage.per_cpu.iter().map(u64::to_string).collect();
        rows.push(("cpuacct.usage", usage.total.to_string()));
        rows.push(("cpuacct.usage_percpu", format!("[{}]", each.join(" "))));
    }
    if let Some(pids) = &metrics.pids {
        rows.push(("pids.current", pids.current.to_string()));
        rows.push(("pids.limit", pids.limit.to_string()));
    }
    rows
}

fn v2_rows(metrics: &v2::Metrics) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(pids) = &metrics.pids {
        rows.push(("pids.current", pids.current.to_string()));
        rows.push(("pids.limit", pids.limit.to_string()));
    }
    if let Some(cpu) = &metrics.cpu {
        rows.push(("cpu.usage_usec", cpu.usage_usec.to_string()));
        rows.push(("cpu.user_usec", cpu.user_usec.to_string()));
        rows.push(("cpu.system_usec", cpu.system_usec.to_string()));
        rows.push(("cpu.nr_periods", cpu.nr_periods.to_string()));
        rows.push(("cpu.nr_throttled", cpu.nr_throttled.to_string()));
        rows.push(("cpu.throttled_usec", cpu.throttled_usec.to_string()));
    }
    if let Some(memory) = &metrics.memory {
        rows.push(("memory.usage", memory.usage.to_string()));
        rows.push(("memory.usage_limit", memory.usage_limit.to_string()));
        rows.push(("memory.swap_usage", memory.swap_usage.to_string()));
        rows.push(("memory.swap_limit", memory.swap_limit.to_string()));
    }
    rows
}

/// A document without zeros, empty texts and empty lists, as Go's encoders leave them out.
pub fn sparse(value: Value) -> Value {
    let worth = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(_) => true,
    };
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| worth(value))
            .map(|(key, value)| (key, sparse(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(sparse).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_have_rows_and_a_document() {
        let pids = Some(v1::PidsStat { current: 3, limit: 0 });
        let metric = Metric {
            data: Some(any::pack(&v1::Metrics { pids, ..Default::default() })),
            ..Metric::default()
        };
        let usage = Usage::of(&metric).unwrap();
        assert_eq!(usage.rows(), [("pids.current", "3".to_owned()), ("pids.limit", "0".to_owned())]);
        assert_eq!(usage.json().unwrap(), serde_json::json!({ "pids": { "current": 3 } }));
        let cpu = Some(v2::CpuStat { usage_usec: 7, ..Default::default() });
        let metric =
            Metric { data: Some(any::pack(&v2::Metrics { cpu, ..Default::default() })), ..Metric::default() };
        assert_eq!(Usage::of(&metric).unwrap().rows()[0], ("cpu.usage_usec", "7".to_owned()));
        assert!(Usage::of(&Metric::default()).is_err());
    }
}
