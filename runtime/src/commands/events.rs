//! `events`: out-of-memory events and statistics, in runc's JSON, one object per line.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use orlop_host::cgroup::Stats;
use orlop_host::cgroup::stats::{Counter, DeviceFigure, Pressure, Stall};
use orlop_proto::contract::state::Status;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::{Map, Value, json};

use super::{encode, print};
use crate::cli::Global;
use crate::container::Container;

/// Prints the statistics once, or statistics and events until the container's cgroup is gone.
pub fn run(global: &Global, id: &str, interval: Duration, once: bool) -> Result<()> {
    let container = Container::open(&global.root, id)?;
    if interval.is_zero() {
        return Err(Error::exactly(Kind::InvalidArgument, "duration interval must be greater than 0"));
    }
    if container.life() == Status::Stopped {
        let why = format!("container with id {id} is not running");
        return Err(Error::exactly(Kind::FailedPrecondition, why));
    }
    let cgroup = container.cgroup()?;
    let statistics = || -> Result<()> { tell(id, "stats", Some(describe(&cgroup.stats()?))) };
    if once {
        return statistics();
    }
    let mut watch = cgroup.oom_events()?;
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up, or the last fraction of a millisecond would be spent in a busy loop.
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], left) {
            Err(nix::Error::EINTR) => continue,
            other => other.context("wait for", "events")?,
        };
        match watch.take() {
            Ok(true) => tell(id, "oom", None)?,
            Ok(false) => {}
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        if Instant::now() >= next {
            statistics()?;
            next = Instant::now() + interval;
        }
    }
}

fn tell(id: &str, kind: &str, data: Option<Value>) -> Result<()> {
    let mut event = json!({"type": kind, "id": id});
    if let Some(data) = data {
        event["data"] = data;
    }
    let mut text = encode(&event)?;
    text.push(b'\n');
    print(&text)
}

/// An object of those members that are neither zero nor empty, as Go's `omitempty` leaves them out.
fn object(members: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        other => other.is_null(),
    };
    let kept = members.into_iter().filter(|(_, value)| !is_empty(value));
    Value::Object(kept.map(|(name, value)| (name.to_owned(), value)).collect())
}

/// The statistics under runc's names.
fn describe(stats: &Stats) -> Value {
    let pids = stats.pids.unwrap_or_default();
    let huge_pages = stats.huge_pages.iter().map(|(size, counter)| {
        let mut shown = object([("usage", counter.usage.into()), ("max", counter.peak.into())]);
        shown["failcnt"] = counter.failures.into();
        (size.clone(), shown)
    });
    json!({
        "cpu": cpu(stats),
        "memory": memory(stats),
        "pids": object([("current", pids.current.into()), ("limit", pids.limit.unwrap_or(0).into())]),
        "blkio": block_io(stats),
        "hugetlb": huge_pages.collect::<Map<_, _>>(),
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn cpu(stats: &Stats) -> Value {
    let cpu = stats.cpu.clone().unwrap_or_default();
    let mut usage = object([
        ("total", cpu.total.into()),
        ("percpu", cpu.per_cpu.into()),
        ("percpu_kernel", cpu.per_cpu_kernel.into()),
        ("percpu_user", cpu.per_cpu_user.into()),
    ]);
    usage["kernel"] = cpu.kernel.into();
    usage["user"] = cpu.user.into();
    let throttling = object([
        ("periods", cpu.periods.into()),
        ("throttledPeriods", cpu.throttled_periods.into()),
        ("throttledTime", cpu.throttled_time.into()),
    ]);
    let mut shown = json!({"usage": usage, "throttling": throttling});
    if let Some(psi) = cpu.pressure {
        shown["psi"] = pressure(psi);
    }
    shown
}

/// Pressure stall information; always whole, as runc prints it.
fn pressure(pressure: Pressure) -> Value {
    let stall = |stall: Stall| json!({"avg10": stall.last_10, "avg60": stall.last_60, "avg300": stall.last_300, "total": stall.total});
    json!({"some": stall(pressure.some), "full": stall(pressure.full)})
}

fn memory(stats: &Stats) -> Value {
    let Some(memory) = &stats.memory else { return json!({}) };
    let entry = |counter: &Counter| {
        let mut shown = object([("usage", counter.usage.into()), ("max", counter.peak.into())]);
        // What version 1 says where there is no limit, and the highest number on version 2, as in runc.
        shown["limit"] = counter.limit.unwrap_or(u64::MAX).into();
        shown["failcnt"] = counter.failures.into();
        shown
    };
    // What there is no counter for is there all the same, as a Go structure without figures.
    let optional = |counter: &Option<Counter>| {
        counter.as_ref().map_or_else(|| json!({"limit": 0, "failcnt": 0}), &entry)
    };
    // Version 2 counts swap alone; runc adds memory, as version 1 does.
    let swap = memory.swap.map(|swap| match stats.is_unified {
        true => Counter {
            usage: swap.usage + memory.usage.usage,
            limit: swap.limit.map(|limit| limit.saturating_add(memory.usage.limit.unwrap_or(u64::MAX))),
            ..swap
        },
        false => swap,
    });
    let cache = if stats.is_unified { "file" } else { "cache" };
    object([
        ("cache", memory.detail.get(cache).copied().unwrap_or(0).into()),
        ("usage", entry(&memory.usage)),
        ("swap", optional(&swap)),
        ("kernel", optional(&memory.kernel)),
        ("kernelTCP", optional(&memory.kernel_tcp)),
        ("raw", json!(memory.detail)),
        ("psi", memory.pressure.map_or(Value::Null, pressure)),
    ])
}

fn block_io(stats: &Stats) -> Value {
    let Some(io) = &stats.block_io else { return json!({}) };
    let list = |figures: &[DeviceFigure]| {
        let entry = |figure: &DeviceFigure| {
            object([
                ("major", figure.major.into()),
                ("minor", figure.minor.into()),
                ("op", figure.operation.as_str().into()),
                ("value", figure.value.into()),
            ])
        };
        Value::Array(figures.iter().map(entry).collect())
    };
    object([
        ("ioServiceBytesRecursive", list(&io.service_bytes)),
        ("ioServicedRecursive", list(&io.serviced)),
        ("ioQueueRecursive", list(&io.queued)),
        ("ioServiceTimeRecursive", list(&io.service_time)),
        ("ioWaitTimeRecursive", list(&io.wait_time)),
        ("ioMergedRecursive", list(&io.merged)),
        ("ioTimeRecursive", list(&io.time)),
        ("sectorsRecursive", list(&io.sectors)),
        ("psi", io.pressure.map_or(Value::Null, pressure)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out_where_runc_leaves_them_out() {
        assert_eq!(object([("a", 0.into()), ("b", json!([])), ("c", 1.into())]), json!({"c": 1}));
        let shown = describe(&Stats::default());
        assert_eq!(shown["cpu"], json!({"usage": {"kernel": 0, "user": 0}, "throttling": {}}));
        assert_eq!((&shown["memory"], &shown["pids"]), (&json!({}), &json!({})));
        assert_eq!(shown["network_interfaces"], Value::Null);
    }

    #[test]
    fn swap_of_version_2_is_told_with_memory() {
        let counter = |usage, limit| Counter { usage, limit, ..Counter::default() };
        let memory = orlop_host::cgroup::stats::Memory {
            usage: counter(100, Some(1000)),
            swap: Some(counter(10, Some(500))),
            ..Default::default()
        };
        let stats = Stats { is_unified: true, memory: Some(memory), ..Stats::default() };
        let shown = describe(&stats);
        assert_eq!(shown["memory"]["swap"], json!({"usage": 110, "limit": 1500, "failcnt": 0}));
        assert_eq!(shown["memory"]["kernel"], json!({"limit": 0, "failcnt": 0}));
    }
}
