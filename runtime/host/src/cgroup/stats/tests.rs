use std::path::Path;

use super::*;

/// A directory with the control files of a made-up group.
fn group(name: &str, controllers: &[&str], files: &[(&str, &str)]) -> (Group, Cleanup) {
    let path = std::env::temp_dir().join(format!("orlop-stats-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    for (file, text) in files {
        std::fs::write(path.join(file), text).unwrap();
    }
    let controllers = controllers.iter().map(|one| (*one).to_owned()).collect();
    (Group::open(controllers, &path).unwrap(), Cleanup(path))
}

struct Cleanup(std::path::PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(Path::new(&self.0));
    }
}

fn figure(major: u64, minor: u64, operation: &str, value: u64) -> DeviceFigure {
    DeviceFigure { major, minor, operation: operation.to_owned(), value }
}

#[test]
fn version_1() {
    let files = [
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
        ("cpuacct.usage", "700\n"),
        ("cpuacct.stat", "user 5\nsystem 2\n"),
        ("cpuacct.usage_percpu", "300 400 \n"),
        ("cpuacct.usage_all", "cpu user system\n0 100 200\n1 150 250\n"),
        ("cpu.stat", "nr_periods 4\nnr_throttled 2\nthrottled_time 99\n"),
        ("memory.usage_in_bytes", "1000\n"),
        ("memory.max_usage_in_bytes", "2000\n"),
        ("memory.failcnt", "1\n"),
        ("memory.limit_in_bytes", "4096\n"),
        ("memory.stat", "cache 7\nrss 8\ntotal_rss 9\n"),
        ("memory.use_hierarchy", "1\n"),
        ("blkio.throttle.io_service_bytes", "8:0 Read 10\n8:0 Write 20\nTotal 30\n"),
        ("blkio.throttle.io_serviced", "8:0 Read 1\n8:0 Total 1\nTotal 1\n"),
        ("hugetlb.2MB.limit_in_bytes", "4096\n"),
        ("hugetlb.2MB.usage_in_bytes", "1\n"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "4096\n"),
    ];
    let names = ["pids", "cpuacct", "cpu", "memory", "blkio", "hugetlb"];
    let (group, _cleanup) = group("v1", &names, &files);
    let stats = read(&Cgroup { groups: vec![group], made: Vec::new(), managed: None }).unwrap();
    assert!(!stats.is_unified);
    assert_eq!(stats.pids, Some(Pids { current: 3, limit: None }));
    let cpu = stats.cpu.unwrap();
    assert_eq!((cpu.total, cpu.user, cpu.kernel), (700, 50_000_000, 20_000_000));
    assert_eq!(
        (cpu.per_cpu, cpu.per_cpu_user, cpu.per_cpu_kernel),
        (vec![300, 400], vec![100, 150], vec![200, 250])
    );
    assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled_time), (4, 2, 99));
    let memory = stats.memory.unwrap();
    assert_eq!(memory.usage, Counter { usage: 1000, peak: 2000, failures: 1, limit: Some(4096) });
    assert_eq!(memory.swap, None);
    assert_eq!(memory.detail["total_rss"], 9);
    let io = stats.block_io.unwrap();
    assert_eq!(io.service_bytes, [figure(8, 0, "Read", 10), figure(8, 0, "Write", 20)]);
    assert_eq!(io.serviced, [figure(8, 0, "Read", 1), figure(8, 0, "Total", 1)]);
    assert_eq!(
        stats.huge_pages.into_iter().collect::<Vec<_>>(),
        [("2MB".to_owned(), Counter { usage: 1, limit: Some(4096), ..Counter::default() })]
    );
}

#[test]
fn version_2() {
    let files = [
        ("pids.current", "3\n"),
        ("pids.max", "7\n"),
        (
            "cpu.stat",
            "usage_usec 7\nuser_usec 5\nsystem_usec 2\nnr_periods 1\nnr_throttled 1\nthrottled_usec 3\n",
        ),
        (
            "cpu.pressure",
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
        ),
        ("memory.current", "1000\n"),
        ("memory.max", "max\n"),
        ("memory.peak", "3000\n"),
        ("memory.swap.current", "5\n"),
        ("memory.swap.max", "6\n"),
        ("memory.stat", "anon 7\nfile 8\n"),
        ("memory.events", "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\n"),
        ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:1 \n"),
        ("hugetlb.2MB.max", "max\n"),
        ("hugetlb.2MB.current", "9\n"),
        ("hugetlb.2MB.rsvd.max", "max\n"),
        ("rdma.current", "mlx4_0 hca_handle=1 hca_object=2\nmlx5_0 hca_handle=3 hca_object=4\n"),
        ("rdma.max", "mlx4_0 hca_handle=9 hca_object=max\n"),
    ];
    let (group, _cleanup) = group("v2", &[], &files);
    let stats = read(&Cgroup { groups: vec![group], made: Vec::new(), managed: None }).unwrap();
    assert!(stats.is_unified);
    assert_eq!(stats.pids, Some(Pids { current: 3, limit: Some(7) }));
    let cpu = stats.cpu.unwrap();
    assert_eq!((cpu.total, cpu.user, cpu.kernel, cpu.throttled_time), (7000, 5000, 2000, 3000));
    let some = Stall { last_10: 1.5, last_60: 0.25, last_300: 0.0, total: 77 };
    assert_eq!(cpu.pressure, Some(Pressure { some, full: Stall { total: 3, ..Stall::default() } }));
    let memory = stats.memory.unwrap();
    assert_eq!(memory.pressure, None);
    assert_eq!(memory.usage, Counter { usage: 1000, peak: 3000, failures: 4, limit: None });
    assert_eq!(memory.swap, Some(Counter { usage: 5, limit: Some(6), ..Counter::default() }));
    assert_eq!(memory.events["oom_kill"], 1);
    let io = stats.block_io.unwrap();
    assert_eq!(io.service_bytes, [figure(8, 0, "Read", 10), figure(8, 0, "Write", 20)]);
    assert_eq!(io.serviced, [figure(8, 0, "Read", 1), figure(8, 0, "Write", 2)]);
    assert_eq!(stats.huge_pages["2MB"], Counter { usage: 9, ..Counter::default() });
    assert_eq!(stats.rdma[0].limit, RdmaFigures { handles: 9, objects: u32::MAX });
    assert_eq!(stats.rdma[1].current, RdmaFigures { handles: 3, objects: 4 });
}

#[test]
fn a_group_without_controllers_has_no_figures() {
    let (group, _cleanup) = group("none", &[], &[]);
    let stats = read(&Cgroup { groups: vec![group], made: Vec::new(), managed: None }).unwrap();
    assert_eq!(stats, Stats { is_unified: true, ..Stats::default() });
}
