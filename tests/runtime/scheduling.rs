//! How a container's processes are scheduled: policy, I/O priority, CPUs, memory policy, execution domain, limits, umask.
//!
//! Debian's runc (1.1) knows few of these, so that the tests compare with what the kernel says.

use std::fs;

use orlop_tests::host::cgroup_unified;
use orlop_tests::{Cmd, binaries};
use serde_json::{Value, json};

use super::support::Runtime;

/// What a program of the host says of a process, without the process's id.
fn told(program: &str, args: &[&str]) -> String {
    let out = Cmd::new(binaries::system(program)).args(args).run().success().stdout;
    out.lines().filter_map(|line| line.split_once(": ")).map(|(_, value)| format!("{value}\n")).collect()
}

#[test]
fn every_scheduling_policy() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let deadline = json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 5_000_000, "period": 10_000_000});
    for (scheduler, expected) in [
        (json!({"policy": "SCHED_OTHER", "nice": 7}), "SCHED_OTHER\n0\n"),
        (json!({"policy": "SCHED_BATCH", "nice": -3}), "SCHED_BATCH\n0\n"),
        (json!({"policy": "SCHED_IDLE"}), "SCHED_IDLE\n0\n"),
        (json!({"policy": "SCHED_FIFO", "priority": 5}), "SCHED_FIFO\n5\n"),
        (json!({"policy": "SCHED_RR", "priority": 99}), "SCHED_RR\n99\n"),
        (
            json!({"policy": "SCHED_RR", "priority": 2, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
            "SCHED_RR|SCHED_RESET_ON_FORK\n2\n",
        ),
        (deadline, "SCHED_DEADLINE\n0\n1000000/5000000/10000000\n"),
    ] {
        let bundle = runtime.sleeper().edit(|config| {
            config["process"]["scheduler"] = scheduler.clone();
            if !cgroup_unified() {
                // A kernel with groups of realtime processes gives them no time unless it is asked, and only below a group that has.
                config["linux"]["cgroupsPath"] = json!(format!("/{}", runtime.root.tag()));
                config["linux"]["resources"]["cpu"] =
                    json!({"realtimePeriod": 1_000_000, "realtimeRuntime": 10_000});
            }
        });
        runtime.detach(&bundle.save(), "c1");
        let pid = runtime.pid("c1").to_string();
        let found = told("chrt", &["-p", &pid]);
        assert!(found.starts_with(expected), "{scheduler}: {found}");
        if let Some(nice) = scheduler["nice"].as_i64() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields = stat.rsplit(')').next().unwrap().split_whitespace();
            assert_eq!(fields.clone().nth(16).unwrap(), nice.to_string());
        }
        runtime.finish("c1");
    }
}

#[test]
fn every_scheduling_flag() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let clamps = fs::read_to_string("/proc/self/sched").unwrap_or_default().contains("uclamp");
    let deadline = |flag: &str| json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 5_000_000, "period": 5_000_000, "flags": [flag]});
    let other = |flag: &str| json!({"policy": "SCHED_OTHER", "flags": [flag]});
    for (scheduler, starts) in [
        (other("SCHED_FLAG_RESET_ON_FORK"), true),
        (deadline("SCHED_FLAG_RECLAIM"), true),
        (deadline("SCHED_FLAG_DL_OVERRUN"), true),
        (other("SCHED_FLAG_KEEP_POLICY"), true),
        (other("SCHED_FLAG_KEEP_PARAMS"), true),
        (other("SCHED_FLAG_UTIL_CLAMP_MIN"), clamps),
        (other("SCHED_FLAG_UTIL_CLAMP_MAX"), clamps),
        (other("SCHED_FLAG_NO_SUCH"), false),
    ] {
        let bundle = runtime.sh("echo ran").edit(|config| config["process"]["scheduler"] = scheduler.clone());
        let out = runtime.run(&bundle.save());
        assert_eq!(out.stdout, if starts { "ran\n" } else { "" }, "{scheduler}: {out}");
        runtime.assert_clean();
    }
}

#[test]
fn input_and_output_priorities() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    for (class, level, expected) in [
        ("IOPRIO_CLASS_RT", 3, "realtime: prio 3"),
        ("IOPRIO_CLASS_BE", 6, "best-effort: prio 6"),
        ("IOPRIO_CLASS_IDLE", 0, "idle"),
    ] {
        let priority = json!({"class": class, "priority": level});
        let bundle = runtime.sleeper().edit(|config| config["process"]["ioPriority"] = priority);
        runtime.detach(&bundle.save(), "c1");
        let pid = runtime.pid("c1").to_string();
        let found = Cmd::new(binaries::system("ionice")).args(["-p", &pid]).run().success();
        assert_eq!(found.stdout.trim(), expected);
        assert_eq!(runtime.exec("c1", &["ionice"]).success().stdout.trim(), expected);
        runtime.finish("c1");
    }
}

#[test]
fn a_joining_process_is_scheduled_as_its_own_configuration_says_or_the_containers() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime.sleeper().edit(|config| {
        config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 4});
        config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 5});
        config["process"]["user"]["umask"] = json!(0o27);
        config["linux"]["personality"] = json!({"domain": "LINUX32"});
        config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    });
    let bundle = bundle.save();
    runtime.detach(&bundle, "c1");
    let file = runtime.root.join("process.json");
    // Field 18 is the nice value, 41 the policy; SCHED_BATCH is 3, SCHED_IDLE 5 (sched(7)).
    let script = "cut -d' ' -f19,41 /proc/self/stat; ionice; umask; uname -m; sed 1q /proc/self/numa_maps | cut -d' ' -f2";
    let mut own = bundle.config()["process"].clone();
    for member in ["scheduler", "ioPriority"] {
        own.as_object_mut().unwrap().remove(member);
    }
    own["user"] = json!({"uid": 0, "gid": 0});
    own["args"] = json!(["sh", "-c", script]);
    let run = |process: &Value| {
        fs::write(&file, process.to_string()).unwrap();
        runtime.cmd().args(["exec", "--process"]).arg(&file).arg("c1").run().success().stdout
    };
    assert_eq!(run(&own), "4 3\nbest-effort: prio 5\n0027\ni686\nbind:0\n");
    own["scheduler"] = json!({"policy": "SCHED_IDLE"});
    own["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    own["user"]["umask"] = json!(0o77);
    assert_eq!(run(&own), "0 5\nidle\n0077\ni686\nbind:0\n");
    runtime.finish("c1");
}

#[test]
fn cpus_of_joining_processes() {
    let runtime = Runtime::new();
    if runtime.is_reference() || fs::read_to_string("/sys/devices/system/cpu/online").unwrap().trim() == "0" {
        return;
    }
    let bundle = runtime
        .sleeper()
        .edit(|config| config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"}))
        .save();
    runtime.detach(&bundle, "c1");
    let allowed = |pid: &str| told("taskset", &["-cp", pid]);
    // It is for those alone.
    assert_eq!(allowed(&runtime.pid("c1").to_string()), allowed("1"));
    assert_eq!(runtime.exec("c1", &["taskset", "-p", "1"]).code(), 0);
    let list = ["sh", "-c", "grep Cpus_allowed_list /proc/self/status | cut -f2"];
    assert_eq!(runtime.exec("c1", &list).success().stdout, "1\n");
    let file = runtime.root.join("process.json");
    let mut own = bundle.config()["process"].clone();
    own["args"] = json!(list);
    let mut run = |affinity: Value| {
        own["execCPUAffinity"] = affinity;
        fs::write(&file, own.to_string()).unwrap();
        runtime.cmd().args(["exec", "--process"]).arg(&file).arg("c1").run()
    };
    assert_eq!(run(json!({"initial": "0"})).success().stdout, "0\n");
    assert_eq!(run(json!({"initial": "1", "final": "0"})).success().stdout, "0\n");
    assert_eq!(run(json!({"final": "1-1"})).success().stdout, "1\n");
    run(json!({"final": "x"})).failure();
    let refused = run(json!({"final": "1000"})).failure();
    assert!(refused.stderr.contains("error setting final CPU affinity"), "{refused}");
    runtime.finish("c1");
}

#[test]
fn a_container_does_not_inherit_the_callers_cpus() {
    let runtime = Runtime::new();
    // runc learnt this in 1.4.
    if runtime.is_reference() {
        return;
    }
    let bundle = runtime.sh("grep Cpus_allowed_list /proc/self/status").save();
    let everywhere = runtime.output(&bundle);
    let out = Cmd::new(binaries::system("taskset"))
        .args(["-c", "0"])
        .arg(binaries::orlop())
        .arg("--root")
        .arg(runtime.state_dir())
        .args(["run", "-b"])
        .arg(bundle.path())
        .arg("c1")
        .run()
        .success();
    assert_eq!(out.stdout, everywhere);
    runtime.assert_clean();
}

#[test]
fn every_memory_policy() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    for (policy, shown) in [
        (json!({"mode": "MPOL_DEFAULT"}), "default"),
        (json!({"mode": "MPOL_BIND", "nodes": "0"}), "bind:0"),
        (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}), "bind=static:0"),
        (json!({"mode": "MPOL_BIND", "nodes": "0-0", "flags": ["MPOL_F_RELATIVE_NODES"]}), "bind=relative:0"),
        (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}), "bind"),
        (json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}), "interleave:0"),
        (json!({"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0"}), "weighted interleave:0"),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), "prefer:0"),
        (json!({"mode": "MPOL_PREFERRED_MANY", "nodes": "0"}), "prefer (many):0"),
        (json!({"mode": "MPOL_LOCAL"}), "local"),
    ] {
        let bundle = runtime
            .sh("sed 1q /proc/self/numa_maps | cut -d' ' -f2-")
            .edit(|config| config["linux"]["memoryPolicy"] = policy.clone());
        let found = runtime.output(&bundle.save());
        assert!(found.starts_with(shown), "{policy}: {found}");
    }
    for policy in [
        json!({"mode": "MPOL_BIND"}),
        json!({"mode": "MPOL_LOCAL", "nodes": "0"}),
        json!({"mode": "MPOL_BIND", "nodes": "x"}),
        json!({"mode": "MPOL_NO_SUCH"}),
        json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NO_SUCH"]}),
        json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}),
    ] {
        let bundle = runtime.sh("echo ran").edit(|config| config["linux"]["memoryPolicy"] = policy.clone());
        assert_eq!(runtime.run(&bundle.save()).failure().stdout, "", "{policy}");
    }
    runtime.assert_clean();
}

#[test]
fn what_no_scheduler_takes_is_refused() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    for (member, value, words) in [
        ("scheduler", json!({"policy": "SCHED_NO_SUCH"}), "SCHED_NO_SUCH"),
        ("scheduler", json!({"policy": "SCHED_ISO"}), ""),
        ("scheduler", json!({"policy": "SCHED_OTHER", "nice": 20}), "scheduler.nice"),
        ("scheduler", json!({"policy": "SCHED_OTHER", "priority": 1}), "scheduler.priority"),
        (
            "scheduler",
            json!({"policy": "SCHED_FIFO", "priority": 1, "runtime": 1}),
            "runtime/deadline/period",
        ),
        ("scheduler", json!({"policy": "SCHED_FIFO", "priority": 100}), "scheduler"),
        ("ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), "8"),
        ("ioPriority", json!({"class": "IOPRIO_CLASS_NONE", "priority": 0}), "IOPRIO_CLASS_NONE"),
        ("execCPUAffinity", json!({"initial": "a"}), ""),
    ] {
        let bundle = runtime.sh("echo ran").edit(|config| config["process"][member] = value.clone());
        let out = runtime.run(&bundle.save()).failure();
        assert!(out.stdout.is_empty() && out.stderr.contains(words), "{value}: {out}");
        runtime.assert_clean();
    }
}

#[test]
fn every_resource_limit() {
    let runtime = Runtime::new();
    let names = [
        ("RLIMIT_AS", "Max address space"),
        ("RLIMIT_CORE", "Max core file size"),
        ("RLIMIT_CPU", "Max cpu time"),
        ("RLIMIT_DATA", "Max data size"),
        ("RLIMIT_FSIZE", "Max file size"),
        ("RLIMIT_LOCKS", "Max file locks"),
        ("RLIMIT_MEMLOCK", "Max locked memory"),
        ("RLIMIT_MSGQUEUE", "Max msgqueue size"),
        ("RLIMIT_NICE", "Max nice priority"),
        ("RLIMIT_NOFILE", "Max open files"),
        ("RLIMIT_NPROC", "Max processes"),
        ("RLIMIT_RSS", "Max resident set"),
        ("RLIMIT_RTPRIO", "Max realtime priority"),
        ("RLIMIT_RTTIME", "Max realtime timeout"),
        ("RLIMIT_SIGPENDING", "Max pending signals"),
        ("RLIMIT_STACK", "Max stack size"),
    ];
    // The hard limit is the caller's where it may not be raised; high enough for the program to run.
    let soft = |index: usize| if index == 8 || index == 12 { 0 } else { 900 + index as u64 };
    let big = ["RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_FSIZE", "RLIMIT_RTTIME"];
    let value = |index: usize, name: &str| if big.contains(&name) { 1 << 30 } else { soft(index) };
    let bundle = runtime.sh("cat /proc/self/limits").edit(|config| {
        let limits = names.iter().enumerate().map(
            |(index, (name, _))| json!({"type": name, "soft": value(index, name), "hard": value(index, name)}),
        );
        config["process"]["rlimits"] = limits.collect();
    });
    let table = runtime.output(&bundle.save());
    for (index, (name, shown)) in names.iter().enumerate() {
        let row = table.lines().find(|line| line.starts_with(shown)).unwrap();
        let found: Vec<_> = row[shown.len()..].split_whitespace().take(2).collect();
        let wanted = value(index, name).to_string();
        assert_eq!(found, [&wanted, &wanted], "{name}");
    }
    for limits in [
        json!([{"type": "RLIMIT_NO_SUCH", "soft": 1, "hard": 1}]),
        json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_CPU", "soft": 2, "hard": 2}]),
    ] {
        // Debian's runc takes the last of two.
        if !runtime.is_reference() || limits.as_array().unwrap().len() == 1 {
            let bundle = runtime.sh("true").edit(|config| config["process"]["rlimits"] = limits);
            runtime.run(&bundle.save()).failure();
        }
    }
    runtime.assert_clean();
}
