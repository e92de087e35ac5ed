use serde_json::json;

use super::*;

fn resources(value: serde_json::Value) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

/// A group that nothing has been written to.
fn new(_: &str) -> Option<String> {
    None
}

fn lines(all: &[Together]) -> Vec<Vec<String>> {
    all.iter()
        .map(|together| together.iter().map(|one| format!("{}={}", one.file, one.value)).collect())
        .collect()
}

fn legacy(value: serde_json::Value) -> Vec<Vec<String>> {
    lines(&plan(&resources(value), false, |_| true, new).unwrap().legacy)
}

fn unified(value: serde_json::Value) -> Vec<Vec<String>> {
    lines(&plan(&resources(value), true, |_| false, new).unwrap().unified)
}

fn refusal(value: serde_json::Value, is_unified: bool) -> String {
    plan(&resources(value), is_unified, |_| !is_unified, new).unwrap_err().to_string()
}

#[test]
fn nothing_asked_nothing_written() {
    let empty =
        json!({"memory": {"limit": 0, "swap": 0}, "cpu": {"shares": 0, "quota": 0}, "pids": {"limit": 0}});
    assert!(legacy(empty.clone()).is_empty());
    assert!(unified(empty).is_empty());
}

#[test]
fn memory_on_version_1() {
    let all = legacy(json!({"memory": {"limit": 1000, "swap": 2000, "reservation": 500, "swappiness": 0,
        "disableOOMKiller": true}}));
    assert_eq!(
        all,
        [
            vec!["memory.limit_in_bytes=1000", "memory.memsw.limit_in_bytes=2000"],
            vec!["memory.soft_limit_in_bytes=500"],
            vec!["memory.oom_control=1"],
            vec!["memory.swappiness=0"],
        ]
    );
    let all = legacy(json!({"memory": {"limit": -1}}));
    assert_eq!(all, [["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"]]);
    assert!(refusal(json!({"memory": {"swappiness": 101}}), false).contains("valid range is 0-100"));
}

#[test]
fn kernel_memory_is_ignored_with_a_warning() {
    let limits = plan(&resources(json!({"memory": {"kernel": 1}})), false, |_| true, new).unwrap();
    assert!(limits.legacy.is_empty());
    assert_eq!(limits.warnings.len(), 1);
}

#[test]
fn memory_on_version_2() {
    let all = unified(json!({"memory": {"limit": 1000, "swap": 3000, "reservation": 500}}));
    assert_eq!(all, [["memory.swap.max=2000"], ["memory.max=1000"], ["memory.low=500"]]);
    assert_eq!(
        unified(json!({"memory": {"limit": 5, "swap": 5}})),
        [["memory.swap.max=0"], ["memory.max=5"]]
    );
    assert_eq!(unified(json!({"memory": {"limit": -1}})), [["memory.swap.max=max"], ["memory.max=max"]]);
    assert_eq!(
        unified(json!({"memory": {"limit": 7, "swap": -1}})),
        [["memory.swap.max=max"], ["memory.max=7"]]
    );
    assert!(refusal(json!({"memory": {"limit": 2, "swap": 1}}), true).contains("should be >="));
    assert!(refusal(json!({"memory": {"swap": 1}}), true).contains("without memory limit"));
}

#[test]
fn cpu_on_version_1() {
    let all = legacy(json!({"cpu": {"shares": 512, "quota": 5000, "period": 10000, "burst": 100, "idle": 1,
        "realtimeRuntime": 7, "realtimePeriod": 8, "cpus": "0-1", "mems": "0"}}));
    assert_eq!(
        all,
        [
            vec!["cpuset.cpus=0-1"],
            vec!["cpuset.mems=0"],
            vec!["cpu.rt_period_us=8"],
            vec!["cpu.rt_runtime_us=7"],
            vec!["cpu.shares=512"],
            vec!["cpu.idle=1"],
            vec!["cpu.cfs_period_us=10000", "cpu.cfs_burst_us=100", "cpu.cfs_quota_us=5000"],
        ]
    );
    assert!(refusal(json!({"cpu": {"shares": 1}}), false).contains("minimum allowed cpu-shares is 2"));
    assert!(
        refusal(json!({"cpu": {"shares": 262145}}), false).contains("maximum allowed cpu-shares is 262144")
    );
}

#[test]
fn cpu_on_version_2() {
    let all = unified(json!({"cpu": {"shares": 1024, "quota": -1, "burst": 100, "cpus": "1"}}));
    assert_eq!(
        all,
        [vec!["cpu.weight=100"], vec!["cpu.max=max 100000", "cpu.max.burst=100"], vec!["cpuset.cpus=1"]]
    );
    assert_eq!(unified(json!({"cpu": {"period": 50000}})), [["cpu.max=max 50000"]]);
    assert_eq!(unified(json!({"cpu": {"quota": 1000, "period": 50000}})), [["cpu.max=1000 50000"]]);
    assert_eq!(unified(json!({"cpu": {"idle": 1, "shares": 2}})), [["cpu.idle=1"]]);
}

#[test]
fn shares_meet_both_ends_and_the_default_of_weights() {
    for (shares, weight) in [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (300_000, 10_000)] {
        assert_eq!(unified(json!({"cpu": {"shares": shares}})), [[format!("cpu.weight={weight}")]]);
    }
}

#[test]
fn block_io_prefers_what_the_kernel_has() {
    let wanted = json!({"blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 300}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 7}]}});
    let limits = plan(&resources(wanted.clone()), false, |_| true, new).unwrap();
    assert!(
        matches!(&limits.legacy[0][0].missing, Missing::Instead(other) if other.file == "blkio.bfq.weight")
    );
    assert_eq!(
        lines(&limits.legacy),
        [
            ["blkio.weight=500"],
            ["blkio.weight_device=8:0 300"],
            ["blkio.throttle.read_bps_device=8:0 600"],
            ["blkio.throttle.write_iops_device=8:16 7"],
        ]
    );
    let limits = plan(&resources(wanted), true, |_| false, new).unwrap();
    assert!(
        matches!(&limits.unified[0][0].missing, Missing::Instead(other) if other.file == "io.weight" && other.value == "4950")
    );
    assert_eq!(lines(&limits.unified)[2..], [["io.max=8:0 rbps=600"], ["io.max=8:16 wiops=7"]]);
}

#[test]
fn the_other_controllers() {
    let wanted = json!({"pids": {"limit": -1}, "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
        "network": {"classID": 5, "priorities": [{"name": "lo", "priority": 3}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}, "mlx4_0": {"hcaObjects": 9}, "none": {}}});
    assert_eq!(
        legacy(wanted.clone()),
        [
            ["pids.max=max"],
            ["hugetlb.2MB.limit_in_bytes=4096"],
            ["hugetlb.2MB.rsvd.limit_in_bytes=4096"],
            ["rdma.max=mlx4_0 hca_object=9"],
            ["rdma.max=mlx5_1 hca_handle=3 hca_object=4"],
            ["net_cls.classid=5"],
            ["net_prio.ifpriomap=lo 3"],
        ]
    );
    assert_eq!(unified(wanted)[1..3], [["hugetlb.2MB.max=4096"], ["hugetlb.2MB.rsvd.max=4096"]]);
    assert!(
        refusal(json!({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}), true).contains("page size")
    );
}

#[test]
fn the_unified_map() {
    let wanted = json!({"unified": {"memory.high": "7", "cpu.weight": "1"}});
    assert_eq!(unified(wanted.clone()), [["cpu.weight=1"], ["memory.high=7"]]);
    assert!(refusal(wanted, false).contains("cannot use unified on cgroup v1"));
    assert!(refusal(json!({"unified": {"../x": "1"}}), true).contains("no slashes"));
}

#[test]
fn a_controller_that_only_version_2_has_is_set_there() {
    let wanted = json!({"pids": {"limit": 5}, "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}]});
    let limits = plan(&resources(wanted), false, |controller| controller != "hugetlb", new).unwrap();
    assert_eq!(lines(&limits.legacy), [["pids.max=5"]]);
    assert_eq!(lines(&limits.unified), [["hugetlb.2MB.max=4096"], ["hugetlb.2MB.rsvd.max=4096"]]);
}

#[test]
fn what_is_not_asked_for_stays_on_version_2() {
    let now = |file: &str| {
        let value = match file {
            "cpu.max" => "30000 60000\n",
            "memory.max" => "1000\n",
            "memory.swap.max" => "500\n",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let written = |value| plan(&resources(value), true, |_| false, now).map(|limits| lines(&limits.unified));
    assert_eq!(written(json!({"cpu": {"quota": 10000}})).unwrap(), [["cpu.max=10000 60000"]]);
    assert_eq!(written(json!({"cpu": {"quota": -1}})).unwrap(), [["cpu.max=max 60000"]]);
    assert_eq!(written(json!({"cpu": {"period": 50000}})).unwrap(), [["cpu.max=30000 50000"]]);
    // Memory and swap together had 1500 and keep them.
    let all = written(json!({"memory": {"limit": 1200}})).unwrap();
    assert_eq!(all, [["memory.swap.max=300"], ["memory.max=1200"]]);
    assert_eq!(written(json!({"memory": {"swap": 1100}})).unwrap(), [["memory.swap.max=100"]]);
    assert_eq!(written(json!({"memory": {"swap": -1}})).unwrap(), [["memory.swap.max=max"]]);
    assert!(written(json!({"memory": {"limit": 1600}})).unwrap_err().to_string().contains("should be >="));
}

#[test]
fn a_limit_of_one_process_can_wait() {
    for (is_unified, wanted) in [
        (true, json!({"pids": {"limit": 1}})),
        (true, json!({"unified": {"pids.max": "1"}})),
        (false, json!({"pids": {"limit": 1}})),
    ] {
        let mut limits = plan(&resources(wanted), is_unified, |_| !is_unified, new).unwrap();
        assert_eq!(limits.of_one_process().unwrap().value, "1");
        limits.leave_room_for_two();
        let all = if is_unified { &limits.unified } else { &limits.legacy };
        assert_eq!(lines(all), [["pids.max=2"]]);
        assert!(limits.of_one_process().is_none());
    }
    let limits = plan(&resources(json!({"pids": {"limit": 11}})), true, |_| false, new).unwrap();
    assert!(limits.of_one_process().is_none());
}
