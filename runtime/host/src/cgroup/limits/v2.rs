//! Control files of the version 2 controllers, and how version 1 values translate to them.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use orlop_proto::error::Result;

use super::{Missing, Setting, Together, huge_pages, nonzero, or_max, rdma, refuse, setting};

/// The kernel's default period of `cpu.max`, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

pub(super) fn settings(
    resources: &LinuxResources,
    present: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Together>> {
    let mut all = Vec::new();
    if let Some(limit) = nonzero(resources.pids().map(|pids| pids.limit())) {
        let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        all.push(vec![setting("pids", "pids.max", value, Missing::Fail)]);
    }
    if let Some(wanted) = resources.memory() {
        memory(wanted, present, &mut all)?;
    }
    if let Some(wanted) = resources.block_io() {
        block_io(wanted, &mut all);
    }
    if let Some(wanted) = resources.cpu() {
        cpu(wanted, present, &mut all);
    }
    all.extend(huge_pages(resources, "max", "rsvd.max")?);
    all.extend(rdma(resources));
    unified(resources, &mut all)?;
    Ok(all)
}

fn memory(
    memory: &LinuxMemory,
    present: &dyn Fn(&str) -> Option<String>,
    all: &mut Vec<Together>,
) -> Result<()> {
    let limit = memory.limit().unwrap_or(0);
    let both = memory.swap().unwrap_or(0);
    let number = |file| present(file)?.trim().parse::<i64>().ok();
    let swap = match (both, limit) {
        // The sum stays what it is.
        (0, 1..) => match (number("memory.max"), number("memory.swap.max")) {
            (Some(limit_now), Some(swap_now)) => swap_alone(limit_now.saturating_add(swap_now), limit)?,
            _ => None,
        },
        (1.., 0) => swap_alone(both, number("memory.max").unwrap_or(0))?,
        _ => swap_alone(both, limit)?,
    };
    if let Some(swap) = swap {
        // Without swap in the kernel there is none to limit.
        let missing = if swap == 0 || swap == -1 { Missing::Ignore } else { Missing::Fail };
        all.push(vec![setting("memory", "memory.swap.max", or_max(swap), missing)]);
    }
    if limit != 0 {
        all.push(vec![setting("memory", "memory.max", or_max(limit), Missing::Fail)]);
    }
    if let Some(reservation) = nonzero(memory.reservation()) {
        all.push(vec![setting("memory", "memory.low", or_max(reservation), Missing::Fail)]);
    }
    Ok(())
}

/// The limit of swap alone, which version 2 has, from that of memory and swap together, which the specification has.
fn swap_alone(both: i64, memory: i64) -> Result<Option<i64>> {
    let what = "linux.resources.memory.swap";
    match (both, memory) {
        (0, -1) => Ok(Some(-1)),
        (0, _) => Ok(None),
        (-1, _) | (_, -1) => Ok(Some(both)),
        (_, 0) => Err(refuse(what, "unable to set swap limit without memory limit")),
        (_, memory) if memory < 0 => Err(refuse(what, format!("invalid memory value: {memory}"))),
        (both, memory) if both < memory => Err(refuse(what, "memory+swap limit should be >= memory limit")),
        (both, memory) => Ok(Some(both - memory)),
    }
}

fn cpu(cpu: &LinuxCpu, present: &dyn Fn(&str) -> Option<String>, all: &mut Vec<Together>) {
    if let Some(idle) = cpu.idle() {
        all.push(vec![setting("cpu", "cpu.idle", idle, Missing::Fail)]);
    }
    // The kernel fixes the weight of an idle group and refuses another one.
    if let Some(shares) = nonzero(cpu.shares()).filter(|_| cpu.idle() != Some(1)) {
        all.push(vec![setting("cpu", "cpu.weight", weight_of_shares(shares), Missing::Fail)]);
    }
    let mut together = Vec::new();
    let quota = nonzero(cpu.quota());
    let period = nonzero(cpu.period());
    if quota.is_some() || period.is_some() {
        let now = present("cpu.max").unwrap_or_default();
        let mut now = now.split_whitespace();
        let (quota_now, period_now) = (now.next(), now.next().and_then(|period| period.parse().ok()));
        let quota = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            Some(_) => "max".to_owned(),
            None => quota_now.unwrap_or("max").to_owned(),
        };
        let value = format!("{quota} {}", period.or(period_now).unwrap_or(DEFAULT_PERIOD));
        together.push(setting("cpu", "cpu.max", value, Missing::Fail));
    }
    if let Some(burst) = cpu.burst() {
        together.push(setting("cpu", "cpu.max.burst", burst, Missing::Ignore));
    }
    if !together.is_empty() {
        all.push(together);
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            all.push(vec![setting("cpuset", file, list, Missing::Fail)]);
        }
    }
}

/// `cpu.weight` (1 to 10000, default 100) from `cpu.shares` (2 to 262144, default 1024).
///
/// A quadratic in the logarithm that meets both ends and the default, as runc and crun compute it since 2025; the straight line of
/// before gave 1024 shares a weight of 39 and so less than an unlimited neighbour.
fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

fn block_io(io: &LinuxBlockIo, all: &mut Vec<Together>) {
    if let Some(weight) = nonzero(io.weight()) {
        let plain = setting("io", "io.weight", io_weight(weight), Missing::Fail);
        all.push(vec![setting("io", "io.bfq.weight", weight, Missing::Instead(Box::new(plain)))]);
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = nonzero(device.weight()) {
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            all.push(vec![setting("io", "io.bfq.weight", value, Missing::Fail)]);
        }
    }
    let mut throttle = |key: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {key}={}", device.major(), device.minor(), device.rate());
            all.push(vec![setting("io", "io.max", value, Missing::Fail)]);
        }
    };
    throttle("rbps", io.throttle_read_bps_device());
    throttle("wbps", io.throttle_write_bps_device());
    throttle("riops", io.throttle_read_iops_device());
    throttle("wiops", io.throttle_write_iops_device());
}

/// `io.weight` (1 to 10000) from `blkio.weight` (10 to 1000).
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990
}

fn unified(resources: &LinuxResources, all: &mut Vec<Together>) -> Result<()> {
    let mut entries: Vec<_> = resources.unified().iter().flatten().collect();
    entries.sort();
    for (file, value) in entries {
        if file.contains('/') || file == ".." || file == "." {
            let why = format!("unified resource {file:?} must be a file name (no slashes)");
            return Err(refuse("linux.resources.unified", why));
        }
        let controller = file.split('.').next().unwrap_or_default().to_owned();
        all.push(vec![Setting {
            controller: controller.into(),
            file: file.clone().into(),
            value: value.clone(),
            missing: Missing::Fail,
        }]);
    }
    Ok(())
}
