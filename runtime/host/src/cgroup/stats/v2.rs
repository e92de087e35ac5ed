//! Figures of the version 2 controllers, in version 1's units where these differ.

use std::collections::BTreeMap;

use orlop_proto::error::Result;

use super::super::group::Group;
use super::{
    BlockIo, Counter, Cpu, DeviceFigure, Memory, Pids, Pressure, Stall, Stats, limit, number, page_sizes,
    rdma, table, text,
};

pub(super) fn read(group: &Group) -> Result<Stats> {
    let mut stats = Stats { is_unified: true, rdma: rdma(group)?, ..Stats::default() };
    if let Some(current) = number(group, "pids.current")? {
        stats.pids = Some(Pids { current, limit: limit(group, "pids.max")? });
    }
    stats.cpu = text(group, "cpu.stat")?.map(|text| cpu(&text));
    if let Some(cpu) = &mut stats.cpu {
        cpu.pressure = pressure(group, "cpu.pressure")?;
    }
    stats.memory = memory(group)?;
    stats.block_io = text(group, "io.stat")?.map(|text| block_io(&text));
    if let Some(io) = &mut stats.block_io {
        io.pressure = pressure(group, "io.pressure")?;
    }
    for size in page_sizes(group, ".max")? {
        let events = table(&text(group, &format!("hugetlb.{size}.events"))?.unwrap_or_default());
        let counter = Counter {
            usage: number(group, &format!("hugetlb.{size}.current"))?.unwrap_or(0),
            peak: 0,
            failures: events.get("max").copied().unwrap_or(0),
            limit: limit(group, &format!("hugetlb.{size}.max"))?,
        };
        stats.huge_pages.insert(size, counter);
    }
    Ok(stats)
}

/// `cpu.stat`, which counts microseconds.
pub(super) fn cpu(text: &str) -> Cpu {
    let figures = table(text);
    let figure = |name| figures.get(name).copied().unwrap_or(0);
    Cpu {
        total: figure("usage_usec") * 1000,
        user: figure("user_usec") * 1000,
        kernel: figure("system_usec") * 1000,
        periods: figure("nr_periods"),
        throttled_periods: figure("nr_throttled"),
        throttled_time: figure("throttled_usec") * 1000,
        ..Cpu::default()
    }
}

fn memory(group: &Group) -> Result<Option<Memory>> {
    let Some(detail) = text(group, "memory.stat")? else { return Ok(None) };
    let counter = |prefix: &str, failures: u64| -> Result<Option<Counter>> {
        let Some(usage) = number(group, &format!("{prefix}.current"))? else { return Ok(None) };
        Ok(Some(Counter {
            usage,
            peak: number(group, &format!("{prefix}.peak"))?.unwrap_or(0),
            failures,
            limit: limit(group, &format!("{prefix}.max"))?,
        }))
    };
    let events = table(&text(group, "memory.events")?.unwrap_or_default());
    let failures = events.get("max").copied().unwrap_or(0);
    Ok(Some(Memory {
        usage: counter("memory", failures)?.unwrap_or_default(),
        swap: counter("memory.swap", 0)?,
        kernel: None,
        kernel_tcp: None,
        hierarchical: true,
        detail: table(&detail),
        events,
        pressure: pressure(group, "memory.pressure")?,
    }))
}

/// A `….pressure` file; none where the kernel keeps no account.
fn pressure(group: &Group, file: &str) -> Result<Option<Pressure>> {
    let Some(text) = text(group, file)? else { return Ok(None) };
    let stall = |kind: &str| {
        let mut stall = Stall::default();
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
        for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
            let percent = value.parse().unwrap_or(0.0);
            match key {
                "avg10" => stall.last_10 = percent,
                "avg60" => stall.last_60 = percent,
                "avg300" => stall.last_300 = percent,
                "total" => stall.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        stall
    };
    Ok(Some(Pressure { some: stall("some "), full: stall("full ") }))
}

/// `io.stat`: for each device pairs of a name and a figure.
pub(super) fn block_io(text: &str) -> BlockIo {
    let mut figures: BTreeMap<&str, Vec<DeviceFigure>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (operation, list) = match key {
                "rbytes" => ("Read", "bytes"),
                "wbytes" => ("Write", "bytes"),
                "rios" => ("Read", "requests"),
                "wios" => ("Write", "requests"),
                _ => continue,
            };
            let Ok(value) = value.parse() else { continue };
            let figure = DeviceFigure { major, minor, operation: operation.to_owned(), value };
            figures.entry(list).or_default().push(figure);
        }
    }
    BlockIo {
        service_bytes: figures.remove("bytes").unwrap_or_default(),
        serviced: figures.remove("requests").unwrap_or_default(),
        ..BlockIo::default()
    }
}
