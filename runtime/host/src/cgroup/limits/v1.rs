//! Control files of the version 1 controllers.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use orlop_proto::error::Result;

use super::{Missing, Together, huge_pages, nonzero, rdma, refuse, setting};

/// The kernel clamps `cpu.shares` to these; runc refuses what would be clamped.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

pub(super) fn settings(resources: &LinuxResources) -> Result<Vec<Together>> {
    let mut all = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpuset(cpu, &mut all);
    }
    if let Some(wanted) = resources.memory() {
        memory(wanted, &mut all)?;
    }
    if let Some(wanted) = resources.cpu() {
        cpu(wanted, &mut all)?;
    }
    if let Some(limit) = nonzero(resources.pids().map(|pids| pids.limit())) {
        let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        all.push(vec![setting("pids", "pids.max", value, Missing::Fail)]);
    }
    if let Some(wanted) = resources.block_io() {
        block_io(wanted, &mut all);
    }
    all.extend(huge_pages(resources, "limit_in_bytes", "rsvd.limit_in_bytes")?);
    all.extend(rdma(resources));
    if let Some(network) = resources.network() {
        if let Some(class) = nonzero(network.class_id()) {
            all.push(vec![setting("net_cls", "net_cls.classid", class, Missing::Fail)]);
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            all.push(vec![setting("net_prio", "net_prio.ifpriomap", value, Missing::Fail)]);
        }
    }
    Ok(all)
}

fn cpuset(cpu: &LinuxCpu, all: &mut Vec<Together>) {
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            all.push(vec![setting("cpuset", file, list, Missing::Fail)]);
        }
    }
}

fn memory(memory: &LinuxMemory, all: &mut Vec<Together>) -> Result<()> {
    let limit = nonzero(memory.limit());
    let swap = nonzero(memory.swap());
    let mut together = Vec::new();
    if let Some(limit) = limit {
        together.push(setting("memory", "memory.limit_in_bytes", limit, Missing::Fail));
    }
    match (swap, limit) {
        (Some(swap), _) => {
            together.push(setting("memory", "memory.memsw.limit_in_bytes", swap, Missing::Fail));
        }
        // Memory without limit means memory and swap without limit, where the kernel counts swap.
        (None, Some(-1)) => {
            together.push(setting("memory", "memory.memsw.limit_in_bytes", -1, Missing::Ignore));
        }
        _ => {}
    }
    if !together.is_empty() {
        all.push(together);
    }
    if let Some(reservation) = nonzero(memory.reservation()) {
        all.push(vec![setting("memory", "memory.soft_limit_in_bytes", reservation, Missing::Fail)]);
    }
    if memory.disable_oom_killer() == Some(true) {
        all.push(vec![setting("memory", "memory.oom_control", 1, Missing::Fail)]);
    }
    match memory.swappiness() {
        None | Some(u64::MAX) => {}
        Some(percent @ 0..=100) => {
            all.push(vec![setting("memory", "memory.swappiness", percent, Missing::Fail)]);
        }
        Some(percent) => {
            let why = format!("invalid memory swappiness value: {percent} (valid range is 0-100)");
            return Err(refuse("linux.resources.memory.swappiness", why));
        }
    }
    Ok(())
}

fn cpu(cpu: &LinuxCpu, all: &mut Vec<Together>) -> Result<()> {
    if let Some(runtime) = nonzero(cpu.realtime_period()) {
        all.push(vec![setting("cpu", "cpu.rt_period_us", runtime, Missing::Fail)]);
    }
    if let Some(runtime) = nonzero(cpu.realtime_runtime()) {
        all.push(vec![setting("cpu", "cpu.rt_runtime_us", runtime, Missing::Fail)]);
    }
    if let Some(shares) = nonzero(cpu.shares()) {
        if shares > *SHARES.end() {
            let why = format!("the maximum allowed cpu-shares is {}", SHARES.end());
            return Err(refuse("linux.resources.cpu.shares", why));
        }
        if shares < *SHARES.start() {
            let why = format!("the minimum allowed cpu-shares is {}", SHARES.start());
            return Err(refuse("linux.resources.cpu.shares", why));
        }
        all.push(vec![setting("cpu", "cpu.shares", shares, Missing::Fail)]);
    }
    if let Some(idle) = cpu.idle() {
        all.push(vec![setting("cpu", "cpu.idle", idle, Missing::Fail)]);
    }
    let mut together = Vec::new();
    if let Some(period) = nonzero(cpu.period()) {
        together.push(setting("cpu", "cpu.cfs_period_us", period, Missing::Fail));
    }
    if let Some(burst) = cpu.burst() {
        together.push(setting("cpu", "cpu.cfs_burst_us", burst, Missing::Ignore));
    }
    if let Some(quota) = nonzero(cpu.quota()) {
        together.push(setting("cpu", "cpu.cfs_quota_us", quota, Missing::Fail));
    }
    if !together.is_empty() {
        all.push(together);
    }
    Ok(())
}

fn block_io(io: &LinuxBlockIo, all: &mut Vec<Together>) {
    let weight = |file: &'static str, bfq: &'static str, value: String| {
        let instead = Missing::Instead(Box::new(setting("blkio", bfq, &value, Missing::Fail)));
        vec![setting("blkio", file, value, instead)]
    };
    if let Some(value) = nonzero(io.weight()) {
        all.push(weight("blkio.weight", "blkio.bfq.weight", value.to_string()));
    }
    if let Some(value) = nonzero(io.leaf_weight()) {
        all.push(vec![setting("blkio", "blkio.leaf_weight", value, Missing::Fail)]);
    }
    for device in io.weight_device().iter().flatten() {
        let value = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(own) = nonzero(device.weight()) {
            all.push(weight("blkio.weight_device", "blkio.bfq.weight_device", value(own)));
        }
        if let Some(leaf) = nonzero(device.leaf_weight()) {
            all.push(vec![setting("blkio", "blkio.leaf_weight_device", value(leaf), Missing::Fail)]);
        }
    }
    let mut throttle = |file: &'static str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            all.push(vec![setting("blkio", file, value, Missing::Fail)]);
        }
    };
    throttle("blkio.throttle.read_bps_device", io.throttle_read_bps_device());
    throttle("blkio.throttle.write_bps_device", io.throttle_write_bps_device());
    throttle("blkio.throttle.read_iops_device", io.throttle_read_iops_device());
    throttle("blkio.throttle.write_iops_device", io.throttle_write_iops_device());
}
