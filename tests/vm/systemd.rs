//! The systemd cgroup driver, with the system's manager.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use orlop_tests::{Bundle, Cmd, Output, binaries, poll_until};
use serde_json::{Value, json};

use crate::support::{PATIENCE, Runtime, content};

/// A call of the runtime with the systemd driver.
pub fn cmd(runtime: &Runtime) -> Cmd {
    assert!(
        Path::new("/run/systemd/system").is_dir(),
        "systemd is not process 1: `make test-vm` runs this suite"
    );
    runtime.cmd().arg("--systemd-cgroup")
}

pub fn run(runtime: &Runtime, flags: &[&str], bundle: &Bundle, id: &str) -> Output {
    cmd(runtime).arg("run").args(flags).arg("--bundle").arg(bundle.path()).arg(id).run()
}

/// A container's name for systemd, and its path for the configuration.
pub fn names(runtime: &Runtime, slice: &str) -> (String, String) {
    let tag = runtime.root.tag();
    (format!("orlop-{tag}.scope"), format!("{slice}:orlop:{tag}"))
}

/// A unit's properties as systemd tells them; several of one name in one line, sorted.
fn show(unit: &str) -> BTreeMap<String, String> {
    let out = Cmd::new("systemctl").args(["show", unit]).run().success();
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in out.stdout.lines().filter_map(|line| line.split_once('=')) {
        all.entry(name.to_owned()).or_default().push(value.to_owned());
    }
    all.into_iter()
        .map(|(name, mut values)| {
            values.sort();
            (name, values.join(", "))
        })
        .collect()
}

#[track_caller]
pub fn has(unit: &str, expected: &[(&str, &str)]) {
    let shown = show(unit);
    for (name, value) in expected {
        assert_eq!(shown.get(*name).map(String::as_str), Some(*value), "{name} of {unit}");
    }
}

fn control(directory: &Path, file: &str) -> String {
    let path = directory.join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

/// The cgroup of a process, as a directory.
fn cgroup(pid: i32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("a version 2 cgroup");
    Path::new("/sys/fs/cgroup").join(line)
}

fn with_limits(config: &mut Value) {
    config["linux"]["resources"]["memory"] =
        json!({"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20});
    config["linux"]["resources"]["cpu"] =
        json!({"shares": 512, "quota": 20000, "period": 50000, "cpus": "0", "mems": "0"});
    config["linux"]["resources"]["pids"] = json!({"limit": 17});
    config["linux"]["resources"]["unified"] = json!({"memory.high": "50331648"});
}

#[test]
fn a_container_is_a_scope_with_its_limits() {
    let runtime = Runtime::new();
    let (unit, path) = names(&runtime, "orlop-test.slice");
    let bundle =
        runtime.sleeper().edit(|config| config["linux"]["cgroupsPath"] = json!(path)).edit(with_limits);
    run(&runtime, &["--detach"], &bundle.save(), "c1").success();
    let pid = runtime.pid("c1");
    let group = cgroup(pid);
    assert_eq!(group, Path::new("/sys/fs/cgroup/orlop.slice/orlop-test.slice").join(&unit));
    assert_eq!(control(&group, "cgroup.procs"), pid.to_string(), "nobody else is in it");
    has(
        &unit,
        &[
            ("ActiveState", "active"),
            ("Slice", "orlop-test.slice"),
            ("Delegate", "yes"),
            ("MemoryMax", "67108864"),
            ("MemorySwapMax", "33554432"),
            ("MemoryLow", "33554432"),
            ("MemoryHigh", "50331648"),
            ("TasksMax", "17"),
            ("CPUWeight", "59"),
            ("CPUQuotaPerSecUSec", "400ms"),
            ("AllowedCPUs", "0"),
            ("AllowedMemoryNodes", "0"),
            ("DevicePolicy", "strict"),
        ],
    );
    let files = |group: &Path| {
        ["memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpu.weight", "cpuset.cpus"]
            .map(|file| control(group, file))
    };
    let limits = ["67108864", "33554432", "17", "20000 50000", "59", "0"];
    assert_eq!(files(&group), limits);
    Cmd::new("systemctl").arg("daemon-reload").run().success();
    assert_eq!(files(&group), limits, "systemd wants what we want");

    let update = |flags: &[&str]| cmd(&runtime).arg("update").args(flags).arg("c1").run().success();
    update(&["--pids-limit", "23", "--memory", "96m", "--memory-swap", "96m", "--cpu-share", "1024"]);
    has(
        &unit,
        &[("TasksMax", "23"), ("MemoryMax", "100663296"), ("MemorySwapMax", "0"), ("CPUWeight", "100")],
    );
    assert_eq!(control(&group, "pids.max"), "23");
    assert_eq!(control(&group, "memory.max"), "100663296");
    Cmd::new("systemctl").arg("daemon-reload").run().success();
    assert_eq!(control(&group, "pids.max"), "23");

    runtime.call(&["pause", "c1"]).success();
    assert_eq!(control(&group, "cgroup.freeze"), "1");
    runtime.call(&["resume", "c1"]).success();
    runtime.finish("c1");
    assert!(!group.exists());
    has(&unit, &[("LoadState", "not-found")]);
}

#[test]
fn the_default_is_a_scope_of_the_systems_slice() {
    let runtime = Runtime::new();
    let id = runtime.root.tag().to_owned();
    let bundle = runtime.sh("echo ran; exit 7").edit(|config| {
        config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    });
    let bundle = bundle.save();
    let out = run(&runtime, &[], &bundle, &id);
    assert_eq!((out.code(), out.stdout.as_str()), (7, "ran\n"), "{out}");
    let unit = format!("orlop-{id}.scope");
    has(&unit, &[("LoadState", "not-found")]);

    let create = cmd(&runtime).args(["create", "--bundle"]).arg(bundle.path()).arg(&id).run().success();
    assert!(create.stderr.is_empty(), "{create}");
    let group = cgroup(runtime.pid(&id));
    assert_eq!(group, Path::new("/sys/fs/cgroup/system.slice").join(&unit));
    has(&unit, &[("ActiveState", "active")]);
    runtime.call(&["start", &id]).success();
    runtime.wait_for(&id, "stopped");
    runtime.call(&["delete", &id]).success();
    has(&unit, &[("LoadState", "not-found")]);
    assert!(!group.exists());
    runtime.assert_clean();
}

#[test]
fn an_exec_is_in_the_scope_and_devices_stay_forbidden() {
    let runtime = Runtime::new();
    let (unit, path) = names(&runtime, "system.slice");
    let bundle = runtime.sleeper().edit(|config| {
        config["linux"]["cgroupsPath"] = json!(path);
        let capabilities = json!(["CAP_MKNOD"]);
        config["process"]["capabilities"] =
            json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    });
    run(&runtime, &["--detach"], &bundle.save(), "c1").success();
    let opens = "mknod /tmp/$$ c 1 $0; : >/tmp/$$ && echo opened";
    let open = |minor: &str| runtime.exec("c1", &["sh", "-c", opens, minor]);
    for _ in 0..2 {
        assert_eq!(open("3").stdout, "opened\n");
        let kmsg = open("11");
        assert!(kmsg.stdout.is_empty() && kmsg.stderr.contains("not permitted"), "{kmsg}");
        // systemd loads its own program anew; ours stays.
        Cmd::new("systemctl").arg("daemon-reload").run().success();
    }
    let out = runtime.exec("c1", &["sh", "-c", "echo $$; exec sleep 1000 >/dev/null 2>&1 &"]).success();
    assert!(!out.stdout.is_empty());
    let group = cgroup(runtime.pid("c1"));
    poll_until(PATIENCE, "the exec is in the scope", || control(&group, "cgroup.procs").lines().count() == 2);
    runtime.finish("c1");
    has(&unit, &[("LoadState", "not-found")]);
}

/// A container with a cgroup namespace of its own manages groups below its own, as an init system in it would.
#[test]
fn a_scope_is_delegated_to_its_container() {
    let runtime = Runtime::new();
    let (_, path) = names(&runtime, "system.slice");
    let script = "cat /proc/self/cgroup >/seen; cd /sys/fs/cgroup && mkdir one two && echo 0 >one/cgroup.procs && \
                  echo +pids +memory >cgroup.subtree_control && echo 5 >two/pids.max && cat two/pids.max >>/seen; \
                  mv /seen /ready; exec sleep 1000";
    let bundle = runtime.sh(script).edit(|config| {
        config["linux"]["cgroupsPath"] = json!(path);
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        namespaces.push(json!({"type": "cgroup"}));
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        mounts.push(
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}),
        );
    });
    let bundle = bundle.save();
    run(&runtime, &["--detach"], &bundle, "c1").success();
    assert_eq!(content(&bundle.rootfs("/ready")), "0::/\n5\n");
    Cmd::new("systemctl").arg("daemon-reload").run().success();
    let stats = runtime.call(&["ps", "--format", "json", "c1"]).success();
    assert_eq!(stats.stdout.trim().matches(',').count(), 0, "one process, in a group below: {stats}");
    runtime.finish("c1");
}

#[test]
fn a_slice_can_be_a_containers_cgroup() {
    let runtime = Runtime::new();
    let slice = format!("orlop-{}.slice", runtime.root.tag().replace('-', "_"));
    let path = format!("orlop.slice:unused:{slice}");
    let bundle =
        runtime.sleeper().edit(|config| config["linux"]["cgroupsPath"] = json!(path)).edit(with_limits);
    run(&runtime, &["--detach"], &bundle.save(), "c1").success();
    let group = cgroup(runtime.pid("c1"));
    assert_eq!(group, Path::new("/sys/fs/cgroup/orlop.slice").join(&slice));
    has(&slice, &[("ActiveState", "active"), ("TasksMax", "17")]);
    runtime.finish("c1");
    assert!(!group.exists());
}

#[test]
fn a_unit_in_use_is_refused_and_left_alone() {
    let runtime = Runtime::new();
    let (unit, path) = names(&runtime, "system.slice");
    let bundle = runtime.sleeper().edit(|config| config["linux"]["cgroupsPath"] = json!(path)).save();
    run(&runtime, &["--detach"], &bundle, "c1").success();
    let out = run(&runtime, &["--detach"], &bundle, "c2").failure();
    assert!(out.stderr.contains(&unit) && out.stderr.contains("already"), "{out}");
    assert_eq!(runtime.status("c1"), "running");
    has(&unit, &[("ActiveState", "active")]);
    runtime.finish("c1");
}

#[test]
fn what_fails_leaves_no_unit() {
    let runtime = Runtime::new();
    let (unit, path) = names(&runtime, "system.slice");
    let bundle = runtime.sleeper().edit(|config| config["linux"]["cgroupsPath"] = json!(path));
    let missing = bundle.clone().args(["/no/such/program"]).save();
    run(&runtime, &["--detach"], &missing, "c1").failure();
    has(&unit, &[("LoadState", "not-found")]);
    let impossible = bundle.clone().edit(|config| {
        config["linux"]["resources"]["cpu"] = json!({"cpus": "4000"});
    });
    run(&runtime, &["--detach"], &impossible.save(), "c1").failure();
    has(&unit, &[("LoadState", "not-found")]);
    for (path, why) in [("/a/b", "slice:prefix:name"), ("noslice:a:b", "invalid slice name")] {
        let bundle = bundle.clone().edit(|config| config["linux"]["cgroupsPath"] = json!(path)).save();
        let out = run(&runtime, &[], &bundle, "c1").failure();
        assert!(out.stderr.contains(why), "{out}");
    }
    runtime.assert_clean();
}

#[test]
fn annotations_are_properties() {
    let runtime = Runtime::new();
    let (unit, path) = names(&runtime, "system.slice");
    let bundle = runtime.sleeper().edit(|config| config["linux"]["cgroupsPath"] = json!(path));
    let annotated = |name: &str, value: &str| {
        let name = format!("org.systemd.property.{name}");
        bundle.clone().edit(|config| {
            config["annotations"] = json!({name: value, "org.systemd.property.TimeoutStopSec": "uint64 7"});
        })
    };
    run(&runtime, &["--detach"], &annotated("CollectMode", "'inactive-or-failed'").save(), "c1").success();
    has(&unit, &[("TimeoutStopUSec", "7s"), ("CollectMode", "inactive-or-failed")]);
    runtime.finish("c1");
    for (name, value, why) in [
        ("CollectMode", "'open", "value parse error"),
        ("NoSuchProperty", "true", "NoSuchProperty"),
        ("X", "true", "org.systemd.property.X"),
    ] {
        let out = run(&runtime, &["--detach"], &annotated(name, value).save(), "c1").failure();
        assert!(out.stderr.contains(why), "{out}");
        has(&unit, &[("LoadState", "not-found")]);
    }
    runtime.assert_clean();
}

#[test]
fn one_process_is_enough_of_a_limit() {
    let runtime = Runtime::new();
    let (unit, path) = names(&runtime, "system.slice");
    let bundle = runtime.sleeper().edit(|config| {
        config["linux"]["cgroupsPath"] = json!(path);
        config["linux"]["resources"]["pids"] = json!({"limit": 1});
    });
    run(&runtime, &["--detach"], &bundle.save(), "c1").success();
    has(&unit, &[("TasksMax", "1")]);
    assert_eq!(control(&cgroup(runtime.pid("c1")), "pids.max"), "1");
    runtime.exec("c1", &["true"]).failure();
    runtime.finish("c1");
}

/// The unit and the cgroup are the same as runc's for the same configuration.
#[test]
fn the_reference_makes_the_same_unit() {
    let view = |runtime: Runtime| {
        let (unit, path) = names(&runtime, "orlop-same.slice");
        let bundle =
            runtime.sleeper().edit(|config| config["linux"]["cgroupsPath"] = json!(path)).edit(with_limits);
        run(&runtime, &["--detach"], &bundle.save(), "c1").success();
        let names = [
            "Slice",
            "Delegate",
            "DefaultDependencies",
            "MemoryAccounting",
            "CPUAccounting",
            "IOAccounting",
            "TasksAccounting",
            "MemoryMax",
            "MemorySwapMax",
            "MemoryLow",
            "TasksMax",
            "CPUQuotaPerSecUSec",
            "CPUQuotaPeriodUSec",
            "AllowedCPUs",
            "AllowedMemoryNodes",
            "DevicePolicy",
            "DeviceAllow",
        ];
        let mut shown = show(&unit);
        // runc looks up the name of a group of devices, where systemd takes its number too.
        let value = |shown: String| shown.replace("char-pts", "char-136");
        let view = names.map(|name| format!("{name}={}", value(shown.remove(name).unwrap_or_default())));
        runtime.finish("c1");
        view
    };
    assert_eq!(view(Runtime::new()), view(Runtime::reference()));
}

/// podman as it is set up on a machine with systemd: it chooses scope and slice, and asks systemd for them by itself too.
#[test]
fn podman_runs_containers_in_scopes() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper();
    let (root, tag) = (runtime.root.path(), runtime.root.tag());
    let podman = |words: &[&str]| {
        let cmd = Cmd::new(binaries::system("podman"));
        ["root", "runroot", "tmpdir"]
            .iter()
            .fold(cmd, |cmd, name| cmd.arg(format!("--{name}")).arg(root.join(format!("podman-{name}"))))
            .arg("--runtime")
            .arg(binaries::orlop())
            .args(["--cgroup-manager", "systemd", "--events-backend", "none", "--storage-driver", "vfs"])
            .args(words)
    };
    let rootfs = bundle.rootfs("/").display().to_string();
    let limits = ["--network", "none", "--pids-limit", "33", "--memory", "64m", "--rootfs", &rootfs];
    let out = podman(&["run", "--name", tag, "--cgroupns", "host"]).args(limits);
    let out = out.args(["sh", "-c", "cat /proc/self/cgroup; exit 5"]).run();
    assert_eq!(out.code(), 5, "{out}");
    let path =
        out.stdout.trim().strip_prefix("0::/machine.slice/libpod-").expect("a scope of podman's slice");
    assert!(path.ends_with(".scope"), "{out}");

    let second = format!("{tag}-2");
    let id =
        podman(&["run", "--detach", "--name", &second]).args(limits).args(["sleep", "1000"]).run().success();
    let unit = format!("libpod-{}.scope", id.stdout.trim());
    has(&unit, &[("ActiveState", "active"), ("TasksMax", "33"), ("MemoryMax", "67108864")]);
    podman(&["update", "--memory", "80m", &second]).run().success();
    has(&unit, &[("MemoryMax", "83886080")]);
    let group = Path::new("/sys/fs/cgroup/machine.slice").join(&unit);
    assert_eq!(control(&group, "memory.max"), "83886080");
    assert_eq!(podman(&["exec", &second, "sh", "-c", "exit 6"]).run().code(), 6);
    podman(&["pause", &second]).run().success();
    assert_eq!(control(&group, "cgroup.freeze"), "1");
    podman(&["rm", "--force", "--time", "0", tag, &second]).run().success();
    has(&unit, &[("LoadState", "not-found")]);
    assert!(!group.exists());
    runtime.assert_clean();
}
