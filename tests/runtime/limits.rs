//! Limits of the configuration, as the kernel shows them in the container's cgroup.

use std::fs;

use orlop_tests::host::cgroup_unified;
use serde_json::json;

use super::support::{PATIENCE, Runtime, cgroup_file};

/// A control file under its names on version 1 and version 2, with what must stand in it.
struct Expected(&'static str, &'static str, &'static str, &'static str, &'static str);

#[test]
fn memory_cpu_pids_and_cpuset() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().edit(|config| {
        config["linux"]["resources"]["memory"] =
            json!({"limit": 64 << 20, "reservation": 32 << 20, "swap": 128 << 20});
        config["linux"]["resources"]["cpu"] =
            json!({"shares": 512, "quota": 20000, "period": 50000, "cpus": "0", "mems": "0"});
        config["linux"]["resources"]["pids"] = json!({"limit": 17});
    });
    let bundle = bundle.save();
    runtime.detach(&bundle, "c1");
    for Expected(controller, legacy, legacy_value, unified, unified_value) in [
        Expected("memory", "memory.limit_in_bytes", "67108864", "memory.max", "67108864"),
        Expected("memory", "memory.soft_limit_in_bytes", "33554432", "memory.low", "33554432"),
        Expected("memory", "memory.memsw.limit_in_bytes", "134217728", "memory.swap.max", "67108864"),
        Expected("cpu", "cpu.shares", "512", "cpu.weight", "59"),
        Expected("cpu", "cpu.cfs_quota_us", "20000", "cpu.max", "20000 50000"),
        Expected("cpu", "cpu.cfs_period_us", "50000", "cpu.max", "20000 50000"),
        Expected("cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0"),
        Expected("cpuset", "cpuset.mems", "0", "cpuset.mems", "0"),
        Expected("pids", "pids.max", "17", "pids.max", "17"),
    ] {
        let (file, value) = if cgroup_unified() { (unified, unified_value) } else { (legacy, legacy_value) };
        let path = cgroup_file(&bundle, controller, file);
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), value, "{}", path.display());
    }
    // The container's process is in every one of the groups.
    let pid = runtime.pid("c1");
    for controller in ["memory", "cpu", "cpuset", "pids", "devices", "freezer"] {
        let procs = fs::read_to_string(cgroup_file(&bundle, controller, "cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), pid.to_string(), "{controller}");
    }
    runtime.finish("c1");
}

#[test]
fn every_hierarchy_has_the_process() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().save();
    runtime.detach(&bundle, "c1");
    let path = bundle.config()["linux"]["cgroupsPath"].as_str().unwrap();
    let text = fs::read_to_string(format!("/proc/{}/cgroup", runtime.pid("c1"))).unwrap();
    for line in text.lines() {
        assert_eq!(line.splitn(3, ':').nth(2), Some(path), "{text}");
    }
    runtime.finish("c1");
}

#[test]
fn the_default_path_is_the_containers_name() {
    let runtime = Runtime::new();
    let id = format!("{}-name", runtime.root.tag());
    let bundle = runtime.sleeper().edit(|config| {
        config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    });
    runtime.detach(&bundle.save(), &id);
    let text = fs::read_to_string(format!("/proc/{}/cgroup", runtime.pid(&id))).unwrap();
    assert!(text.lines().all(|line| line.ends_with(&format!("/{id}"))), "{text}");
    runtime.finish(&id);
    assert!(orlop_tests::host::cgroups_named(&id).is_empty());
}

#[test]
fn too_many_processes_are_refused_by_the_kernel() {
    let runtime = Runtime::new();
    let script = "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done 2>/dev/null; jobs | wc -l";
    let bundle = runtime.sh(script).edit(|config| config["linux"]["resources"]["pids"] = json!({"limit": 4}));
    let out = runtime.run(&bundle.save());
    assert!(!out.stdout.contains('8'), "{out}");
    runtime.assert_clean();
}

#[test]
fn a_container_out_of_memory_is_killed() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("x=x; while :; do x=$x$x; done").edit(|config| {
        config["linux"]["resources"]["memory"] = json!({"limit": 8 << 20, "swap": 8 << 20});
    });
    assert_eq!(runtime.run(&bundle.save()).code(), 137);
    runtime.assert_clean();
}

#[test]
fn impossible_limits_are_refused_and_leave_nothing() {
    let runtime = Runtime::new();
    for resources in [
        json!({"cpu": {"cpus": "4000"}}),
        json!({"cpu": {"quota": 1, "period": 1}}),
        json!({"memory": {"limit": 67108864, "swap": 33554432}}),
        json!({"devices": [{"allow": true, "type": "c", "access": ""}]}),
    ] {
        let bundle = runtime.sh("echo ran").edit(|config| config["linux"]["resources"] = resources.clone());
        let out = runtime.run(&bundle.save()).failure();
        assert_eq!(out.stdout, "", "{resources}");
        runtime.assert_clean();
    }
}

#[test]
fn systemd_is_not_here() {
    if std::path::Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let runtime = Runtime::new();
    let bundle =
        runtime.sh("true").edit(|config| config["linux"]["cgroupsPath"] = json!("system.slice:orlop:c1"));
    let bundle = bundle.save();
    let out = runtime
        .cmd()
        .args(["--systemd-cgroup", "run", "-b"])
        .arg(bundle.path())
        .arg("c1")
        .deadline(PATIENCE)
        .run()
        .failure();
    assert!(out.stderr.contains("systemd"), "{out}");
    runtime.assert_clean();
}

#[test]
fn a_group_with_anothers_processes_is_refused() {
    let runtime = Runtime::new();
    // runc only warns until 1.2.
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime.sleeper().save();
    runtime.detach(&bundle, "c1");
    let out = runtime.cmd().args(["run", "-b"]).arg(bundle.path()).arg("c2").run().failure();
    assert!(out.stderr.contains("not empty"), "{out}");
    assert_eq!(runtime.status("c1"), "running");
    runtime.finish("c1");
}

#[test]
fn a_container_starts_within_little_memory() {
    let runtime = Runtime::new();
    // runc takes 2.3 MiB of the container's memory for its own init, crun 0.22, and we 0.19.
    if runtime.is_reference() {
        return;
    }
    let limit = if orlop_tests::host::cgroup_unified() { 1 << 20 } else { 256 << 10 };
    let bundle = runtime.sh("").args(["true"]).edit(|config| {
        config["linux"]["resources"]["memory"] = json!({"limit": limit});
    });
    runtime.run(&bundle.save()).success();
    runtime.assert_clean();
}
