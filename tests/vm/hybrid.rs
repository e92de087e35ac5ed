//! The systemd cgroup driver where systemd mounts version 1, with version 2 beside it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::Runtime;
use crate::systemd::{cmd, has, names, run};

/// The container's directory in the hierarchy of a controller.
fn directory(pid: i32, controller: &str) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut lines = text.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
    let line =
        lines.find(|line| line[1].split(',').any(|one| one == controller)).expect("a hierarchy of version 1");
    Path::new("/sys/fs/cgroup").join(line[1]).join(line[2].trim_start_matches('/'))
}

#[test]
fn a_scope_has_a_directory_with_its_limits_in_every_hierarchy() {
    let runtime = Runtime::new();
    let (unit, path) = names(&runtime, "orlop-test.slice");
    let bundle = runtime.sleeper().edit(|config| {
        config["linux"]["cgroupsPath"] = json!(path);
        config["linux"]["resources"]["cpu"] = json!({"shares": 512, "quota": 20000, "period": 50000});
        config["linux"]["resources"]["pids"] = json!({"limit": 17});
    });
    run(&runtime, &["--detach"], &bundle.save(), "c1").success();
    let pid = runtime.pid("c1");
    let place = format!("/orlop.slice/orlop-test.slice/{unit}");
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(text.lines().count() > 5 && text.lines().all(|line| line.ends_with(&place)), "{text}");
    has(
        &unit,
        &[
            ("ActiveState", "active"),
            ("Slice", "orlop-test.slice"),
            ("TasksMax", "17"),
            ("CPUShares", "512"),
            ("CPUQuotaPerSecUSec", "400ms"),
            ("DevicePolicy", "strict"),
        ],
    );
    let control = |controller: &str, file: &str| {
        fs::read_to_string(directory(pid, controller).join(file)).unwrap().trim().to_owned()
    };
    assert_eq!((control("pids", "pids.max"), control("cpu", "cpu.shares")), ("17".into(), "512".into()));
    assert_eq!(control("cpu", "cpu.cfs_quota_us"), "20000");
    assert!(control("devices", "devices.list").contains("c 1:3 rwm"));
    cmd(&runtime).args(["update", "--pids-limit", "23", "c1"]).run().success();
    has(&unit, &[("TasksMax", "23")]);
    assert_eq!(control("pids", "pids.max"), "23");
    assert_eq!(runtime.exec("c1", &["echo", "hello"]).success().stdout, "hello\n");
    runtime.call(&["pause", "c1"]).success();
    assert_eq!(control("freezer", "freezer.state"), "FROZEN");
    let freezer = directory(pid, "freezer");
    runtime.finish("c1");
    has(&unit, &[("LoadState", "not-found")]);
    assert!(!freezer.exists());
}
