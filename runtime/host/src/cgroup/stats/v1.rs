//! Figures of the version 1 controllers.

use std::collections::BTreeMap;

use orlop_proto::error::Result;

use super::super::Cgroup;
use super::super::group::Group;
use super::{
    BlockIo, Counter, Cpu, DeviceFigure, Memory, Pids, Stats, limit, number, page_sizes, rdma, table, text,
};

/// The unit of `cpuacct.stat`: a hundredth of a second (`USER_HZ`) on every architecture that matters here.
const TICK: u64 = 10_000_000;

pub(super) fn read(cgroup: &Cgroup) -> Result<Stats> {
    let mut stats = Stats::default();
    if let Some(group) = cgroup.legacy("pids") {
        stats.pids = Some(Pids {
            current: number(group, "pids.current")?.unwrap_or(0),
            limit: limit(group, "pids.max")?,
        });
    }
    stats.cpu = cpu(cgroup)?;
    if let Some(group) = cgroup.legacy("memory") {
        stats.memory = Some(memory(group)?);
    }
    if let Some(group) = cgroup.legacy("blkio") {
        stats.block_io = Some(block_io(group)?);
    }
    if let Some(group) = cgroup.legacy("hugetlb") {
        stats.huge_pages = huge_pages(group)?;
    }
    if let Some(group) = cgroup.legacy("rdma") {
        stats.rdma = rdma(group)?;
    }
    Ok(stats)
}

fn cpu(cgroup: &Cgroup) -> Result<Option<Cpu>> {
    let mut cpu = Cpu::default();
    let (accounting, bandwidth) = (cgroup.legacy("cpuacct"), cgroup.legacy("cpu"));
    if accounting.is_none() && bandwidth.is_none() {
        return Ok(None);
    }
    if let Some(group) = accounting {
        cpu.total = number(group, "cpuacct.usage")?.unwrap_or(0);
        let modes = table(&text(group, "cpuacct.stat")?.unwrap_or_default());
        cpu.user = modes.get("user").copied().unwrap_or(0) * TICK;
        cpu.kernel = modes.get("system").copied().unwrap_or(0) * TICK;
        cpu.per_cpu = numbers(&text(group, "cpuacct.usage_percpu")?.unwrap_or_default());
        (cpu.per_cpu_user, cpu.per_cpu_kernel) =
            per_processor(&text(group, "cpuacct.usage_all")?.unwrap_or_default());
    }
    if let Some(group) = bandwidth {
        let figures = table(&text(group, "cpu.stat")?.unwrap_or_default());
        let figure = |name| figures.get(name).copied().unwrap_or(0);
        cpu.periods = figure("nr_periods");
        cpu.throttled_periods = figure("nr_throttled");
        cpu.throttled_time = figure("throttled_time");
    }
    Ok(Some(cpu))
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// User and kernel columns of `cpuacct.usage_all`, which has a heading.
pub(super) fn per_processor(text: &str) -> (Vec<u64>, Vec<u64>) {
    text.lines()
        .skip(1)
        .filter_map(|line| match numbers(line)[..] {
            [_, user, kernel] => Some((user, kernel)),
            _ => None,
        })
        .unzip()
}

fn memory(group: &Group) -> Result<Memory> {
    let counter = |prefix: &str| -> Result<Option<Counter>> {
        let Some(usage) = number(group, &format!("{prefix}.usage_in_bytes"))? else { return Ok(None) };
        Ok(Some(Counter {
            usage,
            peak: number(group, &format!("{prefix}.max_usage_in_bytes"))?.unwrap_or(0),
            failures: number(group, &format!("{prefix}.failcnt"))?.unwrap_or(0),
            limit: number(group, &format!("{prefix}.limit_in_bytes"))?,
        }))
    };
    Ok(Memory {
        usage: counter("memory")?.unwrap_or_default(),
        swap: counter("memory.memsw")?,
        kernel: counter("memory.kmem")?,
        kernel_tcp: counter("memory.kmem.tcp")?,
        hierarchical: number(group, "memory.use_hierarchy")? == Some(1),
        detail: table(&text(group, "memory.stat")?.unwrap_or_default()),
        events: BTreeMap::new(),
        pressure: None,
    })
}

/// The figures of whichever I/O policy is at work: a scheduler's own, else those of throttling, which counts everything.
fn block_io(group: &Group) -> Result<BlockIo> {
    let list = |file: &str| -> Result<Vec<DeviceFigure>> {
        Ok(text(group, file)?.map(|text| devices(&text)).unwrap_or_default())
    };
    for scheduler in ["blkio", "blkio.bfq"] {
        let serviced = list(&format!("{scheduler}.io_serviced_recursive"))?;
        if serviced.is_empty() {
            continue;
        }
        return Ok(BlockIo {
            service_bytes: list(&format!("{scheduler}.io_service_bytes_recursive"))?,
            serviced,
            queued: list(&format!("{scheduler}.io_queued_recursive"))?,
            service_time: list(&format!("{scheduler}.io_service_time_recursive"))?,
            wait_time: list(&format!("{scheduler}.io_wait_time_recursive"))?,
            merged: list(&format!("{scheduler}.io_merged_recursive"))?,
            time: list(&format!("{scheduler}.time_recursive"))?,
            sectors: list(&format!("{scheduler}.sectors_recursive"))?,
            pressure: None,
        });
    }
    Ok(BlockIo {
        service_bytes: list("blkio.throttle.io_service_bytes")?,
        serviced: list("blkio.throttle.io_serviced")?,
        ..BlockIo::default()
    })
}

/// Lines of a device, an operation and a figure, or of a device and a figure; the total line is left out.
pub(super) fn devices(text: &str) -> Vec<DeviceFigure> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let (operation, value) = match (words.next()?, words.next()) {
                (operation, Some(value)) => (operation, value),
                (value, None) => ("", value),
            };
            Some(DeviceFigure {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                operation: operation.to_owned(),
                value: value.parse().ok()?,
            })
        })
        .collect()
}

fn huge_pages(group: &Group) -> Result<BTreeMap<String, Counter>> {
    let mut pages = BTreeMap::new();
    for size in page_sizes(group, ".limit_in_bytes")? {
        let figure = |name: &str| number(group, &format!("hugetlb.{size}.{name}"));
        let counter = Counter {
            usage: figure("usage_in_bytes")?.unwrap_or(0),
            peak: figure("max_usage_in_bytes")?.unwrap_or(0),
            failures: figure("failcnt")?.unwrap_or(0),
            limit: figure("limit_in_bytes")?,
        };
        pages.insert(size, counter);
    }
    Ok(pages)
}
