//! On the host's own hierarchies, in groups of our own. Without the right to make any, these tests say so and pass.

use std::fs;
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use serde_json::json;

use super::*;

/// A cgroup that is gone at the end, whatever happens.
struct Fixture {
    hierarchies: Hierarchies,
    paths: CgroupPaths,
    top: CgroupPaths,
}

impl Fixture {
    fn new(name: &str) -> Option<Fixture> {
        if !geteuid().is_root() {
            println!("not root: cgroups of the host are not tested");
            return None;
        }
        let hierarchies = Hierarchies::detect().unwrap();
        let top = format!("/orlop-unit-{}-{name}", std::process::id());
        let path = format!("{top}/inner");
        let paths = Cgroup::plan(&hierarchies, Some(&path), "x").expect("a path of the test's own");
        let top = Cgroup::plan(&hierarchies, Some(&top), "x").expect("a path of the test's own");
        Some(Fixture { hierarchies, paths, top })
    }

    fn create(&self) -> Cgroup {
        Cgroup::create(&self.hierarchies, &self.paths, Part::Whole).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Ok(cgroup) = Cgroup::open(&self.top) {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
    }
}

/// A process that has entered by itself, as a container's first process does.
struct Inside(Child);

impl Inside {
    fn enter(cgroup: &Cgroup, script: &str) -> Inside {
        let mut paths = Vec::new();
        for group in &cgroup.groups {
            let file = if group.is_unified() { "cgroup.procs" } else { "tasks" };
            paths.push(format!("echo 0 > '{}'", group.path.join(file).display()));
        }
        let child = Command::new("/bin/sh").arg("-ec").arg(format!("{}; {script}", paths.join("; "))).spawn();
        let inside = Inside(child.unwrap());
        wait_until(|| cgroup.pids().unwrap().contains(&(inside.0.id() as i32)));
        inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn resources(value: serde_json::Value) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_life() {
    let Some(fixture) = Fixture::new("life") else { return };
    let cgroup = fixture.create();
    let wanted = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 17}, "cpu": {"quota": 50000, "period": 100000},
        "devices": [{"allow": false, "access": "rwm"}]});
    let warnings = cgroup.apply(&resources(wanted), Some(&default_device_rules(|_| false))).unwrap();
    assert!(warnings.is_empty());
    let pids = cgroup.legacy("pids").or(cgroup.unified()).unwrap();
    assert_eq!(pids.read("pids.max").unwrap().trim(), "17");
    if let Some(memory) = cgroup.legacy("memory") {
        assert_eq!(memory.read("memory.limit_in_bytes").unwrap().trim(), (64 << 20).to_string());
        assert!(!cgroup.legacy("cpuset").unwrap().read("cpuset.cpus").unwrap().trim().is_empty());
        let devices = cgroup.legacy("devices").unwrap().read("devices.list").unwrap();
        assert!(devices.contains("c 1:3 rwm") && !devices.contains("a *:*"), "{devices}");
    } else {
        assert_eq!(cgroup.unified().unwrap().read("memory.max").unwrap().trim(), (64 << 20).to_string());
    }

    let mut inside = Inside::enter(&cgroup, "exec sleep 1000");
    let pid = inside.0.id() as i32;
    assert_eq!(cgroup.pids().unwrap(), [pid]);
    assert!(Cgroup::of_process(pid).unwrap().pids().unwrap().contains(&pid));
    let refusal = Cgroup::create(&fixture.hierarchies, &fixture.paths, Part::Whole).unwrap_err();
    assert!(refusal.to_string().contains("not empty: 1 process(es)"), "{refusal}");

    assert!(!cgroup.frozen().unwrap());
    cgroup.freeze().unwrap();
    assert!(cgroup.frozen().unwrap());
    cgroup.thaw().unwrap();
    assert!(!cgroup.frozen().unwrap());
    // Killed although it is frozen, as nobody else could do it.
    cgroup.freeze().unwrap();
    cgroup.kill().unwrap();
    inside.0.wait().unwrap();
    let opened = Cgroup::open(&fixture.paths).unwrap();
    opened.remove().unwrap();
    assert!(fixture.paths.iter().all(|(_, path)| !path.exists()));
    opened.remove().unwrap();
    assert!(Cgroup::open(&fixture.paths).unwrap().pids().unwrap().is_empty());
}

#[test]
fn only_allowed_devices_open_and_new_rules_replace_old_ones() {
    let Some(fixture) = Fixture::new("devices") else { return };
    let cgroup = fixture.create();
    let none = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let opens = |device: &str| {
        // Not for reading, which may take a capability.
        let mut inside = Inside::enter(&cgroup, &format!("sleep 0.05; : >{device}"));
        inside.0.wait().unwrap().success()
    };
    cgroup.apply(&resources(none.clone()), Some(&default_device_rules(|_| false))).unwrap();
    assert!(opens("/dev/null"));
    assert!(!opens("/dev/kmsg"));
    cgroup.apply(&resources(none), Some(&[])).unwrap();
    assert!(!opens("/dev/null"));
    cgroup.apply(&resources(json!({"devices": [{"allow": true, "access": "rwm"}]})), Some(&[])).unwrap();
    assert!(opens("/dev/null") && opens("/dev/kmsg"));
    cgroup.remove().unwrap();
}

#[test]
fn kill_reaches_all_below() {
    let Some(fixture) = Fixture::new("kill") else { return };
    let cgroup = fixture.create();
    let mut inside = Inside::enter(&cgroup, "while :; do sleep 1000 & sleep 0.001; done");
    wait_until(|| cgroup.pids().unwrap().len() > 4);
    cgroup.kill().unwrap();
    inside.0.wait().unwrap();
    wait_until(|| cgroup.pids().unwrap().is_empty());
    cgroup.remove().unwrap();
}

#[test]
fn a_frozen_group_is_refused_and_undone() {
    let Some(fixture) = Fixture::new("frozen") else { return };
    let top = Cgroup::create(&fixture.hierarchies, &fixture.top, Part::Whole).unwrap();
    if top.legacy("freezer").is_none() {
        return;
    }
    top.freeze().unwrap();
    let refusal = Cgroup::create(&fixture.hierarchies, &fixture.paths, Part::Whole).unwrap_err();
    assert!(refusal.to_string().contains("container's cgroup unexpectedly frozen"), "{refusal}");
    assert!(fixture.paths.iter().all(|(_, path)| !path.exists()));
    top.thaw().unwrap();
    top.undo().unwrap();
    assert!(fixture.top.iter().all(|(_, path)| !path.exists()));
}

#[test]
fn limits_are_raised_and_lowered_in_the_order_that_the_kernel_needs() {
    let Some(fixture) = Fixture::new("update") else { return };
    let cgroup = fixture.create();
    let set = |limit: i64, swap: i64| {
        cgroup.apply(&resources(json!({"memory": {"limit": limit, "swap": swap}})), None).unwrap()
    };
    set(32 << 20, 64 << 20);
    set(128 << 20, 256 << 20);
    set(16 << 20, 32 << 20);
    set(64 << 20, -1);
    if let Some(memory) = cgroup.legacy("memory") {
        assert_eq!(memory.read("memory.limit_in_bytes").unwrap().trim(), (64 << 20).to_string());
    }
    cgroup.apply(&resources(json!({"cpu": {"quota": 5000, "period": 10000}})), None).unwrap();
    cgroup.apply(&resources(json!({"cpu": {"quota": 900_000, "period": 1_000_000}})), None).unwrap();
    cgroup.apply(&resources(json!({"cpu": {"quota": 2000, "period": 5000}})), None).unwrap();
    let error = cgroup.apply(&resources(json!({"cpu": {"cpus": "4000"}})), None).unwrap_err();
    assert!(error.to_string().contains("cpuset.cpus"), "{error}");
}

#[test]
fn undo_leaves_what_was_there() {
    let Some(fixture) = Fixture::new("undo") else { return };
    let top = Cgroup::create(&fixture.hierarchies, &fixture.top, Part::Whole).unwrap();
    let inner = fixture.create();
    assert!(fixture.paths.iter().all(|(_, path)| path.is_dir()));
    inner.undo().unwrap();
    assert!(fixture.paths.iter().all(|(_, path)| !path.exists()));
    assert!(fixture.top.iter().all(|(_, path)| path.is_dir()));
    top.remove().unwrap();
}

#[test]
fn figures_and_want_of_memory() {
    let Some(fixture) = Fixture::new("oom") else { return };
    let cgroup = fixture.create();
    cgroup.apply(&resources(json!({"memory": {"limit": 8 << 20, "swap": 8 << 20}})), None).unwrap();
    let mut watch = cgroup.oom_events().unwrap();
    assert!(!watch.take().unwrap());
    // The shell itself holds the memory, so that it is the one to be killed.
    let script = "sleep 0.1; x=$(head -c 4000000 /dev/zero | tr '\\0' x); while :; do x=$x$x; done";
    let mut inside = Inside::enter(&cgroup, script);
    let mut polled = [nix::poll::PollFd::new(watch.as_fd(), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut polled, 20_000u16).unwrap(), 1);
    wait_until(|| watch.take().unwrap());
    let stats = cgroup.stats().unwrap();
    let memory = stats.memory.unwrap();
    assert_eq!(memory.usage.limit, Some(8 << 20));
    assert!(!memory.detail.is_empty());
    assert!(stats.cpu.unwrap().total > 0);
    assert!(stats.pids.unwrap().limit.is_none());
    cgroup.kill().unwrap();
    inside.0.wait().unwrap();
    cgroup.remove().unwrap();
    wait_until(|| watch.take().is_err());
}

#[test]
fn a_processs_entry_is_its_own_doing() {
    let Some(fixture) = Fixture::new("entry") else { return };
    let cgroup = fixture.create();
    let entry = cgroup.entry().unwrap();
    assert_eq!(entry.unified.is_some(), fixture.hierarchies.unified.is_some());
    assert_eq!(entry.tasks.len(), fixture.hierarchies.legacy.len());
    for tasks in &entry.tasks {
        assert!(
            fs::metadata(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&tasks.as_fd())))
                .is_ok()
        );
    }
}
