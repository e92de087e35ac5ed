//! Limits of a live container, changed by `update`, and its cgroup's other files, on whichever version the host has.

use std::fs;

use orlop_tests::{Bundle, Output, host::cgroup_unified, poll_until};
use serde_json::{Value, json};

use super::support::{PATIENCE, Runtime, cgroup_file};

/// Reads a control file under its name on version 1 or version 2; an empty name is no file there.
fn value(bundle: &Bundle, controller: &str, legacy: &str, unified: &str) -> Option<String> {
    let file = if cgroup_unified() { unified } else { legacy };
    if file.is_empty() {
        return None;
    }
    let path = cgroup_file(bundle, controller, file);
    Some(fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned())
}

/// Asserts what a control file holds: controller, then name and value on version 1, then on version 2.
#[track_caller]
fn holds(bundle: &Bundle, controller: &str, legacy: (&str, &str), unified: (&str, &str)) {
    let Some(found) = value(bundle, controller, legacy.0, unified.0) else { return };
    let expected = if cgroup_unified() { unified } else { legacy };
    assert_eq!(found, expected.1, "{controller} {}", expected.0);
}

fn update(runtime: &Runtime, flags: &[&str]) -> Output {
    runtime.cmd().arg("update").args(flags).arg("c1").run()
}

fn update_from(runtime: &Runtime, resources: &Value) -> Output {
    runtime.cmd().args(["update", "--resources", "-", "c1"]).input(resources.to_string()).run()
}

#[test]
fn every_flag_changes_a_live_container() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().edit(|config| {
        config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swap": 96 << 20});
        config["linux"]["resources"]["cpu"] = json!({"quota": 20000, "period": 50000});
    });
    let bundle = bundle.save();
    runtime.detach(&bundle, "c1");

    update(&runtime, &["--memory", "48m"]).success();
    holds(&bundle, "memory", ("memory.limit_in_bytes", "50331648"), ("memory.max", "50331648"));
    // Memory and swap together stay at 96 MiB, as the specification counts them.
    holds(&bundle, "memory", ("memory.memsw.limit_in_bytes", "100663296"), ("memory.swap.max", "50331648"));
    update(&runtime, &["--memory-reservation", "16777216", "--memory", "128m", "--memory-swap", "128m"])
        .success();
    holds(&bundle, "memory", ("memory.soft_limit_in_bytes", "16777216"), ("memory.low", "16777216"));
    holds(&bundle, "memory", ("memory.memsw.limit_in_bytes", "134217728"), ("memory.swap.max", "0"));

    update(&runtime, &["--cpu-quota", "30000"]).success();
    holds(&bundle, "cpu", ("cpu.cfs_quota_us", "30000"), ("cpu.max", "30000 50000"));
    update(&runtime, &["--cpu-period", "40000"]).success();
    holds(&bundle, "cpu", ("cpu.cfs_period_us", "40000"), ("cpu.max", "30000 40000"));
    update(&runtime, &["--cpu-burst", "1000"]).success();
    holds(&bundle, "cpu", ("cpu.cfs_burst_us", "1000"), ("cpu.max.burst", "1000"));
    update(&runtime, &["--cpu-burst", "0", "--cpu-quota", "-1"]).success();
    holds(&bundle, "cpu", ("cpu.cfs_quota_us", "-1"), ("cpu.max", "max 40000"));
    update(&runtime, &["--cpu-share", "512"]).success();
    holds(&bundle, "cpu", ("cpu.shares", "512"), ("cpu.weight", "59"));
    update(&runtime, &["--cpu-idle", "1"]).success();
    holds(&bundle, "cpu", ("cpu.idle", "1"), ("cpu.idle", "1"));
    update(&runtime, &["--cpu-idle", "0"]).success();
    holds(&bundle, "cpu", ("cpu.idle", "0"), ("cpu.idle", "0"));
    update(&runtime, &["--cpuset-cpus", "0", "--cpuset-mems", "0"]).success();
    holds(&bundle, "cpuset", ("cpuset.cpus", "0"), ("cpuset.cpus", "0"));
    holds(&bundle, "cpuset", ("cpuset.mems", "0"), ("cpuset.mems", "0"));
    let status = fs::read_to_string(format!("/proc/{}/status", runtime.pid("c1"))).unwrap();
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");

    update(&runtime, &["--pids-limit", "23"]).success();
    holds(&bundle, "pids", ("pids.max", "23"), ("pids.max", "23"));
    update(&runtime, &["--pids-limit", "-1"]).success();
    holds(&bundle, "pids", ("pids.max", "max"), ("pids.max", "max"));
    assert_eq!(runtime.status("c1"), "running");
    runtime.finish("c1");
}

#[test]
fn resources_come_as_json_too() {
    let runtime = Runtime::new();
    // runc's update takes fewer kinds of resources from the file.
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime.sleeper().save();
    runtime.detach(&bundle, "c1");
    let mut disks = fs::read_dir("/sys/block").unwrap().flatten();
    let disk = disks.next().expect("a block device to set limits for");
    let device = fs::read_to_string(disk.path().join("dev")).unwrap();
    let (major, minor) = device.trim().split_once(':').unwrap();
    let (major, minor): (i64, i64) = (major.parse().unwrap(), minor.parse().unwrap());
    let throttle = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let resources = json!({
        "memory": {"limit": 64 << 20},
        "pids": {"limit": 9},
        "blockIO": {"throttleReadBpsDevice": throttle(1 << 20), "throttleWriteIOPSDevice": throttle(77)},
    });
    update_from(&runtime, &resources).success();
    holds(&bundle, "memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864"));
    holds(&bundle, "pids", ("pids.max", "9"), ("pids.max", "9"));
    let bytes = format!("{}:{} 1048576", major, minor);
    let both = format!("{}:{} rbps=1048576 wbps=max riops=max wiops=77", major, minor);
    holds(&bundle, "blkio", ("blkio.throttle.read_bps_device", &bytes), ("io.max", &both));

    let sizes = fs::read_dir("/sys/kernel/mm/hugepages").unwrap().flatten();
    assert!(sizes.into_iter().any(|size| size.file_name() == "hugepages-2048kB"));
    update_from(&runtime, &json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]})).success();
    let file = if cgroup_unified() {
        cgroup_file(&bundle, "", "hugetlb.2MB.max")
    } else {
        // The controller may be on the hybrid host's version 2 hierarchy.
        let file = cgroup_file(&bundle, "hugetlb", "hugetlb.2MB.limit_in_bytes");
        if file.exists() { file } else { cgroup_file(&bundle, "unified", "hugetlb.2MB.max") }
    };
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), "4194304", "{}", file.display());

    let out = update_from(&runtime, &json!({"pids": {"limit": "many"}})).failure();
    assert!(out.stderr.contains("resources"), "{out}");
    runtime.finish("c1");
}

#[test]
fn files_of_version_2_by_their_names() {
    let runtime = Runtime::new();
    let unified = json!({"memory.high": "50331648", "pids.max": "33", "cpu.weight": "77"});
    let bundle = runtime.sleeper().edit(|config| config["linux"]["resources"]["unified"] = unified);
    let bundle = bundle.save();
    if !cgroup_unified() {
        let out = runtime.run(&bundle).failure();
        assert!(out.stderr.contains("cannot use unified on cgroup v1") || runtime.is_reference(), "{out}");
        runtime.assert_clean();
        return;
    }
    runtime.detach(&bundle, "c1");
    for (file, expected) in [("memory.high", "50331648"), ("pids.max", "33"), ("cpu.weight", "77")] {
        let path = cgroup_file(&bundle, "", file);
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), expected, "{file}");
    }
    runtime.finish("c1");
    for (file, value, why) in [
        ("memory.nonsense", "1", "memory.nonsense"),
        ("nonsense.max", "1", "nonsense"),
        ("../x", "1", "../x"),
    ] {
        let bundle = runtime.sh("echo ran").edit(|config| {
            config["linux"]["resources"]["unified"] = json!({file: value});
        });
        let out = runtime.run(&bundle.save()).failure();
        assert!(out.stderr.contains(why) && out.stdout.is_empty(), "{out}");
        runtime.assert_clean();
    }
}

#[test]
fn pressure_is_among_the_statistics_of_version_2() {
    let runtime = Runtime::new();
    // runc tells it from 1.2 on.
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime.sh("while :; do :; done & while :; do :; done & while :; do :; done").save();
    runtime.detach(&bundle, "c1");
    let figures = || -> Value {
        let out = runtime.call(&["events", "--stats", "c1"]).success();
        serde_json::from_str(&out.stdout).expect("one JSON object")
    };
    if fs::exists(cgroup_file(&bundle, "", "cpu.pressure")).unwrap() {
        poll_until(PATIENCE, "three wait for two processors", || {
            figures()["data"]["cpu"]["psi"]["some"]["total"].as_u64().is_some_and(|waited| waited > 0)
        });
        let all = figures();
        for resource in ["cpu", "memory", "blkio"] {
            let full = &all["data"][resource]["psi"]["full"];
            assert!(full["avg300"].is_f64() && full["total"].is_u64(), "{resource}: {all}");
        }
    } else {
        assert!(figures()["data"]["cpu"]["psi"].is_null());
    }
    runtime.finish("c1");
}

#[test]
fn a_paused_container_is_frozen_by_the_kernel() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().save();
    runtime.detach(&bundle, "c1");
    let is_frozen = || {
        let events = value(&bundle, "freezer", "freezer.state", "cgroup.events").unwrap();
        events == "FROZEN" || events.contains("frozen 1")
    };
    assert!(!is_frozen());
    runtime.call(&["pause", "c1"]).success();
    assert!(is_frozen());
    runtime.call(&["resume", "c1"]).success();
    assert!(!is_frozen());
    // A limit can be changed while it stands still, and it can be killed.
    runtime.call(&["pause", "c1"]).success();
    update(&runtime, &["--pids-limit", "29"]).success();
    holds(&bundle, "pids", ("pids.max", "29"), ("pids.max", "29"));
    assert!(is_frozen());
    runtime.call(&["kill", "c1", "KILL"]).success();
    runtime.wait_for("c1", "stopped");
    runtime.finish("c1");
}

#[test]
fn a_cgroup_full_of_processes_goes_at_once() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("while :; do sleep 1000 & sleep 0.01; done").edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        config["linux"]["resources"]["pids"] = json!({"limit": 50});
    });
    let bundle = bundle.save();
    runtime.detach(&bundle, "c1");
    let count = || {
        let procs = value(&bundle, "pids", "cgroup.procs", "cgroup.procs").unwrap();
        procs.lines().count()
    };
    poll_until(PATIENCE, "it multiplies", || count() > 5);
    runtime.call(&["delete", "--force", "c1"]).success();
    runtime.assert_clean();
}
