//! The figures of a cgroup, in one shape for both versions.

mod v1;
mod v2;

use std::collections::BTreeMap;

use orlop_proto::error::Result;

use super::Cgroup;
use super::group::Group;

/// What a cgroup has used. A controller that the cgroup does not have is `None` or empty.
///
/// Holds all that runc's `events --stats` prints and that containerd's metrics messages of both versions carry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Whether the figures come from version 2, whose `memory.stat` has other names.
    pub is_unified: bool,
    /// Processes and threads.
    pub pids: Option<Pids>,
    /// Processor time.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Block devices.
    pub block_io: Option<BlockIo>,
    /// Huge pages by page size as the kernel names it (`2MB`).
    pub huge_pages: BTreeMap<String, Counter>,
    /// RDMA resources by device.
    pub rdma: Vec<Rdma>,
}

/// Processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be.
    pub limit: Option<u64>,
}

/// Processor time in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cpu {
    /// All of it.
    pub total: u64,
    /// The share in user mode.
    pub user: u64,
    /// The share in the kernel.
    pub kernel: u64,
    /// All of it by processor; version 1 only.
    pub per_cpu: Vec<u64>,
    /// The share in user mode by processor; version 1 only.
    pub per_cpu_user: Vec<u64>,
    /// The share in the kernel by processor; version 1 only.
    pub per_cpu_kernel: Vec<u64>,
    /// Periods of the bandwidth limit that have passed.
    pub periods: u64,
    /// Periods in which the cgroup was throttled.
    pub throttled_periods: u64,
    /// The time for which it was throttled.
    pub throttled_time: u64,
    /// How long processes waited for a processor; version 2 only.
    pub pressure: Option<Pressure>,
}

/// A figure with its peak and limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// What is used, in bytes.
    pub usage: u64,
    /// The most that was used at once, in bytes.
    pub peak: u64,
    /// How often the limit was hit.
    pub failures: u64,
    /// The limit in bytes.
    pub limit: Option<u64>,
}

/// Memory in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Memory.
    pub usage: Counter,
    /// On version 1 memory and swap together, on version 2 swap alone.
    pub swap: Option<Counter>,
    /// Kernel memory; version 1 only.
    pub kernel: Option<Counter>,
    /// TCP buffers; version 1 only.
    pub kernel_tcp: Option<Counter>,
    /// Whether memory is accounted to ancestors too; always on version 2.
    pub hierarchical: bool,
    /// `memory.stat` under the kernel's names.
    pub detail: BTreeMap<String, u64>,
    /// `memory.events` under the kernel's names; version 2 only.
    pub events: BTreeMap<String, u64>,
    /// How long processes waited for memory; version 2 only.
    pub pressure: Option<Pressure>,
}

/// Block device figures, one list for each quantity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockIo {
    /// Bytes moved.
    pub service_bytes: Vec<DeviceFigure>,
    /// Requests served.
    pub serviced: Vec<DeviceFigure>,
    /// Requests waiting.
    pub queued: Vec<DeviceFigure>,
    /// Nanoseconds from dispatch to completion.
    pub service_time: Vec<DeviceFigure>,
    /// Nanoseconds in queues.
    pub wait_time: Vec<DeviceFigure>,
    /// Requests merged.
    pub merged: Vec<DeviceFigure>,
    /// Milliseconds of device time.
    pub time: Vec<DeviceFigure>,
    /// Sectors moved.
    pub sectors: Vec<DeviceFigure>,
    /// How long processes waited for devices; version 2 only.
    pub pressure: Option<Pressure>,
}

/// Pressure stall information of one resource (the kernel's Documentation/accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// When some process waited.
    pub some: Stall,
    /// When all processes waited.
    pub full: Stall,
}

/// How long processes waited: as percentages of the last seconds, and in total.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10 seconds.
    pub last_10: f64,
    /// Percent of the last 60 seconds.
    pub last_60: f64,
    /// Percent of the last 300 seconds.
    pub last_300: f64,
    /// Microseconds since the cgroup was made.
    pub total: u64,
}

/// One figure of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceFigure {
    /// The device's major number.
    pub major: u64,
    /// The device's minor number.
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, …; empty where the kernel makes no difference.
    pub operation: String,
    /// The figure.
    pub value: u64,
}

/// RDMA resources of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rdma {
    /// The device's name.
    pub device: String,
    /// Handles and objects in use.
    pub current: RdmaFigures,
    /// Their limits.
    pub limit: RdmaFigures,
}

/// The two RDMA resources; no limit is `u32::MAX`, as in containerd's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RdmaFigures {
    /// Host channel adapter handles.
    pub handles: u32,
    /// Host channel adapter objects.
    pub objects: u32,
}

/// Reads all figures.
pub(super) fn read(cgroup: &Cgroup) -> Result<Stats> {
    match cgroup.unified() {
        Some(group) if cgroup.groups.len() == 1 => v2::read(group),
        _ => v1::read(cgroup),
    }
}

/// A number in a file of its own; a file that is missing counts as absent.
fn number(group: &Group, file: &str) -> Result<Option<u64>> {
    Ok(text(group, file)?.and_then(|text| text.trim().parse().ok()))
}

/// A limit in a file of its own, where `max` means that there is none.
fn limit(group: &Group, file: &str) -> Result<Option<u64>> {
    number(group, file)
}

/// A file's text; a file that is missing, or whose feature is switched off, counts as absent.
fn text(group: &Group, file: &str) -> Result<Option<String>> {
    match group.try_read(file) {
        Ok(text) => Ok(Some(text)),
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) =>
        {
            Ok(None)
        }
        Err(error) => Err(group.error("read", file, error)),
    }
}

/// Lines of a name and a number.
fn table(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// The page sizes for which a group has huge page files that end in `suffix`.
fn page_sizes(group: &Group, suffix: &str) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(&group.path).map_err(|error| group.error("list", "", error))?;
    let mut sizes = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(suffix));
        if let Some(size) = size.filter(|size| !size.contains('.')) {
            sizes.push(size.to_owned());
        }
    }
    Ok(sizes)
}

/// `rdma.current` with `rdma.max`.
fn rdma(group: &Group) -> Result<Vec<Rdma>> {
    let Some(current) = text(group, "rdma.current")? else { return Ok(Vec::new()) };
    let limits = text(group, "rdma.max")?.unwrap_or_default();
    let limits: BTreeMap<String, RdmaFigures> = rdma_lines(&limits).collect();
    let with_limit = |(device, current): (String, RdmaFigures)| {
        let none = RdmaFigures { handles: u32::MAX, objects: u32::MAX };
        Rdma { limit: limits.get(&device).copied().unwrap_or(none), device, current }
    };
    Ok(rdma_lines(&current).map(with_limit).collect())
}

fn rdma_lines(text: &str) -> impl Iterator<Item = (String, RdmaFigures)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let device = words.next()?.to_owned();
        let mut figures = RdmaFigures::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(u32::MAX);
            match key {
                "hca_handle" => figures.handles = value,
                "hca_object" => figures.objects = value,
                _ => {}
            }
        }
        Some((device, figures))
    })
}

#[cfg(test)]
mod tests;
