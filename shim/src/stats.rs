//! A container's use of resources, in containerd's metrics messages: of version 1 on legacy and hybrid hosts, of
//! version 2 on unified ones.

use orlop_host::cgroup::Stats;
use orlop_host::cgroup::stats::{BlockIo, Counter, DeviceFigure, Pressure, RdmaFigures, Stall};
use orlop_proto::any;
use orlop_proto::io::containerd::cgroups::{v1, v2};
use prost_types::Any;

/// Packs the figures of a cgroup.
pub fn pack(stats: &Stats) -> Any {
    if stats.is_unified { any::pack(&unified(stats)) } else { any::pack(&legacy(stats)) }
}

fn legacy(stats: &Stats) -> v1::Metrics {
    let memory = stats.memory.as_ref();
    v1::Metrics {
        hugetlb: stats
            .huge_pages
            .iter()
            .map(|(size, counter)| v1::HugetlbStat {
                usage: counter.usage,
                max: counter.peak,
                failcnt: counter.failures,
                pagesize: size.clone(),
            })
            .collect(),
        // No limit is 0 here.
        pids: stats.pids.map(|p| v1::PidsStat { current: p.current, limit: p.limit.unwrap_or(0) }),
        cpu: stats.cpu.as_ref().map(|cpu| v1::CpuStat {
            usage: Some(v1::CpuUsage {
                total: cpu.total,
                kernel: cpu.kernel,
                user: cpu.user,
                per_cpu: cpu.per_cpu.clone(),
            }),
            throttling: Some(v1::Throttle {
                periods: cpu.periods,
                throttled_periods: cpu.throttled_periods,
                throttled_time: cpu.throttled_time,
            }),
        }),
        memory: memory.map(|memory| {
            let figure = |name: &str| memory.detail.get(name).copied().unwrap_or(0);
            v1::MemoryStat {
                cache: figure("cache"),
                rss: figure("rss"),
                rss_huge: figure("rss_huge"),
                mapped_file: figure("mapped_file"),
                dirty: figure("dirty"),
                writeback: figure("writeback"),
                pg_pg_in: figure("pgpgin"),
                pg_pg_out: figure("pgpgout"),
                pg_fault: figure("pgfault"),
                pg_maj_fault: figure("pgmajfault"),
                inactive_anon: figure("inactive_anon"),
                active_anon: figure("active_anon"),
                inactive_file: figure("inactive_file"),
                active_file: figure("active_file"),
                unevictable: figure("unevictable"),
                hierarchical_memory_limit: figure("hierarchical_memory_limit"),
                hierarchical_swap_limit: figure("hierarchical_memsw_limit"),
                total_cache: figure("total_cache"),
                total_rss: figure("total_rss"),
                total_rss_huge: figure("total_rss_huge"),
                total_mapped_file: figure("total_mapped_file"),
                total_dirty: figure("total_dirty"),
                total_writeback: figure("total_writeback"),
                total_pg_pg_in: figure("total_pgpgin"),
                total_pg_pg_out: figure("total_pgpgout"),
                total_pg_fault: figure("total_pgfault"),
                total_pg_maj_fault: figure("total_pgmajfault"),
                total_inactive_anon: figure("total_inactive_anon"),
                total_active_anon: figure("total_active_anon"),
                total_inactive_file: figure("total_inactive_file"),
                total_active_file: figure("total_active_file"),
                total_unevictable: figure("total_unevictable"),
                usage: Some(entry(&memory.usage)),
                swap: memory.swap.as_ref().map(entry),
                kernel: memory.kernel.as_ref().map(entry),
                kernel_tcp: memory.kernel_tcp.as_ref().map(entry),
            }
        }),
        blkio: stats.block_io.as_ref().map(legacy_block_io),
        rdma: (!stats.rdma.is_empty()).then(|| v1::RdmaStat {
            current: stats.rdma.iter().map(|r| legacy_rdma(&r.device, r.current)).collect(),
            limit: stats.rdma.iter().map(|r| legacy_rdma(&r.device, r.limit)).collect(),
        }),
        ..v1::Metrics::default()
    }
}

fn entry(counter: &Counter) -> v1::MemoryEntry {
    v1::MemoryEntry {
        limit: counter.limit.unwrap_or(u64::MAX),
        usage: counter.usage,
        max: counter.peak,
        failcnt: counter.failures,
    }
}

fn legacy_block_io(io: &BlockIo) -> v1::BlkIoStat {
    let list = |figures: &[DeviceFigure]| {
        figures
            .iter()
            .map(|figure| v1::BlkIoEntry {
                op: figure.operation.clone(),
                device: device_name(figure.major, figure.minor),
                major: figure.major,
                minor: figure.minor,
                value: figure.value,
            })
            .collect()
    };
    v1::BlkIoStat {
        io_service_bytes_recursive: list(&io.service_bytes),
        io_serviced_recursive: list(&io.serviced),
        io_queued_recursive: list(&io.queued),
        io_service_time_recursive: list(&io.service_time),
        io_wait_time_recursive: list(&io.wait_time),
        io_merged_recursive: list(&io.merged),
        io_time_recursive: list(&io.time),
        sectors_recursive: list(&io.sectors),
    }
}

/// A block device's path, from sysfs; empty for one that is gone.
fn device_name(major: u64, minor: u64) -> String {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map(|name| format!("/dev/{name}")).unwrap_or_default()
}

fn legacy_rdma(device: &str, figures: RdmaFigures) -> v1::RdmaEntry {
    let RdmaFigures { handles, objects } = figures;
    v1::RdmaEntry { device: device.to_owned(), hca_handles: handles, hca_objects: objects }
}

fn unified(stats: &Stats) -> v2::Metrics {
    // No limit is the largest number here.
    let limit = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let memory = stats.memory.as_ref();
    v2::Metrics {
        pids: stats.pids.map(|p| v2::PidsStat { current: p.current, limit: limit(p.limit) }),
        cpu: stats.cpu.as_ref().map(|cpu| v2::CpuStat {
            usage_usec: cpu.total / 1000,
            user_usec: cpu.user / 1000,
            system_usec: cpu.kernel / 1000,
            nr_periods: cpu.periods,
            nr_throttled: cpu.throttled_periods,
            throttled_usec: cpu.throttled_time / 1000,
            psi: cpu.pressure.map(unified_pressure),
            ..v2::CpuStat::default()
        }),
        memory: memory.map(|memory| {
            let figure = |name: &str| memory.detail.get(name).copied().unwrap_or(0);
            // Newer kernels tell refaults of anonymous pages and of files apart.
            let both =
                |name: &str| figure(name) + figure(&format!("{name}_anon")) + figure(&format!("{name}_file"));
            v2::MemoryStat {
                anon: figure("anon"),
                file: figure("file"),
                kernel_stack: figure("kernel_stack"),
                slab: figure("slab"),
                sock: figure("sock"),
                shmem: figure("shmem"),
                file_mapped: figure("file_mapped"),
                file_dirty: figure("file_dirty"),
                file_writeback: figure("file_writeback"),
                anon_thp: figure("anon_thp"),
                inactive_anon: figure("inactive_anon"),
                active_anon: figure("active_anon"),
                inactive_file: figure("inactive_file"),
                active_file: figure("active_file"),
                unevictable: figure("unevictable"),
                slab_reclaimable: figure("slab_reclaimable"),
                slab_unreclaimable: figure("slab_unreclaimable"),
                pgfault: figure("pgfault"),
                pgmajfault: figure("pgmajfault"),
                workingset_refault: both("workingset_refault"),
                workingset_activate: both("workingset_activate"),
                workingset_nodereclaim: figure("workingset_nodereclaim"),
                pgrefill: figure("pgrefill"),
                pgscan: figure("pgscan"),
                pgsteal: figure("pgsteal"),
                pgactivate: figure("pgactivate"),
                pgdeactivate: figure("pgdeactivate"),
                pglazyfree: figure("pglazyfree"),
                pglazyfreed: figure("pglazyfreed"),
                thp_fault_alloc: figure("thp_fault_alloc"),
                thp_collapse_alloc: figure("thp_collapse_alloc"),
                usage: memory.usage.usage,
                usage_limit: limit(memory.usage.limit),
                swap_usage: memory.swap.map_or(0, |swap| swap.usage),
                swap_limit: limit(memory.swap.and_then(|swap| swap.limit)),
                max_usage: memory.usage.peak,
                swap_max_usage: memory.swap.map_or(0, |swap| swap.peak),
                psi: memory.pressure.map(unified_pressure),
            }
        }),
        memory_events: memory.map(|memory| {
            let figure = |name: &str| memory.events.get(name).copied().unwrap_or(0);
            v2::MemoryEvents {
                low: figure("low"),
                high: figure("high"),
                max: figure("max"),
                oom: figure("oom"),
                oom_kill: figure("oom_kill"),
                oom_group_kill: figure("oom_group_kill"),
            }
        }),
        io: stats
            .block_io
            .as_ref()
            .map(|io| v2::IoStat { usage: unified_block_io(io), psi: io.pressure.map(unified_pressure) }),
        hugetlb: stats
            .huge_pages
            .iter()
            .map(|(size, counter)| v2::HugeTlbStat {
                current: counter.usage,
                max: limit(counter.limit),
                pagesize: size.clone(),
                failcnt: counter.failures,
            })
            .collect(),
        rdma: (!stats.rdma.is_empty()).then(|| v2::RdmaStat {
            current: stats.rdma.iter().map(|r| unified_rdma(&r.device, r.current)).collect(),
            limit: stats.rdma.iter().map(|r| unified_rdma(&r.device, r.limit)).collect(),
        }),
        network: Vec::new(),
    }
}

fn unified_pressure(pressure: Pressure) -> v2::PsiStats {
    let stall = |stall: Stall| v2::PsiData {
        avg10: stall.last_10,
        avg60: stall.last_60,
        avg300: stall.last_300,
        total: stall.total,
    };
    v2::PsiStats { some: Some(stall(pressure.some)), full: Some(stall(pressure.full)) }
}

fn unified_rdma(device: &str, figures: RdmaFigures) -> v2::RdmaEntry {
    let RdmaFigures { handles, objects } = figures;
    v2::RdmaEntry { device: device.to_owned(), hca_handles: handles, hca_objects: objects }
}

/// One entry for each device, from the lists of quantities.
fn unified_block_io(io: &BlockIo) -> Vec<v2::IoEntry> {
    let mut entries: Vec<v2::IoEntry> = Vec::new();
    for (figures, bytes) in [(&io.service_bytes, true), (&io.serviced, false)] {
        for figure in figures {
            let (major, minor, value) = (figure.major, figure.minor, figure.value);
            let at = entries.iter().position(|entry| (entry.major, entry.minor) == (major, minor));
            let at = at.unwrap_or_else(|| {
                entries.push(v2::IoEntry { major, minor, ..v2::IoEntry::default() });
                entries.len() - 1
            });
            match (bytes, figure.operation.as_str()) {
                (true, "Read") => entries[at].rbytes = value,
                (true, "Write") => entries[at].wbytes = value,
                (false, "Read") => entries[at].rios = value,
                (false, "Write") => entries[at].wios = value,
                _ => {}
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use orlop_host::cgroup::stats::{Memory, Pids};

    use super::*;

    fn stats(is_unified: bool) -> Stats {
        let usage = Counter { usage: 5, peak: 9, failures: 1, limit: None };
        let detail = [("anon".to_owned(), 3), ("rss".to_owned(), 4)].into();
        Stats {
            is_unified,
            pids: Some(Pids { current: 2, limit: None }),
            memory: Some(Memory { usage, detail, ..Memory::default() }),
            block_io: Some(BlockIo {
                service_bytes: vec![
                    DeviceFigure { major: 8, minor: 0, operation: "Read".into(), value: 11 },
                    DeviceFigure { major: 8, minor: 0, operation: "Write".into(), value: 12 },
                ],
                ..BlockIo::default()
            }),
            ..Stats::default()
        }
    }

    #[test]
    fn a_version_1_host_gets_version_1_metrics() {
        let metrics: v1::Metrics = any::unpack(&pack(&stats(false))).unwrap();
        assert_eq!(metrics.pids.unwrap().limit, 0);
        let memory = metrics.memory.unwrap();
        assert_eq!((memory.rss, memory.usage.unwrap().limit), (4, u64::MAX));
        assert_eq!(metrics.blkio.unwrap().io_service_bytes_recursive.len(), 2);
    }

    #[test]
    fn a_version_2_host_gets_version_2_metrics() {
        let metrics: v2::Metrics = any::unpack(&pack(&stats(true))).unwrap();
        assert_eq!(metrics.pids.unwrap().limit, u64::MAX);
        let memory = metrics.memory.unwrap();
        assert_eq!((memory.anon, memory.usage, memory.max_usage), (3, 5, 9));
        let io = metrics.io.unwrap().usage;
        assert_eq!((io.len(), io[0].rbytes, io[0].wbytes), (1, 11, 12));
    }
}
