//! What goes on in running containers: their processes and what they use.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use orlop_proto::any;
use orlop_proto::contract::time::rfc3339_nano;
use orlop_proto::io::containerd::cgroups::{v1, v2};
use serde_json::{Value, json};
use tokio::process::Command;

use super::Container;
use super::state::NEVER;
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::message::{self, Reply};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

impl Engine {
    /// `docker top`. The columns are whatever the caller's arguments make of the host's ps, which dockerd runs too.
    pub(super) async fn top(&self, container: &Arc<Container>, arguments: &str) -> Result<Value> {
        if !container.with(|record| record.state.is_running()) {
            return Err(Failure::conflict(format!("container {} is not running", container.id)));
        }
        if arguments.split_whitespace().any(|word| word.contains(';')) {
            return Err(Failure::invalid(format!("ps: invalid arguments: {arguments}")));
        }
        let task = self.parts.supervisor.get(&self.context.namespace, &container.id).await?;
        let pids: Vec<u32> = task.pids().await?.processes.into_iter().map(|process| process.pid).collect();
        let run = |more: Option<String>| {
            let ran = Command::new("ps").args(arguments.split_whitespace()).args(more).output();
            async { ran.await.map_err(|error| Failure::internal(format!("ps: {error}"))) }
        };
        // By numbers, or ps chooses by its own user and terminal, which are not the container's; some arguments forbid it.
        let numbers: Vec<String> = pids.iter().map(u32::to_string).collect();
        let mut output = run(Some(format!("-q{}", numbers.join(",")))).await?;
        if !output.status.success() {
            output = run(None).await?;
        }
        if !output.status.success() {
            // What comes after the first line is how to call ps.
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::invalid(format!("ps: {}", text.trim().lines().next().unwrap_or_default())));
        }
        table(&String::from_utf8_lossy(&output.stdout), &pids)
    }

    /// `docker stats`.
    pub(super) async fn stats(
        &self,
        container: Arc<Container>,
        is_stream: bool,
        is_single: bool,
    ) -> Result<Reply> {
        if !is_stream {
            let before = if is_single { None } else { self.look(&container).await };
            if before.is_some() {
                tokio::time::sleep(INTERVAL).await;
            }
            let now = self.look(&container).await;
            return Ok(message::ok(&document(&container, before.as_ref(), now.as_ref())));
        }
        let (reply, client) = message::channel("application/json");
        let engine = self.clone();
        tokio::spawn(async move {
            let mut before = None;
            loop {
                let now = engine.look(&container).await;
                let text = message::line(&document(&container, before.as_ref(), now.as_ref()));
                if client.send(Ok(text)).await.is_err() || container.milestones.borrow().removed {
                    return;
                }
                before = now;
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    () = client.closed() => return,
                }
            }
        });
        Ok(reply)
    }

    async fn look(&self, container: &Container) -> Option<Look> {
        let task = self.parts.supervisor.get(&self.context.namespace, &container.id).await.ok()?;
        let stats = task.stats().await.ok()??;
        let pid = container.with(|record| record.state.pid);
        let networks = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
        Some(Look { at: SystemTime::now(), parts: parts(&stats)?, networks: devices(&networks) })
    }
}

/// What was seen at a moment.
struct Look {
    at: SystemTime,
    parts: Parts,
    networks: Value,
}

/// The parts of the document that differ with the cgroups' version.
struct Parts {
    cpu: Value,
    memory: Value,
    pids: Value,
    blkio: Value,
}

fn parts(stats: &prost_types::Any) -> Option<Parts> {
    let processors = crate::docker::host::processors();
    if let Ok(found) = any::unpack::<v1::Metrics>(stats) {
        let cpu = found.cpu.unwrap_or_default();
        let (usage, throttling) = (cpu.usage.unwrap_or_default(), cpu.throttling.unwrap_or_default());
        let memory = found.memory.unwrap_or_default();
        let entry = memory.usage.unwrap_or_default();
        let pids = found.pids.unwrap_or_default();
        let blkio = found.blkio.unwrap_or_default();
        let entries = |list: &[v1::BlkIoEntry]| -> Vec<Value> {
            list.iter()
                .map(|entry| json!({ "major": entry.major, "minor": entry.minor, "op": entry.op, "value": entry.value }))
                .collect()
        };
        return Some(Parts {
            cpu: json!({
                "cpu_usage": {
                    "total_usage": usage.total,
                    "percpu_usage": usage.per_cpu,
                    "usage_in_kernelmode": usage.kernel,
                    "usage_in_usermode": usage.user,
                },
                "online_cpus": processors,
                "throttling_data": {
                    "periods": throttling.periods,
                    "throttled_periods": throttling.throttled_periods,
                    "throttled_time": throttling.throttled_time,
                },
            }),
            memory: json!({
                "usage": entry.usage,
                "max_usage": entry.max,
                "failcnt": entry.failcnt,
                "limit": limit(entry.limit),
                "stats": {
                    "cache": memory.cache,
                    "rss": memory.rss,
                    "mapped_file": memory.mapped_file,
                    "inactive_file": memory.inactive_file,
                    "active_file": memory.active_file,
                    "inactive_anon": memory.inactive_anon,
                    "active_anon": memory.active_anon,
                    "total_inactive_file": memory.total_inactive_file,
                    "total_cache": memory.total_cache,
                    "total_rss": memory.total_rss,
                    "pgfault": memory.pg_fault,
                    "pgmajfault": memory.pg_maj_fault,
                },
            }),
            pids: json!({ "current": pids.current, "limit": pids.limit }),
            blkio: json!({
                "io_service_bytes_recursive": entries(&blkio.io_service_bytes_recursive),
                "io_serviced_recursive": entries(&blkio.io_serviced_recursive),
            }),
        });
    }
    let found = any::unpack::<v2::Metrics>(stats).ok()?;
    let cpu = found.cpu.unwrap_or_default();
    let memory = found.memory.unwrap_or_default();
    let pids = found.pids.unwrap_or_default();
    let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
    Some(Parts {
        cpu: json!({
            "cpu_usage": {
                "total_usage": nanoseconds(cpu.usage_usec),
                "usage_in_kernelmode": nanoseconds(cpu.system_usec),
                "usage_in_usermode": nanoseconds(cpu.user_usec),
            },
            "online_cpus": processors,
            "throttling_data": {
                "periods": cpu.nr_periods,
                "throttled_periods": cpu.nr_throttled,
                "throttled_time": nanoseconds(cpu.throttled_usec),
            },
        }),
        memory: json!({
            "usage": memory.usage,
            "limit": limit(memory.usage_limit),
            "stats": {
                "anon": memory.anon,
                "file": memory.file,
                "inactive_file": memory.inactive_file,
                "active_file": memory.active_file,
                "inactive_anon": memory.inactive_anon,
                "active_anon": memory.active_anon,
                "pgfault": memory.pgfault,
                "pgmajfault": memory.pgmajfault,
            },
        }),
        pids: json!({ "current": pids.current, "limit": pids.limit }),
        blkio: json!({ "io_service_bytes_recursive": null, "io_serviced_recursive": null }),
    })
}

/// A limit; none is all the machine has.
fn limit(bytes: u64) -> u64 {
    let all = crate::docker::host::memory();
    if bytes == 0 || bytes > all { all } else { bytes }
}

/// Time that all processors together have run, in nanoseconds.
fn system_time() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    // proc_stat(5): in hundredths of a second; guest time is in user time already.
    let ticks: u64 =
        first.split_whitespace().skip(1).take(8).filter_map(|word| word.parse::<u64>().ok()).sum();
    ticks.saturating_mul(10_000_000)
}

/// /proc/PID/net/dev (proc_pid_net(5)), the loopback left out.
fn devices(text: &str) -> Value {
    let mut found = serde_json::Map::new();
    for line in text.lines().skip(2) {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if name.trim() == "lo" || numbers.len() < 12 {
            continue;
        }
        let device = json!({
            "rx_bytes": numbers[0], "rx_packets": numbers[1], "rx_errors": numbers[2], "rx_dropped": numbers[3],
            "tx_bytes": numbers[8], "tx_packets": numbers[9], "tx_errors": numbers[10], "tx_dropped": numbers[11],
        });
        found.insert(name.trim().to_owned(), device);
    }
    Value::Object(found)
}

fn document(container: &Container, before: Option<&Look>, now: Option<&Look>) -> Value {
    let none = || json!({ "cpu_usage": { "total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0 }, "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 } });
    let time = |look: Option<&Look>| look.map_or(NEVER.to_owned(), |look| rfc3339_nano(look.at));
    let mut cpu = now.map_or_else(none, |look| look.parts.cpu.clone());
    let system = system_time();
    if now.is_some() {
        cpu["system_cpu_usage"] = json!(system);
    }
    let mut previous = before.map_or_else(none, |look| look.parts.cpu.clone());
    if let (Some(before), Some(now)) = (before, now) {
        let passed = now.at.duration_since(before.at).unwrap_or_default().as_nanos() as u64;
        let all = passed.saturating_mul(crate::docker::host::processors() as u64);
        previous["system_cpu_usage"] = json!(system.saturating_sub(all));
    }
    json!({
        "read": time(now),
        "preread": time(before),
        "id": container.id,
        "name": format!("/{}", container.with(|record| record.name.clone())),
        "num_procs": 0,
        "pids_stats": now.map_or(json!({}), |look| look.parts.pids.clone()),
        "cpu_stats": cpu,
        "precpu_stats": previous,
        "memory_stats": now.map_or(json!({}), |look| look.parts.memory.clone()),
        "blkio_stats": now.map_or(json!({}), |look| look.parts.blkio.clone()),
        "storage_stats": {},
        "networks": now.map_or(json!({}), |look| look.networks.clone()),
    })
}

/// The lines of a ps table whose process is among those wanted.
fn table(text: &str, pids: &[u32]) -> Result<Value> {
    let mut lines = text.lines();
    let titles: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let column = titles
        .iter()
        .position(|title| *title == "PID")
        .ok_or_else(|| Failure::internal("Couldn't find PID field in ps output"))?;
    let mut rows = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(pid) = words.get(column).and_then(|word| word.parse::<u32>().ok()) else { continue };
        if !pids.contains(&pid) {
            continue;
        }
        // The last column has spaces in it.
        let last = titles.len() - 1;
        let mut row: Vec<String> = words.iter().take(last).map(|&word| word.to_owned()).collect();
        row.push(words.get(last..).unwrap_or_default().join(" "));
        rows.push(row);
    }
    Ok(json!({ "Titles": titles, "Processes": rows }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_cut_down_to_the_containers_own() {
        let text = "UID PID CMD\nroot 1 init\nroot 7 sleep 5 x\n";
        let found = table(text, &[7]).unwrap();
        assert_eq!(found["Processes"], json!([["root", "7", "sleep 5 x"]]));
        assert!(table("UID CMD\n", &[7]).is_err());
    }

    #[test]
    fn devices_have_counters() {
        let text = "Inter-|\n face |\n    lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n  eth0: 10 2 0 0 0 0 0 0 30 4 0 0 0 0 0 0\n";
        let found = devices(text);
        assert_eq!((&found["eth0"]["rx_bytes"], &found["eth0"]["tx_bytes"]), (&json!(10), &json!(30)));
        assert!(found.get("lo").is_none());
    }
}
